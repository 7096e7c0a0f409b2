"""Train and score GLM-4-9B-Chat's shape on one GPU, with random weights and nothing downloaded.

Memory and seconds are those of the real model at the same number of tokens; its answers mean nothing. The weights are
drawn on the GPU, and the tokenizer is one of GLM-4's design made of the sample's titles. Training is LLaMA-Factory's
own code on the YAMLs of configs/train with nothing overridden but paths, the number of updates and what a row's name says;
scoring is what scripts/predict.py runs, with the adapter just trained. Beside each figure stands what
`scripts/plan.py` says for the same tokens. In float32 the engine's scores on the GPU are compared with the CPU's.
--out takes 19 GB of disk. A row that fails says why, the others go on, and what is finished is not run again.

Examples:
  python -m benchmarks.gpu
  python -m benchmarks.gpu --gpu RTX-4090 --out /big/disk/bench
  python -m benchmarks.gpu --tiny        (two small layers, on a CPU too: does it run?)
"""

import argparse
import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common
from mindlab.common import cli
from mindlab.common.files import write_json
from mindlab.common.manifest import data_hashes
from mindlab.data.mind import read_mind
from mindlab.finetune import factory
from mindlab.finetune import plan as planning
from mindlab.finetune.alpaca import BuildOptions, build, is_built
from mindlab.llm.options import Options
from mindlab.prompts import neutral_titles, prompt_of
from mindlab.prompts.chat import ChatTemplate, import_factory
from mindlab.recommenders.llm import ranker
from mindlab.runs.run import Request, run
from mindlab.tasks import TASKS
from mindlab.tasks import limit as choose
from tests import tiny_glm

SAMPLE = "data/sample"
LORA, QLORA = (Path(f"configs/train/glm4_9b_chat_{method}_sft.yaml") for method in ("lora", "qlora"))
PACKED = {"packing": True, "neat_packing": True}
TRAININGS: dict[str, tuple[Path, dict[str, Any]]] = {
    "LoRA": (LORA, {}),
    "LoRA, packed": (LORA, PACKED),
    "LoRA, packed, no checkpointing": (LORA, {**PACKED, "disable_gradient_checkpointing": True}),
    "QLoRA": (QLORA, {}),
    "QLoRA, packed": (QLORA, PACKED),
}
FORMATS = ("next_click", "pointwise", "likes_dislikes")
JOBS = (
    ("model", ""),
    ("agree", ""),
    *(("train", name) for name in TRAININGS),
    *(("score", form) for form in FORMATS),
)
WARM_UP = 2  # updates that are not timed: memory is taken, kernels are chosen
WORDS = 20_000  # of the tokenizer: titles then have about as many tokens as with GLM-4's own


def make_model(folder: Path, is_tiny: bool) -> Path:
    """Draw the weights and make the tokenizer, unless they are there."""
    import torch

    if not (folder / "tokenizer_config.json").exists():
        shape = {} if is_tiny else planning.GLM4
        device = "cuda" if torch.cuda.is_available() else "cpu"
        words = ["Yes.", "No."] * 1000  # one token each, as with GLM-4's tokenizer
        titles = neutral_titles(read_mind(SAMPLE).news).tolist()
        tiny_glm.build(folder, words + titles, vocabulary=4096 if is_tiny else WORDS, device=device, **shape)
    return folder


def make_data(folder: Path) -> None:
    """Build the records of the YAMLs from the sample, unless they are there."""
    options, hashes = BuildOptions("dev", "next_click"), data_hashes(SAMPLE, ("train", "dev"))
    if not is_built(folder, options, hashes):
        build(read_mind(SAMPLE), options, folder, None, hashes)


def settings_of(name: str, root: Path, updates: int) -> dict[str, Any]:
    """Return the settings of a row of TRAININGS."""
    import torch

    config, changes = TRAININGS[name]
    return factory.load(
        config,
        {
            **changes,
            "model_name_or_path": str(root / "model"),
            "dataset_dir": str(root / "data"),
            "output_dir": str(root / name.replace(", ", "-").replace(" ", "_")),
            "max_steps": updates,
            "logging_steps": 1,
            "plot_loss": False,
            "use_cpu": not torch.cuda.is_available(),
        },
    )


def train(name: str, root: Path, updates: int) -> dict[str, Any]:
    """Train in this process; return the seconds of an update, the losses and the memory at the peak."""
    from transformers import TrainerCallback

    clock: list[float] = []

    class Watch(TrainerCallback):
        """Note the time after each update, its work done."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            wait()
            clock.append(time.perf_counter())

    settings = settings_of(name, root, updates)
    shutil.rmtree(settings["output_dir"], ignore_errors=True)  # of a run that was broken off
    with contextlib.redirect_stdout(sys.stderr):
        import_factory()
        from llamafactory.train.tuner import run_exp

        run_exp(settings, [Watch()])
    each = np.diff(clock)[WARM_UP - 1 :]
    losses = [row["loss"] for row in factory.read_loss(settings["output_dir"]) if "loss" in row]
    return {
        "seconds": statistics.mean(each),
        "slowest": max(each),
        "updates": len(each),
        "losses": losses,
        **memory(),
    }


def score(form: str, root: Path, limit: int, adapter: str | None) -> dict[str, Any]:
    """Score impressions of the test split in this process; return what one takes, and the memory at the peak."""
    task = next(task for task in TASKS.values() if task.case == prompt_of(form).case)
    request = Request(SAMPLE, task.name, limit=limit)
    method = ranker(form, Options(form, str(root / "model"), "glm4", adapter))
    out = root / f"score-{form}"
    shutil.rmtree(out, ignore_errors=True)
    run(request, method, out)
    made = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    return {"seconds": made["ms_per_impression"] / 1000, "tokens": made["tokens_per_impression"], **memory()}


def agree(root: Path) -> dict[str, float]:
    """Return the largest difference of a score in float32 between the GPU and the CPU, and the spread of scores."""
    import torch

    from mindlab.llm.hf import HFEngine

    folder = root / "small"
    if not (folder / "tokenizer_config.json").exists():
        shape = {"num_hidden_layers": 4, "hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
        tiny_glm.build(folder, neutral_titles(read_mind(SAMPLE).news).tolist(), vocabulary=4096, **shape)
    rng = np.random.default_rng(0)
    prefix = rng.integers(300, 4000, 700).tolist()
    lines = [rng.integers(300, 4000, n).tolist() for n in rng.integers(4, 40, 60)]
    devices = ("cuda", "cpu") if torch.cuda.is_available() else ("cpu", "cpu")
    first, second = (
        HFEngine(folder, dtype=torch.float32, device=device).line_log_probs(prefix, lines)
        for device in devices
    )
    return {"difference": float(np.abs(first - second).max()), "spread": float(np.ptp(second))}


def wait() -> None:
    """Wait for the GPU, whose work is only queued when a call returns."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def memory() -> dict[str, float | None]:
    """Return the GiB at the peak: of tensors, and of the GPU as a whole, CUDA's own and unused blocks with it."""
    import torch

    if not torch.cuda.is_available():
        return {"tensors_gib": None, "gpu_gib": None}
    free, total = torch.cuda.mem_get_info()
    own = total - free - torch.cuda.memory_reserved()
    return {
        "tensors_gib": torch.cuda.max_memory_allocated() / planning.GIB,
        "gpu_gib": (torch.cuda.max_memory_reserved() + own) / planning.GIB,
    }


def predicted_training(name: str, root: Path) -> dict[str, float]:
    """Return what the planner says of the same records: GiB at the longest; and the tokens of an update."""
    settings = settings_of(name, root, 1)
    made = json.loads((root / "data/processed/mind_dev_next_click_train.json").read_text(encoding="utf-8"))
    chat = ChatTemplate.load(root / "model", "glm4")
    lengths = [chat.count(made[at]) for at in choose(len(made), 400, 42)]
    training = planning.Training.of(settings)
    longest = training.cutoff_len if training.is_packed else max(lengths)
    shape = planning.shape_of(str(root / "model"))
    total = planning.training_memory(shape, replace(training, cutoff_len=longest))["total"]
    each = training.cutoff_len if training.is_packed else statistics.mean(lengths)
    records = training.batch * settings["gradient_accumulation_steps"]
    return {"predicted_gib": total / planning.GIB, "tokens": records * each}


def predicted_scoring(root: Path) -> dict[str, float]:
    """Return what the planner says of scoring: GiB."""
    total = planning.scoring_memory(planning.shape_of(str(root / "model")), Options.cutoff_len)["total"]
    return {"predicted_gib": total / planning.GIB}


def attempt(*words: str) -> dict[str, Any]:
    """Do a job in a process of its own; return what it found, or the last line of its error."""
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *words],
        capture_output=True,
        text=True,
    )
    print(f"{' '.join(words)}: exit {done.returncode}, {time.perf_counter() - begin:.0f} s", file=sys.stderr)
    if done.returncode:
        print(done.stderr[-3000:], file=sys.stderr)
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return {"failed": lines[-1] if lines else f"exit code {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def device() -> dict[str, Any]:
    """Return the GPU's name, memory and what its driver supports."""
    import torch

    if not torch.cuda.is_available():
        return {"name": "none: a CPU"}
    one = torch.cuda.get_device_properties(0)
    return {"name": one.name, "gib": round(one.total_memory / planning.GIB, 1), "cuda": torch.version.cuda}


def main() -> None:
    """Measure row after row, keep what is known after each, and print it."""
    parser = cli.parser(__doc__)
    parser.add_argument("--updates", type=int, default=12, help="updates of a training (default 12)")
    parser.add_argument(
        "--limit", type=int, default=100, help="impressions to score in a format (default 100)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/bench/gpu"))
    parser.add_argument(
        "--tiny", action="store_true", help="the tests' small model, whose results are not kept"
    )
    parser.add_argument("--job", help=argparse.SUPPRESS)  # what `attempt` does, as JSON
    args = parser.parse_args()
    if args.job:
        print(json.dumps(do(json.loads(args.job), args)))
        return
    make_data(args.out / "data")
    kept = args.out / "gpu.json"
    rows = json.loads(kept.read_text(encoding="utf-8"))["rows"] if kept.exists() else {}
    words = ["--updates", str(args.updates), "--limit", str(args.limit)]
    words += ["--out", str(args.out), *["--tiny"] * args.tiny]
    about = {"device": device(), "machine": common.machine()}
    for job in JOBS:
        name = " ".join(job).strip()
        if "failed" in rows.get(name, {"failed": "not yet run"}):
            rows[name] = attempt(*words, "--job", json.dumps(job))
            write_json(kept, {**about, "rows": rows})
    print(json.dumps(rows, indent=1))
    if not args.tiny:
        write_json(common.RESULTS / "gpu.json", {**about, "rows": rows})


def do(job: list[str], args: argparse.Namespace) -> Mapping[str, Any]:
    """Do one job of `main`."""
    kind, name = job
    if kind == "model":
        return {"folder": str(make_model(args.out / "model", args.tiny))}
    if kind == "agree":
        return agree(args.out)
    if kind == "train":
        predicted = predicted_training(name, args.out)
        return {**train(name, args.out, args.updates), **predicted}
    adapter = settings_of("LoRA", args.out, 1)["output_dir"]
    predicted = predicted_scoring(args.out)
    return {**score(name, args.out, args.limit, adapter), **predicted}


if __name__ == "__main__":
    cli.run(main)
