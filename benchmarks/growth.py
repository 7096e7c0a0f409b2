"""How time and memory grow with the data: read, build, score and evaluate at 1, 4, 16 and 64 times the sample.

Each stage runs in a process of its own on generated data, which are kept in runs/bench. --large adds one set of
MINDlarge's size (2,232,748 + 376,471 impressions, 104,151 news; 2 GB of data and 8 GB of JSON). The exponent is the
slope of log time over log size, by least squares over all sizes and between the last two: 1 is linear. Scoring is the popularity
row; what a language model costs, benchmarks/scoring.py says.

Examples:
  python -m benchmarks.growth
  python -m benchmarks.growth --times 1 4 --rounds 1
  python -m benchmarks.growth --large
"""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.common import in_process, write
from mindlab.common import cli
from mindlab.common.manifest import peak_memory_mb

SAMPLE = 3000, 600  # impressions of train and dev in data/sample
MINDLARGE = 2_232_748, 376_471
MINDLARGE_NEWS = 104_151
OUT = Path("runs/bench/growth")


def read(data: Path) -> None:
    """Read both splits."""
    from mindlab.data.mind import read_mind

    read_mind(data)


def build(data: Path) -> None:
    """Read the training split and build `seed`."""
    from mindlab.data.mind import read_mind
    from mindlab.finetune import alpaca

    mind = read_mind(data, ("train",))
    alpaca.build(mind, alpaca.BuildOptions("seed", "likes_dislikes"), OUT / "data")


def score(data: Path) -> None:
    """Read both splits, fit popularity, score every dev impression, write the predictions."""
    from mindlab.runs.compare import compare
    from mindlab.runs.run import Request

    shutil.rmtree(OUT / "runs", ignore_errors=True)
    compare(Request(str(data)), ["popularity"], OUT / "runs")


def evaluate(data: Path) -> None:
    """Measure those predictions, with intervals."""
    from mindlab.evaluation.metrics import evaluate
    from mindlab.evaluation.predictions import read_predictions

    evaluate(read_predictions(OUT / "runs/popularity/predictions.parquet"))


STAGES: dict[str, Callable[[Path], None]] = {
    "read": read,
    "build": build,
    "score": score,
    "evaluate": evaluate,
}


def data_of(train: int, dev: int, news: int | None = None) -> Path:
    """Return a generated MIND of that size, made if it is not there."""
    folder = Path(f"runs/bench/mind-{train}-{dev}")
    if not (folder / "manifest.json").exists():
        from mindlab.data.synthetic import make_sample

        make_sample(folder, train, dev, news, 1)
    return folder


def measure(data: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Return seconds (the median of `rounds`) and peak MiB of every stage."""
    found: dict[str, list[dict[str, float]]] = {stage: [] for stage in STAGES}
    for _ in range(rounds):
        for stage in STAGES:
            found[stage].append(in_process("growth", "--stage", stage, "--data", data))
    return {
        stage: {
            "seconds": float(np.median([one["seconds"] for one in several])),
            "peak_mb": max(one["peak_mb"] for one in several),
            "idle_mb": several[0]["idle_mb"],
        }
        for stage, several in found.items()
    }


def exponents(sizes: list[int], seconds: list[float]) -> dict[str, float]:
    """Return the slopes of log time over log size."""
    x, y = np.log(sizes), np.log(seconds)
    return {
        "all sizes": round(float(np.polyfit(x, y, 1)[0]), 2),
        "last two": round(float((y[-1] - y[-2]) / (x[-1] - x[-2])), 2),
    }


def main() -> None:
    """Measure every size and keep what was found."""
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--times", type=int, nargs="+", default=[1, 4, 16, 64], help="multiples of the sample"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large", action="store_true", help="also MINDlarge's size, once")
    parser.add_argument("--stage", choices=STAGES, help="run this stage alone, on --data")
    parser.add_argument("--data", type=Path)
    args = parser.parse_args()
    if args.stage:
        print(json.dumps(time_stage(args.stage, args.data)))
        return
    sizes = []
    for times in tqdm(args.times, unit=" sizes"):
        train, dev = (times * n for n in SAMPLE)
        sizes.append({"train": train, "dev": dev, "stages": measure(data_of(train, dev), args.rounds)})
    growth = {
        stage: exponents([one["train"] for one in sizes], [one["stages"][stage]["seconds"] for one in sizes])
        for stage in STAGES
        if len(sizes) > 1
    }
    large = None
    if args.large:
        large = {"train": MINDLARGE[0], "dev": MINDLARGE[1], "news": MINDLARGE_NEWS}
        large["stages"] = measure(data_of(*MINDLARGE, MINDLARGE_NEWS), 1)
    write("growth", [], sizes=sizes, exponents=growth, large=large)


def time_stage(stage: str, data: Path) -> dict[str, Any]:
    """Return seconds and peak MiB of one stage, and the MiB of the process before it."""
    import mindlab.finetune.alpaca
    import mindlab.runs.compare  # noqa: F401  loaded before the clock starts

    idle = peak_memory_mb()
    begin = time.perf_counter()
    STAGES[stage](data)
    return {
        "seconds": round(time.perf_counter() - begin, 3),
        "peak_mb": round(peak_memory_mb()),
        "idle_mb": round(idle),
    }


if __name__ == "__main__":
    cli.run(main)
