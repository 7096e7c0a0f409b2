"""Write a synthetic MIND: the schema and statistics of the real one, words of our own.

Examples:
  python scripts/make_sample.py --out data/sample --train 3000 --dev 600 --seed 1
  python scripts/make_sample.py --out data/raw/small_like --news 65238 --train 156965 --dev 73152 --seed 1
"""

import sys
import time
from pathlib import Path

from mindlab.common import cli
from mindlab.data.synthetic import MINDSMALL, make_sample


def main() -> None:
    """Parse the arguments and write the sample."""
    parser = cli.parser(__doc__)
    parser.add_argument("--out", required=True, type=Path, help="folder that gets train/ and dev/")
    parser.add_argument("--train", type=int, default=3000, help="impressions of the six training days")
    parser.add_argument("--dev", type=int, default=600, help="impressions of the dev day")
    parser.add_argument(
        "--news", type=int, help=f"news in all (default: as MINDsmall's {MINDSMALL['news']:,}, shrunk)"
    )
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    begin = time.perf_counter()
    manifest = make_sample(args.out, args.train, args.dev, args.news, args.seed)
    seconds = time.perf_counter() - begin
    print(
        f"{manifest['news']:,} news, {args.train:,} + {args.dev:,} impressions in {seconds:.1f} s",
        file=sys.stderr,
    )
    print(args.out)


if __name__ == "__main__":
    cli.run(main)
