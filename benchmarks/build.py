"""Time the builder against the tutorial's way, from TSV files to JSON files, at MINDsmall's size.

The other side is the tutorial's own: pandas iterrows, a dict of titles, one list of records, json.dump with indent=4.
Each side runs in a process of its own, in turn (A B A B ...); the imports are not timed. Prints the ratio, its range over
the rounds, and the peak memory of both. The data are generated once, in runs/bench.

Examples:
  python benchmarks/build.py
  python benchmarks/build.py --impressions 20000 --rounds 5
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from mindlab import cli
from mindlab.runs import peak_memory_mb

MINDSMALL_TRAIN = 156_965
NEWS, BEHAVIORS = (
    ["id", "category", "subcategory", "title", "abstract", "url", "title_entities", "abstract_entities"],
    ["id", "user", "time", "history", "impressions"],
)


def ours(data: Path, out: Path) -> None:
    """Build `seed` x `likes_dislikes` as scripts/build_dataset.py does without a model."""
    from mindlab.alpaca import BuildOptions, build
    from mindlab.mind import read_mind

    build(read_mind(data, ("train",)), BuildOptions("seed", "likes_dislikes"), out)


def tutorial(data: Path, out: Path) -> None:
    """Do the same as the tutorial does it."""
    import pandas as pd

    from mindlab.prompts import LikesDislikes, LikesDislikesParts

    form = LikesDislikes()
    options = {"sep": "\t", "header": None, "quoting": 3, "keep_default_na": False}
    news = pd.read_csv(data / "train/news.tsv", names=NEWS, **options)
    titles = dict(zip(news["id"], news["title"], strict=True))
    behaviors = pd.read_csv(data / "train/behaviors.tsv", names=BEHAVIORS, **options)
    behaviors = behaviors.sample(frac=1, random_state=42)
    cut = int(len(behaviors) * 0.8)
    for name, part in {"train": behaviors[:cut], "test": behaviors[cut:]}.items():
        records = []
        for _, row in part.iterrows():
            *siblings, last = (pair.rsplit("-", 1) for pair in row["impressions"].split(" "))
            record = form.record(
                LikesDislikesParts(
                    [titles[n] for n in row["history"].split()[-form.history_length :]],
                    [titles[n] for n, label in siblings if label == "1"],
                    [titles[n] for n, label in siblings if label == "0"],
                    titles[last[0]],
                    last[1] == "1",
                )
            )
            records.append(record)
        out.mkdir(parents=True, exist_ok=True)
        with (out / f"mind_{name}.json").open("w", encoding="utf-8") as file:
            json.dump(records, file, ensure_ascii=False, indent=4)


SIDES = {"ours": ours, "tutorial": tutorial}


def time_in_process(side: str, data: Path) -> tuple[float, float]:
    """Return (seconds, peak MiB) of one side, run in a new process."""
    words = [sys.executable, __file__, "--side", side, "--data", str(data)]
    found = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout)
    print(f"{side}: {found['seconds']:.1f} s, {found['peak_mb']:.0f} MiB", file=sys.stderr)
    return found["seconds"], found["peak_mb"]


def main() -> None:
    """Generate the data, run the rounds, print the comparison."""
    parser = cli.parser(__doc__)
    parser.add_argument("--impressions", type=int, default=MINDSMALL_TRAIN)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path, help="a MIND folder (default: a generated one)")
    parser.add_argument("--side", choices=SIDES, help="run this side alone, once")
    args = parser.parse_args()
    data = args.data or Path(f"runs/bench/mind-{args.impressions}")
    if args.side:
        import pandas  # noqa: F401  both are loaded before the clock starts

        begin = time.perf_counter()
        SIDES[args.side](data, Path("runs/bench") / args.side)
        print(json.dumps({"seconds": time.perf_counter() - begin, "peak_mb": peak_memory_mb()}))
        return
    if not (data / "train/behaviors.tsv").exists():
        from mindlab.synthetic import make_sample

        make_sample(data, args.impressions, 1000, None, 1)
    times = [{side: time_in_process(side, data) for side in SIDES} for _ in range(args.rounds)]
    ratios = [one["tutorial"][0] / one["ours"][0] for one in times]
    peaks = {side: max(one[side][1] for one in times) for side in SIDES}
    print(f"{args.impressions:,} impressions, {args.rounds} rounds, files on disk included")
    print(f"tutorial / ours: {np.median(ratios):.1f} times (range {min(ratios):.1f} to {max(ratios):.1f})")
    print(f"peak memory: ours {peaks['ours']:.0f} MiB, tutorial {peaks['tutorial']:.0f} MiB")


if __name__ == "__main__":
    cli.run(main)
