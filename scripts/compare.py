"""Compare recommenders on the same impressions: one table, with intervals and cost, and a page with plots.

Fits and scores every method that needs no language model; those that are learned are trained with several seeds.
Rows of language models come from run folders of scripts/predict.py (--add), if they scored the same impressions.
What is done already is kept; after Ctrl-C run the same command again.

Not yet run whole. On data/sample and 2 cores an epoch of nrms takes 13 s; a training has up to 16 of them, and the
default is three seeds of three networks. --seeds 1 makes it shorter, --only leaves them out.

Examples:
  python scripts/compare.py --data data/sample --out runs/compare
  python scripts/compare.py --data data/sample --only popularity,category,lightgbm --limit 150 --out runs/small
  python scripts/compare.py --data data/sample --limit 150 --out runs/with-llm \\
      --add data/reference_runs/demo/smollm2-next_click-base data/reference_runs/demo/smollm2-next_click-lora
"""

import shlex
import sys
from pathlib import Path

from tqdm import tqdm

from mindlab import cli, protocols
from mindlab import report as reporting
from mindlab.compare import ORACLE, Request, compare, names_of
from mindlab.mind import read_mind
from mindlab.recommenders import SIMPLE
from mindlab.recommenders.oracle import FILE_NAME
from mindlab.slices import masks, measure_slices


def main() -> None:
    """Fit, score, measure, write the table and the page."""
    parser = cli.parser(__doc__)
    parser.add_argument("--data", required=True, help="folder with train/ and dev/")
    parser.add_argument("--protocol", choices=("dev", "sampled", "sampled-impression"), default="dev")
    parser.add_argument(
        "--split", choices=("test", "valid"), default="test", help="valid: 14 November, to choose on"
    )
    parser.add_argument(
        "--only", metavar="NAME,NAME", help=f"of {', '.join([*SIMPLE, ORACLE])} (default: all)"
    )
    parser.add_argument("--limit", type=int, help="a seeded random choice of impressions (default: all)")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of a learned method (default 3)")
    parser.add_argument(
        "--add", nargs="+", type=Path, default=[], metavar="RUN", help="also these run folders"
    )
    parser.add_argument("--out", type=Path, required=True, help="gets a folder for each row, and the table")
    args = parser.parse_args()
    is_synthetic = (Path(args.data) / "train" / FILE_NAME).exists()
    names = [name for name in names_of(args.protocol) if is_synthetic or name != ORACLE]
    names = args.only.split(",") if args.only else names
    request = Request(args.data, args.protocol, args.split, args.limit, args.seed, args.seeds)
    with tqdm(names, unit=" methods", file=sys.stderr) as bar:
        runs = compare(request, names, args.out, lambda _: named(bar))
    mind = read_mind(args.data)
    splits = protocols.splits_of(args.protocol, mind, args.seed)
    test = splits[args.split].take(protocols.limit(len(splits[args.split]), args.limit, args.seed))
    notes = []
    if args.protocol.startswith("sampled"):
        notes.append(
            f"One click and at most {protocols.NEGATIVES} others a case, so not comparable with any other protocol; "
            f"{protocols.short_share(test):.0%} of the cases have fewer others."
        )
    context = {
        "title": "Recommenders on the same impressions",
        "data": args.data,
        "synthetic": is_synthetic,
        "command": shlex.join(["python", *sys.argv]),
        "notes": notes,
    }
    board = reporting.leaderboard([*runs, *args.add], context=context)
    train = splits["fit" if args.split == "valid" else "train"]
    slices = measure_slices(board["evaluations"], masks(test, train, mind.news))
    page = reporting.write_leaderboard(args.out, board, slices=slices)
    print(reporting.as_text(board))
    print(page)


def named(bar: tqdm):
    """Yield a bar's names, showing which one is at work."""
    for name in bar:
        bar.set_description(name)
        yield name


if __name__ == "__main__":
    cli.run(main)
