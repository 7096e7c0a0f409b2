"""Make the committed notebooks: convert each percent twin, run it in a fresh kernel, keep its outputs.

notebooks/src/NAME.py is what people edit; notebooks/NAME.ipynb is what this writes. With -p a parameter
of the notebook gets another value; the result then goes to runs/notebooks/ and the committed file stays.
--check runs nothing: it proves that each committed notebook has its twin's cells, was run, and holds no
error and no path of somebody's machine.

Examples:
  python scripts/run_notebooks.py                       all notebooks, in reading order
  python scripts/run_notebooks.py 02                    the one whose name begins with 02
  python scripts/run_notebooks.py 04 -p n_seed=4 -p n_dev=2
  python scripts/run_notebooks.py --check

Exit codes: 0 done, 1 --check found a problem, 2 a mistake in what was given, or a cell that failed.
"""

import sys
import time
from pathlib import Path

from mindlab.common import cli
from mindlab.common.errors import UserError
from mindlab.runs import notebook


def main() -> int:
    """Parse the arguments, then check or run."""
    parser = cli.parser(__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="beginnings of notebook names (default: all)"
    )
    parser.add_argument(
        "-p",
        "--parameter",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another value of a parameter",
    )
    parser.add_argument(
        "--check", action="store_true", help="only prove that the committed notebooks are in step"
    )
    parser.add_argument(
        "--out", type=Path, help="folder for the .ipynb (default: notebooks; with -p runs/notebooks)"
    )
    args = parser.parse_args()
    twins = notebook.twins(args.names)
    if args.check:
        return check(twins)
    given = dict(pair.partition("=")[::2] for pair in args.parameter)
    out = args.out or (notebook.ROOT / "runs" / "notebooks" if given else notebook.NOTEBOOKS)
    ready = [(twin, prepare(twin, given)) for twin in twins]  # a wrong parameter stops before anything runs
    for twin, book in ready:
        if not args.names and (data := notebook.missing_data(book)):
            print(f"{twin.stem}: left out, {data} is not here (data/README.md)", file=sys.stderr, flush=True)
            continue
        begin = time.perf_counter()
        print(f"{twin.stem}", file=sys.stderr, flush=True)
        try:
            notebook.execute(book, lambda line: print(f"  {line}", file=sys.stderr, flush=True))
        except UserError as error:
            raise UserError(f"{twin.stem}: {error}") from None
        notebook.normalise(book)
        notebook.write(book, out / f"{twin.stem}.ipynb")
        print(f"  {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
    print(out.relative_to(notebook.ROOT) if out.is_relative_to(notebook.ROOT) else out)
    return 0


def prepare(twin: Path, given: dict[str, str]) -> object:
    """Return the notebook of a twin with its parameters set."""
    book = notebook.convert(twin)
    try:
        notebook.parameters(book)
        notebook.set_parameters(book, given)
    except UserError as error:
        raise UserError(f"{twin.stem}: {error}") from None
    return book


def check(twins: list[Path]) -> int:
    """Print every problem of the committed notebooks; return the exit code."""
    found = []
    for twin in twins:
        found += notebook.problems(twin, notebook.NOTEBOOKS / f"{twin.stem}.ipynb")
    for line in found:
        print(f"problem: {line}", file=sys.stderr)
    print(f"{len(twins)} notebooks, {len(found)} problems", file=sys.stderr)
    print(notebook.NOTEBOOKS.name)
    return 1 if found else 0


if __name__ == "__main__":
    cli.run(main)
