"""A board as one self-contained HTML page, and the files that are written of it.

The page asks the network for nothing: its style is inline, its plots are inline SVG, and every text from a run is escaped."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mindlab.common.files import lock, write_json, write_text
from mindlab.evaluation.metrics import LIST_METRICS, METRICS, PART_METRICS, RANKING_METRICS
from mindlab.report.board import (
    LABELS,
    SYNTHETIC,
    blocks,
    check_context,
    columns,
    comparisons,
    describe,
    headline,
    of_difference,
    present,
    published_groups,
    remarks,
    verdict,
)
from mindlab.report.html import capital, cell, escape, real_minus, sentence
from mindlab.report.numbers import (
    cost_text,
    difference_text,
    interval_text,
    params_text,
    score_text,
    ticks,
    time_text,
)
from mindlab.report.plots import Dots, cost_plot, dots_plot, smooth
from mindlab.report.text import as_markdown, writing_column

STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
SHARE = "share of clicks"  # on the axis of a calibration plot


def write_leaderboard(
    out: str | Path,
    board: Mapping[str, Any],
    losses: Sequence[Mapping[str, Any]] | None = None,
    tutorial: Mapping[str, Mapping[str, Any]] | None = None,
    slices: Sequence[Mapping[str, Any]] | None = None,
) -> Path:
    """Write leaderboard.json, leaderboard.md and report.html into `out`; return the page's path.

    leaderboard.json is the list of rows. `losses`, `tutorial` and `slices` as in `write_report`; slices are
    also written as slices.json. Raises UserError while another process writes to `out`.
    """
    out = Path(out)
    with lock(out):
        write_json(out / "leaderboard.json", board["rows"])
        write_text(out / "leaderboard.md", as_markdown(board))
        if slices is not None:
            write_json(out / "slices.json", list(slices))
        return write_report(out / "report.html", board, losses=losses, tutorial=tutorial, slices=slices)


def write_report(
    out_html: str | Path,
    board: Mapping[str, Any],
    losses: Sequence[Mapping[str, Any]] | None = None,
    context: Mapping[str, Any] | None = None,
    tutorial: Mapping[str, Mapping[str, Any]] | None = None,
    slices: Sequence[Mapping[str, Any]] | None = None,
) -> Path:
    """Write the board as one HTML page that needs no other file and no network; return its path.

    Args:
        out_html: the file to write.
        board: from `leaderboard`.
        losses: rows with ``current_steps`` and ``loss``, as `mindlab.finetune.factory.read_loss` returns them.
        context: adds to, or replaces, the board's own context.
        tutorial: for the `seed` protocol, by name: ``accuracy``, ``accuracy_low``, ``accuracy_high``,
            ``precision``, ``recall`` and ``n`` (or ``n_answers``), as `mindlab.evaluation.metrics` names them.
        slices: from `mindlab.evaluation.slices.measure_slices`.
    """
    context = board["context"] | check_context(context)
    title = str(context.get("title") or "Leaderboard")
    sections = [
        _differences_section(board),
        _table_section(board, context),
        _forest_section(board),
        _parts_section(board),
        _lists_section(board),
        _published_section(board),
        _slices_section(board, slices),
        _calibration_section(board),
        _cost_section(board),
        _loss_section(losses),
        _tutorial_section(tutorial),
        _remake_section(board, context),
    ]
    lines = [escape(context["data"])] if context.get("data") else []
    about = [f'<p class="about">{line}</p>' for line in [*lines, sentence(describe(board))]]
    warning = f'<p class="warning">{escape(SYNTHETIC)}</p>' if context.get("synthetic") else ""
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>
{STYLE}</style>
</head>
<body>
<main>
<header><h1>{escape(title)}</h1>{"".join(about)}{warning}</header>
{"".join(section for section in sections if section)}</main>
</body>
</html>
"""
    write_text(out_html, page)
    return Path(out_html)


def _html_table(head: str, bodies: str) -> str:
    """Return a table that scrolls sideways by itself where the page is narrow."""
    thead = f"<thead><tr>{head}</tr></thead>"
    return f'<div class="scroll" tabindex="0"><table>{thead}{bodies}</table></div>'


def _differences_section(board: Mapping[str, Any]) -> str:
    """Return the asked-for pairs, each as a number and a sentence."""
    cards = []
    for name, entry, is_asked in comparisons(board):
        if not is_asked:
            continue
        metric, difference = headline(entry)
        mean = "–" if difference["mean"] is None else f"{difference['mean']:+.3f}"
        cards.append(
            f'<div class="card"><p class="pair">{LABELS[metric]}, <b>{escape(name)}</b> minus '
            f'<b>{escape(entry["against"])}</b></p><p class="big">{real_minus(mean)} <small>'
            f"{real_minus(interval_text(difference['low'], difference['high'], '+'))}</small></p>"
            f'<p class="verdict">{sentence(verdict(difference) + of_difference(entry))}</p></div>'
        )
    return f'<section id="gain"><h2>Head to head</h2>{"".join(cards)}</section>\n' if cards else ""


def _table_section(board: Mapping[str, Any], context: Mapping[str, Any]) -> str:
    """Return the table with intervals, one block of rows a track."""
    metrics = columns(board)
    reference = board["reference"]
    is_compared = reference and any(row.get("auc") is not None for row in board["rows"])
    against = [f"AUC minus {escape(reference)}"] if is_compared else []
    head = "".join(f"<th>{text}</th>" for text in ["method", *(LABELS[m] for m in metrics), *against])
    bodies = []
    for title, why, rows in blocks(board):
        lines = [
            f'<tr class="block"><th colspan="{1 + len(metrics) + len(against)}">'
            f"<span>{escape(title.capitalize())} <small>{escape(why)}</small></span></th></tr>"
        ]
        for row in rows:
            cells = [
                cell(score_text(row[m]), interval_text(row[f"{m}_low"], row[f"{m}_high"])) for m in metrics
            ]
            if against:
                found = next(
                    (p["auc"] for p in row["paired"] if p["against"] == reference and p.get("auc")), None
                )
                mean = "–" if found is None or found["mean"] is None else f"{found['mean']:+.3f}"
                cells.append(cell(mean, interval_text(found["low"], found["high"], "+") if found else ""))
            lines.append(f'<tr><th scope="row">{escape(row["name"])}</th>{"".join(cells)}</tr>')
        bodies.append(f"<tbody>{''.join(lines)}</tbody>")
    said = [line for line in remarks(board, context) if line != SYNTHETIC]
    notes = "".join(f"<li>{escape(line)}</li>" for line in said)
    return (
        f'<section id="table"><h2>Leaderboard</h2>{_html_table(head, "".join(bodies))}'
        f'<ul class="notes">{notes}</ul></section>\n'
    )


def _forest_section(board: Mapping[str, Any]) -> str:
    """Return a metric of each row as a dot on its interval: AUC, or accuracy where no row has it."""
    metric = "auc" if any(row["auc"] is not None for row in board["rows"]) else "accuracy"
    ends = [metric, f"{metric}_low", f"{metric}_high"]
    groups = [
        (
            capital(title),
            title,
            [(row["name"], *(row[end] for end in ends)) for row in rows if row[metric] is not None],
        )
        for title, _, rows in blocks(board)
    ]
    groups = [group for group in groups if group[2]]
    if not groups:
        return ""
    chance = METRICS[metric].chance
    said = "The dashed line is 0.5, the AUC of a random order. " if chance else ""
    return (
        f'<section id="forest"><h2>{LABELS[metric][0].upper()}{LABELS[metric][1:]} with 95 % intervals</h2>'
        f"<figure>{dots_plot(groups, metric, chance)}"
        f"<figcaption>{said}Intervals that overlap do not rule "
        "out a difference; the paired differences decide.</figcaption></figure></section>\n"
    )


def _parts_section(board: Mapping[str, Any]) -> str:
    """Return each paired difference, and how much of it is appeal and how much is personal."""
    found = [(name, entry) for name, entry, _ in comparisons(board) if entry.get("auc_appeal")]
    if not found:
        return ""
    metrics = ("auc", *PART_METRICS)
    head = "".join(f"<th>{escape(text)}</th>" for text in ["difference", *(LABELS[m] for m in metrics)])
    lines = []
    for name, entry in found:
        cells = []
        for metric in metrics:
            mean, _, interval = difference_text(entry[metric]).partition(" ")
            cells.append(cell(mean, interval))
        lines.append(
            f'<tr><th scope="row">{escape(name)} − {escape(entry["against"])}</th>{"".join(cells)}</tr>'
        )
    return (
        '<section id="parts"><h2>Appeal and person</h2><p>What a method thinks of a news article for anybody is its mean '
        "score over all impressions that show the article: AUC of that is its <b>appeal</b>, AUC of the rest is "
        "<b>personal</b>. A gain in appeal alone is liking a few headlines; a recommender's gain is personal.</p>"
        + _html_table(head, f"<tbody>{''.join(lines)}</tbody>")
        + "</section>\n"
    )


def _lists_section(board: Mapping[str, Any]) -> str:
    """Return what stands in the first places, clicked or not."""
    metrics = [metric for metric in present(board) if metric in LIST_METRICS]
    if not metrics:
        return ""
    head = "".join(f"<th>{escape(text)}</th>" for text in ["method", *(LABELS[m] for m in metrics)])
    lines = []
    for row in (row for _, _, rows in blocks(board) for row in rows):
        cells = "".join(
            cell(score_text(row.get(m)), interval_text(row.get(f"{m}_low"), row.get(f"{m}_high")))
            for m in metrics
        )
        lines.append(f'<tr><th scope="row">{escape(row["name"])}</th>{cells}</tr>')
    return (
        '<section id="lists"><h2>What is shown first</h2><p>Clicked or not: coverage is the share of all different '
        "candidates that stand in the first ten places of some impression, novelty the mean of -log2(share of "
        "impressions that show it) over the first ten places. Neither says that anybody liked it.</p>"
        + _html_table(head, f"<tbody>{''.join(lines)}</tbody>")
        + "</section>\n"
    )


def _published_section(board: Mapping[str, Any]) -> str:
    """Return the published rows of the same impressions, apart."""
    groups = published_groups(board)
    if not groups:
        return ""
    head = "".join(
        f"<th>{escape(text)}</th>" for text in ["published", *(LABELS[m] for m in RANKING_METRICS)]
    )
    bodies = []
    for group, rows in groups.items():
        lines = [
            f'<tr class="block"><th colspan="{1 + len(RANKING_METRICS)}"><span>{escape(capital(group))}</span></th></tr>',
            *(
                f'<tr><th scope="row">{escape(row["name"])}</th>'
                f"{''.join(cell(score_text(row[metric])) for metric in RANKING_METRICS)}</tr>"
                for row in rows
            ),
        ]
        bodies.append(f"<tbody>{''.join(lines)}</tbody>")
    return (
        '<section id="published"><h2>Published on the same impressions</h2><p>Not run here, no interval.</p>'
        + _html_table(head, "".join(bodies))
        + "</section>\n"
    )


def _slices_section(board: Mapping[str, Any], slices: Sequence[Mapping[str, Any]] | None) -> str:
    """Return the metric of each method in each slice: of a few as plots, a plot a question, of all as a table."""
    if not slices:
        return ""
    names = [row["name"] for _, _, rows in blocks(board) for row in rows]
    metric = slices[0]["metric"]
    shown = [name for name in names if name in _plotted(board, metric)]
    head = "".join(f"<th>{escape(text)}</th>" for text in [LABELS[metric], "impressions", *names])
    bodies: dict[str, list[str]] = {}
    groups: dict[str, Dots] = {}
    for row in slices:
        found = [row["methods"].get(name) or {"mean": None, "low": None, "high": None} for name in names]
        cells = [cell(score_text(one["mean"]), interval_text(one["low"], one["high"])) for one in found]
        bodies.setdefault(row["question"], [f'<tr class="block"><th colspan="{2 + len(names)}">'
            f"<span>{escape(capital(row['question']))}</span></th></tr>"]).append(
            f'<tr><th scope="row">{escape(row["slice"])}</th>{cell(format(row["n"], ","))}{"".join(cells)}</tr>'
        )  # fmt: skip
        dots = [
            (name, one["mean"], one["low"], one["high"])
            for name, one in zip(names, found, strict=True)
            if name in shown and one["mean"] is not None
        ]
        if dots:
            title = f"{capital(row['question'])}: {row['slice']} ({row['n']:,})"
            groups.setdefault(row["question"], []).append((title, "static", dots))
    plots = "".join(
        f"<figure>{dots_plot(group, metric, METRICS[metric].chance)}</figure>" for group in groups.values()
    )
    body = "".join(f"<tbody>{''.join(lines)}</tbody>" for lines in bodies.values())
    return (
        f'<section id="slices"><h2>For whom, and for which news</h2>{plots}'
        f"<details><summary>All methods</summary>{_html_table(head, body)}</details>"
        '<ul class="notes"><li>A slice of few impressions has no number. Many slices are looked at: an interval '
        "that just excludes another row's number shows little.</li></ul></section>\n"
    )


def _calibration_section(board: Mapping[str, Any]) -> str:
    """Return, for each model that answers Yes or No, the share of clicks among candidates of a like P(Yes)."""
    found = [(row["name"], row["calibration"]) for row in board["rows"] if row.get("calibration")]
    if not found:
        return ""
    parts, lines = [], []
    for name, one in found:
        dots = [
            (f"P(Yes) {b['mean']:.3f} ({b['n']:,})", b["share"], b["low"], b["high"]) for b in one["bins"]
        ]
        parts.append(f"<figure>{dots_plot([(name, 'static', dots)], SHARE)}</figure>")
        constant = one["share"] * (1 - one["share"])
        kinds = {name: one} | ({f"{name}, non-clicks undone": one["undone"]} if one["undone"] else {})
        for kind, found_here in kinds.items():
            values = [found_here["mean"], one["share"], found_here["ece"], found_here["brier"], constant]
            cells = "".join(cell(score_text(value)) for value in values)
            lines.append(f'<tr><th scope="row">{escape(kind)}</th>{cells}</tr>')
    heads = ["method", "mean P(Yes)", SHARE, "calibration error", "Brier score", "Brier score of the share"]
    head = "".join(f"<th>{text}</th>" for text in heads)
    return (
        '<section id="calibration"><h2>Does P(Yes) mean what it says?</h2><p>Candidates in order of P(Yes), in '
        "groups of like size: the share of each that was clicked. A calibrated model has the same number on "
        "both sides; one that ranks has a share that rises. Training shows a few "
        "non-clicks for each click, far fewer than a reader sees, which teaches a P(Yes) above the share of "
        "clicks: ranking is not hurt by that, a threshold is. The lines &quot;non-clicks undone&quot; take that "
        "part away again.</p>"
        + "".join(parts)
        + _html_table(head, f"<tbody>{''.join(lines)}</tbody>")
        + "</section>\n"
    )


def _plotted(board: Mapping[str, Any], metric: str, most: int = 4) -> list[str]:
    """Return the few rows whose slices are drawn: the reference, asked-for pairs, the best of the others."""
    ranked = sorted(
        (row for row in board["rows"] if row.get(metric) is not None), key=lambda row: -row[metric]
    )
    asked = [name for pair in board["pairs"] for name in pair]
    wanted = [board["reference"], *asked, *(row["name"] for row in ranked if row["track"] != "ceiling")]
    return list(dict.fromkeys(name for name in wanted if name))[:most]


def _cost_section(board: Mapping[str, Any]) -> str:
    """Return AUC against time per impression, and the table of costs."""
    lines, writing = [], writing_column(board)
    for title, _, rows in blocks(board):
        if title == "ceiling":
            continue
        for row in rows:
            tokens = board["manifests"][row["name"]].get("tokens_per_impression")
            texts = [
                row["track"],
                params_text(row["params"]),
                str(row["seeds"]),
                time_text(row["train_seconds"]),
                *(time_text(row.get("writing_seconds")) for _ in writing),
            ]
            texts += [cost_text(row["ms_per_impression"]), cost_text(tokens, 1), cost_text(row["peak_mb"])]
            cells = "".join(map(cell, texts))
            lines.append(f'<tr><th scope="row">{escape(row["name"])}</th>{cells}</tr>')
    if not lines:
        return ""
    head = [
        "method",
        "track",
        "parameters",
        "seeds",
        "training",
        *writing,
        "ms per impression",
        "tokens per impression",
    ]
    head = "".join(f"<th>{text}</th>" for text in [*head, "peak memory, MiB"])
    return (
        f'<section id="cost"><h2>Quality against cost</h2>{cost_plot(board)}'
        + _html_table(head, f"<tbody>{''.join(lines)}</tbody>")
        + "</section>\n"
    )


def _loss_section(losses: Sequence[Mapping[str, Any]] | None) -> str:
    """Return the training loss by step; nothing without losses."""
    logged = [(row["current_steps"], row["loss"]) for row in losses or () if row.get("loss") is not None]
    kept = [(step, loss) for step, loss in logged if math.isfinite(loss)]
    if not kept:
        return ""
    steps, values = (np.array(column, dtype=np.float64) for column in zip(*kept, strict=True))
    height = 260.0
    marks, across = ticks(values.min(), values.max(), 5), ticks(0, max(steps.max(), 1), 5)
    left, right = min(steps.min(), 1.0), max(steps.max(), 2.0)

    def x(step: np.ndarray | float) -> np.ndarray | float:
        return 100 * (step - left) / (right - left)

    def y(loss: np.ndarray | float) -> np.ndarray | float:
        return 100 * (marks[-1] - loss) / (marks[-1] - marks[0])

    def line(kind: str, heights: np.ndarray) -> str:
        points = " ".join(f"{a:.2f},{b:.2f}" for a, b in zip(x(steps), y(heights), strict=True))
        return f'<polyline class="{kind}" points="{points}"/>'

    grid = "".join(
        f'<line class="grid" x1="0" x2="100%" y1="{y(mark):.2f}%" y2="{y(mark):.2f}%"/>'
        f'<text x="-8" y="{height * y(mark) / 100 + 4:.1f}" text-anchor="end">{mark:g}</text>'
        for mark in marks
    )
    grid += "".join(
        f'<text x="{x(step):.2f}%" y="{height + 20:.0f}" text-anchor="middle">{step:g}</text>'
        for step in across
        if left <= step <= right
    )
    grid += f'<text x="50%" y="{height + 42:.0f}" text-anchor="middle">step</text>'
    grid += '<text x="-8" y="-14" text-anchor="end">loss</text>'
    if len(kept) == 1:
        curve = f'<circle class="dot static" cx="{x(steps[0]):.2f}%" cy="{y(values[0]):.2f}%" r="5.5"/>'
    else:
        # Stretched to the size of the plot; the stroke is not.
        curve = (
            '<svg viewBox="0 0 100 100" preserveAspectRatio="none" width="100%" height="100%">'
            f"{line('raw', values)}{line('smooth', smooth(values))}</svg>"
        )
    said = f"Training loss from {values[0]:.3f} to {values[-1]:.3f}, {len(kept)} values"
    caption = (
        f"{said}; thin: as logged, thick: moving mean. A falling loss alone does not show a better ranking."
    )
    if len(logged) > len(kept):
        caption += f" Left out: {len(logged) - len(kept)} values that are not finite."
    return (
        f'<section id="loss"><h2>Training loss</h2><figure><div class="plot">'
        f'<svg style="height:{height:.0f}px" role="img" aria-label="{said}">{grid}{curve}</svg></div>'
        f"<figcaption>{caption}</figcaption></figure></section>\n"
    )


def _tutorial_section(tutorial: Mapping[str, Mapping[str, Any]] | None) -> str:
    """Return the accuracies under the tutorial's protocol, beside the two rules that need no model."""
    if not tutorial:
        return ""
    lines = []
    for name, row in tutorial.items():
        interval = interval_text(row.get("accuracy_low"), row.get("accuracy_high"))
        n = row.get("n", row.get("n_answers"))
        cells = cell(score_text(row.get("accuracy")), interval)
        cells += "".join(cell(score_text(row.get(key))) for key in ("precision", "recall"))
        cells += cell("–" if n is None else f"{n:,}")
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    head = "".join(f"<th>{text}</th>" for text in ("method", "accuracy", "precision", "recall", "n"))
    return (
        '<section id="tutorial"><h2>The tutorial\'s protocol</h2><p>Protocol <code>seed</code> asks about '
        "the last candidate of each impression and shows the clicks on the others. Every impression has at "
        "least one click, so where no other candidate was clicked the answer must be Yes. The leak rule says just "
        "that, without reading a title: an accuracy near its own is no sign of learning.</p>"
        + _html_table(head, f"<tbody>{''.join(lines)}</tbody>")
        + "</section>\n"
    )


def _remake_section(board: Mapping[str, Any], context: Mapping[str, Any]) -> str:
    """Return how to make it again: command, commit, versions, hardware, and each run's own command."""
    manifests = board["manifests"]
    command = f"<pre>{escape(context['command'])}</pre>" if context.get("command") else ""
    facts = [
        ("git commit", _distinct(m.get("git_commit") for m in manifests.values())),
        ("Python", _distinct(m.get("python") for m in manifests.values())),
        ("packages", _versions(manifests.values())),
        ("hardware", _distinct(_hardware(m.get("hardware")) for m in manifests.values())),
        ("impressions", f"{board['n_impressions']:,}, SHA-256 {board['subset_sha']}"),
    ]
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts if text)
    lines = []
    for row in board["rows"]:
        manifest = manifests[row["name"]]
        told = [manifest.get("command") or "–", manifest.get("written") or "–", row["run"]]
        cells = "".join(f'<td class="text">{escape(text)}</td>' for text in told)
        lines.append(f'<tr><th scope="row">{escape(row["name"])}</th>{cells}</tr>')
    head = "".join(f'<th class="text">{text}</th>' for text in ("method", "command", "written", "run folder"))
    return (
        f'<section id="remake"><h2>Make it again</h2>{command}<dl>{items}</dl>'
        + _html_table(head, f"<tbody>{''.join(lines)}</tbody>")
        + "</section>\n"
    )


def _distinct(values: Iterable[Any]) -> str:
    return "; ".join(dict.fromkeys(str(value) for value in values if value))


def _versions(manifests: Iterable[Mapping[str, Any]]) -> str:
    """Return each package with the versions that the runs name; more than one version is shown."""
    found: dict[str, dict[str, None]] = {}
    for manifest in manifests:
        packages = manifest.get("packages")
        for name, version in packages.items() if isinstance(packages, dict) else ():
            found.setdefault(str(name), {})[str(version)] = None
    return ", ".join(f"{name} {' and '.join(versions)}" for name, versions in found.items())


def _hardware(hardware: Any) -> str | None:
    if not isinstance(hardware, dict):
        return None
    parts = [hardware.get("machine"), f"{hardware.get('cpus')} CPUs" if hardware.get("cpus") else None]
    return ", ".join(str(part) for part in [*parts, hardware.get("accelerator") or "no GPU"] if part)
