"""Write requirements.lock, every package by its hash, and docs/licences.md, every package by its licence.

Both come from what pip would install for requirements.txt, in the versions that this environment has, from the index
that it is set up to use. With --check nothing is written: the environment is compared with the lock.

Examples:
  python scripts/lock.py              (after a change of requirements.txt; some minutes, asks the package index)
  python scripts/lock.py --check      (offline)

Exit codes: 0 done, 1 the environment differs from the lock, 2 a mistake in what was given.
"""

import sys

from mindlab.common import cli
from mindlab.common.dependencies import (
    LICENCES,
    LOCK,
    REQUIREMENTS,
    differences,
    installed_licences,
    installed_versions,
    licences_text,
    lock_text,
    pip_report,
    read_lock,
)
from mindlab.common.errors import UserError
from mindlab.common.files import write_text


def main() -> int:
    """Write both files, or check."""
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--check", action="store_true", help="compare what is installed with requirements.lock"
    )
    args = parser.parse_args()
    if not REQUIREMENTS.is_file():
        raise UserError(f"{REQUIREMENTS}: not here; run this in the root of the repository")
    if args.check:
        if not LOCK.is_file():
            raise UserError(f"{LOCK}: no such file; make it without --check")
        found = differences(read_lock(LOCK.read_text(encoding="utf-8")), installed_versions())
        print("\n".join(found) or "as locked", file=sys.stderr)
        print(LOCK)
        return int(bool(found))
    print("pip resolves requirements.txt: a minute or more", file=sys.stderr)
    report = pip_report(REQUIREMENTS, installed_versions())
    text = lock_text(report)
    write_text(LICENCES, licences_text(read_lock(text), installed_licences()))
    write_text(LOCK, text)
    print(LICENCES)
    print(LOCK)
    return 0


if __name__ == "__main__":
    cli.run(main)
