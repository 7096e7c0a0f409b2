"""Estimate memory and hours of LoRA and QLoRA training and of scoring, from a model's shape and token counts.

Pure arithmetic: nothing here loads a model or needs a GPU. docs/planning.md has the formulas with their sources and
compares what they give with published figures; tests/test_plan.py holds the counts of parameters, operations and
stored activations equal to those of real models. Bytes and seconds throughout, GiB = 2**30 bytes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mindlab.common.errors import UserError
from mindlab.common.files import read_json

GIB = 2**30
BF16, FP32 = 2, 4
NF4 = (
    4 + 8 / 64 + 32 / (64 * 256)
) / 8  # bytes a weight: 4 bits, an 8-bit scale for 64, a float for 256 scales
LORA_STATE = 4 * FP32  # a trained weight, its gradient and Adam's two moments, all float32 in LLaMA-Factory
LOSS = BF16 + 3 * FP32  # bytes a logit at the peak: bf16, its float copy, log-softmax and gradient (measured)
KEPT_TOKENS, HEAD_ROWS = 4096, 1024  # of the scoring engine on a GPU (`mindlab.llm.hf`; held equal by a test)
DEQUANTISED = NF4 + 2 * BF16  # bytes moved to use a 4-bit weight once: read, written as bf16, read again


@dataclass(frozen=True)
class Assumptions:
    """What no formula gives: three read off a published figure each (docs/planning.md says which), three guessed."""

    utilisation: float = (
        0.40  # share of the peak that the counted operations reach, recomputation counted too
    )
    bandwidth: float = 0.50  # share of the memory bandwidth reached where weights are dequantised
    launch_train: float = (
        1.6e-3  # seconds at least for one layer in one pass of training: its kernels are launched
    )
    launch_score: float = 0.56e-3  # the same for scoring: no gradients, adapter merged
    overhead: float = 1.0 * GIB  # CUDA context, cuBLAS workspace, what the allocator cannot use
    network: float = 10e9  # bytes a second between any two GPUs, for the adapter's gradients

    def with_launches(self, times: float) -> "Assumptions":
        """Return these assumptions for a processor that takes `times` as long to launch a kernel."""
        launches = {"launch_train": self.launch_train * times, "launch_score": self.launch_score * times}
        return replace(self, **launches)


@dataclass(frozen=True)
class Gpu:
    """A GPU of a datasheet: dense operations a second in bfloat16 (float16 without it), bytes, bytes a second."""

    name: str
    flops: float
    memory: float
    bandwidth: float
    source: str
    has_bf16: bool = True


@dataclass(frozen=True)
class Architecture:
    """The shape of a decoder-only transformer with RMSNorm and a gated feed-forward part."""

    name: str
    vocabulary: int
    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    linears: Mapping[str, tuple[int, int]]  # a layer's weight matrices: name to (inputs, outputs)
    biases: int = 0  # bias terms of a layer
    norms: int = 2  # RMSNorms of a layer
    is_tied: bool = False  # the output layer is the embedding

    @property
    def layer_weights(self) -> int:
        """Weights of all layers' matrices: what 4-bit quantisation covers and what a token is multiplied with."""
        return self.layers * sum(n * m for n, m in self.linears.values())

    @property
    def head_weights(self) -> int:
        """Weights of the output layer, also the size of the embedding."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All parameters, each once."""
        per_layer = self.biases + self.norms * self.hidden
        embeddings = self.head_weights * (1 if self.is_tied else 2)
        return self.layer_weights + self.layers * per_layer + embeddings + self.hidden

    def weight_bytes(self, bits: int = 16) -> float:
        """Return the bytes of the weights; 4 or 8 bits cover the layers' matrices alone, the rest stays bf16."""
        per_weight = {16: BF16, 8: 1, 4: NF4}[bits]
        return self.layer_weights * per_weight + (self.parameters - self.layer_weights) * BF16

    def targets(self, lora_target: str) -> dict[str, tuple[int, int]]:
        """Return the matrices that LLaMA-Factory's lora_target names: "all", or names with commas.

        Raises UserError for a name that the model does not have.
        """
        if lora_target == "all":
            return dict(self.linears)
        names = [name.strip() for name in lora_target.split(",")]
        if unknown := [name for name in names if name not in self.linears]:
            raise UserError(f"lora_target {unknown[0]!r}: {self.name} has {', '.join(self.linears)}")
        return {name: self.linears[name] for name in names}

    def lora_parameters(self, rank: int, lora_target: str = "all") -> int:
        """Return the trained parameters of LoRA: rank * (inputs + outputs) a matrix (Hu et al., 2106.09685)."""
        return self.layers * rank * sum(n + m for n, m in self.targets(lora_target).values())

    def forward_flops(self, tokens: float, pairs: float, logits: float) -> float:
        """Return the operations to read `tokens`: two for each weight and each element of a score or a mix.

        `pairs` are the (query, key) pairs that attention computes, `logits` the places whose logits are wanted.
        """
        attention = 4 * self.layers * self.heads * self.head_size * pairs
        return 2 * self.layer_weights * tokens + 2 * self.head_weights * logits + attention

    def kv_bytes(self, tokens: float) -> float:
        """Return the bytes of the keys and values of `tokens` in bf16."""
        return 2 * self.layers * self.kv_heads * self.head_size * BF16 * tokens

    def activation_bytes(self, rank: int = 0, lora_target: str = "all") -> float:
        """Return what autograd keeps of a token in one layer, under bf16 autocast with float32 LoRA weights.

        After Korthikanti et al. (2205.05198, section 4), without their attention scores, which SDPA does not keep,
        for a gated feed-forward part and frozen weights: float32 inputs of the norms; q, k, v, the mix and the
        log-sum-exp of attention; gate, up and activation; and for each adapted matrix its input and rank numbers.
        """
        q, kv = self.heads * self.head_size, self.kv_heads * self.head_size
        kept = FP32 * self.norms * self.hidden + BF16 * (2 * q + 2 * kv + 3 * self.ffn) + FP32 * self.heads
        adapted = self.targets(lora_target).values() if rank else ()
        return kept + BF16 * sum(inputs + rank for inputs, _ in adapted)


@dataclass(frozen=True)
class Training:
    """What a training YAML of LLaMA-Factory says that costs memory or time."""

    batch: int = 1
    accumulation: int = 8
    rank: int = 8
    target: str = "all"
    epochs: float = 1.0
    max_steps: int = -1
    cutoff_len: int = 1024
    has_checkpointing: bool = True
    bits: int = 16
    is_packed: bool = False


@dataclass(frozen=True)
class Records:
    """Training records: how many, and the tokens of a seeded sample of them."""

    name: str
    count: float
    lengths: np.ndarray  # int (n_sampled,)

    def micro_batch(self, training: Training) -> tuple[float, float, float]:
        """Return (tokens, attention pairs, number) of the micro-batches of one epoch, padded as the collator does.

        A packed row holds cutoff_len tokens; else a row is as long as the longest of its micro-batch.
        """
        lengths = np.minimum(self.lengths, training.cutoff_len)  # the builder shortens to fit
        if training.is_packed:
            n = training.cutoff_len
            rows = self.count * float(lengths.mean()) / n
            return training.batch * n, training.batch * n**2 / 2, rows / training.batch
        rng = np.random.default_rng(0)
        longest = (
            rng.choice(lengths, size=(2000, training.batch)).max(axis=1) if training.batch > 1 else lengths
        )
        n, squares = float(longest.mean()), float((longest.astype(float) ** 2).mean())
        return training.batch * n, training.batch * squares / 2, self.count / training.batch


@dataclass(frozen=True)
class Reading:
    """What the scoring engine reads for one impression, on average over a sample of impressions."""

    format: str
    prefix: float  # tokens of system, question and history that were not kept from an impression before
    candidate: float  # tokens read for each candidate; what several begin with is read once
    candidates: float  # of an impression
    pairs: float  # attention pairs of the prefix
    candidate_pairs: float  # of each candidate, with the prefix and within its line
    scored: float  # places whose logits over the whole vocabulary are made
    passes: float = 1.0
    generated: float = 0.0  # forward passes of one token each
    context: float = 0.0  # tokens of the prefix, read or kept
    sampled: int = 0  # impressions

    @property
    def tokens(self) -> float:
        """Tokens put through the model for one impression."""
        return self.prefix + self.candidate * self.candidates

    @property
    def all_pairs(self) -> float:
        """Attention pairs of one impression."""
        return self.pairs + self.candidate_pairs * self.candidates

    def with_candidates(self, candidates: float, is_cached: bool = False) -> "Reading":
        """Return the reading for another number of candidates, or with every prefix's keys and values kept.

        A candidate is taken to cost what it does on average here, though fewer share fewer beginnings.
        """
        if not self.candidate:  # one question an impression, however many candidates
            return self
        made = replace(self, candidates=candidates, scored=self.scored * candidates / self.candidates)
        return replace(made, prefix=0, pairs=0) if is_cached else made


def training_memory(arch: Architecture, training: Training, assume: Assumptions) -> dict[str, float]:
    """Return the bytes on each GPU at the longest record, by part, and their "total".

    Data parallel training holds all of it on every GPU; the adapter is too small for sharding to pay.
    """
    tokens = training.batch * training.cutoff_len
    layer = arch.activation_bytes(training.rank, training.target) * tokens
    kept = BF16 * arch.hidden * tokens * arch.layers + layer  # layer inputs, and one layer recomputed
    parts = {
        "weights": arch.weight_bytes(training.bits),
        "adapter, gradients, Adam": LORA_STATE * arch.lora_parameters(training.rank, training.target),
        "activations": kept if training.has_checkpointing else layer * arch.layers,
        "logits": LOSS * arch.vocabulary * tokens,
        "overhead": assume.overhead,
    }
    if training.bits < 16:  # one matrix at a time is unpacked
        parts["unpacked weights"] = BF16 * max(n * m for n, m in arch.linears.values())
    return parts | {"total": sum(parts.values())}


def scoring_memory(
    arch: Architecture,
    assume: Assumptions,
    tokens: float,
    prefix: float,
    kept: float = KEPT_TOKENS,
    scored_rows: int = HEAD_ROWS,
) -> dict[str, float]:
    """Return the bytes of scoring with `tokens` in a forward pass after a prefix, by part, and their "total".

    As `mindlab.llm.hf.fitting_tokens` has it: keys and values of the `kept` tokens of earlier prefixes and of this one; in a layer what
    its MLP or its attention to the prefix holds, whichever is more; logits in bf16 and twice as a float copy.
    """
    q, kv = arch.heads * arch.head_size, arch.kv_heads * arch.head_size
    attention = 3 * (q + 2 * kv) * BF16 + arch.heads * prefix * (2 * BF16 + FP32)
    layer = 2 * arch.hidden * BF16 + max(4 * arch.ffn * BF16, attention)
    parts = {
        "weights": arch.weight_bytes(),
        "keys and values": arch.kv_bytes(kept + prefix),
        "activations of a layer": layer * tokens,
        "logits": (BF16 + 2 * FP32) * arch.vocabulary * scored_rows,
        "overhead": assume.overhead,
    }
    return parts | {"total": sum(parts.values())}


def training_flops(arch: Architecture, training: Training, tokens: float, pairs: float) -> float:
    """Return the operations of one micro-batch: forward, gradients, and the layers again where recomputed.

    Frozen weights need the gradient of their input alone, so backward costs what forward does; an adapter's
    weights need both. Hence about 4 operations a weight and token, 6 with checkpointing, not 6 and 8.
    """
    lora = arch.lora_parameters(training.rank, training.target)
    forward = arch.forward_flops(tokens, pairs, tokens) + 2 * lora * tokens
    backward = arch.forward_flops(tokens, 2 * pairs, tokens) + 4 * lora * tokens
    again = arch.forward_flops(tokens, pairs, 0) + 2 * lora * tokens
    return forward + backward + (again if training.has_checkpointing else 0)


def micro_batch_seconds(
    arch: Architecture, training: Training, gpu: Gpu, assume: Assumptions, tokens: float, pairs: float
) -> float:
    """Return the seconds of one micro-batch: arithmetic, or launching its kernels where that takes longer.

    Quantised weights are unpacked before every use, which comes on top.
    """
    passes = 3 if training.has_checkpointing else 2
    compute = training_flops(arch, training, tokens, pairs) / (gpu.flops * assume.utilisation)
    read = passes * arch.weight_bytes(training.bits) / gpu.bandwidth
    moved = passes * DEQUANTISED * arch.layer_weights if training.bits < 16 else 0
    return max(compute, read, passes * arch.layers * assume.launch_train) + moved / (
        gpu.bandwidth * assume.bandwidth
    )


def training_seconds(
    arch: Architecture, training: Training, records: Records, gpu: Gpu, assume: Assumptions, gpus: int = 1
) -> float:
    """Return the seconds of a data parallel training; accumulation is divided by the GPUs to keep the batch.

    With more GPUs than gradient_accumulation_steps the batch grows instead: each GPU reads one micro-batch.
    """
    tokens, pairs, number = records.micro_batch(training)
    accumulation = max(1, training.accumulation // gpus)
    updates = math.ceil(number * training.epochs / (accumulation * gpus))
    if training.max_steps > 0:
        updates = training.max_steps
    gradients = FP32 * arch.lora_parameters(training.rank, training.target)
    exchange = 2 * (gpus - 1) / gpus * gradients / assume.network  # ring all-reduce
    return updates * (
        accumulation * micro_batch_seconds(arch, training, gpu, assume, tokens, pairs) + exchange
    )


def scoring_seconds(
    arch: Architecture, reading: Reading, gpu: Gpu, assume: Assumptions, is_batched: bool = False
) -> float:
    """Return the seconds to score one impression on one GPU.

    The engine scores one impression after the other, so a forward pass takes at least the launch of its kernels
    and the reading of the weights; `is_batched` leaves these bounds out, as if passes were filled with several
    impressions.
    """
    generated = reading.generated * arch.forward_flops(1, reading.tokens, 1)
    operations = arch.forward_flops(reading.tokens, reading.all_pairs, reading.scored)
    rate = gpu.flops * assume.utilisation
    floor = max(arch.layers * assume.launch_score, arch.weight_bytes() / gpu.bandwidth)
    if is_batched:
        return (operations + generated) / rate
    return max(operations / rate, reading.passes * floor) + reading.generated * floor


MOST = 10**9  # of any size in a config.json; the largest vocabulary has some 10**6


def architecture_of(config: Mapping[str, Any], name: str) -> Architecture:
    """Return the shape that a config.json describes, all of its keys given.

    Raises UserError for a model type whose layers are not known here, and for a missing key.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in ("glm", "glm4", "llama", "qwen2"):
        raise UserError(f"{name}: model_type {kind!r}: the planner knows glm, glm4, llama, qwen2")
    try:
        hidden, ffn, heads = (
            config[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads")
        )
        layers, vocabulary = config["num_hidden_layers"], config["vocab_size"]
    except KeyError as error:
        raise UserError(f"{name}: its config.json has no {error}") from None
    kv_heads = config.get("num_key_value_heads") or heads
    for number in (hidden, ffn, heads, layers, vocabulary, kv_heads, config.get("head_dim") or 1):
        if not isinstance(number, int) or not 0 < number < MOST:
            raise UserError(f"{name}: its config.json has {number!r} for a size, expected a whole number")
    size = config.get("head_dim") or hidden // heads
    q, kv = heads * size, kv_heads * size
    linears = {"q_proj": (hidden, q), "k_proj": (hidden, kv), "v_proj": (hidden, kv), "o_proj": (q, hidden)}
    if kind.startswith("glm"):
        linears["gate_up_proj"] = (hidden, 2 * ffn)
    else:
        linears |= {"gate_proj": (hidden, ffn), "up_proj": (hidden, ffn)}
    linears["down_proj"] = (ffn, hidden)
    has_bias = kind == "qwen2" or bool(config.get("attention_bias", kind.startswith("glm")))
    biases = has_bias * (q + 2 * kv) + (kind == "llama") * (
        has_bias * hidden + bool(config.get("mlp_bias", False)) * (2 * ffn + hidden)
    )
    return Architecture(
        name, vocabulary, hidden, ffn, layers, heads, kv_heads, size, linears, biases,
        norms=4 if kind == "glm4" else 2, is_tied=bool(config.get("tie_word_embeddings", False)),
    )  # fmt: skip


# The config.json of zai-org/glm-4-9b-chat-hf and zai-org/GLM-4-9B-0414, which are also transformers' defaults.
GLM4 = {
    "vocab_size": 151552, "hidden_size": 4096, "intermediate_size": 13696, "num_hidden_layers": 40,
    "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128, "attention_bias": True,
    "tie_word_embeddings": False,
}  # fmt: skip
SMOLLM2 = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "tie_word_embeddings": True,
}  # fmt: skip
MODELS = {
    name: architecture_of({"model_type": kind, **config}, name)
    for name, kind, config in (
        ("glm-4-9b-chat-hf", "glm", GLM4),
        ("GLM-4-9B-0414", "glm4", GLM4),
        ("SmolLM2-135M", "llama", SMOLLM2),
    )
}


def find_architecture(name: str) -> Architecture:
    """Return the shape of a model folder (its config.json) or of one of `MODELS`, with or without "owner/".

    Raises UserError for neither.
    """
    path = Path(name) / "config.json"
    if path.is_file():
        return architecture_of(read_json(path, "get the model again"), name)
    known = {key.lower(): arch for key, arch in MODELS.items()}
    if (short := name.rsplit("/", 1)[-1].lower()) not in known:
        raise UserError(f"{name}: no such model folder, and not one of {', '.join(MODELS)}")
    return known[short]


def training_of(settings: Mapping[str, Any]) -> Training:
    """Return what a training YAML says, LLaMA-Factory's defaults where it is silent.

    Raises UserError for a YAML that does not train LoRA.
    """
    if settings.get("finetuning_type", "lora") != "lora":
        raise UserError(f"finetuning_type {settings['finetuning_type']!r}: the planner knows lora")
    target = settings.get("lora_target", "all")
    if not isinstance(target, str):
        raise UserError(f"lora_target: {target!r}: expected names with commas between")

    def number(key: str, default: float, kind: type = int, least: float = 1) -> Any:
        value = settings.get(key)
        value = default if value is None else value
        is_number = isinstance(value, kind | int) and not isinstance(value, bool)
        if not is_number or not least <= value <= MOST:
            what = "a whole number" if kind is int else "a number"
            raise UserError(f"{key}: {value!r}: expected {what}, at least {least:g} and at most {MOST:,}")
        return value

    return Training(
        batch=number("per_device_train_batch_size", 8),
        accumulation=number("gradient_accumulation_steps", 1),
        rank=number("lora_rank", 8),
        target=target,
        epochs=number("num_train_epochs", 3.0, float, 1e-6),
        max_steps=number("max_steps", -1, least=-1),
        cutoff_len=number("cutoff_len", 2048),
        has_checkpointing=not settings.get("disable_gradient_checkpointing", False),
        bits=number("quantization_bit", 16) if settings.get("quantization_bit") else 16,
        is_packed=bool(settings.get("packing") or settings.get("neat_packing")),
    )
