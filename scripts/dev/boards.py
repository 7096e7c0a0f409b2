"""Make the boards of data/reference_runs, and their tables in the documents, anew without a language model.

A row whose predictions are committed is measured from them; the others are made into runs/boards, which takes some
minutes the first time (delete that folder after a change in a method). What only a language model can make, and whose
predictions are not committed, is left out, and a note under the board says so. Predictions are measured again and time is
not: a row that was on the board keeps its costs.

Prints which paired differences have another verdict than in the boards of --since, with both intervals, and by how much
mean values moved. Those of committed predictions must not: exit 1 if they do.

Examples:
  python scripts/dev/boards.py
  python scripts/dev/boards.py demo recipe-sample
  python scripts/dev/boards.py compare --since HEAD~1
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mindlab import report as reporting
from mindlab.common import cli
from mindlab.common.errors import UserError
from mindlab.data.mind import read_mind
from mindlab.recommenders import METHODS
from mindlab.recommenders.oracle import FILE_NAME
from mindlab.runs import kept
from mindlab.runs.blend import BLENDS, make_blend
from mindlab.runs.compare import compare, names_of
from mindlab.runs.run import Request
from mindlab.tasks import task_of

sys.path.insert(0, str(Path(__file__).parents[2]))
from scripts import compare as comparing
from scripts import demo

FOLDER, OUT = Path("data/reference_runs"), Path("runs/boards")
COMPARE = "compare"
CLOSE = 1e-9


@dataclass(frozen=True)
class Board:
    """What a kept board does not say of itself: `again` is the command that makes all of it, models included."""

    document: str
    again: str
    data: str = "data/sample"
    generate: str = ""  # the command that makes the data, where it is not committed


def recipe(seed: int) -> Board:
    """Return the board of the recipe on the generator's data of a seed."""
    data, out = f"runs/recipe/data-{seed}", f"runs/recipe/seed-{seed}"
    return Board(
        "docs/recipe.md",
        f"python scripts/demo.py --format next_topic --data {data} --limit 1200 --out {out}",
        data,
        f"python scripts/make_sample.py --out {data} --train 3000 --dev 1200 --seed {seed}",
    )


BOARDS = {
    COMPARE: Board(
        "docs/leaderboard.md", "python scripts/compare.py --data data/sample --llm --out runs/compare"
    ),
    "compare-sampled": Board(
        "docs/leaderboard.md",
        "python scripts/compare.py --data data/sample --protocol sampled --limit 60 --llm --out runs/compare-sampled",
    ),
    "demo": Board("README.md", "make demo"),
    "recipe-sample": Board(
        "docs/recipe.md",
        "python scripts/demo.py --format next_topic --limit 600 --control --out runs/recipe/sample",
    ),
    "recipe-seed-2": recipe(2),
    "recipe-seed-3": recipe(3),
}
# Of the same data and recipe as the rows of `compare` with these names.
ALSO = {COMPARE: ("recipe-sample",)}


def main() -> int:
    """Make the boards that were asked for, and say what changed."""
    parser = cli.parser(__doc__)
    parser.add_argument("boards", nargs="*", metavar="BOARD", help=f"of {', '.join(BOARDS)} (default: all)")
    parser.add_argument(
        "--since", default="HEAD", help="the commit whose boards to compare with (default HEAD)"
    )
    args = parser.parse_args()
    for name in args.boards:
        if name not in BOARDS:
            raise UserError(f"no board {name!r} in {FOLDER}; expected one of {', '.join(BOARDS)}")
    for board in BOARDS.values():
        if not Path(board.document).is_file():
            raise UserError(f"{board.document}: not here; run this in the root of the repository")
    is_same = [
        said(place, before, after)
        for name in args.boards or BOARDS
        for place, before, after in make(name, args.since)
    ]
    print(FOLDER)
    return 0 if all(is_same) else 1


def make(name: str, since: str) -> list[tuple[str, list[dict], dict[str, Any]]]:
    """Make one board, `compare` with its second table; return each one's place, rows of before, and new board."""
    board, known = BOARDS[name], read_rows(name)
    if board.generate and not Path(board.data).is_dir():
        subprocess.run([sys.executable, *shlex.split(board.generate)[1:]], check=True)
    first = known[0]
    protocol, limit = first["protocol"], first["n_impressions"]
    wanted = [row["name"] for row in known]
    if name == COMPARE:  # all that applies, on all impressions; its first table is of some
        usual = [*names_of(protocol), *BLENDS]
        wanted, limit = list(dict.fromkeys([*wanted, *usual])), None
    runs = {row: run for row in wanted if (run := kept_run(name, row))}
    cheap = [row for row in wanted if row not in runs and is_cheap(row)]
    with tqdm(cheap, unit=" methods", desc=name, file=sys.stderr) as bar:
        request = Request(board.data, protocol, limit=limit)
        made = compare(request, cheap, OUT / name, lambda _: comparing.named(bar))
    runs |= dict(zip(cheap, made, strict=True))
    for row in wanted:
        if row in BLENDS and set(BLENDS[row]) <= set(runs):
            runs[row] = make_blend(row, [runs[part] for part in BLENDS[row]], OUT / name)

    mind = read_mind(board.data)
    splits = task_of(protocol).splits(mind, request.seed)
    n, some = len(splits["test"]), first["n_impressions"]
    notes = task_of(protocol).notes(splits["test"].take(limit(n, limit, request.seed)))
    if not name.startswith(COMPARE):
        notes.append(demo.ONE_SEED)
    left = [row for row in wanted if row not in runs]
    if left:
        notes.append(
            "Not in this table, because a language model makes them and their predictions are not in the repository: "
            f"{', '.join(left)}. To bring them back: {board.again}"
        )
    tables = [(name, list(runs), some)]
    if name == COMPARE:
        whole = [row for row in runs if row in BLENDS or (row in METHODS and not METHODS[row].is_costly)]
        tables = [(f"{name}/all", whole, n), *tables]
    result = []
    for place, here, size in tables:
        before = read_rows(place, since)
        more = []
        if name == COMPARE and size < n:
            more.append(comparing.note_of_choice(size, n))
        context = {
            "title": title_of(place),
            "data": board.data,
            "synthetic": (Path(board.data) / "train" / FILE_NAME).exists(),
            "command": board.again,
            "notes": [*notes, *more],
        }
        cases = limit(n, size, request.seed)
        after = reporting.leaderboard(
            [runs[row] for row in here], pairs=pairs_of(before, here), cases=cases, context=context
        )
        keep_costs(after, read_rows(place), board.data)
        if name.startswith(COMPARE):
            comparing.write(OUT / place, after, mind, splits, "test", cases)
            files: Sequence[str] = comparing.TABLES
        else:
            reporting.write_leaderboard(OUT / place, after)
            files = comparing.TABLES[:2]
        kept.keep([OUT / place / file for file in files], FOLDER / place)
        kept.update(Path(board.document), FOLDER / place, reporting.as_text(after))
        result.append((place, before, after))
    return result


def is_cheap(row: str) -> bool:
    """Return whether a row is made in minutes and without a language model."""
    return row in METHODS and not METHODS[row].is_costly and not METHODS[row].needs_llm


def read_rows(place: str, commit: str | None = None) -> list[dict[str, Any]]:
    """Return the rows of a kept board, as they are or as they were in a commit."""
    path = FOLDER / place / "leaderboard.json"
    if commit is None:
        return json.loads(path.read_text(encoding="utf-8"))
    found = subprocess.run(
        ["git", "show", f"{commit}:{path.as_posix()}"], capture_output=True, check=False, text=True
    )
    if found.returncode:
        raise UserError(f"{path}: not in commit {commit}; name one that has it with --since")
    return json.loads(found.stdout)


def title_of(place: str) -> str:
    """Return the title of a kept board."""
    first = (FOLDER / place / "leaderboard.md").read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("# ")


def kept_run(board: str, row: str) -> Path | None:
    """Return the folder that holds a row's committed predictions."""
    for folder in (board, *ALSO.get(board, ())):
        if (FOLDER / folder / row / "predictions.parquet").is_file():
            return FOLDER / folder / row
    return None


def pairs_of(before: Iterable[dict[str, Any]], here: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs to compare: those of the board as it was, and those that a board of these rows has."""
    known = [(row["name"], entry["against"]) for row in before for entry in row["paired"]]
    pairs = [pair for pair in known if pair[1] != reporting.DEFAULT_REFERENCE]
    pairs += [(name, other) for name, method in METHODS.items() for other in method.against]
    pairs += [(blend, part) for blend, parts in BLENDS.items() for part in parts]
    return [pair for pair in dict.fromkeys(pairs) if set(pair) <= set(here)]


def keep_costs(board: dict[str, Any], before: Iterable[dict[str, Any]], data: str) -> None:
    """Give rows that were on the board the costs that they had; say of older runs what they were trained on."""
    known = {row["name"]: row for row in before}
    for row in board["rows"]:
        name = row["name"]
        old, manifest = known.get(name, {}), board["manifests"][name]
        row |= {cost: old[cost] for cost in reporting.COSTS if cost in old}
        if "trained_on" not in manifest and "parts" not in manifest.get("request", {}):
            is_trained = (name in METHODS and METHODS[name].is_learned) or manifest.get("request", {}).get(
                "adapter"
            )
            row["trained_on"] = data if is_trained else None


def said(place: str, before: Iterable[dict[str, Any]], after: dict[str, Any]) -> bool:
    """Print what changed on a board; return whether the mean values of committed predictions stayed."""
    old, new = ({row["name"]: row for row in found} for found in (before, after["rows"]))
    print(f"\n{place}")
    for what, names in (("gone", [*old.keys() - new.keys()]), ("new", [*new.keys() - old.keys()])):
        if names:
            print(f"  {what}: {', '.join(sorted(names))}")
    moved = {name: largest_move(old[name], new[name]) for name in new if name in old}
    committed = {name: by for name, by in moved.items() if new[name]["run"].startswith(FOLDER.as_posix())}
    for what, found in (
        ("committed", committed),
        ("remade", {n: moved[n] for n in moved.keys() - committed.keys()}),
    ):
        most = max(found, key=found.get, default=None)
        if most:
            print(
                f"  {len(found)} rows of {what} predictions: no mean moved by more than {found[most]:.1e} ({most})"
            )
    changed, widths = [], []
    for name, row in new.items():
        was = {entry["against"]: entry for entry in old.get(name, {"paired": []})["paired"]}
        for entry in row["paired"]:
            if entry["against"] not in was:
                continue
            (_, a), (metric, b) = reporting.headline(was[entry["against"]]), reporting.headline(entry)
            if None not in (a["low"], b["low"]):
                widths.append((b["high"] - b["low"]) / (a["high"] - a["low"]))
            if reporting.verdict(a) != reporting.verdict(b):
                texts = [
                    f"{reporting.difference_text(x)} ({reporting.verdict(x).split(':')[0]})" for x in (a, b)
                ]
                changed.append(
                    f"{name} - {entry['against']}, {reporting.LABELS[metric]}: {', now '.join(texts)}"
                )
    if widths:
        print(
            f"  {len(widths)} paired differences, their intervals {np.median(widths):.2f} times as wide (median)"
        )
    print(f"  {len(changed)} changed their verdict", *changed, sep="\n    ")
    return all(by <= CLOSE for by in committed.values())


def largest_move(old: dict[str, Any], new: dict[str, Any]) -> float:
    """Return by how much the mean that moved most did; infinite for one that came or went."""
    metrics = [key.removesuffix("_low") for key in old if key.endswith("_low")]
    pairs = [(old[metric], new.get(metric)) for metric in metrics]
    return max(
        (float("inf") if None in pair else abs(pair[0] - pair[1])) for pair in pairs if pair != (None, None)
    )


if __name__ == "__main__":
    cli.run(main)
