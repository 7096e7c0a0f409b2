"""Time LoRA training of the twin config against LLaMA-Factory's own example's settings, on a CPU.

Every side is ``llamafactory-cli train`` of configs/train/smollm2_135m_lora_sft.yaml with overrides: the same model,
records, LoRA, optimiser, learning rate and number of updates of about 2,048 tokens. `example` has the settings of
examples/train_lora/qwen3_lora_sft.yaml of LLaMA-Factory 0.9.5, `twin` those of the YAML itself, `best` the fastest
found; --ladder walks from `example` to `best` one setting at a time, and turns single settings of `best` back.

Tokens are real ones: no padding, prompt and answer, counted from LLaMA-Factory's own preprocessing. Seconds are its
`train_runtime`: the training loop, without start-up. The loss is that of the answers of held-out records, scored in
float32 by mindlab.llm.hf after equal tokens. Sides run in turn (A B A B ...), a round with a seed of its own. Needs
the model (scripts/get_model.py). What is finished in --out is not run again: delete it to measure anew.
The committed results are those of the second command.

Examples:
  python -m benchmarks.training
  python -m benchmarks.training --updates 4 --rounds 3 --ladder
"""

import argparse
import contextlib
import json
import math
import os
import resource
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks import common
from mindlab.common import cli
from mindlab.common.errors import UserError
from mindlab.common.files import write_json
from mindlab.common.manifest import data_hashes
from mindlab.data.mind import read_mind
from mindlab.finetune import factory
from mindlab.finetune.alpaca import BuildOptions, build, is_built
from mindlab.prompts.chat import ChatTemplate, quiet_factory, record_prompt

CONFIG = Path("configs/train/smollm2_135m_lora_sft.yaml")
SAMPLE = "data/sample"
TOKENS_AN_UPDATE = 2048  # the twin's: two rows of 1,024
ROW_LENGTHS = (1024, 512)  # of the packed sides
HELD_OUT = 48  # records of the validation day whose loss is compared
QUIET = 0.1  # cores: with more than that busy elsewhere, a run is no measurement
PYTHON = "python and the framework"


@dataclass(frozen=True)
class Side:
    """One way to train: what it changes in the YAML, and in what surroundings it runs."""

    changes: Mapping[str, Any] = field(default_factory=dict)
    keeps_memory: bool = True  # as mindlab.finetune.factory starts it; False: as the bare command line does
    threads: int | None = None  # None: torch's choice, a thread a core

    def and_(self, **changes: Any) -> "Side":
        """Return this side with further changes of the YAML, or of a field."""
        fields = {key: changes.pop(key) for key in ("keeps_memory", "threads") if key in changes}
        return replace(self, changes={**self.changes, **changes}, **fields)


TWIN = Side()
# What differs between the example and the YAML. preprocessing_num_workers is left out, since it acts before the
# training loop; rank, learning rate and tokens an update are the twin's on both sides.
EXAMPLE = Side(
    {
        "disable_gradient_checkpointing": False,
        "packing": False,
        "neat_packing": False,
        "cutoff_len": 2048,
        "bf16": True,
        "dataloader_num_workers": 4,
        "logging_steps": 10,
    },
    keeps_memory=False,
)
STEPS = [
    ("no gradient checkpointing", {"disable_gradient_checkpointing": True}),
    ("no data-loader processes", {"dataloader_num_workers": 0}),
    ("a log line every update", {"logging_steps": 1}),
    ("packed, rows of 1,024", {"packing": True, "neat_packing": True, "cutoff_len": 1024}),
    ("rows of 512", {"cutoff_len": 512}),
    ("attention as plain products", {"flash_attn": "disabled"}),
    ("freed memory kept", {"keeps_memory": True}),
]


def ladder() -> dict[str, Side]:
    """Return the sides from `example` to `best`, each with one setting more."""
    sides = {"example": EXAMPLE}
    side = EXAMPLE
    for name, changes in STEPS:
        side = side.and_(**changes)
        sides[name] = side
    sides["best"] = sides.pop(STEPS[-1][0])
    return sides


BEST = ladder()["best"]
SINGLE = {  # one setting turned back or tried, from `best` or as named
    "best, float32": BEST.and_(bf16=False),
    "best, records see their neighbours": BEST.and_(neat_packing=False),
    "best, two rows at once": BEST.and_(per_device_train_batch_size=2),
    "best, 8 of like length, not packed": BEST.and_(
        packing=False, neat_packing=False, cutoff_len=1024, per_device_train_batch_size=8,
        train_sampling_strategy="group_by_length", disable_shuffling=False,
    ),
    "best, one thread": BEST.and_(threads=1),
    "example, float32": EXAMPLE.and_(bf16=False),
    "twin, bare command line": TWIN.and_(keeps_memory=False),
    "twin, rows of 512": TWIN.and_(cutoff_len=512),
}  # fmt: skip
SIDES = {**ladder(), "twin": TWIN, **SINGLE}
MAIN = ("example", "twin", "best")


def overrides(side: Side, n_records: int, updates: int, seed: int) -> dict[str, Any]:
    """Return the overrides of the YAML that make `side` read `n_records` records once, in `updates` updates."""
    changes = {
        "dataset": "mind_dev_next_click_fit",
        "max_samples": n_records,
        "disable_shuffling": True,  # every side reads the same records in the same order
        "num_train_epochs": 1.0,
        "max_steps": -1,
        "save_strategy": "no",
        "plot_loss": False,
        "seed": seed,
        **side.changes,
    }
    settings = factory.load(CONFIG, changes)
    batch = settings["per_device_train_batch_size"]
    a_batch = settings["cutoff_len"] * batch
    changes["gradient_accumulation_steps"] = (
        max(1, TOKENS_AN_UPDATE // a_batch) if settings["packing"] else math.ceil(n_records / updates / batch)
    )
    return changes


def choose_records(lengths: Sequence[int], updates: int) -> int:
    """Return how many of the first records fill `updates` updates, packed to each of ROW_LENGTHS.

    `lengths` are tokens per record. LLaMA-Factory lowers cutoff_len by 1 for packing.
    """
    from llamafactory.data.processor.processor_utils import greedy_knapsack

    def fits(n: int) -> bool:
        return all(
            len(greedy_knapsack(list(lengths[:n]), length - 1)) <= updates * TOKENS_AN_UPDATE // length
            for length in ROW_LENGTHS
        )

    most = min(len(lengths), updates * TOKENS_AN_UPDATE // min(lengths))
    return max((n for n in range(1, most + 1) if fits(n)), default=0)


def count_tokens(rows: Iterable[Mapping[str, Sequence[int]]]) -> dict[str, int]:
    """Return rows, positions, real tokens and label tokens of preprocessed rows.

    `rows` have attention_mask (0 for padding; neat packing numbers its records from 1) and labels (-100 where no
    loss is taken). The first label of a row is never predicted, here as in the model.
    """
    found = {"rows": 0, "positions": 0, "tokens": 0, "labels": 0}
    for row in rows:
        found["rows"] += 1
        found["positions"] += len(row["attention_mask"])
        found["tokens"] += sum(value != 0 for value in row["attention_mask"])
        found["labels"] += sum(value != -100 for value in row["labels"][1:])
    return found


def preprocess(settings: Mapping[str, Any]) -> Any:
    """Return the training rows that LLaMA-Factory makes of a run's records."""
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    with quiet_factory():
        model_args, data_args, training_args, _, _ = get_train_args(factory.portable(settings))
        module = load_tokenizer(model_args)
        template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
        with contextlib.redirect_stdout(sys.stderr):  # it prints an example
            made = get_dataset(template, model_args, data_args, training_args, stage="sft", **module)
    return made["train_dataset"]


def flops_a_token(config: Mapping[str, Any], rank: int, lengths: Sequence[int]) -> float:
    """Return the model's floating-point operations of LoRA training for a real token.

    A frozen product of N weights costs 2 N forward and 2 N for the gradient of its input, an adapter's 2 N forward
    and 4 N backward. Attention is causal over the record alone: 4 d operations a layer for each pair of tokens
    forward, twice that backward. Recomputation, padding and element-wise work are not the model's. `config` is the
    model's config.json (Llama), `lengths` are the records' in tokens.
    """
    d, ffn, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    attention = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    products = [(d, attention), (d, kv), (d, kv), (attention, d), (d, ffn), (d, ffn), (ffn, d)]
    frozen = layers * sum(a * b for a, b in products) + d * config["vocab_size"]
    adapter = layers * sum(rank * (a + b) for a, b in products)
    pairs = sum(n * (n + 1) / 2 for n in lengths) / sum(lengths)
    return 4.0 * frozen + 6.0 * adapter + 12.0 * attention * layers * pairs


def product_rate(dtype: str, seconds: float = 0.5) -> float:
    """Return the floating-point operations a second of torch's product of (2048, 576) by (576, 1536), the model's."""
    import torch

    a, b = (torch.randn(*shape).to(getattr(torch, dtype)) for shape in ((2048, 576), (1536, 576)))
    times = []
    a @ b.T
    while sum(times) < seconds:
        begin = time.perf_counter()
        a @ b.T
        times.append(time.perf_counter() - begin)
    return 2.0 * 2048 * 576 * 1536 / statistics.median(times)


def shares(rates: Mapping[str, float]) -> dict[str, float]:
    """Return each step's share of the gain from the first rate to the last, by logarithms, so that they add up to 1.

    >>> {name: round(share, 3) for name, share in shares({"a": 1.0, "b": 2.0, "c": 8.0}).items()}
    {'b': 0.333, 'c': 0.667}
    """
    names = list(rates)
    logs = [math.log(rate) for rate in rates.values()]
    return {name: (logs[i + 1] - logs[i]) / (logs[-1] - logs[0]) for i, name in enumerate(names[1:])}


def kind_of(name: str, shapes: Sequence[Sequence[int]], vocab_size: int) -> str:
    """Return what an operation of the profile is for, by its name and the shapes of its inputs."""
    is_product = name in ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
    if not name.startswith("aten::"):
        return PYTHON
    if any(vocab_size in shape for shape in shapes):
        return "output layer's products" if is_product else "loss over the vocabulary"
    if "attention" in name or "softmax" in name or name == "aten::bmm":
        return "attention"
    if any(len(shape) == 4 and shape[-1] == shape[-2] for shape in shapes):
        return "attention"  # its mask and scores, where it is written out
    if is_product:
        return "products of the layers"
    if "adam" in name or "foreach" in name:
        return "optimiser"
    if name in ("aten::copy_", "aten::_to_copy", "aten::to", "aten::cat", "aten::clone"):
        return "copies and conversions"
    return "element-wise"


@dataclass(frozen=True)
class Run:
    """One training: a side, its size and seed, and the folder of all runs."""

    side: str
    updates: int
    n_records: int
    seed: int
    root: str

    @property
    def folder(self) -> Path:
        """Where the adapter and the logs go."""
        return (
            Path(self.root)
            / f"{self.updates}-updates"
            / f"{self.side.replace(', ', '-').replace(' ', '_')}-{self.seed}"
        )

    @property
    def overrides(self) -> dict[str, Any]:
        """The overrides of the YAML."""
        wanted = overrides(SIDES[self.side], self.n_records, self.updates, self.seed)
        return {**wanted, "dataset_dir": f"{self.root}/data", "output_dir": str(self.folder)}


def train(run: Run) -> dict[str, Any]:
    """Train through the command line; return seconds, peak MiB and, just after, matrix product rates.

    `other_load` is how many cores were busy with something else, start-up included; see QUIET.
    """
    side = SIDES[run.side]
    if not side.keeps_memory:
        factory.KEEP_MEMORY = {}
    if side.threads:
        os.environ["OMP_NUM_THREADS"] = str(side.threads)
    begin, busy = time.perf_counter(), busy_seconds()
    out = factory.train(CONFIG, run.overrides)
    wall, busy = time.perf_counter() - begin, busy_seconds() - busy
    kept = out / "measured.json"
    if not kept.exists():
        results = json.loads((out / "train_results.json").read_text(encoding="utf-8"))
        state = json.loads((out / "trainer_state.json").read_text(encoding="utf-8"))
        found = {
            "seconds": results["train_runtime"],
            "start_seconds": wall - results["train_runtime"],
            "updates": state["global_step"],
            "other_load": max(0.0, busy / wall),
            "peak_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10,
            "product_rate": {dtype: product_rate(dtype) for dtype in ("float32", "bfloat16")},
        }
        write_json(kept, found)
    return json.loads(kept.read_text(encoding="utf-8"))


def busy_seconds() -> float:
    """Return how long the machine's cores have been busy with anything but this process and its ended children."""
    import psutil

    own, machine = os.times(), psutil.cpu_times()
    busy = machine.user + machine.nice + machine.system
    return busy - (own.user + own.system + own.children_user + own.children_system)


def count(run: Run) -> dict[str, int]:
    """Return `count_tokens` of what LLaMA-Factory makes of the run's records."""
    return count_tokens(preprocess(factory.load(CONFIG, run.overrides)))


def score(run: Run) -> float:
    """Return the nats per answer token of the first held-out records with the run's adapter; `base` has none."""
    from mindlab.llm.hf import HFEngine

    settings = factory.load(CONFIG, {"dataset_dir": f"{run.root}/data"})
    path = Path(settings["dataset_dir"], "processed", "mind_dev_next_click_valid.json")
    records = json.loads(path.read_text(encoding="utf-8"))[:HELD_OUT]
    chat = ChatTemplate.load(settings["model_name_or_path"], settings["template"])
    engine = HFEngine(settings["model_name_or_path"], None if run.side == "base" else run.folder)
    nats, tokens = 0.0, 0
    for record in records:
        prompt, answer = chat.encode(record.get("system", ""), record_prompt(record), record["output"])
        nats -= float(engine.line_log_probs(prompt, [answer])[0])
        tokens += len(answer)
    return nats / tokens


def profile(run: Run) -> dict[str, Any]:
    """Return the seconds that each kind of operation takes in the updates after the first, trained in this process."""
    import torch
    from llamafactory.train.tuner import run_exp
    from transformers import TrainerCallback

    tool = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True)
    clock = []

    class Watch(TrainerCallback):
        """Start after the first update, stop at the end."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 1:
                tool.start()
                clock.append(time.perf_counter())

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == run.updates:
                clock.append(time.perf_counter())
                tool.stop()

    with contextlib.redirect_stdout(sys.stderr):
        run_exp(
            factory.load(
                CONFIG, run.overrides | {"output_dir": f"{run.folder}-profile", "overwrite_output_dir": True}
            ),
            [Watch()],
        )
    found: dict[str, float] = {}
    for event in tool.key_averages(group_by_input_shape=True):
        shapes = [shape for shape in event.input_shapes or [] if isinstance(shape, list)]
        kind = kind_of(event.key, shapes, read_model_config()["vocab_size"])
        found[kind] = found.get(kind, 0.0) + event.self_cpu_time_total / 1e6
    seconds = clock[1] - clock[0]
    found[PYTHON] = found.get(PYTHON, 0.0) + max(0.0, seconds - sum(found.values()))
    return {"seconds": seconds, "shares": {kind: part / sum(found.values()) for kind, part in found.items()}}


JOBS = {"train": train, "profile": profile}


def do(job: str, run: Run) -> dict[str, Any]:
    """Do a job in a process of its own, with memory of its own."""
    return common.in_process("training", "--job", json.dumps([job, asdict(run)]))


def read_model_config() -> dict[str, Any]:
    """Return the model's config.json."""
    path = Path(factory.load(CONFIG)["model_name_or_path"]) / "config.json"
    return json.loads(path.read_text(encoding="utf-8"))


def make_data(root: str) -> list[int]:
    """Build the records of the sample, unless they are there; return the tokens of each training record."""
    dataset_dir = Path(root) / "data"
    options = BuildOptions("dev", "next_click")
    hashes = data_hashes(SAMPLE, ("train", "dev"))
    if not is_built(dataset_dir, options, hashes):
        build(read_mind(SAMPLE), options, dataset_dir, None, hashes)
    settings = factory.load(CONFIG)
    chat = ChatTemplate.load(settings["model_name_or_path"], settings["template"])
    path = dataset_dir / "processed" / "mind_dev_next_click_fit.json"
    return [chat.count(record) for record in json.loads(path.read_text(encoding="utf-8"))]


def in_turn(
    names: Sequence[str], updates: int, n_records: int, rounds: int, root: str
) -> dict[str, list[dict]]:
    """Return the measurements of each side, one a round; the sides take turns."""
    found: dict[str, list[dict]] = {name: [] for name in names}
    for seed in range(42, 42 + rounds):
        for name in names:
            found[name].append(do("train", Run(name, updates, n_records, seed, root)))
    return found


def main() -> None:
    """Run the sides in turn, score and profile them, and keep the results."""
    parser = cli.parser(__doc__)
    parser.add_argument("--updates", type=int, default=2, help="updates of 2,048 tokens a run (default 2)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--ladder", action="store_true", help="also each setting by itself, 2 updates a run, 2 rounds"
    )
    parser.add_argument("--out", default="runs/bench/training")
    parser.add_argument("--job", help=argparse.SUPPRESS)  # for `do`
    args = parser.parse_args()
    if args.job:
        job, run = json.loads(args.job)
        print(json.dumps(JOBS[job](Run(**run))))
        return
    lengths = make_data(args.out)
    n_records = choose_records(lengths, args.updates)
    found = in_turn(MAIN, args.updates, n_records, args.rounds, args.out)
    first = {name: Run(name, args.updates, n_records, 42, args.out) for name in MAIN}
    counts = {name: count(run) for name, run in first.items()}
    tokens = {count["tokens"] for count in counts.values()}
    if len(tokens) > 1:
        raise UserError(f"the sides read different numbers of tokens: {counts}")
    losses = {"untrained": score(replace(first["best"], side="base"))}
    losses |= {
        name: [score(replace(run, seed=42 + k)) for k in range(args.rounds)] for name, run in first.items()
    }
    (n_tokens,) = tokens
    flops = flops_a_token(read_model_config(), factory.load(CONFIG)["lora_rank"], lengths[:n_records])
    details = {
        "counts": counts,
        "loss": losses,
        "flops_a_token": flops,
        "utilisation": {name: utilisation(name, runs, n_tokens, flops) for name, runs in found.items()},
        "profile": {
            name: do("profile", replace(first[name], updates=2, n_records=choose_records(lengths, 2)))
            for name in ("twin", "best")
        },
        "runs": found,
    }
    if args.ladder:
        details["ladder"] = climb(lengths, 2, args.out)
    common.write("training", [compare(name, found, losses, n_tokens) for name in ("twin", "best")], **details)


def compare(
    name: str, found: Mapping[str, list[dict]], losses: Mapping[str, Any], n_tokens: int
) -> common.Row:
    """Return the row of one side against the example."""
    ours, theirs = found[name], found["example"]
    rate, other_rate = (
        n_tokens / statistics.median(one["seconds"] for one in runs) for runs in (ours, theirs)
    )
    loss, other_loss = statistics.mean(losses[name]), statistics.mean(losses["example"])
    note = f"held-out loss {loss:.3f} against {other_loss:.3f}, {losses['untrained']:.3f} untrained"
    load = max(one["other_load"] for one in (*ours, *theirs))
    if load > QUIET:
        note += f"; DISTURBED: up to {load:.1f} cores were busy with something else, measure again"
    return common.row(
        "LoRA training, " + {"twin": "SmolLM2 twin config", "best": "fastest settings found"}[name],
        f"{n_tokens:,} real tokens",
        "LLaMA-Factory with its example's settings",
        [b["seconds"] / a["seconds"] for a, b in zip(ours, theirs, strict=True)],
        2.0,
        ours=f"{rate:.0f} tokens/s",
        theirs=f"{other_rate:.0f} tokens/s",
        peak_mb=max(one["peak_mb"] for one in ours),
        other_peak_mb=max(one["peak_mb"] for one in theirs),
        note=note,
    )


def utilisation(name: str, runs: Sequence[dict], n_tokens: int, flops: float) -> dict[str, Any]:
    """Return the model's operations a second, the product's rate in the side's precision, and their ratio."""
    dtype = "bfloat16" if factory.load(CONFIG, SIDES[name].changes).get("bf16") else "float32"
    achieved = statistics.median(flops * n_tokens / run["seconds"] for run in runs)
    possible = statistics.median(run["product_rate"][dtype] for run in runs)
    return {"dtype": dtype, "achieved": achieved, "product": possible, "share": achieved / possible}


def climb(lengths: Sequence[int], rounds: int, root: str) -> dict[str, Any]:
    """Return real tokens a second of every side, the median of `rounds`, and the shares of the gain."""
    n_records = choose_records(lengths, 2)
    found = in_turn(list(SIDES), 2, n_records, rounds, root)
    n_tokens = sum(lengths[:n_records])
    rates = {
        name: n_tokens / statistics.median(run["seconds"] for run in runs) for name, runs in found.items()
    }
    return {
        "tokens": n_tokens,
        "tokens_a_second": rates,
        "share_of_gain": shares({name: rates[name] for name in ladder()}),
        "runs": found,
    }


if __name__ == "__main__":
    cli.run(main)
