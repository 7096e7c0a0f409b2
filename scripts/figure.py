"""Draw a leaderboard as one SVG: each row a dot on its 95 % interval, beside what others published on the same rows.

Example, RecPrompt's 400 impressions for a phone and for a desktop:
  python scripts/figure.py runs/recprompt/leaderboard.json --out docs/real_mind.svg
  python scripts/figure.py runs/recprompt/leaderboard.json --out docs/real_mind_wide.svg --columns 2 --title "..."
A leaderboard of other impressions has nothing published beside it:
  python scripts/figure.py data/reference_runs/demo/leaderboard.json --published none --out runs/demo.svg
"""

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mindlab.common import cli
from mindlab.common.errors import UserError
from mindlab.common.files import is_number, read_json, write_text
from mindlab.report.figure import Row, forest
from mindlab.report.published import read_published

PUBLISHED = Path(__file__).resolve().parents[1] / "data/published/recprompt.json"
# What people call a row; one that is not here stands under its own name.
NAMES = {
    "random": "Random order",
    "popularity": "Popularity",
    "tfidf": "TF-IDF of titles",
    "category": "Category counts",
    "subcategory": "Subcategory counts",
    "categories": "Category and subcategory counts",
    "minilm": "MiniLM, mean of clicks",
    "minilm-lme": "MiniLM, log mean exp",
    "minilm-readers": "MiniLM, chosen on 100",
    "blend": "MiniLM and counts, equal weights",
    "smollm2-hidden-states": "hidden states, untrained",
}
KINDS = {"base": "untrained", "lora": "tuned"}
OURS = (
    "Run here, nothing trained",
    "Run here, trained",
    "Run here, SmolLM2 (135 M)",
    "Run here, sees earlier test labels",
    "Ceiling: the generator's own utility",
)
GROUPS = {
    "simple": "Published: simple and neural",
    "neural": "Published: simple and neural",
    "prompted": "Published: prompted GPT",
    "tuned prompts": "Published: GPT with tuned prompts",
}


def main() -> int:
    """Draw and print the path."""
    parser = cli.parser(__doc__)
    parser.add_argument("metrics", type=Path, metavar="METRICS.json", help="leaderboard.json, a list of rows")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.svg", help="the file to write")
    parser.add_argument("--title", help="the finding, in a sentence")
    parser.add_argument("--columns", type=int, choices=(1, 2), default=1, help="2 side by side for a desktop")
    parser.add_argument("--published", default=str(PUBLISHED), metavar="FILE", help="published rows, or none")
    args = parser.parse_args()
    rows, n = measured(args.metrics)
    table = None if args.published == "none" else read_published(args.published)
    if table and n != table["n_impressions"]:
        raise UserError(
            f"{args.metrics}: {n:,} impressions, and what was published is about {table['n_impressions']:,} others; "
            "give --published none"
        )
    published = published_rows(table) if table else []
    title = args.title or (
        f"{n:,} impressions of real news: AUC here, and as published" if table else "AUC with 95 % intervals"
    )
    svg = forest(rows + published, title, caption(rows, n, table), args.columns)
    write_text(args.out, svg)
    print(f"{len(rows)} rows, and {len(published)} published ones", file=sys.stderr)
    print(args.out)
    return 0


def measured(path: Path) -> tuple[list[Row], int]:
    """Return the rows of a leaderboard.json, and how many impressions they share."""
    advice = "give the leaderboard.json that scripts/compare.py wrote"
    found, sizes = [], set()
    for row in read_json(path, advice, list):
        if not isinstance(row, dict) or not isinstance(row.get("name"), str):
            raise UserError(f"{path}: holds a row without a name; {advice}")
        n, trained_on = row.get("n_impressions"), row.get("trained_on") or ""
        ends = [row.get(key) for key in ("auc", "auc_low", "auc_high")]
        if not all(is_number(value) and (value is None or 0 <= value <= 1) for value in ends):
            raise UserError(
                f"{path}: {row['name']}: AUC and its limits are {ends}, expected fractions; {advice}"
            )
        if ends[0] is None or None in ends[1:]:
            raise UserError(
                f"{path}: {row['name']}: no AUC with an interval (auc, auc_low, auc_high); {advice}"
            )
        if not isinstance(n, int) or not isinstance(trained_on, str):
            raise UserError(f"{path}: {row['name']}: n_impressions or trained_on does not fit; {advice}")
        found.append(
            Row(human_name(row["name"]), group_of(row), *ends, note=trained_on and f"trained on {trained_on}")
        )
        sizes.add(n)
    if len(sizes) != 1:
        raise UserError(
            f"{path}: {len(sizes)} numbers of impressions, expected rows that share one; {advice}"
        )
    return in_order(found), sizes.pop()


def human_name(name: str) -> str:
    """Return what people call a row.

    >>> [human_name(name) for name in ("minilm", "smollm2-next_topic-lora", "something-new")]
    ['MiniLM, mean of clicks', 'next topic, tuned', 'something-new']
    """
    model, *asked = name.split("-")
    if model == "smollm2" and len(asked) == 2 and name not in NAMES:
        return f"{asked[0].replace('_', ' ')}, {KINDS.get(asked[1], asked[1])}"
    return NAMES.get(name, name)


def group_of(row: Mapping[str, Any]) -> str:
    """Return the heading that a row measured here stands under."""
    if row["track"] == "ceiling":
        return OURS[4]
    if row["name"].startswith("smollm2"):
        return OURS[2]
    if row.get("track") == "streaming":
        return OURS[3]
    return OURS[1] if row.get("trained_on") else OURS[0]


def published_rows(table: Mapping[str, Any]) -> list[Row]:
    """Return the published rows; one of a language model that saw no categories says so."""
    drawn = []
    for row in table["rows"]:
        note = "headlines alone" if "GPT" in row["name"] and row["categories"] is False else ""
        drawn.append(Row(row["name"], GROUPS[row["group"]], row["auc"], note=note))
    for row in table["logged"]["rows"]:
        drawn.append(Row(row["name"], GROUPS[row["group"]], row["auc"], note="logged, not in the table"))
    return in_order(drawn)


def in_order(rows: Sequence[Row]) -> list[Row]:
    """Return rows by group, and by falling AUC within one."""
    groups = [*OURS, *GROUPS.values()]
    return sorted(rows, key=lambda row: (groups.index(row.group), -row.auc))


def caption(rows: Sequence[Row], n: int, table: Mapping[str, Any] | None) -> str:
    """Return what was measured, on how much, and how far apart rows must be to say more."""
    half = statistics.median((row.high - row.low) / 2 for row in rows)
    said = f"{n:,} impressions; 95 % intervals over users and news, about ±{half:.2f}."
    if table:
        said += f" Published: {table['authors']}, {table['paper'].removeprefix('https://')}, with no such interval."
    return said


if __name__ == "__main__":
    cli.run(main)
