"""Time the builder against the tutorial's way, from TSV files to JSON files, at MINDsmall's size.

The other side is the tutorial's own: pandas iterrows, a dict of titles, one list of records, json.dump with indent=4.
Each side runs in a process of its own, in turn (A B A B ...); the imports are not timed. Prints the ratio, its range over
the rounds, and the peak memory of both. The data are generated once, in runs/bench.

Examples:
  python -m benchmarks.build
  python -m benchmarks.build --impressions 20000 --rounds 5
"""

import hashlib
import json
import time
from pathlib import Path

import numpy as np

from benchmarks.common import in_process, row, write
from mindlab.common import cli
from mindlab.common.manifest import peak_memory_mb

MINDSMALL_TRAIN = 156_965
NEWS, BEHAVIORS = (
    ["id", "category", "subcategory", "title", "abstract", "url", "title_entities", "abstract_entities"],
    ["id", "user", "time", "history", "impressions"],
)


def ours(data: Path, out: Path) -> None:
    """Build `seed` x `likes_dislikes` as scripts/build_dataset.py does without a model."""
    from mindlab.data.mind import read_mind
    from mindlab.finetune.alpaca import BuildOptions, build

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
        for _, line in part.iterrows():
            *siblings, last = (pair.rsplit("-", 1) for pair in line["impressions"].split(" "))
            record = form.record(
                LikesDislikesParts(
                    [titles[n] for n in line["history"].split()[-form.history_length :]],
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


def stages(data: Path, out: Path) -> dict[str, float]:
    """Return the seconds of each stage of ours, and of writing and hashing as many bytes and nothing else."""
    from mindlab.data.mind import read_mind
    from mindlab.finetune.alpaca import BuildOptions, build

    clock = [time.perf_counter()]
    mind = read_mind(data, ("train",))
    clock.append(time.perf_counter())
    build(mind, BuildOptions("seed", "likes_dislikes"), out)
    clock.append(time.perf_counter())
    files = sorted((out / "processed").glob("mind_*.json"))
    data_of = [file.read_bytes() for file in files]
    clock.append(time.perf_counter())
    for file, content in zip(files, data_of, strict=True):
        file.with_suffix(".copy").write_bytes(content)
    clock.append(time.perf_counter())
    for content in data_of:
        hashlib.sha256(content).digest()
    clock.append(time.perf_counter())
    for file in files:
        file.with_suffix(".copy").unlink()
    read, built, _, written, hashed = (round(second, 3) for second in np.diff(clock))
    return {
        "read_mind": read,
        "build": built,
        "writing the same bytes alone": written,
        "hashing the same bytes alone": hashed,
        "megabytes": round(sum(map(len, data_of)) / 1e6),
    }


SIDES = {"ours": ours, "tutorial": tutorial}


def main() -> None:
    """Generate the data, run the rounds, print the comparison."""
    parser = cli.parser(__doc__)
    parser.add_argument("--impressions", type=int, default=MINDSMALL_TRAIN)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path, help="a MIND folder (default: a generated one)")
    parser.add_argument("--side", choices=(*SIDES, "stages"), help="run this side alone, once")
    args = parser.parse_args()
    data = args.data or Path(f"runs/bench/mind-{args.impressions}")
    if args.side:
        import pandas  # noqa: F401  both are loaded before the clock starts

        if args.side == "stages":
            print(json.dumps(stages(data, Path("runs/bench/ours"))))
            return
        begin = time.perf_counter()
        SIDES[args.side](data, Path("runs/bench") / args.side)
        print(
            json.dumps({"seconds": round(time.perf_counter() - begin, 3), "peak_mb": round(peak_memory_mb())})
        )
        return
    if not (data / "train/behaviors.tsv").exists():
        from mindlab.data.synthetic import make_sample

        make_sample(data, args.impressions, 1000, None, 1)
    times = [
        {side: in_process("build", "--side", side, "--data", data) for side in SIDES}
        for _ in range(args.rounds)
    ]
    ours, theirs = ([one[side]["seconds"] for one in times] for side in ("ours", "tutorial"))
    peaks = {side: max(one[side]["peak_mb"] for one in times) for side in SIDES}
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    built = row(
        "build `seed`, TSV to JSON on disk", f"{args.impressions:,} impressions",
        "the tutorial's way: iterrows, a dict of titles, json.dump(indent=4)", ratios, 10,
        ours=f"{np.median(ours):.2f} s", theirs=f"{np.median(theirs):.1f} s",
        peak_mb=peaks["ours"], other_peak_mb=peaks["tutorial"],
    )  # fmt: skip
    write("build", [built], stages=in_process("build", "--side", "stages", "--data", data))


if __name__ == "__main__":
    cli.run(main)
