"""Fill the small parts of the documents that programs write: run it after a change of the sample, a rule or a table.

The tables of runs have commands of their own: scripts/dev/boards.py, python -m benchmarks.document.
No test compares a document with a program.

Examples:
  python scripts/dev/documents.py
  python scripts/dev/documents.py --check     (nothing is written; exit 1 where a document differs)
"""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mindlab.common import cli
from mindlab.common.errors import UserError
from mindlab.common.files import write_text
from mindlab.data.mind import read_mind
from mindlab.data.statistics import describe, table
from mindlab.evaluation.leak_rule import leak_rule
from mindlab.evaluation.metrics import answer_metrics
from mindlab.report.published import LLM_TRSR
from mindlab.tasks import Seed

SAMPLE = "data/sample"


@dataclass(frozen=True)
class Filled:
    """The text between the marks ``<!-- name -->`` and ``<!-- /name -->`` of a document."""

    document: str
    name: str
    text: Callable[[], str]


def statistics() -> str:
    """Return the sample's counts beside MINDsmall's."""
    return f"\n{table(describe(read_mind(SAMPLE)), SAMPLE)}\n"


def leak() -> str:
    """Return what the leak rule scores on the tutorial's test records of the sample."""
    test = Seed().splits(read_mind(SAMPLE), 42)["test"]
    found = answer_metrics(leak_rule(test, np.full(len(test), -1)), test.labels[test.offsets[1:] - 1])
    return (
        f"accuracy {found['accuracy']:.3f}, precision {found['precision']:.3f}, recall {found['recall']:.3f}, "
        f"where always No has {found['always_no_accuracy']:.3f}"
    )


def llm_trsr() -> str:
    """Return the table of the LLM-TRSR paper."""
    head = "| on MIND | Recall@3 | Recall@5 | Recall@10 | MRR@3 | MRR@5 | MRR@10 |\n|---|--:|--:|--:|--:|--:|--:|\n"
    rows = (f"| {name} | {' | '.join(f'{value:.4f}' for value in row)} |" for name, row in LLM_TRSR.items())
    return "\n" + head + "\n".join(rows) + "\n"


PARTS = (
    Filled("data/README.md", "statistics", statistics),
    Filled("README.md", "leak-rule", leak),
    Filled("docs/leaderboard.md", "llm-trsr", llm_trsr),
)


def main() -> int:
    """Fill all parts, or say which differ."""
    parser = cli.parser(__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 where a document differs")
    args = parser.parse_args()
    differing = []
    for part in PARTS:
        path = Path(part.document)
        if not path.is_file():
            raise UserError(f"{path}: not here; run this in the root of the repository")
        before = path.read_text(encoding="utf-8")
        after = filled(before, part.name, part.text(), path)
        if " ".join(after.split()) != " ".join(before.split()):  # a line may be broken anywhere
            differing.append(part)
            if not args.check:
                write_text(path, after)
    for part in differing:
        print(f"{part.document}: {part.name} {'differs' if args.check else 'filled anew'}", file=sys.stderr)
    print("\n".join(sorted({part.document for part in PARTS})))
    return int(args.check and bool(differing))


def filled(document: str, name: str, text: str, path: Path) -> str:
    """Return a Markdown text with `text` between its marks of `name`; UserError if it has none.

    >>> filled("a <!-- x -->old<!-- /x --> b", "x", "new", Path("a.md"))
    'a <!-- x -->new<!-- /x --> b'
    """
    first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
    found, n = re.subn(f"(?s){first}.*?{last}", lambda _: first + text + last, document, count=1)
    if not n:
        raise UserError(f"{path}: has no {first} and {last} marks")
    return found


if __name__ == "__main__":
    cli.run(main)
