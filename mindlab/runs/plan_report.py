"""Put the planner's numbers together and into words: memory, hours, checks, and a billion impressions a day.

Tables are Markdown with padded cells, so that they read the same in a terminal and in docs/planning.md.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mindlab.finetune.plan import (
    GIB,
    Architecture,
    Assumptions,
    Gpu,
    Reading,
    Records,
    Training,
    scoring_memory,
    scoring_seconds,
    training_memory,
    training_seconds,
)
from mindlab.finetune.plan_sources import GPUS, Check, MindSize, checks
from mindlab.prompts import prompt_of
from mindlab.tasks.base import CANDIDATE
from mindlab.tasks.seed import TRAIN_SHARE

FLEETS = (1, 8, 64)  # GPUs
TOKEN_BUDGET = 8192  # new tokens in a pass of the engine on a GPU
BILLION = 1_000_000_000
BUSY = 0.6  # of its time, a fleet that must serve the hours of most traffic (an assumption)
SHORT_LIST = 10  # candidates that a cheap first stage leaves
STORED = Path("data/reference_runs/recipe-seed-2/smollm2-next_topic-base/predictions.parquet")


@dataclass(frozen=True)
class Work:
    """What is to be trained on and scored: one data set."""

    name: str
    records: Sequence[Records]
    readings: Sequence[Reading]  # with this data set's own number of candidates
    impressions: Sequence[int]  # to score, for each reading


def works(
    counted: Sequence[tuple[Records, float, float]], readings: Sequence[Reading], sizes: Sequence[MindSize]
) -> list[Work]:
    """Return the work on MINDs of these sizes, from what was counted on a sample.

    Lists of clicks grow with the readers, everything else with the impressions. The tutorial's format is scored on
    its own test set, a fifth of the training impressions.
    """
    return [
        Work(
            size.name,
            [
                replace(one, count=by_user * size.train_users)
                if prompt_of(one.name).of_users
                else replace(one, count=by_impression * size.train_impressions)
                for one, by_impression, by_user in counted
            ],
            [r.with_candidates(size.test_candidates / size.test_impressions) for r in readings],
            [
                size.train_impressions - int(size.train_impressions * TRAIN_SHARE)
                if prompt_of(r.format).case == CANDIDATE
                else size.test_impressions + size.submission_impressions
                for r in readings
            ],
        )
        for size in sizes
    ]


def make_plan(
    arch: Architecture, training: Training, gpu: Gpu, assume: Assumptions, work: Sequence[Work]
) -> dict[str, Any]:
    """Return memory in bytes and times in hours, as a structure of plain types."""
    methods = {"LoRA": replace(training, bits=16), "QLoRA": replace(training, bits=4)}
    packed = replace(methods["LoRA"], is_packed=True)
    memory = {name: training_memory(arch, one, assume) for name, one in methods.items()}
    memory["scoring"] = scoring_memory(arch, assume, TOKEN_BUDGET, training.cutoff_len)

    def hours(one: Training, records: Records, gpus: int) -> float:
        return training_seconds(arch, one, records, gpu, assume, gpus) / 3600

    return {
        "model": {
            "name": arch.name,
            "parameters": arch.parameters,
            "trained": arch.lora_parameters(training.rank, training.target),
        },
        "gpu": asdict(gpu),
        "assumptions": asdict(assume),
        "training": asdict(training),
        "memory": memory,
        "fits": {name: parts["total"] <= gpu.memory for name, parts in memory.items()},
        "train": [
            {
                "data": one.name,
                "format": records.name,
                "records": records.count,
                "tokens": float(np.minimum(records.lengths, training.cutoff_len).mean()),
                "sampled": len(records.lengths),
                "hours": {name: [hours(how, records, n) for n in FLEETS] for name, how in methods.items()},
                "packed_hours": [hours(packed, records, n) for n in FLEETS],
            }
            for one in work
            for records in one.records
        ],
        "score": [
            {
                "data": one.name,
                "format": r.format,
                "impressions": n_impressions,
                "tokens": r.tokens,
                "prefix": r.prefix,
                "passes": r.passes,
                "sampled": r.sampled,
                "seconds": (each := scoring_seconds(arch, r, gpu, assume)),
                "hours": [each * n_impressions / n / 3600 for n in FLEETS],
                "batched_hours": filled * n_impressions / 3600,
            }
            for one in work
            for r, n_impressions in zip(one.readings, one.impressions, strict=True)
            for filled in [scoring_seconds(arch, r, gpu, assume, is_batched=True)]
        ],
    }


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose cells are padded to line up, numbers to the right.

    >>> print(table(["part", "GiB"], [["weights", "17.5"], ["all", "9"]]))
    | part    |  GiB |
    |:--------|-----:|
    | weights | 17.5 |
    | all     |    9 |
    """
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    is_number = [all(row[i][:1] in "-+<0123456789" for row in rows if row[i]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, is_number, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rule = "|".join(
        f"{'-' * (width + 1)}:" if right else f":{'-' * (width + 1)}"
        for width, right in zip(widths, is_number, strict=True)
    )
    return "\n".join([line(head), f"|{rule}|", *map(line, rows)])


def figure(value: float) -> str:
    """Return a number with as many digits as an estimate deserves.

    >>> [figure(x) for x in (1234.5, 56.7, 4.56, 0.0123, 0.004)]
    ['1,234', '57', '4.6', '0.01', '<0.01']
    """
    if value >= 10:
        return f"{value:,.0f}"
    if value >= 1:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.005 else "<0.01"


def shown(plan: dict[str, Any], what: str, hours: Sequence[float]) -> list[str]:
    """Return hours as cells of a table, "-" where a GPU's memory does not hold the work."""
    return [figure(h) if plan["fits"][what] else "-" for h in hours]


def memory_table(plan: dict[str, Any]) -> str:
    """Return what each GPU holds, by part."""
    memory = plan["memory"]
    names = list(dict.fromkeys(part for parts in memory.values() for part in parts if part != "total"))
    rows = [
        [part, *(f"{parts[part] / GIB:.2f}" if part in parts else "" for parts in memory.values())]
        for part in [*names, "total"]
    ]
    lines = []
    for is_held, verb in ((True, "holds"), (False, "does not hold")):
        if names := [name for name, fits in plan["fits"].items() if fits is is_held]:
            lines.append(
                f"{plan['gpu']['name']} ({plan['gpu']['memory'] / GIB:.0f} GiB) {verb} {', '.join(names)}."
            )
    return "\n\n".join([table(["GiB on each GPU", *memory], rows), " ".join(lines)])


def training_table(plan: dict[str, Any]) -> str:
    """Return the hours of training, "-" where the memory of a GPU does not hold it."""

    head = ["data", "format", "records", "tokens each"]
    head += [f"{name}, {n} GPU{'s' * (n > 1)}" for name in ("LoRA", "QLoRA") for n in FLEETS]
    rows = [
        [
            row["data"], row["format"], f"{row['records']:,.0f}", f"{row['tokens']:,.0f}",
            *shown(plan, "LoRA", row["hours"]["LoRA"]), *shown(plan, "QLoRA", row["hours"]["QLoRA"]),
            *shown(plan, "LoRA", row["packed_hours"][:1]),
        ]
        for row in plan["train"]
    ]  # fmt: skip
    return table([*head, "packed LoRA, 1 GPU"], rows)


def scoring_table(plan: dict[str, Any]) -> str:
    """Return the hours of scoring, and what one impression takes."""
    head = ["data", "format", "impressions", "tokens each", "ms each"]
    head += [f"{n} GPU{'s' * (n > 1)}" for n in FLEETS] + ["1 GPU, filled passes"]
    rows = [
        [
            row["data"], row["format"], f"{row['impressions']:,}", f"{row['tokens']:,.0f}",
            f"{1000 * row['seconds']:.1f}", *shown(plan, "scoring", [*row["hours"], row["batched_hours"]]),
        ]
        for row in plan["score"]
    ]  # fmt: skip
    return table(head, rows)


def gpu_table() -> str:
    """Return the GPUs that the planner knows."""
    rows = [
        [
            gpu.name, f"{gpu.flops / 1e12:,.0f}", "bf16" if gpu.has_bf16 else "fp16", f"{gpu.memory / GIB:.0f}",
            f"{gpu.bandwidth / 1e9:,.0f}", gpu.source,
        ]
        for gpu in GPUS.values()
    ]  # fmt: skip
    return table(["GPU", "TFLOP/s, dense", "in", "GiB", "GB/s", "source"], rows)


def checks_table(found: Sequence[Check]) -> str:
    """Return the published figures beside the planner's."""
    return table(
        ["what", "unit", "published", "predicted", "error", "source"],
        [
            [
                c.what, c.unit, c.shown(c.published), c.shown(c.predicted),
                "assumption" if c.is_calibration else f"{c.error:+.0%}", c.source,
            ]
            for c in found
        ],
    )  # fmt: skip


def checks_summary(found: Sequence[Check]) -> str:
    """Return in one sentence each how far memory and times are off, what was read off a figure left out."""
    parts = []
    for unit, what in (("GB", "Memory"), ("s", "Times")):
        errors = np.array([c.error for c in found if c.unit == unit and not c.is_calibration])
        parts.append(
            f"{what}: {len(errors)} checks, off by {errors.min():+.0%} to {errors.max():+.0%}, "
            f"half of them by {np.median(np.abs(errors)):.0%} or less."
        )
    return " ".join(parts)


def fleet(arch: Architecture, reading: Reading, gpu: Gpu, assume: Assumptions, is_batched: bool) -> float:
    """Return the GPUs that score a billion impressions a day, busy `BUSY` of the time."""
    return BILLION * scoring_seconds(arch, reading, gpu, assume, is_batched) / (86400 * BUSY)


def billion(
    arch: Architecture,
    gpu: Gpu,
    assume: Assumptions,
    size: MindSize,
    readings: Sequence[Reading],
    small: tuple[Architecture, Sequence[Reading]],
    stored: tuple[int, int],
) -> str:
    """Return the table and the paragraph about a billion impressions a day.

    `readings` are those of one impression as in `size`; `small` is a small model and what it reads; `stored` a file of
    predictions in bytes and rows.
    """
    several = [reading for reading in readings if reading.candidate]

    def gpus(reading: Reading, is_batched: bool = True) -> float:
        return fleet(arch, reading, gpu, assume, is_batched)

    rows = [
        [
            reading.format, f"{reading.tokens:,.0f}", f"{gpus(reading, False):,.0f}", f"{gpus(reading):,.0f}",
            f"{gpus(reading.with_candidates(reading.candidates, True)):,.0f}",
            f"{gpus(reading.with_candidates(SHORT_LIST)):,.0f}",
            f"{gpus(reading.with_candidates(SHORT_LIST, True)):,.0f}",
        ]
        for reading in several
    ]  # fmt: skip
    short_list = f"filled, {SHORT_LIST} candidates"
    head = ["format", "tokens each", "one at a time", "filled passes", "filled, prefix kept"]
    head += [short_list, f"{short_list}, prefix kept"]
    by_name = {reading.format: reading for reading in several}
    long, short = by_name["pointwise"], by_name["next_topic"]
    lists = by_name["next_click"]
    small_gpus = {r.format: fleet(small[0], r, gpu, assume, True) for r in small[1]}
    n_bytes, n_rows = stored
    candidates = size.test_candidates / size.test_impressions
    day = BILLION * candidates
    split = size.submission_impressions or size.test_impressions
    text = f"""\
A billion impressions a day is {BILLION / 86400:,.0f} a second, {BILLION / split:,.0f} times the whole test split of \
{size.name} every day. With {candidates:.0f} candidates each, `pointwise` reads {BILLION * long.tokens:.1e} tokens: the \
engine, one impression after the other, would need {gpus(long, False):,.0f} {gpu.name} for {arch.name} \
({BUSY:.0%} busy), of whose tokens {1 - long.prefix / long.tokens:.0%} belong to candidates and not to the reader. `next_click` needs \
{gpus(lists, False):,.0f} and `next_topic`, which reads each topic once, {gpus(short, False):,.0f}. They take \
{lists.passes:.1f} and {short.passes:.1f} forward passes an impression, one for a prefix that was not kept and one for the candidates, \
and each lasts at least the launch of its kernels: passes filled with several impressions bring it to \
{gpus(lists):,.0f} and {gpus(short):,.0f}. Keeping the keys and values of every reader, not of the latest alone, takes \
{arch.kv_bytes(lists.context) / 1e6:.1f} MB each ({arch.kv_bytes(lists.context) * 1e6 / 1e12:.1f} TB \
for a million readers) and saves at most the prefix, {lists.prefix / lists.tokens:.0%} of `next_click` and \
{short.prefix / short.tokens:.0%} of `next_topic`, and only until the reader's next click changes it. A cheap first stage \
that leaves {SHORT_LIST} candidates saves more where candidates are the cost: `next_click` goes from {gpus(lists):,.0f} to \
{gpus(lists.with_candidates(SHORT_LIST)):,.0f} GPUs, with the prefix kept to \
{gpus(lists.with_candidates(SHORT_LIST, True)):,.0f}. The size of the model is the larger lever: {small[0].name} with filled passes would \
do all {candidates:.0f} candidates of `next_click` on {figure(small_gpus["next_click"])} such GPUs, if its utilisation were as high, which \
nobody has measured. The predictions are {day:.1e} rows; at the {n_bytes / n_rows:.1f} bytes a row of a kept run's Parquet \
({n_rows:,} rows) they are {day * n_bytes / n_rows / 1e9:,.0f} GB a day, so one keeps the scores of what was shown, or nothing. \
All of this is arithmetic: no fleet was run."""
    return f"GPUs for a billion impressions a day, {arch.name} on {gpu.name}, {BUSY:.0%} busy:\n\n{table(head, rows)}\n\n{text}"


def report(plan: dict[str, Any], counted_by: str) -> str:
    """Return memory and hours with what they rest on."""
    model, training, assume = plan["model"], plan["training"], plan["assumptions"]
    sampled = sorted({row["sampled"] for row in plan["train"]})
    read = sorted({row["sampled"] for row in plan["score"]})
    scaled = f"training on samples of up to {sampled[-1]:,} records a format"
    scaled += f", scoring on {read[-1]:,} impressions" if read else ""
    lasts = f"{training['epochs']:g} epoch(s)"
    if training["max_steps"] > 0:
        lasts = f"{training['max_steps']} updates, however many records"
    packing = "packed" if training["is_packed"] else "not packed"
    intro = f"""\
{model["name"]}: {model["parameters"]:,} parameters; LoRA of rank {training["rank"]} on {training["target"]} trains \
{model["trained"]:,} ({model["trained"] / model["parameters"]:.2%}). {training["batch"]} record(s) a micro-batch, \
{training["accumulation"]} an update, {lasts}, cut at {training["cutoff_len"]:,} tokens, {packing}, \
gradient checkpointing {"on" if training["has_checkpointing"] else "off"}.
Tokens: {counted_by}; {scaled}.
Assumed: {assume["utilisation"]:.0%} of {plan["gpu"]["flops"] / 1e12:,.0f} TFLOP/s, at least \
{1000 * assume["launch_train"]:.2g} ms a layer and pass in training and {1000 * assume["launch_score"]:.2g} ms in scoring, \
{assume["overhead"] / GIB:.1f} GiB that CUDA takes."""
    if not plan["gpu"]["has_bf16"]:
        intro += (
            f"\n{plan['gpu']['name']} has no bfloat16: add bf16=false fp16=true (the peak here is float16's)."
        )
    parts = [intro, memory_table(plan), "Hours of training:", training_table(plan)]
    if plan["score"]:
        parts += ["Hours of scoring:", scoring_table(plan)]
    return "\n\n".join(parts)


def measure(
    arch: Architecture, mind: Any, model: str, template: str, impressions: int = 4, seed: int = 0
) -> str:
    """Score a few impressions on this machine; return the seconds beside those that the operations predict.

    The peak is that of the engine's own float32 product, taken anew before every impression, so that other work on the
    machine slows both. Half of the `next_click` impressions give the share of it that scoring reaches; with that share
    the other half and `pointwise` are predicted. `impressions` is the number of each of the three.
    """
    import torch

    from mindlab.llm.ask import make_scorer
    from mindlab.llm.options import Options
    from mindlab.runs.token_counts import CountingEngine
    from mindlab.tasks import limit, task_of

    split = task_of("dev").splits(mind, seed)["test"].without_labels()
    split = split.take(
        np.flatnonzero(np.diff(split.history_offsets)[split.history])
    )  # those that are read at all
    rows = limit(len(split), 2 * impressions, seed)
    candidates = np.unique(split.take(rows).news)
    parts = [
        ("next_click", rows[:impressions]),
        ("next_click", rows[impressions:]),
        ("pointwise", rows[:impressions]),
    ]
    sums = np.zeros((3, 4))  # tokens, operations, seconds, seconds at the peak
    scorers = {}
    for form in ("next_click", "pointwise"):
        asked = Options(form, model, template)
        scorers[form] = (
            *make_scorer(asked, mind.news, candidates, device="cpu"),
            *make_scorer(asked, mind.news, candidates, CountingEngine()),
        )
        for at in (0, 2):  # reads the term without history, and sets buffers up
            scorers[form][at](split.take(rows[:1]))
    peaks = []
    for place in range(impressions):  # in turn, so that a machine that gets busy is so for all
        for sum_, (form, chosen) in zip(sums, parts, strict=True):
            score, engine, count, counting = scorers[form]
            impression = split.take(chosen[place : place + 1])
            engine.forget()
            counting.forget()
            counting.reset()
            peaks.append(matrix_flops())
            begin, tokens = time.perf_counter(), engine.tokens_read
            score(impression)
            seconds = time.perf_counter() - begin
            count(impression)
            flops = counting.flops(arch)
            sum_ += engine.tokens_read - tokens, flops, seconds, flops / peaks[-1]
    share = sums[0, 3] / sums[0, 2]
    cells = []
    for at, ((form, chosen), (tokens, flops, seconds, at_peak)) in enumerate(zip(parts, sums, strict=True)):
        error = f"{at_peak / share / seconds - 1:+.0%}" if at else "-"
        cells.append([form, f"{len(chosen)}", f"{tokens:,.0f}", f"{flops / 1e12:.2f}", f"{seconds:.2f}"])
        cells[-1] += [f"{at_peak / share:.2f}", error]
    head = ["format", "impressions", "tokens", "TFLOP", "measured s", "predicted s", "error"]
    return (
        f"This machine, {torch.get_num_threads()} threads: {np.median(peaks) / 1e9:,.0f} GFLOP/s in a product of float32 "
        f"matrices ({min(peaks) / 1e9:,.0f} to {max(peaks) / 1e9:,.0f}); scoring with {arch.name} reached {share:.0%} of "
        f"it in the first row, which predicts the others.\n\n{table(head, cells)}"
    )


def matrix_flops(size: int = 1024, seconds: float = 0.3) -> float:
    """Return the operations a second of a linear layer in float32, as the engine runs it, for about `seconds`."""
    import torch

    from mindlab.llm.hf import PackedLinear

    layer = torch.nn.Linear(size, size, bias=False)
    product = PackedLinear(layer, torch.float32) if torch.backends.mkldnn.is_available() else layer
    with torch.inference_mode():
        product(a := torch.randn(size, size))
        begin, n = time.perf_counter(), 0
        while time.perf_counter() - begin < seconds:
            product(a)
            n += 1
        return 2 * size**3 * n / (time.perf_counter() - begin)


def all_checks(assume: Assumptions) -> str:
    """Return the table of checks and its summary."""
    found = list(checks(assume))
    return f"{checks_table(found)}\n\n{checks_summary(found)}"
