"""Run a run folder again from its manifest, and say what came out differently.

RUN is a folder of scripts/predict.py or compare.py, the output folder of a training that scripts/demo.py or a
notebook made, the manifest of a data set that scripts/build_dataset.py made, or a folder that holds some of these.
The run is repeated with the request, the seed and the inputs that the manifest names; if an input has other contents
than then, nothing is run. Data sets and weights must have the same bytes, predictions the same candidates and labels
and every metric within 1e-6: sums by another number of threads differ in the last digits of a score.

Examples:
  python scripts/reproduce.py data/reference_runs/compare/nrms
  python scripts/reproduce.py runs/smollm2-next_click-base --out runs/again     (after Ctrl-C: the same command again)
  python scripts/reproduce.py saves/smollm2-135m/lora/next_click
  python scripts/reproduce.py data/processed/mind_dev_next_click.manifest.json

Exit codes: 0 all is the same, 1 something differs, 2 a mistake in what was given.
"""

import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

from mindlab.common import cli
from mindlab.common.errors import UserError
from mindlab.runs.reproduce import changes_of_environment, reproduce


def main() -> int:
    """Run again and print what was compared."""
    parser = cli.parser(__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="what to run again")
    parser.add_argument(
        "--out", type=Path, help="keep the new run here, and go on with it (default: thrown away)"
    )
    args = parser.parse_args()
    if not args.run.exists():
        raise UserError(
            f"{args.run}: no such file or folder; give a run folder or the manifest of a data set"
        )
    if args.out and args.out.resolve() == args.run.resolve():
        raise UserError(f"--out {args.out} is the run itself; choose another folder")
    for line in changes_of_environment(args.run):
        print(line, file=sys.stderr)
    differ = 0
    with nullcontext(args.out) if args.out else tempfile.TemporaryDirectory(prefix="mindlab-") as place:
        for found in reproduce(args.run, Path(place), cli.cases_bar):
            differ += not found.is_same
            print(f"{'same' if found.is_same else 'DIFFERS'}  {found.run}, {found.what}: {found.text}")
    print("all is the same" if not differ else f"{differ} differ", file=sys.stderr)
    if args.out:
        print(args.out)
    return int(differ > 0)


if __name__ == "__main__":
    cli.run(main)
