"""The stages that the harness breaks: each a run from inputs made once to a folder, small enough for seconds.

`Stage.run` is what a user's command does, `Stage.result` what must come out the same after any fault.
"""

import ctypes
import hashlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from mindlab import report
from mindlab.common.manifest import data_hashes
from mindlab.data.mind import read_mind
from mindlab.data.synthetic import make_sample
from mindlab.finetune import alpaca, factory
from mindlab.llm.embeddings import news_vectors
from mindlab.llm.writing import write_texts
from mindlab.prompts.chat import ChatTemplate, record_prompt
from mindlab.recommenders import llm
from mindlab.runs import compare
from mindlab.runs.run import Request
from tests import tiny_glm
from tests.asked import ask
from tests.conftest import ROOT

YAML = ROOT / "configs" / "new_train.yaml"
# What a run took. Times and memory differ between two unbroken runs; a run that goes on reads some tokens again.
TIMES = {
    "written",
    "seconds",
    "ms_per_impression",
    "train_seconds",
    "peak_mb",
    "tokens",
    "tokens_per_impression",
}
STEPS = 3
UNREADABLE = "unreadable"


def make_inputs(folder: Path) -> None:
    """Make what the stages read: data, a tiny GLM-4, records to train on, and two finished runs."""
    data = folder / "data"
    make_sample(data, 60, 40, seed=2)
    titles = read_mind(data).news.title[:200].tolist()
    tiny_glm.build(folder / "model", titles)
    made = folder / "records"
    made.mkdir()
    (made / "processed").mkdir()
    (made / "dataset_info.json").write_bytes((ROOT / "data" / "dataset_info.json").read_bytes())
    rows = json.dumps(tiny_glm.RECORDS * 6, ensure_ascii=False)
    (made / "processed" / "mind_train.json").write_text(rows, encoding="utf-8")
    compare.compare(Request(str(data)), ["random", "popularity"], folder / "runs")


def build(inputs: Path, out: Path) -> None:
    """Build the tutorial's data sets and those of next_click into one dataset_dir."""
    mind = read_mind(inputs / "data")
    for options in (
        alpaca.BuildOptions("seed", "likes_dislikes"),
        alpaca.BuildOptions("dev", "next_click", interests=0),
    ):
        alpaca.build(mind, options, out, None, data_hashes(inputs / "data", ("train", "dev")))


def score(inputs: Path, out: Path) -> None:
    """Score eight impressions with the tiny GLM, three a part."""
    import torch

    torch.set_num_threads(1)
    llm.PART_SIZE = {"hf": 3}
    model = str(inputs / "model")
    request = ask(str(inputs / "data"), "dev", "next_click", model, "glm4", limit=8, history_length=3)
    request.run(out)


class Echo:
    """Writes what anybody can foresee; a text depends on its batch."""

    batch = 4
    tokens_read = tokens_written = 0

    def about(self) -> dict[str, Any]:
        return {"writer": "echo"}

    def write(self, records: Sequence[Mapping[str, str]]) -> list[str]:
        self.tokens_read += 10 * len(records)
        return [f"{len(records)}: {record_prompt(record)}\n" for record in records]


class Hashes:
    """Vectors that depend on the text alone."""

    name = "hashes"
    views: Sequence[dict[str, Any]] = ({"view": "hash"},)

    def about(self) -> dict[str, Any]:
        return {"encoder": "hashes"}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        digests = [hashlib.sha256(text.encode()).digest() for text in texts]
        return np.array([np.frombuffer(d, np.uint8) for d in digests], np.float32)[:, None]


def fill_caches(inputs: Path, out: Path) -> None:
    """Write a cache of texts and one of vectors, then read both."""
    from mindlab.llm import embeddings

    embeddings.BATCH, embeddings.KEPT_EVERY = 32, 2
    records = [
        {
            "system": "You write.",
            "instruction": "Write on.",
            "input": f"{'long ' * (k * 7 % 5)}{k}",
            "output": "",
        }
        for k in range(23)
    ]
    for _ in range(2):
        write_texts(records, Echo(), "texts", out)
        news_vectors(read_mind(inputs / "data").news, Hashes(), out)


class ForkedTrainer:
    """Takes the place of subprocess.Popen in `mindlab.finetune.factory`: the trainer is forked and not started anew.

    The fork has torch and LLaMA-Factory in memory, which saves ten seconds a run. It trains as the command would, in
    a session of its own, and ends with its launcher, as `factory.KEEPER` sees to for the command.
    """

    def __init__(self, command: list[str], cwd: Path, env: Mapping[str, str], stdout: Any, **_: Any):
        arguments = command[command.index("train") + 1 :]
        self.pid, self.returncode = os.fork(), None
        self.stdin = open(os.devnull, "wb")  # noqa: PTH123, SIM115 - closed by the launcher
        if self.pid == 0:
            code = 1
            try:
                os.setsid()
                ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
                for target in (1, 2):
                    os.dup2(stdout.fileno(), target)
                train_here(arguments, env, cwd)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

    def wait(self, timeout: float) -> int:
        import subprocess
        import time

        deadline = time.monotonic() + timeout
        while self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("trainer", timeout)
            else:
                time.sleep(0.01)
        return self.returncode


POINTS: list[Any] = []  # the `Points` of this process, which a trainer does not share


def train_here(arguments: list[str], env: Mapping[str, str], cwd: Path) -> None:
    """Train as ``llamafactory-cli train`` with these arguments would."""
    import torch
    from llamafactory.train.tuner import run_exp

    for points in POINTS:
        points.is_on = False
    os.environ.update(env)
    os.chdir(cwd)
    torch.set_num_threads(1)
    sys.argv = ["llamafactory-cli", *arguments]
    run_exp()


def train(inputs: Path, out: Path) -> None:
    """Fine-tune the tiny GLM by new_train.yaml, with a checkpoint at every step."""
    factory.subprocess.Popen = ForkedTrainer
    overrides = {
        "model_name_or_path": str(inputs / "model"),
        "dataset_dir": str(inputs / "records"),
        "output_dir": str(out),
        "use_cpu": True,
        "max_steps": STEPS,
        "save_steps": 1,
        "logging_steps": 1,
        "dataloader_num_workers": 0,
        "preprocessing_num_workers": 1,
    }
    factory.train(YAML, overrides, root=ROOT)


def write_report(inputs: Path, out: Path) -> None:
    """Measure two finished runs and write the table and the page."""
    board = report.leaderboard(
        [inputs / "runs" / name for name in ("random", "popularity")],
        pairs=[("popularity", "random")],
        context={"title": "Chaos", "data": "data"},
    )
    report.write_leaderboard(out, board, slices=[])


def compare_two(inputs: Path, out: Path) -> None:
    """Fit and score two recommenders into run folders."""
    compare.compare(Request(str(inputs / "data")), ["popularity", "category"], out)


@dataclass(frozen=True)
class Stage:
    """A stage by name; `timed` are the names of JSON files that also hold times, `kept` of the files compared."""

    name: str
    run: Callable[[Path, Path], None]
    timed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()  # empty: all, and nothing else may be there

    def result(self, out: Path) -> dict[str, str]:
        """Return what came out: a hash of each file by its path; of tables the rows, of timed files all but times."""
        return {
            path.relative_to(out).as_posix(): self.of_file(path)
            for path in sorted(out.rglob("*"))
            # The lock of a process that died after its last write may stay; it is free.
            if path.is_file() and not path.match(".*lock")
            if not self.kept or path.relative_to(out).as_posix() in self.kept
        }

    def of_file(self, path: Path) -> str:
        """Return a hash of what must be the same in a file."""
        data = path.read_bytes()
        try:
            if path.suffix == ".json":
                parsed = json.loads(data)
                if any(path.match(pattern) for pattern in self.timed):
                    data = json.dumps(without_times(parsed), sort_keys=True).encode()
            elif path.suffix == ".parquet":
                data = json.dumps(pq.ParquetFile(path).read().to_pylist()).encode()
        except (ValueError, OSError):  # Arrow's errors are of these kinds too
            return UNREADABLE
        return hashlib.sha256(data).hexdigest()


def without_times(value: Any) -> Any:
    """Return JSON without what differs from run to run."""
    if isinstance(value, dict):
        return {key: without_times(part) for key, part in value.items() if key not in TIMES}
    return [without_times(part) for part in value] if isinstance(value, list) else value


STAGES = {
    stage.name: stage
    for stage in (
        Stage("build", build),
        Stage("score", score, timed=("manifest.json",)),
        Stage("caches", fill_caches, timed=("*.json",)),
        Stage("train", train, kept=("adapter_model.safetensors", "adapter_config.json", factory.RECORD)),
        Stage("report", write_report),
        Stage("compare", compare_two, timed=("manifest.json",)),
    )
}


def warm_up() -> None:
    """Import what the stages need, in the process that they are forked from; it must start no threads."""
    import lightgbm  # noqa: F401
    import llamafactory.train.tuner
    import sklearn.linear_model  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401

    from mindlab import recommenders  # noqa: F401
    from mindlab.common import cli  # noqa: F401
    from mindlab.llm import hf  # noqa: F401

    _ = ChatTemplate, llamafactory
