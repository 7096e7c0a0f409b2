"""Figures that others published: GPUs, the sizes of MIND, memory and times to check the planner against.

Each has its source. What the planner's `Assumptions` were read off is marked, so that it is not taken for a check.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from mindlab.finetune.plan import (
    GIB,
    MODELS,
    Architecture,
    Assumptions,
    Gpu,
    Reading,
    Training,
    architecture_of,
    micro_batch_seconds,
    scoring_memory,
    scoring_seconds,
    training_memory,
)

A100 = "NVIDIA A100 Tensor Core GPU datasheet"
# Dense tensor-core peaks; NVIDIA prints twice as much where it counts 2:4 sparsity. GeForce: with float32 accumulation.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("H100-SXM", 989.4e12, 80 * GIB, 3350e9, "NVIDIA H100 Tensor Core GPU datasheet"),
        Gpu("A100-80GB", 312e12, 80 * GIB, 2039e9, A100),
        Gpu("A100-40GB", 312e12, 40 * GIB, 1555e9, A100),
        Gpu("L40S", 362.05e12, 48 * GIB, 864e9, "NVIDIA L40S datasheet"),
        Gpu("RTX-4090", 165.2e12, 24 * GIB, 1008e9, "NVIDIA Ada GPU architecture, whitepaper 2.1"),
        Gpu("RTX-3090", 71e12, 24 * GIB, 936e9, "NVIDIA Ampere GA102 GPU architecture, whitepaper 2"),
        Gpu("V100-32GB", 125e12, 32 * GIB, 900e9, "NVIDIA V100 Tensor Core GPU datasheet (SXM2)", False),
        Gpu("T4", 65e12, 16 * GIB, 320e9, "NVIDIA T4 Tensor Core GPU datasheet", False),
    )
}


@dataclass(frozen=True)
class MindSize:
    """How large a MIND is: what scales the records of a sample, and what is to be scored."""

    name: str
    train_impressions: int
    train_users: int
    test_impressions: int  # of dev
    test_candidates: int
    submission_impressions: int = (
        0  # of MIND's own test split, whose candidates are not published: as many as dev's
    )


# Counted in the files, by several reports that agree (data/README.md); MINDlarge's test split from its leaderboard's set.
MIND = (
    MindSize("MINDsmall", 156_965, 50_000, 73_152, 2_740_998),
    MindSize("MINDlarge", 2_232_748, 711_222, 376_471, 14_085_557, 2_370_727),
)


@dataclass(frozen=True)
class Check:
    """A published figure beside what the planner gives for the same case."""

    what: str
    unit: str
    published: float
    predicted: float
    source: str
    is_calibration: bool = False  # the planner's assumption was read off this very figure

    @property
    def error(self) -> float:
        """Predicted over published, less one."""
        return self.predicted / self.published - 1

    def shown(self, value: float) -> str:
        """Return a value as the table shows it."""
        return f"{value:,.0f}" if self.unit == "" else f"{value:.3g}"


def llama2(name: str, hidden: int, ffn: int, layers: int, heads: int) -> Architecture:
    """Return a Llama 2, whose every head has keys and values of its own."""
    config = {
        "model_type": "llama", "vocab_size": 32000, "hidden_size": hidden, "intermediate_size": ffn,
        "num_hidden_layers": layers, "num_attention_heads": heads,
    }  # fmt: skip
    return architecture_of(config, name)


def qwen(name: str, hidden: int, ffn: int, layers: int, vocabulary: int) -> Architecture:
    """Return a Qwen (the first), which has one matrix for q, k and v and the names c_attn, c_proj, w1, w2."""
    linears = {
        "c_attn": (hidden, 3 * hidden), "c_proj": (hidden, hidden), "w1": (hidden, ffn), "w2": (hidden, ffn),
        "mlp.c_proj": (ffn, hidden),
    }  # fmt: skip
    heads = hidden // 128
    return Architecture(name, vocabulary, hidden, ffn, layers, heads, heads, 128, linears, biases=3 * hidden)


QWEN = "QwenLM/Qwen, README, Profiling of Memory and Speed"
QWENS = {
    "1.8B": qwen("Qwen-1.8B", 2048, 5504, 24, 151936),
    "7B": qwen("Qwen-7B", 4096, 11008, 32, 151936),
    "14B": qwen("Qwen-14B", 5120, 13696, 40, 152064),
}
# Tokens of a record, GB, seconds an update of 8 records: LoRA of rank 64 on all matrices, one A100-80GB, checkpointing.
QWEN_LORA = {
    "1.8B": ((256, 6.7, 1.0), (1024, 8.4, 1.1), (4096, 16.2, 3.3)),
    "7B": ((256, 20.1, 1.2), (1024, 21.5, 2.8), (2048, 23.8, 5.2), (8192, 36.6, 21.3)),
    "14B": ((256, 34.6, 1.6), (1024, 35.3, 4.4), (8192, 55.2, 36.0)),
}
# The same with weights in 4 bits by GPTQ, whose kernels are others than those of bitsandbytes.
QWEN_QLORA = {
    "7B": ((256, 11.5, 3.0), (1024, 12.3, 3.5), (8192, 23.5, 22.3)),
    "14B": ((256, 18.7, 5.3), (1024, 18.9, 8.2), (8192, 27.9, 38.3)),
}
LITGPT = "Lightning-AI/litgpt, tutorials/resource-tables.md"
# Rank 8 on q and v, records of 1,304 tokens at most, no checkpointing, one A100-40GB: the batch, then for bf16 and for
# nf4 with double quantisation GB allocated (1e9 bytes) and minutes for 1,000 micro-batches (of unpublished mean length).
LITGPT_LORA = (
    (llama2("Llama-2-7B", 4096, 11008, 32, 32), 1, (21.30, 2.36), (13.84, 3.83)),
    (llama2("Llama-2-7B", 4096, 11008, 32, 32), 2, (29.07, 2.52), None),
    (llama2("Llama-2-13B", 5120, 13824, 40, 40), 1, (38.12, 3.19), (22.55, 6.55)),
)
GLM = "THUDM/GLM-4, inference/README.md"
# Input tokens, GB, seconds to the first token; GLM-4-9B in bf16 on one H100-80GB.
GLM_PREFILL = ((1000, 19, 0.05), (8000, 25, 0.39), (32000, 31, 2.29))


def checks(assume: Assumptions) -> Iterator[Check]:
    """Yield every published figure with the planner's, in the order of the document."""
    glm = MODELS["glm-4-9b-chat-hf"]
    log = "LLaMA-Factory's log in its issue 5025"
    yield Check("parameters of GLM-4-9B-Chat", "", 9_399_951_360, glm.parameters, log)
    yield Check("parameters of Qwen-7B", "", 7_721_324_544, QWENS["7B"].parameters, "metadata of its weights")
    newer = MODELS["GLM-4-9B-0414"]
    finetune = "THUDM/GLM-4, finetune/README.md; record length not given, 1,024 taken"
    for bits, method, per_parameter in ((16, "LoRA", 2), (4, "QLoRA", 0.5)):
        total = training_memory(newer, Training(bits=bits), assume)["total"]
        if bits == 16:
            yield Check("LoRA of GLM-4-9B-0414 by LLaMA-Factory, memory", "GB", 22, total / GIB, finetune)
        rule = f"{per_parameter:g} GB for 1e9 parameters: LLaMA-Factory, README, Hardware Requirement"
        billions = newer.parameters / 1e9
        yield Check(
            f"{method} of GLM-4-9B-0414, memory", "GB (rule)", per_parameter * billions, total / GIB, rule
        )

    a100 = GPUS["A100-80GB"]
    for bits, table in ((16, QWEN_LORA), (4, QWEN_QLORA)):
        for size, rows in table.items():
            for tokens, memory, seconds in rows:
                training = Training(rank=64, cutoff_len=tokens, bits=bits)
                what = f"{'LoRA' if bits == 16 else 'Q-LoRA (GPTQ)'} of Qwen-{size}, 1 x {tokens:,} tokens"
                total = training_memory(QWENS[size], training, assume)["total"]
                yield Check(f"{what}, memory", "GB", memory, total / GIB, QWEN)
                each = micro_batch_seconds(QWENS[size], training, a100, assume, tokens, tokens**2 / 2)
                is_source = bits == 16 and (size, tokens) in (("7B", 1024), ("1.8B", 256))
                yield Check(f"{what}, update of 8", "s", seconds, 8 * each, QWEN, is_source)
    for arch, batch, plain, quantised in LITGPT_LORA:
        training = Training(batch, 1, 8, "q_proj,v_proj", cutoff_len=1304, has_checkpointing=False)
        for bits, row in ((16, plain), (4, quantised)):
            if row:
                what = f"{'LoRA' if bits == 16 else 'QLoRA'} of {arch.name}, {batch} x 1,304 tokens, memory"
                one = replace(training, bits=bits)
                total = training_memory(arch, one, replace(assume, overhead=0))["total"]  # allocated alone
                yield Check(what, "GB", row[0], total / 1e9, LITGPT)
        if quantised:
            each = [
                micro_batch_seconds(arch, replace(training, bits=bits), GPUS["A100-40GB"], assume, 1, 1)
                for bits in (16, 4)
            ]
            more = (quantised[1] - plain[1]) * 60 / 1000
            yield Check(
                f"what 4 bits add to a micro-batch of {arch.name}", "s", more, each[1] - each[0], LITGPT
            )

    h100 = GPUS["H100-SXM"]
    for tokens, memory, seconds in GLM_PREFILL:
        prompt = Reading("prompt", tokens, 0, 1, tokens**2 / 2, 0, 1)
        total = scoring_memory(glm, assume, tokens, prefix=0, kept=tokens, scored_rows=1)["total"]
        yield Check(
            f"GLM-4-9B reads {tokens:,} tokens", "s", seconds, scoring_seconds(glm, prompt, h100, assume), GLM
        )
        yield Check(f"GLM-4-9B reads {tokens:,} tokens, memory", "GB", memory, total / GIB, GLM)
    one = Reading("token", 0, 0, 1, 0, 0, 0, passes=0, generated=1)
    yield Check("GLM-4-9B writes a token", "s", 1 / 44.4, scoring_seconds(glm, one, h100, assume), GLM, True)
    yield Check(
        "Qwen-7B writes a token, A100", "s", 1 / 40.93, scoring_seconds(QWENS["7B"], one, a100, assume),
        "QwenLM/Qwen, README, Inference Performance",
    )  # fmt: skip
