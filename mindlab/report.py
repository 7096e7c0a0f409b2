"""Leaderboards from run folders: a terminal table, Markdown, JSON, and one self-contained HTML page.

A board holds runs of one protocol on the same impressions. Static and streaming rows stand in blocks of
their own and are never ranked together; the oracle stands apart as the ceiling. The page asks the network
for nothing: its style is inline, its plots are inline SVG, and every text from a run is escaped.
"""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mindlab.calibration import calibration
from mindlab.errors import UserError
from mindlab.files import is_number, lock, write_json, write_text
from mindlab.intervals import FEW_CLUSTERS
from mindlab.metrics import (
    METRICS,
    PART_METRICS,
    RANKING_METRICS,
    Evaluation,
    evaluate_seeds,
    paired_differences,
)
from mindlab.predictions import read_predictions, seed_files
from mindlab.prompts import PROMPTS
from mindlab.prompts.base import ANSWER, YES_NO
from mindlab.runs import check_same_data, read_manifest
from mindlab.tasks import task_of

DEFAULT_REFERENCE = "popularity"
TRACKS = {
    "static": "labels end with the training split",
    "streaming": "may use labels of earlier test-day impressions; not to be ranked against static rows",
    "ceiling": "ranks by the generator's own utility; no method can be expected to beat it",
}
LABELS = {name: metric.label for name, metric in METRICS.items()}
SHARE = "share of clicks"  # on the axis of a calibration plot
COSTS = ("params", "train_seconds", "ms_per_impression", "peak_mb", "tokens_per_impression")
CONTEXT = ("title", "data", "synthetic", "command", "notes", "published")
PARTS = (
    "appeal: AUC with each score replaced by its mean over the impressions that show the news article, so by news alone; "
    "personal: AUC with that mean taken away, so without news means."
)
SYNTHETIC = "Synthetic data: this table ranks methods on this generator, not on MIND."
# compare.py rounds to 0.001 ms, so that 0 means less than that; a log axis has no 0.
LEAST_MS = 0.001
MOVES = (0, -12, 12, -18, 18, -30, 30, -42, 42, -56, 56)  # pixels by which a name may leave its point


@dataclass(frozen=True)
class Measured:
    """One run: its row of the table, what its manifest says, and the values behind its numbers."""

    row: dict[str, Any]
    manifest: dict[str, Any]
    evaluation: Evaluation


def measure(run: str | Path, cases: np.ndarray | None = None) -> Measured:
    """Read and measure a run folder; arguments and errors as in `leaderboard_row`."""
    run = Path(run)
    manifest = complete_manifest(run)
    metrics = task_of(manifest["protocol"]).metrics
    files = seed_files(run)
    try:
        frames = [read_predictions(file) for file in files]
        if cases is not None:
            frames = [frame.filter(pc.is_in(frame["case_id"], pa.array(cases))) for frame in frames]
        found = evaluate_seeds(frames, metrics)
    except UserError as error:
        raise UserError(str(error) if str(run) in str(error) else f"{files[0]}: {error}") from None
    row: dict[str, Any] = {key: manifest[key] for key in ("name", "protocol", "track")}
    row |= {key: found.summary[key] for key in ("n_impressions", "subset_sha")}
    row["seeds"] = len(files)
    for metric in (*metrics, "accuracy"):
        row |= {f"{metric}{end}": found.summary[f"{metric}{end}"] for end in ("", "_low", "_high")}
    row |= {
        key: manifest.get(key)
        for key in ("trained_on", "params", "train_seconds", "ms_per_impression", "peak_mb")
    }
    row["writing_seconds"] = writing_seconds(manifest)
    asked = manifest.get("request")
    prompt = PROMPTS.get(asked.get("format")) if isinstance(asked, dict) else None
    row["calibration"] = None
    if prompt and prompt.asks in (YES_NO, ANSWER):
        row["calibration"] = calibration(frames[0], shift=manifest.get("log_odds_shift"))
    row |= {"run": run.as_posix(), "paired": []}
    return Measured(row, manifest, found)


def leaderboard_row(run: str | Path, cases: np.ndarray | None = None) -> dict[str, Any]:
    """Return the leaderboard row of a run folder; None where a column does not apply.

    Intervals are 95 %, over users and clicked news (`mindlab.metrics.evaluate`). ``seeds`` is the number of training
    seeds that were pooled, one file of predictions each. ``paired`` is filled by `leaderboard`.

    Args:
        run: a folder with predictions.parquet and manifest.json.
        cases: int (n,), the case ids to measure it on, of those that it scored; None for all.

    Raises:
        UserError: without a manifest, or if the manifest or the predictions are not as they should be.
    """
    return measure(run, cases).row


def complete_manifest(run: Path) -> dict[str, Any]:
    """Return the manifest of a run folder; raise UserError if it is missing or unfit for a table."""
    path = run / "manifest.json"
    if not run.is_dir():
        raise UserError(f"{run}: no such run folder; scripts/predict.py --out {run} makes one")
    manifest = read_manifest(run)
    if not manifest:
        raise UserError(
            f"{path}: no such file; a number without a manifest is not shown, so make the run again"
        )
    for key in ("name", "protocol", "track"):
        if not isinstance(manifest.get(key), str):
            raise UserError(f"{path}: {key} is {manifest.get(key)!r}, expected a text")
    if manifest["track"] not in TRACKS:
        raise UserError(f"{path}: track is {manifest['track']!r}, expected one of {', '.join(TRACKS)}")
    for key in COSTS:
        value = manifest.get(key)
        if not is_number(value):
            raise UserError(f"{path}: {key} is {value!r}, expected a number or null")
    return manifest


def leaderboard(
    runs: Iterable[str | Path],
    reference: str | None = None,
    pairs: Sequence[tuple[str, str]] = (),
    cases: np.ndarray | None = None,
    context: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure `runs` and put them into one board: rows sorted by AUC within their track, the oracle last.

    Args:
        runs: run folders of one protocol that scored the same impressions.
        reference: name of the row that the others of its track are compared with, in pairs; by default
            `popularity` if it is there.
        pairs: (name, against) of further paired differences, such as tuned and base.
        cases: int (n,), the case ids to measure all runs on; None for all that they scored. A run that did
            not score all of them scored different impressions, and is refused.
        context: what the rows cannot know: ``title``, ``data`` (which data, in words), ``synthetic``
            (true puts the warning on every form of the table), ``command`` (that makes it all again),
            ``notes`` (a list of sentences), ``published`` (a table of `mindlab.published.read_published`, shown apart).

    Returns:
        ``rows`` (as leaderboard.json), ``manifests`` and ``evaluations`` by name, ``pairs``, ``reference``, ``context`` and
        what all rows share. ``paired`` of a row lists its differences, ``{"against": name, "auc": {"mean",
        "low", "high"}, ..., "of_clicked": what the two clicked news articles that add most to AUC add, "by_users": its
        interval over users alone}``.

    Raises:
        UserError: for no runs, two of one name, several protocols, different impressions, an unknown name
            in `reference` or `pairs`, and a pair across tracks.
    """
    by_name: dict[str, Measured] = {}
    for run in runs:
        found = measure(run, cases)
        name = found.row["name"]
        if name in by_name:
            raise UserError(f"{run} and {by_name[name].row['run']}: both are named {name}; leave one out")
        by_name[name] = found
    if not by_name:
        raise UserError("no run given; a leaderboard needs at least one")
    first, *others = by_name.values()
    for other in others:
        where = f"{first.row['run']} and {other.row['run']}"
        if other.row["protocol"] != first.row["protocol"]:
            kinds = f"{first.row['protocol']} and {other.row['protocol']}"
            raise UserError(f"{where}: protocols {kinds} do not go into one table; make one of each")
        if other.row["subset_sha"] != first.row["subset_sha"]:
            raise UserError(f"{where}: scored different impressions; use the same --data, --limit and --seed")

    check_same_data({name: found.manifest for name, found in by_name.items()})

    if reference is None and DEFAULT_REFERENCE in by_name:
        reference = DEFAULT_REFERENCE
    wanted = [(name, against) for name, against in pairs]
    for name in [*([reference] if reference else []), *(name for pair in wanted for name in pair)]:
        if name not in by_name:
            raise UserError(
                f"no run named {name}, so nothing to compare with; there are {', '.join(by_name)}"
            )
    for name, against in wanted:
        if by_name[name].row["track"] != by_name[against].row["track"]:
            raise UserError(f"{name} and {against} are on different tracks, which are not compared")
    if reference:
        same = [n for n, m in by_name.items() if m.row["track"] == by_name[reference].row["track"]]
        compared = [(n, reference) for n in same if n != reference]
        wanted = [*compared, *(pair for pair in wanted if pair not in compared)]
    for name, against in wanted:
        one, base = by_name[name], by_name[against].evaluation
        difference = paired_differences(one.evaluation, base)
        entry: dict[str, Any] = {"against": against, **difference}
        shares = [evaluation.shares.get("auc") for evaluation in (one.evaluation, base)]
        if all(shares):
            entry["of_clicked"] = shares[0].of_clicked(shares[1])
            by_users = shares[0].minus(shares[1], by_users=True)
            entry["by_users"] = {key: _number(getattr(by_users, key)) for key in ("mean", "low", "high")}
        one.row["paired"].append(entry)

    summary = first.evaluation.summary
    return {
        **{key: first.row[key] for key in ("protocol", "n_impressions", "subset_sha")},
        **{key: summary[key] for key in ("split", "n_users", "clustered_by")},
        "rows": sorted((m.row for m in by_name.values()), key=_place),
        "manifests": {name: m.manifest for name, m in by_name.items()},
        "evaluations": {name: m.evaluation for name, m in by_name.items()},
        "reference": reference,
        "pairs": [list(pair) for pair in pairs],
        "context": _check_context(context),
    }


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the sort key of a row: block, then falling AUC (accuracy where there is none), then name."""
    worth = [-1.0 if row[metric] is None else row[metric] for metric in ("auc", "accuracy")]
    return [*TRACKS].index(row["track"]), -worth[0], -worth[1], row["name"]


def _check_context(context: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a copy; a misspelt `synthetic` would silently drop the warning, so unknown keys are refused."""
    unknown = [key for key in context or {} if key not in CONTEXT]
    if unknown:
        raise ValueError(f"unknown context {', '.join(unknown)}; known are {', '.join(CONTEXT)}")
    return dict(context or {})


def blocks(board: Mapping[str, Any]) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """Return (title, explanation, rows) of each block that has rows: static, streaming, ceiling."""
    parts = [(t, why, [r for r in board["rows"] if r["track"] == t]) for t, why in TRACKS.items()]
    return [part for part in parts if part[2]]


def columns(board: Mapping[str, Any]) -> list[str]:
    """Return the metrics that at least one row has, in the order of `LABELS`."""
    return [metric for metric in LABELS if any(row.get(metric) is not None for row in board["rows"])]


def comparisons(board: Mapping[str, Any]) -> list[tuple[str, dict[str, Any], bool]]:
    """Return (name, one entry of its `paired`, was it asked for as a pair), the pairs first."""
    found = [(row["name"], entry) for row in board["rows"] for entry in row["paired"]]
    marked = [(name, entry, [name, entry["against"]] in board["pairs"]) for name, entry in found]
    return sorted(marked, key=lambda item: not item[2])


def headline(entry: Mapping[str, Any]) -> tuple[str, dict[str, float | None]]:
    """Return the metric to quote of one comparison, and its difference: AUC, or accuracy without AUC."""
    for metric in ("auc", "accuracy"):
        if entry.get(metric) and entry[metric]["mean"] is not None:
            return metric, entry[metric]
    return "auc", {"mean": None, "low": None, "high": None}


def verdict(difference: Mapping[str, float | None]) -> str:
    """Return what an interval of a difference allows one to say.

    >>> verdict({"mean": 0.01, "low": -0.02, "high": 0.04})
    'the interval includes 0: this run does not show a gain'
    >>> verdict({"mean": 0.03, "low": 0.01, "high": 0.05})
    'the interval excludes 0: this run shows a gain'
    """
    low, high = difference["low"], difference["high"]
    if low is None or high is None:
        return "too few users or news for an interval: this run shows nothing"
    if low <= 0 <= high:
        return "the interval includes 0: this run does not show a gain"
    return f"the interval excludes 0: this run shows a {'gain' if low > 0 else 'loss'}"


def describe(board: Mapping[str, Any]) -> str:
    """Return in one line what was measured."""
    users = f" of {board['n_users']:,} users" if board["n_users"] is not None else ""
    return (
        f"protocol {board['protocol']}, split {board['split']}, "
        f"{board['n_impressions']:,} impressions{users}, subset {board['subset_sha'][:12]}"
    )


def remarks(board: Mapping[str, Any], context: Mapping[str, Any] | None = None) -> list[str]:
    """Return the sentences that belong under every form of the table."""
    context = board["context"] if context is None else context
    by = "users" if board["clustered_by"] == "user" else "impressions"
    said = [f"Brackets hold 95 % intervals over {by} and news (docs/intervals.md)."]
    if any(row.get("auc_appeal") is not None for row in board["rows"]):
        said.append(PARTS)
    n = board["n_users"] if by == "users" else board["n_impressions"]
    if n < FEW_CLUSTERS:
        said.append(f"{n} {by} are few, and an interval that excludes 0 may be luck. Score more.")
    learned = [row["name"] for row in board["rows"] if _is_learned(row, board["manifests"][row["name"]])]
    few = [name for name in learned if _row(board, name)["seeds"] < 3]
    if few:
        said.append(
            f"{', '.join(few)}: fewer than 3 training seeds, "
            f"so the interval covers the choice of {by} and news and not the luck of training."
        )
    if published := context.get("published"):
        said.append(f"Published: {published['authors']}, {published['paper']}. {published['remark']}")
        if published["logged"]["rows"]:
            said.append(published["logged"]["remark"])
        said.append(
            "No difference to a published row is called significant: what it scored is not known impression by impression."
        )
    said += [
        written_text(name, what, cost)
        for name, manifest in board["manifests"].items()
        for what, cost in (manifest.get("texts_written") or {}).items()
    ]
    return [*([SYNTHETIC] if context.get("synthetic") else []), *said, *map(str, context.get("notes") or ())]


def written_text(name: str, what: str, cost: Mapping[str, Any]) -> str:
    """Return in one sentence what a language model wrote for a row, and how much of it was of no use.

    >>> written_text("tokens", "profiles", {"answers": 20, "usable": 19, "no JSON": 1, "seconds": 8.0,
    ...     "tokens_read": 900, "tokens_written": 100})
    'tokens: 20 profiles written in 8.0 s, 19 of use (no JSON 1).'
    """
    known = ("answers", "usable", "seconds", "tokens_read", "tokens_written")
    faults = ", ".join(f"{fault} {n:,}" for fault, n in cost.items() if fault not in known)
    return (
        f"{name}: {cost['answers']:,} {what} written in {time_text(cost['seconds'])}, {cost['usable']:,} of use "
        f"({faults or 'no fault'})."
    )


def writing_seconds(manifest: Mapping[str, Any]) -> float | None:
    """Return what the texts took that a language model wrote for a row, of training and test; None without any.

    >>> writing_seconds({"texts_written": {"profiles": {"seconds": 8.0}, "tokens": {"seconds": 1.5}}})
    9.5
    """
    written = manifest.get("texts_written")
    return sum(cost["seconds"] for cost in written.values()) if written else None


def writing_column(board: Mapping[str, Any]) -> list[str]:
    """Return the heading of the tables' column for `writing_seconds`; none where no model wrote for any row."""
    return ["writing"] if any(row.get("writing_seconds") is not None for row in board["rows"]) else []


def _row(board: Mapping[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in board["rows"] if row["name"] == name)


def _is_learned(row: Mapping[str, Any], manifest: Mapping[str, Any]) -> bool:
    """Return whether a row's weights were trained here, not merely loaded or counted."""
    request = manifest.get("request")
    has_adapter = isinstance(request, dict) and bool(request.get("adapter"))
    return has_adapter or bool(row["params"] and row["train_seconds"])


def score_text(value: float | None) -> str:
    """Return a metric with three decimals, a dash for None."""
    return "–" if value is None else f"{value:.3f}"


def with_interval(row: Mapping[str, Any], metric: str) -> str:
    """Return a metric of a row with its interval."""
    return f"{score_text(row[metric])} {interval_text(row[f'{metric}_low'], row[f'{metric}_high'])}".rstrip()


def interval_text(low: float | None, high: float | None, sign: str = "") -> str:
    """Return ``[low, high]``, or nothing where there is no interval."""
    return "" if low is None or high is None else f"[{low:{sign}.3f}, {high:{sign}.3f}]"


def difference_text(difference: Mapping[str, float | None]) -> str:
    """Return a signed difference with its interval.

    >>> difference_text({"mean": 0.0123, "low": -0.02, "high": 0.04})
    '+0.012 [-0.020, +0.040]'
    """
    if difference["mean"] is None:
        return "–"
    return f"{difference['mean']:+.3f} {interval_text(difference['low'], difference['high'], '+')}".rstrip()


def cost_text(value: float | None, digits: int = 3) -> str:
    """Return a cost with as many decimals as its size deserves.

    >>> [cost_text(value) for value in (None, 0.0, 0.0123, 7.25, 812.4, 12345)]
    ['–', '<0.001', '0.012', '7.2', '812', '12,345']
    """
    if value is None:
        return "–"
    if value < 10**-digits:
        return f"<{10**-digits:.{digits}f}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.{digits}f}"


def params_text(value: float | None) -> str:
    """Return a number of parameters.

    >>> [params_text(value) for value in (0, 134_515_008, 9_399_951_360)]
    ['0', '135 M', '9.4 B']
    """
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value is not None and value >= size:
            return f"{value / size:.3g} {unit}"
    return "–" if value is None else f"{value:g}"


def time_text(seconds: float | None) -> str:
    """Return a duration.

    >>> [time_text(value) for value in (0.02, 75, 750, 9000)]
    ['<0.1 s', '75.0 s', '12.5 min', '2.5 h']
    """
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{cost_text(seconds, 1)} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


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
            cells += [_column_text(name, row) for name in more]
            table.append([_printable(row["name"]), *cells, cost_text(row["ms_per_impression"])])
    for group, rows in published_groups(board).items():
        titles[len(table)] = f"published, {group}: not run here, no interval"
        for row in rows:
            cells = [score_text(row.get(metric)) if metric in row else "" for metric in metrics]
            table.append([_printable(row["name"]), *cells, *("" for _ in more), ""])
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
            minus = f"{_printable(name)} - {_printable(entry['against'])}"
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
                f"{_printable(name)} minus {_printable(entry['against'])}: {verdict(headline(entry)[1])}"
                f"{of_difference(entry)}."
            )
    return "\n\n".join([*parts, "\n".join(map(_printable, remarks(board)))])


def of_difference(entry: Mapping[str, Any]) -> str:
    """Return what else is to be known of a difference in AUC before it is called a recommender's gain.

    >>> print(of_difference({"of_clicked": [{"adds": 0.02, "clicks": 39}, {"adds": 0.01, "clicks": 4}],
    ...     "auc_personal": {"mean": 0.0, "low": -0.01, "high": 0.01}, "by_users": {"mean": 0, "low": 0.01, "high": 0.05}}))
    ; its personal part includes 0; over users alone its interval would be [+0.010, +0.050]; the two news articles that add most to it (39 and 4 clicks) add +0.030
    """
    said = ""
    personal, by_users = entry.get("auc_personal") or {}, entry.get("by_users") or {}
    if personal.get("low") is not None:
        said += f"; its personal part {_side_of_0(personal)} 0"
    if by_users.get("low") is not None:
        said += f"; over users alone its interval would be {interval_text(by_users['low'], by_users['high'], '+')}"
    found = entry.get("of_clicked") or []
    if len(found) == 2:
        clicks = " and ".join(f"{one['clicks']:,}" for one in found)
        added = sum(one["adds"] for one in found)
        said += f"; the two news articles that add most to it ({clicks} clicks) add {added:+.3f}"
    return said


def _side_of_0(difference: Mapping[str, float | None]) -> str:
    return "includes" if difference["low"] <= 0 <= difference["high"] else "excludes"


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def trained_column(board: Mapping[str, Any]) -> list[str]:
    """Return the heading of the tables' column for what a row was trained on; none where all were trained on the data."""
    known = {row.get("trained_on") for row in board["rows"]}
    return ["trained on"] if known - {None, board["context"].get("data")} else []


def _column_text(heading: str, row: Mapping[str, Any]) -> str:
    """Return a row's text in one of the columns that not every table has."""
    if heading == "trained on":
        return _printable(row.get("trained_on") or "–")
    return time_text(row.get("writing_seconds"))


def published_groups(board: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the published rows that stand apart under the board, by group; runs that the source only logged last."""
    published = board["context"].get("published")
    if not published:
        return {}
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in published["rows"]:
        groups.setdefault(row["group"], []).append(row)
    logged = published["logged"]["rows"]
    return groups | ({"in the authors' log, not in their table": logged} if logged else {})


def _printable(text: Any) -> str:
    """Return a text that cannot break a line or speak to the terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def _align(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def as_markdown(board: Mapping[str, Any]) -> str:
    """Return the board as Markdown, one table a block."""
    metrics, more = columns(board), [*trained_column(board), *writing_column(board)]
    title = board["context"].get("title") or "Leaderboard"
    parts = [f"# {_markdown(title)}", f"{_markdown(describe(board))}."]
    head = ["method", *(LABELS[metric] for metric in metrics), "parameters", "training", *more]
    head.append("ms per impression")
    for name, why, rows in blocks(board):
        body = [
            [
                _markdown(row["name"]),
                *(with_interval(row, metric) for metric in metrics),
                params_text(row["params"]),
                time_text(row["train_seconds"]),
                *(_markdown(_column_text(heading, row)) for heading in more),
                _markdown(cost_text(row["ms_per_impression"])),
            ]
            for row in rows
        ]
        parts += [f"## {name.capitalize()}", f"{why[0].upper()}{why[1:]}.", _markdown_table(head, body)]
    if groups := published_groups(board):
        shown = [metric for metric in metrics if metric in RANKING_METRICS]
        body = [
            [_markdown(row["name"]), _markdown(group), *(score_text(row[metric]) for metric in shown)]
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
            minus = f"{_markdown(name)} − {_markdown(entry['against'])}"
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
    parts.append("\n".join(f"- {_markdown(line)}" for line in remarks(board)))
    return "\n\n".join(parts) + "\n"


def _markdown(text: Any) -> str:
    """Return a text that Markdown shows as it is: no HTML, no table cell, no link or emphasis."""
    text = html.escape(_printable(text), quote=False)
    return "".join(f"\\{c}" if c in "\\|`*[]" else c for c in text)


def _markdown_table(head: list[str], rows: list[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows])


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
        losses: rows with ``current_steps`` and ``loss``, as `mindlab.factory.read_loss` returns them.
        context: adds to, or replaces, the board's own context.
        tutorial: for the `seed` protocol, by name: ``accuracy``, ``accuracy_low``, ``accuracy_high``,
            ``precision``, ``recall`` and ``n`` (or ``n_answers``), as `mindlab.metrics` names them.
        slices: from `mindlab.slices.measure_slices`.
    """
    context = board["context"] | _check_context(context)
    title = str(context.get("title") or "Leaderboard")
    sections = [
        _differences_section(board),
        _table_section(board, context),
        _forest_section(board),
        _parts_section(board),
        _published_section(board),
        _slices_section(board, slices),
        _calibration_section(board),
        _cost_section(board),
        _loss_section(losses),
        _tutorial_section(tutorial),
        _remake_section(board, context),
    ]
    lines = [_e(context["data"])] if context.get("data") else []
    about = [f'<p class="about">{line}</p>' for line in [*lines, _sentence(describe(board))]]
    warning = f'<p class="warning">{_e(SYNTHETIC)}</p>' if context.get("synthetic") else ""
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{_e(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<header><h1>{_e(title)}</h1>{"".join(about)}{warning}</header>
{"".join(section for section in sections if section)}</main>
</body>
</html>
"""
    write_text(out_html, page)
    return Path(out_html)


def _e(value: Any) -> str:
    return html.escape(str(value))


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
            f'<div class="card"><p class="pair">{LABELS[metric]}, <b>{_e(name)}</b> minus '
            f'<b>{_e(entry["against"])}</b></p><p class="big">{_minus(mean)} <small>'
            f"{_minus(interval_text(difference['low'], difference['high'], '+'))}</small></p>"
            f'<p class="verdict">{_sentence(verdict(difference) + of_difference(entry))}</p></div>'
        )
    return f'<section id="gain"><h2>Head to head</h2>{"".join(cards)}</section>\n' if cards else ""


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _sentence(text: str) -> str:
    return f"{_e(_capital(text).rstrip('.'))}."


def _minus(number: str) -> str:
    """Return a number with a real minus sign, as wide as a plus."""
    return number.replace("-", "−")


def _table_section(board: Mapping[str, Any], context: Mapping[str, Any]) -> str:
    """Return the table with intervals, one block of rows a track."""
    metrics = columns(board)
    reference = board["reference"]
    is_compared = reference and any(row.get("auc") is not None for row in board["rows"])
    against = [f"AUC minus {_e(reference)}"] if is_compared else []
    head = "".join(f"<th>{text}</th>" for text in ["method", *(LABELS[m] for m in metrics), *against])
    bodies = []
    for title, why, rows in blocks(board):
        lines = [
            f'<tr class="block"><th colspan="{1 + len(metrics) + len(against)}">'
            f"<span>{_e(title.capitalize())} <small>{_e(why)}</small></span></th></tr>"
        ]
        for row in rows:
            cells = [
                _cell(score_text(row[m]), interval_text(row[f"{m}_low"], row[f"{m}_high"])) for m in metrics
            ]
            if against:
                found = next(
                    (p["auc"] for p in row["paired"] if p["against"] == reference and p.get("auc")), None
                )
                mean = "–" if found is None or found["mean"] is None else f"{found['mean']:+.3f}"
                cells.append(_cell(mean, interval_text(found["low"], found["high"], "+") if found else ""))
            lines.append(f'<tr><th scope="row">{_e(row["name"])}</th>{"".join(cells)}</tr>')
        bodies.append(f"<tbody>{''.join(lines)}</tbody>")
    said = [line for line in remarks(board, context) if line != SYNTHETIC]
    notes = "".join(f"<li>{_e(line)}</li>" for line in said)
    return (
        f'<section id="table"><h2>Leaderboard</h2>{_html_table(head, "".join(bodies))}'
        f'<ul class="notes">{notes}</ul></section>\n'
    )


def _cell(text: str, interval: str = "") -> str:
    small = f"<small>{_minus(_e(interval))}</small>" if interval else ""
    return f"<td>{_minus(_e(text))}{small}</td>"


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers from at most `low` to at least `high`, about `most` of them.

    >>> ticks(0.47, 0.71)
    [0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75]
    """
    span = max(high - low, 1e-6)
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power * most >= span * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]


def _around_chance(aucs: Iterable[float]) -> list[float]:
    """Return ticks for an axis of AUC, 0.5 always among them."""
    values = list(aucs)
    return ticks(min([0.5, *values]), max([0.55, *values]))


Dots = list[tuple[str, str, list[tuple[str, float, float | None, float | None]]]]  # title, hue, its lines


def _dots(groups: Dots, metric: str, chance: float | None = None) -> str:
    """Return each line of each group as a dot on its interval, all on one axis.

    Positions are in per cent, so that the plot narrows with the page while its text stays legible.
    """
    values = [v for _, _, lines in groups for _, *ends in lines for v in ends if v is not None]
    marks = ticks(min(values), max(values)) if chance is None else _around_chance(values)
    low, high = marks[0], marks[-1]

    def at(value: float) -> str:
        return f"{100 * (value - low) / (high - low):.2f}%"

    kinds = [(mark, "chance" if mark == chance else "grid") for mark in marks]
    grid = "".join(
        f'<line class="{kind}" x1="{at(mark)}" x2="{at(mark)}" y1="0" y2="100%"/>'
        for mark, kind in sorted(kinds, key=lambda pair: pair[1] == "chance")
    )
    lines = []
    for title, hue, members in groups:
        lines.append(f'<div class="row group"><span>{_e(title)}</span><svg>{grid}</svg></div>')
        for name, value, left, right in members:
            interval = interval_text(left, right)
            bar = (
                f'<line class="bar" x1="{at(left)}" x2="{at(right)}" y1="50%" y2="50%"/>'
                if left is not None and right is not None
                else ""
            )
            said = f"{name}: {LABELS.get(metric, metric)} {score_text(value)} {interval}"
            lines.append(
                f'<div class="row {hue}"><span class="name">{_e(name)}</span>'
                f'<svg role="img" aria-label="{_e(said)}">{grid}{bar}'
                f'<circle class="dot" cx="{at(value)}" cy="50%" r="5.5"/></svg>'
                f'<span class="value">{score_text(value)} <small>{_e(interval)}</small></span></div>'
            )
    numbers = "".join(f'<text x="{at(mark)}" y="16" text-anchor="middle">{mark:g}</text>' for mark in marks)
    lines.append(f'<div class="row axis"><span></span><svg>{numbers}</svg><span></span></div>')
    return f"<div>{''.join(lines)}</div>"


def _forest_section(board: Mapping[str, Any]) -> str:
    """Return a metric of each row as a dot on its interval: AUC, or accuracy where no row has it."""
    metric = "auc" if any(row["auc"] is not None for row in board["rows"]) else "accuracy"
    ends = [metric, f"{metric}_low", f"{metric}_high"]
    groups = [
        (
            _capital(title),
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
        f"<figure>{_dots(groups, metric, chance)}"
        f"<figcaption>{said}Intervals that overlap do not rule "
        "out a difference; the paired differences decide.</figcaption></figure></section>\n"
    )


def _parts_section(board: Mapping[str, Any]) -> str:
    """Return each paired difference, and how much of it is appeal and how much is personal."""
    found = [(name, entry) for name, entry, _ in comparisons(board) if entry.get("auc_appeal")]
    if not found:
        return ""
    metrics = ("auc", *PART_METRICS)
    head = "".join(f"<th>{_e(text)}</th>" for text in ["difference", *(LABELS[m] for m in metrics)])
    lines = []
    for name, entry in found:
        cells = []
        for metric in metrics:
            mean, _, interval = difference_text(entry[metric]).partition(" ")
            cells.append(_cell(mean, interval))
        lines.append(f'<tr><th scope="row">{_e(name)} − {_e(entry["against"])}</th>{"".join(cells)}</tr>')
    return (
        '<section id="parts"><h2>Appeal and person</h2><p>What a method thinks of a news article for anybody is its mean '
        "score over all impressions that show the article: AUC of that is its <b>appeal</b>, AUC of the rest is "
        "<b>personal</b>. A gain in appeal alone is liking a few headlines; a recommender's gain is personal.</p>"
        + _html_table(head, f"<tbody>{''.join(lines)}</tbody>")
        + "</section>\n"
    )


def _published_section(board: Mapping[str, Any]) -> str:
    """Return the published rows of the same impressions, apart."""
    groups = published_groups(board)
    if not groups:
        return ""
    head = "".join(f"<th>{_e(text)}</th>" for text in ["published", *(LABELS[m] for m in RANKING_METRICS)])
    bodies = []
    for group, rows in groups.items():
        lines = [
            f'<tr class="block"><th colspan="{1 + len(RANKING_METRICS)}"><span>{_e(_capital(group))}</span></th></tr>',
            *(
                f'<tr><th scope="row">{_e(row["name"])}</th>'
                f"{''.join(_cell(score_text(row[metric])) for metric in RANKING_METRICS)}</tr>"
                for row in rows
            ),
        ]
        bodies.append(f"<tbody>{''.join(lines)}</tbody>")
    return (
        '<section id="published"><h2>Published on the same impressions</h2><p>Not run here, no interval.</p>'
        + _html_table(head, "".join(bodies))
        + "</section>\n"
    )


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
        body.append([_markdown(name), *cells])
    return _markdown_table(head, body)


def _slices_section(board: Mapping[str, Any], slices: Sequence[Mapping[str, Any]] | None) -> str:
    """Return the metric of each method in each slice: of a few as plots, a plot a question, of all as a table."""
    if not slices:
        return ""
    names = [row["name"] for _, _, rows in blocks(board) for row in rows]
    metric = slices[0]["metric"]
    shown = [name for name in names if name in _plotted(board, metric)]
    head = "".join(f"<th>{_e(text)}</th>" for text in [LABELS[metric], "impressions", *names])
    bodies: dict[str, list[str]] = {}
    groups: dict[str, Dots] = {}
    for row in slices:
        found = [row["methods"].get(name) or {"mean": None, "low": None, "high": None} for name in names]
        cells = [_cell(score_text(one["mean"]), interval_text(one["low"], one["high"])) for one in found]
        bodies.setdefault(row["question"], [f'<tr class="block"><th colspan="{2 + len(names)}">'
            f"<span>{_e(_capital(row['question']))}</span></th></tr>"]).append(
            f'<tr><th scope="row">{_e(row["slice"])}</th>{_cell(format(row["n"], ","))}{"".join(cells)}</tr>'
        )  # fmt: skip
        dots = [
            (name, one["mean"], one["low"], one["high"])
            for name, one in zip(names, found, strict=True)
            if name in shown and one["mean"] is not None
        ]
        if dots:
            title = f"{_capital(row['question'])}: {row['slice']} ({row['n']:,})"
            groups.setdefault(row["question"], []).append((title, "static", dots))
    plots = "".join(
        f"<figure>{_dots(group, metric, METRICS[metric].chance)}</figure>" for group in groups.values()
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
        parts.append(f"<figure>{_dots([(name, 'static', dots)], SHARE)}</figure>")
        constant = one["share"] * (1 - one["share"])
        kinds = {name: one} | ({f"{name}, non-clicks undone": one["undone"]} if one["undone"] else {})
        for kind, found_here in kinds.items():
            values = [found_here["mean"], one["share"], found_here["ece"], found_here["brier"], constant]
            cells = "".join(_cell(score_text(value)) for value in values)
            lines.append(f'<tr><th scope="row">{_e(kind)}</th>{cells}</tr>')
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
            cells = "".join(map(_cell, texts))
            lines.append(f'<tr><th scope="row">{_e(row["name"])}</th>{cells}</tr>')
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
        f'<section id="cost"><h2>Quality against cost</h2>{_scatter(board)}'
        + _html_table(head, f"<tbody>{''.join(lines)}</tbody>")
        + "</section>\n"
    )


def _scatter(board: Mapping[str, Any]) -> str:
    """Return AUC (linear) against milliseconds per impression (log), each point with its name beside it."""
    rows = [
        row
        for title, _, rows in blocks(board)
        for row in rows
        if title != "ceiling" and row["auc"] is not None and row["ms_per_impression"] is not None
    ]
    if not rows:
        return ""
    height = 320.0
    ends = ("auc", "auc_low", "auc_high")
    marks = _around_chance(row[end] for row in rows for end in ends if row[end] is not None)
    times = [math.log10(max(row["ms_per_impression"], LEAST_MS)) for row in rows]
    first, last = math.floor(min(times)), math.floor(max(times)) + 1

    def x(value: float) -> float:
        return 100 * (value - first) / (last - first)

    def y(value: float) -> float:
        return height * (marks[-1] - value) / (marks[-1] - marks[0])

    parts = []
    for mark in marks:
        kind, h = "chance" if mark == 0.5 else "grid", y(mark)
        parts.append(f'<line class="{kind}" x1="0" x2="100%" y1="{h:.1f}" y2="{h:.1f}"/>')
        parts.append(f'<text x="-8" y="{h + 4:.1f}" text-anchor="end">{mark:g}</text>')
    parts += [
        f'<line class="grid" x1="{x(p):.2f}%" x2="{x(p):.2f}%" y1="0" y2="{height:.0f}"/>'
        f'<text x="{x(p):.2f}%" y="{height + 20:.0f}" text-anchor="middle">{10.0**p:g}</text>'
        for p in range(first, last + 1)
    ]
    points = [(x(time), y(row["auc"])) for time, row in zip(times, rows, strict=True)]
    labels = place_labels(points, [row["name"] for row in rows], height)
    for (px, py), row, (side, moved) in zip(points, rows, labels, strict=True):
        track, at = row["track"], f"{px:.2f}%"
        if row["auc_low"] is not None:
            ends = f'y1="{y(row["auc_high"]):.1f}" y2="{y(row["auc_low"]):.1f}"'
            parts.append(f'<line class="bar thin {track}" x1="{at}" x2="{at}" {ends}/>')
        anchor = "start" if side > 0 else "end"
        parts.append(
            f'<circle class="dot {track}" cx="{at}" cy="{py:.1f}" r="5.5"/>'
            f'<text class="label" x="{at}" dx="{10 * side}" y="{py + moved + 4.5:.1f}" '
            f'text-anchor="{anchor}">{_e(row["name"])}</text>'
        )
    parts.append(
        f'<text x="50%" y="{height + 42:.0f}" text-anchor="middle">ms per impression (log scale)</text>'
    )
    parts.append('<text x="-8" y="-14" text-anchor="end">AUC</text>')
    tracks = dict.fromkeys(row["track"] for row in rows)
    key = ", ".join(f'<span class="key {track}"></span>\N{NO-BREAK SPACE}{track}' for track in tracks)
    return (
        '<figure><div class="scroll" tabindex="0"><div class="plot broad">'
        f'<svg style="height:{height:.0f}px" role="img" aria-label="AUC against milliseconds per impression">'
        f"{''.join(parts)}</svg></div></div>"
        "<figcaption>AUC against the time to score one impression, as each run measured it: "
        f"{key}.</figcaption></figure>"
    )


def place_labels(
    points: Sequence[tuple[float, float]], names: Sequence[str], height: float, width: float = 600.0
) -> list[tuple[int, float]]:
    """Return per point (1 for right of it or -1 for left, pixels downwards) so that no two names overlap.

    `points` are (per cent of the width, pixels); `width` is the narrowest the plot is ever drawn, and a
    letter is taken to be 8 pixels wide. A name that fits nowhere stays beside its point.

    >>> place_labels([(10, 50), (12, 52), (90, 50)], ["one", "two", "three"], 100)
    [(-1, 0), (1, 0), (-1, 0)]
    """
    taken = [(width * x / 100 - 6, width * x / 100 + 6, y - 6, y + 6) for x, y in points]

    def is_free(box: tuple[float, ...], own: int) -> bool:
        return all(
            i == own or box[1] <= other[0] or other[1] <= box[0] or box[3] <= other[2] or other[3] <= box[2]
            for i, other in enumerate(taken)
        )

    result = []
    for own, ((x, y), name) in enumerate(zip(points, names, strict=True)):
        sides = (1, -1) if x < 50 else (-1, 1)
        for moved, side in ((moved, side) for moved in MOVES for side in sides):
            near = width * x / 100 + 8 * side
            left, right = sorted((near, near + 8 * side * len(name)))
            box = (left, right, y + moved - 8, y + moved + 8)
            if left >= -20 and right <= width + 20 and box[2] >= 0 and box[3] <= height and is_free(box, own):
                taken.append(box)
                result.append((side, moved))
                break
        else:
            result.append((sides[0], 0))
    return result


def smooth(values: Sequence[float]) -> np.ndarray:
    """Return the centred moving mean over about a tenth of the values, over fewer at both ends.

    >>> smooth([4.0, 1.0, 1.0]).tolist()
    [2.5, 2.0, 1.0]
    """
    half = max(1, round(len(values) / 20))
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    i = np.arange(len(values))
    first, last = np.maximum(i - half, 0), np.minimum(i + half + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)


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
        cells = _cell(score_text(row.get("accuracy")), interval)
        cells += "".join(_cell(score_text(row.get(key))) for key in ("precision", "recall"))
        cells += _cell("–" if n is None else f"{n:,}")
        lines.append(f'<tr><th scope="row">{_e(name)}</th>{cells}</tr>')
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
    command = f"<pre>{_e(context['command'])}</pre>" if context.get("command") else ""
    facts = [
        ("git commit", _distinct(m.get("git_commit") for m in manifests.values())),
        ("Python", _distinct(m.get("python") for m in manifests.values())),
        ("packages", _versions(manifests.values())),
        ("hardware", _distinct(_hardware(m.get("hardware")) for m in manifests.values())),
        ("impressions", f"{board['n_impressions']:,}, SHA-256 {board['subset_sha']}"),
    ]
    items = "".join(f"<dt>{_e(name)}</dt><dd>{_e(text)}</dd>" for name, text in facts if text)
    lines = []
    for row in board["rows"]:
        manifest = manifests[row["name"]]
        told = [manifest.get("command") or "–", manifest.get("written") or "–", row["run"]]
        cells = "".join(f'<td class="text">{_e(text)}</td>' for text in told)
        lines.append(f'<tr><th scope="row">{_e(row["name"])}</th>{cells}</tr>')
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


STYLE = """
:root{--page:#fff;--ink:#1b1f24;--soft:#5c6670;--rule:#dde1e6;--wash:#f5f7f9;--static:#1f5fbf;
--streaming:#b4560a;
--ceiling:#6b7280;--warn:#fff6dc;--warn-edge:#d9a400}
@media(prefers-color-scheme:dark){:root{--page:#14171a;--ink:#e8eaed;--soft:#a3acb5;--rule:#343b42;
--wash:#1d2226;
--static:#7db2ff;--streaming:#f2a65a;--ceiling:#9aa3ad;--warn:#332b10;--warn-edge:#b98f10}}
*{box-sizing:border-box}
html{font-size:17px;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);line-height:1.5;
font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",Helvetica,Arial,sans-serif}
main{max-width:66rem;margin:0 auto;padding:2.5rem 1.5rem 4rem}
h1{font-size:2.1rem;line-height:1.15;margin:0 0 .4rem;letter-spacing:-.015em;overflow-wrap:anywhere}
h2{font-size:1.3rem;margin:0 0 .9rem;letter-spacing:-.01em}
section{margin-top:3rem}
p{max-width:46rem}
.about{color:var(--soft);margin:0;overflow-wrap:anywhere}
.warning{background:var(--warn);border-left:4px solid var(--warn-edge);padding:.6rem .9rem;
margin:1.2rem 0 0;
font-weight:600}
.card{border:1px solid var(--rule);border-radius:8px;padding:1rem 1.25rem;margin-bottom:1rem;
background:var(--wash)}
.card p{margin:0;max-width:none;overflow-wrap:anywhere}
.pair{color:var(--soft)}
.pair b{color:var(--ink);font-weight:600}
.big{font-size:2.2rem;font-weight:650;line-height:1.3;font-variant-numeric:tabular-nums}
.big small{font-size:1.15rem;font-weight:400;color:var(--soft);white-space:nowrap}
.verdict{font-weight:600}
.scroll{overflow-x:auto;margin-top:1rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.93rem}
th,td{padding:.45rem .7rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--rule);
vertical-align:top}
thead th{color:var(--soft);font-weight:600;vertical-align:bottom;white-space:normal;
border-bottom:2px solid var(--rule)}
th:first-child{text-align:left;padding-left:0}
th[scope=row]{font-weight:600;white-space:normal;overflow-wrap:anywhere;min-width:13rem;max-width:16rem;
position:sticky;left:0;background:var(--page)}
td small{display:block;color:var(--soft);font-size:.78rem}
.block th{padding-top:1.3rem;color:var(--ink);font-weight:700;white-space:normal}
.block small{font-weight:400;color:var(--soft);margin-left:.4rem;font-size:.82rem}
.text{text-align:left;white-space:normal;overflow-wrap:anywhere;min-width:9rem}
.notes{color:var(--soft);font-size:.88rem;padding-left:1.1rem;overflow-wrap:anywhere}
figure{margin:0}
figcaption{color:var(--soft);font-size:.88rem;margin-top:.8rem;max-width:46rem}
svg{display:block;width:100%;overflow:visible}
svg text{fill:var(--soft);font-size:13px}
svg .label{fill:var(--ink);font-size:14px;paint-order:stroke;stroke:var(--page);stroke-width:4px;
stroke-linejoin:round}
.grid{stroke:var(--rule)}
.chance{stroke:var(--soft);stroke-dasharray:4 4}
.static{--hue:var(--static)}.streaming{--hue:var(--streaming)}.ceiling{--hue:var(--ceiling)}
.bar{stroke:var(--hue);stroke-width:3}
.thin{stroke-width:1.5;opacity:.5}
.dot{fill:var(--hue);stroke:var(--page);stroke-width:1.5}
.row{display:grid;grid-template-columns:15rem 1fr 12rem;column-gap:1.5rem;align-items:center}
.row svg{height:2rem;overflow:visible}
.row .name{overflow-wrap:anywhere;line-height:1.2}
.row .value{font-variant-numeric:tabular-nums;white-space:nowrap}
.row small{color:var(--soft)}
.group span{font-weight:700}
.plot{padding:1.8rem 1.2rem 3.2rem 3rem}
.broad{min-width:42rem}
.key{display:inline-block;width:.7em;height:.7em;border-radius:50%;background:var(--hue)}
polyline{fill:none;stroke:var(--static);vector-effect:non-scaling-stroke}
.raw{opacity:.4;stroke-width:1}
.smooth{stroke-width:2.5}
pre{background:var(--wash);border:1px solid var(--rule);border-radius:6px;padding:.7rem 1rem;
overflow-x:auto}
code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:.9em}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.35rem 1.2rem;font-size:.93rem}
dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}
@media(max-width:44rem){html{font-size:16px}main{padding:1.5rem 1rem 3rem}h1{font-size:1.6rem}
.big{font-size:1.8rem}
.row{grid-template-columns:1fr auto;column-gap:1rem}.row svg{grid-column:1/-1;grid-row:2;height:1.7rem}
.row .value{font-size:.9rem}.axis span{display:none}.axis svg{grid-row:1;height:1.5rem}
.group svg{display:none}
.group{margin-top:.6rem}th[scope=row]{min-width:7rem;max-width:8.5rem;font-size:.85rem}
.block span{position:sticky;left:0;display:inline-block;max-width:calc(100vw - 2rem)}
.block small{display:block;margin:0}
.plot{padding-left:2.6rem;padding-right:.6rem}svg .label{font-size:12px}dl{grid-template-columns:1fr}
dd{margin-bottom:.4rem}}
@media print{section{break-inside:avoid}}
"""
