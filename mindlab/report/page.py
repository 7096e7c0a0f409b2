"""A board as one self-contained HTML page (page.html.j2), and the files that are written of it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

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
from mindlab.report.numbers import (
    cost_text,
    difference_text,
    interval_text,
    params_text,
    score_text,
    time_text,
)
from mindlab.report.plots import Dots, cost_plot, dots_plot, loss_plot
from mindlab.report.text import as_markdown, writing_column

HERE = Path(__file__).parent
STYLE = (HERE / "page.css").read_text(encoding="utf-8")
SHARE = "share of clicks"  # on the axis of a calibration plot

Row = tuple[str, list[tuple[str, ...]]]  # its name; of each cell the text, and its interval if it has one


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def sentence(text: str) -> str:
    return f"{capital(text).rstrip('.')}."


PAGES = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined)
PAGES.trim_blocks = PAGES.lstrip_blocks = True
PAGES.filters |= {
    "capital": capital,
    "minus": lambda number: str(number).replace("-", "−"),
}  # as wide as a plus


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
    page = PAGES.get_template("page.html.j2").render(
        title=str(context.get("title") or "Leaderboard"),
        style=Markup(STYLE),
        about=[*filter(None, [context.get("data")]), sentence(describe(board))],
        warning=SYNTHETIC if context.get("synthetic") else None,
        notes=[line for line in remarks(board, context) if line != SYNTHETIC],
        command=context.get("command"),
        gain=_gain(board),
        board=_board(board),
        forest=_forest(board),
        parts=_parts(board),
        lists=_lists(board),
        published=_published(board),
        slices=_slices(board, slices),
        calibration=_calibration(board),
        cost=_cost(board),
        loss=_loss(losses),
        tutorial=_tutorial(tutorial),
        facts=_facts(board),
        remake=_remake(board),
    )
    write_text(out_html, page)
    return Path(out_html)


def _table(head: Iterable[str], *groups: tuple[str, str, Sequence[Row]]) -> dict[str, Any] | None:
    """Return what the page's tables are made of: the head, and blocks of rows (title, remark, rows); None without rows."""
    found = [{"title": title, "why": why, "rows": rows} for title, why, rows in groups if rows]
    return {"head": list(head), "blocks": found} if found else None


def _measured(row: Mapping[str, Any], metric: str) -> tuple[str, str]:
    return score_text(row.get(metric)), interval_text(row.get(f"{metric}_low"), row.get(f"{metric}_high"))


def _signed(difference: Mapping[str, Any] | None) -> tuple[str, str]:
    if difference is None or difference["mean"] is None:
        return "–", interval_text(difference["low"], difference["high"], "+") if difference else ""
    return f"{difference['mean']:+.3f}", interval_text(difference["low"], difference["high"], "+")


def _gain(board: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the asked-for pairs, each as a number and a sentence."""
    cards = []
    for name, entry, is_asked in comparisons(board):
        if is_asked:
            metric, difference = headline(entry)
            mean, interval = _signed(difference)
            said = sentence(verdict(difference) + of_difference(entry))
            cards.append({"metric": LABELS[metric], "name": name, "against": entry["against"], "mean": mean,
                          "interval": interval, "verdict": said})  # fmt: skip
    return cards


def _board(board: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the table with intervals, one block of rows a track."""
    metrics, reference = columns(board), board["reference"]
    is_compared = reference and any(row.get("auc") is not None for row in board["rows"])

    def cells(row: Mapping[str, Any]) -> list[tuple[str, ...]]:
        found = [_measured(row, metric) for metric in metrics]
        if is_compared:
            pairs = (p["auc"] for p in row["paired"] if p["against"] == reference and p.get("auc"))
            found.append(_signed(next(pairs, None)))
        return found

    head = ["method", *(LABELS[m] for m in metrics), *([f"AUC minus {reference}"] if is_compared else [])]
    groups = [
        (title.capitalize(), why, [(row["name"], cells(row)) for row in rows])
        for title, why, rows in blocks(board)
    ]
    return _table(head, *groups)


def _forest(board: Mapping[str, Any]) -> dict[str, Any] | None:
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
        return None
    chance = METRICS[metric].chance
    return {"metric": LABELS[metric], "chance": chance, "plot": Markup(dots_plot(groups, metric, chance))}


def _parts(board: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return each paired difference, and how much of it is appeal and how much is personal."""
    metrics = ("auc", *PART_METRICS)
    rows = []
    for name, entry, _ in comparisons(board):
        if entry.get("auc_appeal"):
            parted = [difference_text(entry[metric]).partition(" ") for metric in metrics]
            rows.append((f"{name} − {entry['against']}", [(mean, interval) for mean, _, interval in parted]))
    return _table(["difference", *(LABELS[m] for m in metrics)], ("", "", rows))


def _lists(board: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what stands in the first places, clicked or not."""
    metrics = [metric for metric in present(board) if metric in LIST_METRICS]
    if not metrics:
        return None
    rows = [
        (row["name"], [_measured(row, m) for m in metrics]) for _, _, rows in blocks(board) for row in rows
    ]
    return _table(["method", *(LABELS[m] for m in metrics)], ("", "", rows))


def _published(board: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the published rows of the same impressions, apart."""
    groups = [
        (
            capital(group),
            "",
            [(row["name"], [(score_text(row[metric]),) for metric in RANKING_METRICS]) for row in rows],
        )
        for group, rows in published_groups(board).items()
    ]
    return _table(["published", *(LABELS[m] for m in RANKING_METRICS)], *groups)


def _slices(board: Mapping[str, Any], slices: Sequence[Mapping[str, Any]] | None) -> dict[str, Any] | None:
    """Return the metric of each method in each slice: of a few as plots, a plot a question, of all as a table."""
    if not slices:
        return None
    names = [row["name"] for _, _, rows in blocks(board) for row in rows]
    metric = slices[0]["metric"]
    shown = [name for name in names if name in _plotted(board, metric)]
    tables: dict[str, list[Row]] = {}
    plots: dict[str, Dots] = {}
    for row in slices:
        question = capital(row["question"])
        found = [row["methods"].get(name) or {"mean": None, "low": None, "high": None} for name in names]
        cells = [(score_text(one["mean"]), interval_text(one["low"], one["high"])) for one in found]
        tables.setdefault(question, []).append((row["slice"], [(format(row["n"], ","),), *cells]))
        dots = [
            (name, one["mean"], one["low"], one["high"])
            for name, one in zip(names, found, strict=True)
            if name in shown and one["mean"] is not None
        ]
        if dots:
            title = f"{question}: {row['slice']} ({row['n']:,})"
            plots.setdefault(question, []).append((title, "static", dots))
    chance = METRICS[metric].chance
    return {
        "plots": [Markup(dots_plot(plot, metric, chance)) for plot in plots.values()],
        "table": _table(
            [LABELS[metric], "impressions", *names], *((title, "", rows) for title, rows in tables.items())
        ),
    }


def _calibration(board: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return, for each model that answers Yes or No, the share of clicks among candidates of a like P(Yes)."""
    found = [(row["name"], row["calibration"]) for row in board["rows"] if row.get("calibration")]
    plots, rows = [], []
    for name, one in found:
        dots = [
            (f"P(Yes) {b['mean']:.3f} ({b['n']:,})", b["share"], b["low"], b["high"]) for b in one["bins"]
        ]
        plots.append(Markup(dots_plot([(name, "static", dots)], SHARE)))
        constant = one["share"] * (1 - one["share"])
        kinds = {name: one} | ({f"{name}, non-clicks undone": one["undone"]} if one["undone"] else {})
        for kind, here in kinds.items():
            values = [here["mean"], one["share"], here["ece"], here["brier"], constant]
            rows.append((kind, [(score_text(value),) for value in values]))
    head = ["method", "mean P(Yes)", SHARE, "calibration error", "Brier score", "Brier score of the share"]
    return {"plots": plots, "table": _table(head, ("", "", rows))} if found else None


def _plotted(board: Mapping[str, Any], metric: str, most: int = 4) -> list[str]:
    """Return the few rows whose slices are drawn: the reference, asked-for pairs, the best of the others."""
    ranked = sorted(
        (row for row in board["rows"] if row.get(metric) is not None), key=lambda row: -row[metric]
    )
    asked = [name for pair in board["pairs"] for name in pair]
    wanted = [board["reference"], *asked, *(row["name"] for row in ranked if row["track"] != "ceiling")]
    return list(dict.fromkeys(name for name in wanted if name))[:most]


def _cost(board: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return AUC against time per impression, and the table of costs."""
    writing = writing_column(board)
    rows = []
    for row in (row for title, _, rows in blocks(board) if title != "ceiling" for row in rows):
        texts = [
            row["track"],
            params_text(row["params"]),
            str(row["seeds"]),
            time_text(row["train_seconds"]),
            *(time_text(row.get("writing_seconds")) for _ in writing),
            cost_text(row["ms_per_impression"]),
            cost_text(board["manifests"][row["name"]].get("tokens_per_impression"), 1),
            cost_text(row["peak_mb"]),
        ]
        rows.append((row["name"], [(text,) for text in texts]))
    head = ["method", "track", "parameters", "seeds", "training", *writing]
    head += ["ms per impression", "tokens per impression", "peak memory, MiB"]
    return {"plot": Markup(cost_plot(board)), "table": _table(head, ("", "", rows))} if rows else None


def _loss(losses: Sequence[Mapping[str, Any]] | None) -> dict[str, Any] | None:
    """Return the training loss by step; nothing without losses."""
    logged = [(row["current_steps"], row["loss"]) for row in losses or () if row.get("loss") is not None]
    finite = [(step, loss) for step, loss in logged if math.isfinite(loss)]
    if not finite:
        return None
    steps, values = (np.array(column, dtype=np.float64) for column in zip(*finite, strict=True))
    said = f"Training loss from {values[0]:.3f} to {values[-1]:.3f}, {len(finite)} values"
    return {
        "plot": Markup(loss_plot(steps, values, said)),
        "said": said,
        "left_out": len(logged) - len(finite),
    }


def _tutorial(tutorial: Mapping[str, Mapping[str, Any]] | None) -> dict[str, Any] | None:
    """Return the accuracies under the tutorial's protocol, beside the two rules that need no model."""
    rows = []
    for name, row in (tutorial or {}).items():
        n = row.get("n", row.get("n_answers"))
        cells = [
            _measured(row, "accuracy"),
            *((score_text(row.get(key)),) for key in ("precision", "recall")),
        ]
        rows.append((name, [*cells, ("–" if n is None else f"{n:,}",)]))
    return _table(["method", "accuracy", "precision", "recall", "n"], ("", "", rows))


def _facts(board: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what the runs were made with: commit, versions, hardware, impressions."""
    manifests = board["manifests"].values()
    found = [
        ("git commit", _distinct(m.get("git_commit") for m in manifests)),
        ("Python", _distinct(m.get("python") for m in manifests)),
        ("packages", _versions(manifests)),
        ("hardware", _distinct(_hardware(m.get("hardware")) for m in manifests)),
        ("impressions", f"{board['n_impressions']:,}, SHA-256 {board['subset_sha']}"),
    ]
    return [(name, text) for name, text in found if text]


def _remake(board: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return each run's own command, its time and folder."""
    rows = []
    for row in board["rows"]:
        manifest = board["manifests"][row["name"]]
        told = (manifest.get("command") or "–", manifest.get("written") or "–", row["run"])
        rows.append((row["name"], [(text,) for text in told]))
    return _table(["method", "command", "written", "run folder"], ("", "", rows))


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
