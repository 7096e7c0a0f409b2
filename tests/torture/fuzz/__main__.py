"""Fuzz every user of files: each outcome must be a correct parse, or one clear line that a script ends on.

  python -m tests.torture.fuzz --n 20000 --seed 1               the long run, with the huge files
  python -m tests.torture.fuzz --n 500 --only mind,alpaca
  python -m tests.torture.fuzz --show config 1 17               the files of one case, and what becomes of them

Prints a table; exit code 1 if any file ended in a traceback, a misreading, a hang, a crash or too much memory.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

from mindlab.runs import kept
from tests.torture.fuzz import harness

MARKS = (Path("fuzz"), Path("huge"))  # of the tables in docs/reliability.md


def main() -> int:
    """Run, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=2000, help="files in all (default 2000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="targets, with commas")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--no-huge", action="store_true", help="leave out the files of up to 500 MB")
    parser.add_argument("--show", nargs=3, metavar=("TARGET", "SEED", "NUMBER"))
    parser.add_argument("--keep", type=Path, help="with --show: a folder that gets the files")
    parser.add_argument(
        "--update",
        type=Path,
        metavar="FILE",
        help="also put the tables between FILE's marks, such as docs/reliability.md",
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        out = sys.stdout
        sys.stdout = sys.stderr  # whatever a library prints must not come among the replies
        harness.serve(sys.stdin, out)
        return 0
    from tests.torture.fuzz import huge
    from tests.torture.fuzz.targets import TARGETS

    if args.show:
        return show(args.show[0], int(args.show[1]), int(args.show[2]), args.keep)
    marks = MARKS[: 1 if args.no_huge else 2]
    for mark in marks if args.update else ():
        kept.around(args.update, mark)
    names = args.only.split(",") if args.only else list(TARGETS)
    with tqdm(total=args.n, unit=" files", file=sys.stderr, mininterval=5) as bar:
        tallies = harness.fuzz(args.n, args.seed, names, args.jobs, bar.update)
    tables = [harness.table(tallies)]
    print(tables[0])
    for name, tally in tallies.items():
        for bad in tally.bad[:40]:
            print(f"\n{bad['kind']}: --show {name} {args.seed} {bad['number']}\n{bad['said']}")
    is_bad = any(tally.bad for tally in tallies.values())
    if not args.no_huge:
        found = []
        for one in tqdm(huge.run_all(), total=len(huge.CASES), unit=" huge files", file=sys.stderr):
            found.append(one)
            is_bad |= not one.is_good
        tables.append(huge.table(found))
        print(f"\n{tables[1]}")
        for one in found:
            print(f"\n{'refused' if one.is_good else 'BAD'}: {one.name}\n{one.said}")
    for mark, table in zip(marks if args.update else (), tables, strict=False):
        kept.put(args.update, mark, table)
    return int(is_bad)


def show(name: str, seed: int, number: int, keep: Path | None) -> int:
    """Print what a case changed, and its outcome."""
    from tests.torture.fuzz.targets import TARGETS

    valid, files = harness.case_files(name, seed, 0), harness.case_files(name, seed, number)
    with tempfile.TemporaryDirectory() as text:
        folder = keep or Path(text)
        harness.write_files(folder, files)
        for changed in (file for file in files if files[file] != valid[file]):
            print(f"{changed}: {len(files[changed]):,} bytes\n{files[changed][:3000]!r}")
        kind, said = harness.outcome(TARGETS[name].read, folder)
    print(json.dumps({"outcome": kind}), said, sep="\n")
    return int(kind in harness.BAD)


if __name__ == "__main__":
    sys.exit(main())
