"""A board as plain text and as Markdown."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from mindlab.evaluation.metrics import PART_METRICS, RANKING_METRICS
from mindlab.report.board import (
    LABELS,
    blocks,
    columns,
    comparisons,
    describe,
    headline,
    of_difference,
    published_groups,
    remarks,
    verdict,
)
from mindlab.report.numbers import (
    cost_text,
    difference_text,
    interval_text,
    params_text,
    printable,
    score_text,
    time_text,
    with_interval,
)


def as_text(board: Mapping[str, Any]) -> str:
    """Return the board as plain text for a terminal: a table, its differences, its remarks."""
    metrics, more = columns(board), [*trained_column(board), *writing_column(board)]
    head = [
        "",
        *(f"{LABELS[metric]}{' [95 %]' if metric == metrics[0] else ''}" for metric in metrics),
        *more,
        "ms/impr.",
    ]
    table: list[list[str]] = [head]
    titles: dict[int, str] = {}
    for title, why, rows in blocks(board):
        titles[len(table)] = f"{title}: {why}"
        for row in rows:
            cells = [score_text(row[metric]) for metric in metrics]
            if metrics:
                cells[0] = with_interval(row, metrics[0])
            cells += [column_text(name, row) for name in more]
            table.append([printable(row["name"]), *cells, cost_text(row["ms_per_impression"])])
    for group, rows in published_groups(board).items():
        titles[len(table)] = f"published, {group}: not run here, no interval"
        for row in rows:
            cells = [score_text(row.get(metric)) if metric in row else "" for metric in metrics]
            table.append([printable(row["name"]), *cells, *("" for _ in more), ""])
    lines = []
    for i, line in enumerate(_align(table)):
        lines += ["", titles[i]] if i in titles else []
        lines.append(line.rstrip())
    parts = [describe(board), "\n".join(lines)]
    found = comparisons(board)
    if found:
        rows = []
        for name, entry, _ in found:
            metric, difference = headline(entry)
            minus = f"{printable(name)} - {printable(entry['against'])}"
            parts_of = [difference_text(entry[part]) if entry.get(part) else "" for part in PART_METRICS]
            end = verdict(difference).split(":")[0]
            rows.append([minus, LABELS[metric], difference_text(difference), end, *parts_of])
        is_apart = any(row[-1] for row in rows)
        heads = ["paired differences", "", "", "", *(LABELS[part] for part in PART_METRICS)]
        shown = [heads, *rows] if is_apart else [row[:4] for row in rows]
        lines = [line.rstrip() for line in _align(shown)]
        parts.append("\n".join(lines if is_apart else ["paired differences", *lines]))
    for name, entry, is_asked in found:
        if is_asked:
            parts.append(
                f"{printable(name)} minus {printable(entry['against'])}: {verdict(headline(entry)[1])}"
                f"{of_difference(entry)}."
            )
    return "\n\n".join([*parts, "\n".join(map(printable, remarks(board)))])


def as_markdown(board: Mapping[str, Any]) -> str:
    """Return the board as Markdown, one table a block."""
    metrics, more = columns(board), [*trained_column(board), *writing_column(board)]
    title = board["context"].get("title") or "Leaderboard"
    parts = [f"# {as_cell(title)}", f"{as_cell(describe(board))}."]
    head = ["method", *(LABELS[metric] for metric in metrics), "parameters", "training", *more]
    head.append("ms per impression")
    for name, why, rows in blocks(board):
        body = [
            [
                as_cell(row["name"]),
                *(with_interval(row, metric) for metric in metrics),
                params_text(row["params"]),
                time_text(row["train_seconds"]),
                *(as_cell(column_text(heading, row)) for heading in more),
                as_cell(cost_text(row["ms_per_impression"])),
            ]
            for row in rows
        ]
        parts += [f"## {name.capitalize()}", f"{why[0].upper()}{why[1:]}.", _markdown_table(head, body)]
    if groups := published_groups(board):
        shown = [metric for metric in metrics if metric in RANKING_METRICS]
        body = [
            [as_cell(row["name"]), as_cell(group), *(score_text(row[metric]) for metric in shown)]
            for group, rows in groups.items()
            for row in rows
        ]
        head = ["published", "group", *(LABELS[metric] for metric in shown)]
        parts += ["## Published", "Not run here, no interval.", _markdown_table(head, body)]
    found = comparisons(board)
    if found:
        body = []
        for name, entry, _ in found:
            metric, difference = headline(entry)
            minus = f"{as_cell(name)} − {as_cell(entry['against'])}"
            of_parts = [difference_text(entry[part]) if entry.get(part) else "–" for part in PART_METRICS]
            body.append([minus, LABELS[metric], difference_text(difference), verdict(difference), *of_parts])
        head = [
            "paired difference",
            "metric",
            "mean [95 %]",
            "in words",
            *(LABELS[part] for part in PART_METRICS),
        ]
        parts += ["## Paired differences", _markdown_table(head, body)]
    parts.append("\n".join(f"- {as_cell(line)}" for line in remarks(board)))
    return "\n\n".join(parts) + "\n"


def slices_markdown(slices: Sequence[Mapping[str, Any]], question: str) -> str:
    """Return one question's slices as a Markdown table: a line a method, a column a slice."""
    asked = [row for row in slices if row["question"] == question and row["methods"]]
    names = list(dict.fromkeys(name for row in asked for name in row["methods"]))
    metric = LABELS.get(asked[0]["metric"], asked[0]["metric"]) if asked else ""
    head = [f"{metric} by {question}", *(f"{row['slice']} ({row['n']:,} impressions)" for row in asked)]
    body = []
    for name in names:
        found = [row["methods"].get(name) or dict.fromkeys(("mean", "low", "high")) for row in asked]
        cells = [
            f"{score_text(one['mean'])} {interval_text(one['low'], one['high'])}".rstrip() for one in found
        ]
        body.append([as_cell(name), *cells])
    return _markdown_table(head, body)


def trained_column(board: Mapping[str, Any]) -> list[str]:
    """Return the heading of the tables' column for what a row was trained on; none where all were trained on the data."""
    known = {row.get("trained_on") for row in board["rows"]}
    return ["trained on"] if known - {None, board["context"].get("data")} else []


def writing_column(board: Mapping[str, Any]) -> list[str]:
    """Return the heading of the tables' column for `writing_seconds`; none where no model wrote for any row."""
    return ["writing"] if any(row.get("writing_seconds") is not None for row in board["rows"]) else []


def column_text(heading: str, row: Mapping[str, Any]) -> str:
    """Return a row's text in one of the columns that not every table has."""
    if heading == "trained on":
        return printable(row.get("trained_on") or "–")
    return time_text(row.get("writing_seconds"))


def _align(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def as_cell(text: Any) -> str:
    """Return a text that Markdown shows as it is: no HTML, no table cell, no link or emphasis."""
    text = html.escape(printable(text), quote=False)
    return "".join(f"\\{c}" if c in "\\|`*[]" else c for c in text)


def _markdown_table(head: list[str], rows: list[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows])
