"""What LoRA and QLoRA training and scoring take, before a GPU is rented: memory by formula, hours by measured rates.

Memory follows from the model's shape, which transformers builds without weights; docs/planning.md has the formulas with
their sources. Hours are tokens over a rate that was measured (`RATES`), and nothing finer. Bytes and seconds throughout,
GiB = 2**30 bytes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mindlab.common.errors import UserError
from mindlab.common.files import read_json
from mindlab.data.mind import Mind
from mindlab.finetune.alpaca import BuildOptions
from mindlab.prompts import prompt_of
from mindlab.prompts.base import Source
from mindlab.tasks import TASKS, limit

GIB = 2**30
BF16, FP32 = 2, 4
# Bytes a weight of nf4 with double quantisation: 4 bits, an 8-bit scale for 64 weights, a float for 256 scales.
NF4 = (4 + 8 / 64 + 32 / (64 * 256)) / 8
LORA_STATE = 4 * FP32  # a trained weight, its gradient and Adam's two moments, all float32 in LLaMA-Factory
LOSS = BF16 + 3 * FP32  # bytes a logit at the peak: bf16, its float copy, log-softmax and gradient (measured)
OVERHEAD = 1.0 * GIB  # CUDA context, cuBLAS workspace, what the allocator cannot use (a guess)
KEPT_TOKENS, HEAD_ROWS, TOKENS_A_PASS = 4096, 1024, 8192  # of the scoring engine on a GPU (`mindlab.llm.hf`)
# Memory of a card, in GiB.
GPUS = {
    "H200": 140,
    "H100": 80,
    "A100-80GB": 80,
    "L40S": 48,
    "A100-40GB": 40,
    "RTX-4090": 24,
    "T4": 16,
    "RTX-3060": 12,
}


@dataclass(frozen=True)
class Rate:
    """What was measured of a model of some 9.4 billion parameters."""

    what: str
    tokens_a_second: float
    gpu: str
    source: str


# GLM-4-9B's shape on one H200 in a virtual machine whose processor launches kernels slowly (docs/performance.md), and
# what others published of a model of 7.7 billion, which is faster for being smaller.
RATES = (
    Rate("LoRA", 962 / 5.05, "H200", "benchmarks/gpu.py, updates of 8 short records"),
    Rate("LoRA, packed", 8192 / 3.53, "H200", "benchmarks/gpu.py, updates of 8 rows of 1,024 tokens"),
    Rate("QLoRA", 962 / 6.43, "H200", "benchmarks/gpu.py, updates of 8 short records"),
    Rate("scoring", 479 / 0.165, "H200", "benchmarks/gpu.py, next_click, one impression at a time"),
    Rate("LoRA", 8192 / 2.8, "A100-80GB", "QwenLM/Qwen, README: Qwen-7B, records of 1,024 tokens"),
    Rate("QLoRA", 8192 / 3.5, "A100-80GB", "QwenLM/Qwen, README: Qwen-7B Q-LoRA, records of 1,024 tokens"),
)
# The config.json of zai-org/glm-4-9b-chat-hf and zai-org/GLM-4-9B-0414, which are also transformers' defaults.
GLM4 = {
    "vocab_size": 151552, "hidden_size": 4096, "intermediate_size": 13696, "num_hidden_layers": 40,
    "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128, "attention_bias": True,
    "tie_word_embeddings": False,
}  # fmt: skip
# Impressions of the training and the dev file, counted in the released files (data/README.md).
MIND = {"MINDsmall": (156_965, 73_152), "MINDlarge": (2_232_748, 376_471)}
KNOWN = {"glm-4-9b-chat-hf": ("glm", GLM4), "GLM-4-9B-0414": ("glm4", GLM4)}


@dataclass(frozen=True)
class Shape:
    """A causal model without weights."""

    name: str
    model: Any  # on the meta device

    @property
    def config(self) -> Any:
        """Its sizes."""
        return self.model.config

    @cached_property
    def parameters(self) -> int:
        """All parameters, each once."""
        return sum(one.numel() for one in self.model.parameters())

    @cached_property
    def linears(self) -> dict[str, list[tuple[int, int]]]:
        """The (inputs, outputs) of the layers' matrices, by the name that lora_target calls them by."""
        found: dict[str, list[tuple[int, int]]] = {}
        head = self.model.get_output_embeddings()
        for name, module in self.model.named_modules():
            if hasattr(module, "in_features") and module is not head:
                sizes = module.in_features, module.out_features
                found.setdefault(name.rpartition(".")[2], []).append(sizes)
        return found

    @cached_property
    def layer_weights(self) -> int:
        """Weights of all layers' matrices: what 4-bit quantisation covers."""
        return sum(n * m for sizes in self.linears.values() for n, m in sizes)

    def weight_bytes(self, bits: int = 16) -> float:
        """Return the bytes of the weights; 4 or 8 bits cover the layers' matrices alone, the rest stays bf16."""
        per_weight = {16: BF16, 8: 1, 4: NF4}[bits]
        return self.layer_weights * per_weight + (self.parameters - self.layer_weights) * BF16

    def adapted(self, target: str) -> list[tuple[int, int]]:
        """Return the matrices that LLaMA-Factory's lora_target names: "all", or names with commas.

        Raises UserError for a name that the model does not have.
        """
        names = list(self.linears) if target == "all" else [name.strip() for name in target.split(",")]
        if unknown := [name for name in names if name not in self.linears]:
            raise UserError(f"lora_target {unknown[0]!r}: {self.name} has {', '.join(self.linears)}")
        return [sizes for name in names for sizes in self.linears[name]]

    def lora_parameters(self, rank: int, target: str = "all") -> int:
        """Return the trained parameters of LoRA: rank * (inputs + outputs) a matrix (Hu et al., 2106.09685)."""
        return sum(rank * (n + m) for n, m in self.adapted(target))

    def activation_bytes(self, rank: int = 0, target: str = "all") -> float:
        """Return what autograd keeps of a token in one layer, under bf16 autocast with float32 LoRA weights.

        After Korthikanti et al. (2205.05198, section 4), without their attention scores, which SDPA does not keep,
        for a gated feed-forward part and frozen weights: float32 inputs of the norms; q, k, v, the mix and the
        log-sum-exp of attention; gate, up and activation; and for each adapted matrix its input and rank numbers.
        """
        layers, heads = self.config.num_hidden_layers, self.config.num_attention_heads
        norms = [one for one in self.model.modules() if "Norm" in type(one).__name__]
        norm_width = sum(p.numel() for one in norms for p in one.parameters()) / layers
        q, kv = heads * self.head_size, self.config.num_key_value_heads * self.head_size
        attention = 2 * q + 2 * kv + 3 * self.config.intermediate_size
        kept = FP32 * norm_width + BF16 * attention + FP32 * heads
        adapted = self.adapted(target) if rank else ()
        return kept + BF16 * sum(inputs + rank for inputs, _ in adapted) / layers

    @property
    def head_size(self) -> int:
        """Width of an attention head."""
        return (
            getattr(self.config, "head_dim", None)
            or self.config.hidden_size // self.config.num_attention_heads
        )


def shape_of(model: str) -> Shape:
    """Return the shape of a model folder (its config.json) or of one of `KNOWN`, with or without "owner/".

    Raises UserError for neither, and for a config.json that transformers makes no causal model of.
    """
    path, short = Path(model) / "config.json", model.rsplit("/", 1)[-1]
    if path.is_file():
        sizes = read_json(path, "get the model again")
        kind = sizes.pop("model_type", None)
    elif short in KNOWN:
        kind, sizes = KNOWN[short]
    else:
        raise UserError(f"{model}: no such model folder, and not one of {', '.join(KNOWN)}")
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.for_model(kind, **sizes)
        with torch.device("meta"):
            return Shape(model, AutoModelForCausalLM.from_config(config))
    except Exception as error:  # transformers raises what it likes over a wrong size
        raise UserError(f"{model}: its config.json makes no model ({str(error).splitlines()[0]})") from None


@dataclass(frozen=True)
class Training:
    """What a training YAML of LLaMA-Factory says that costs memory or time, its defaults where it is silent."""

    batch: int = 8
    rank: int = 8
    target: str = "all"
    epochs: float = 3.0
    cutoff_len: int = 2048
    has_checkpointing: bool = True
    bits: int = 16
    is_packed: bool = False

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Training":
        """Return what a YAML says; UserError for one that does not train LoRA, or whose values are no sizes."""
        if settings.get("finetuning_type", "lora") != "lora":
            raise UserError(f"finetuning_type {settings['finetuning_type']!r}: the planner knows lora")
        keys = {
            "batch": "per_device_train_batch_size", "rank": "lora_rank", "epochs": "num_train_epochs",
            "cutoff_len": "cutoff_len", "bits": "quantization_bit", "target": "lora_target",
        }  # fmt: skip
        given = {name: settings[key] for name, key in keys.items() if settings.get(key) is not None}
        for name, value in given.items():
            if not isinstance(value, str if name == "target" else int | float) or (
                name != "target" and value <= 0
            ):
                raise UserError(f"{keys[name]}: {value!r}: expected a positive number, for lora_target names")
        return cls(
            **given,
            has_checkpointing=not settings.get("disable_gradient_checkpointing", False),
            is_packed=bool(settings.get("packing") or settings.get("neat_packing")),
        )

    @property
    def method(self) -> str:
        """The name under which its rate was measured."""
        return ("QLoRA" if self.bits < 16 else "LoRA") + (", packed" if self.is_packed else "")


def training_memory(shape: Shape, training: Training) -> dict[str, float]:
    """Return the bytes on each GPU at the longest record, by part, and their "total"."""
    tokens, layers = training.batch * training.cutoff_len, shape.config.num_hidden_layers
    layer = shape.activation_bytes(training.rank, training.target) * tokens
    kept = BF16 * shape.config.hidden_size * tokens * layers + layer  # layer inputs, and one layer recomputed
    parts = {
        "weights": shape.weight_bytes(training.bits),
        "adapter, gradients, Adam": LORA_STATE * shape.lora_parameters(training.rank, training.target),
        "activations": kept if training.has_checkpointing else layer * layers,
        "logits": LOSS * shape.config.vocab_size * tokens,
        "overhead": OVERHEAD,
    }
    if training.bits < 16:  # one matrix at a time is unpacked
        parts["unpacked weights"] = BF16 * max(n * m for sizes in shape.linears.values() for n, m in sizes)
    return parts | {"total": sum(parts.values())}


def scoring_memory(shape: Shape, prefix: int, tokens: int = TOKENS_A_PASS) -> dict[str, float]:
    """Return the bytes of scoring `tokens` in a pass after a prefix of so many, by part, and their "total".

    As `mindlab.llm.hf.fitting_tokens` has it: keys and values of the kept tokens of earlier prefixes and of this one; in a layer what
    its MLP or its attention to the prefix holds, whichever is more; logits in bf16 and twice as a float copy.
    """
    config = shape.config
    q, kv = config.num_attention_heads * shape.head_size, config.num_key_value_heads * shape.head_size
    attention = 3 * (q + 2 * kv) * BF16 + config.num_attention_heads * prefix * (2 * BF16 + FP32)
    layer = 2 * config.hidden_size * BF16 + max(4 * config.intermediate_size * BF16, attention)
    parts = {
        "weights": shape.weight_bytes(),
        "keys and values": 2 * config.num_hidden_layers * kv * BF16 * (KEPT_TOKENS + prefix),
        "activations of a layer": layer * tokens,
        "logits": (BF16 + 2 * FP32) * config.vocab_size * HEAD_ROWS,
        "overhead": OVERHEAD,
    }
    return parts | {"total": sum(parts.values())}


def training_tokens(
    mind: Mind, form: str, count: Callable[[dict[str, str]], int], *, sampled: int = 400, seed: int = 42
) -> tuple[float, float]:
    """Return the training records of a prompt for an impression of the training file, and the mean tokens of one.

    `count` gives the tokens of a record; they are counted on a seeded sample of `sampled` records.
    """
    prompt, rng = prompt_of(form)(), np.random.default_rng(seed)
    task = next(task for task in TASKS.values() if task.case == prompt.case)
    train = task.splits(mind, seed)["train"]
    source = Source(train, mind.news, prompt.shown(mind.news), BuildOptions(task.name, form), rng)
    made = list(prompt.samples(source))
    tokens = [count(prompt.record(made[at])) for at in limit(len(made), sampled, seed)]
    return len(made) / len(mind.splits["train"]), float(np.mean(tokens))
