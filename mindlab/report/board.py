"""A board: runs of one protocol on the same impressions, measured, in blocks, with paired differences.

Static and streaming rows stand in blocks of their own and are never ranked together; the oracle stands apart as the
ceiling."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mindlab.common.errors import UserError
from mindlab.common.files import is_number
from mindlab.common.manifest import check_same_data, read_manifest
from mindlab.evaluation.calibration import calibration
from mindlab.evaluation.intervals import FEW_CLUSTERS
from mindlab.evaluation.metrics import LIST_METRICS, METRICS, Evaluation, evaluate_seeds, paired_differences
from mindlab.evaluation.predictions import read_predictions, seed_files
from mindlab.prompts import PROMPTS
from mindlab.prompts.base import ANSWER, YES_NO
from mindlab.report.numbers import interval_text, or_none, time_text
from mindlab.tasks import task_of

DEFAULT_REFERENCE = "popularity"
TRACKS = {
    "static": "labels end with the training split",
    "streaming": "may use labels of earlier test-day impressions; not to be ranked against static rows",
    "ceiling": "ranks by the generator's own utility; no method can be expected to beat it",
}
LABELS = {name: metric.label for name, metric in METRICS.items()}
COSTS = ("params", "train_seconds", "ms_per_impression", "peak_mb", "tokens_per_impression")
CONTEXT = ("title", "data", "synthetic", "command", "notes", "published")
PARTS = (
    "appeal: AUC with each score replaced by its mean over the impressions that show the news article, so by news alone; "
    "personal: AUC with that mean taken away, so without news means."
)
SYNTHETIC = "Synthetic data: this table ranks methods on this generator, not on MIND."


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

    Intervals are 95 %, over users and clicked news (`mindlab.evaluation.metrics.evaluate`). ``seeds`` is the number of training
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
            ``notes`` (a list of sentences), ``published`` (a table of `mindlab.report.published.read_published`, shown apart).

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
            entry["by_users"] = {key: or_none(getattr(by_users, key)) for key in ("mean", "low", "high")}
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
        "context": check_context(context),
    }


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the sort key of a row: block, then falling AUC (accuracy where there is none), then name."""
    worth = [-1.0 if row[metric] is None else row[metric] for metric in ("auc", "accuracy")]
    return [*TRACKS].index(row["track"]), -worth[0], -worth[1], row["name"]


def check_context(context: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a copy; a misspelt `synthetic` would silently drop the warning, so unknown keys are refused."""
    unknown = [key for key in context or {} if key not in CONTEXT]
    if unknown:
        raise ValueError(f"unknown context {', '.join(unknown)}; known are {', '.join(CONTEXT)}")
    return dict(context or {})


def _is_learned(row: Mapping[str, Any], manifest: Mapping[str, Any]) -> bool:
    """Return whether a row's weights were trained here, not merely loaded or counted."""
    request = manifest.get("request")
    is_tuned = isinstance(request, dict) and bool(request.get("adapter") or request.get("config"))
    return is_tuned or bool(row["params"] and row["train_seconds"])


def blocks(board: Mapping[str, Any]) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """Return (title, explanation, rows) of each block that has rows: static, streaming, ceiling."""
    parts = [(t, why, [r for r in board["rows"] if r["track"] == t]) for t, why in TRACKS.items()]
    return [part for part in parts if part[2]]


def columns(board: Mapping[str, Any]) -> list[str]:
    """Return the metrics of accuracy that at least one row has, in the order of `LABELS`."""
    return [metric for metric in present(board) if metric not in LIST_METRICS]


def present(board: Mapping[str, Any]) -> list[str]:
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
    few = [name for name in learned if row_of(board, name)["seeds"] < 3]
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


def row_of(board: Mapping[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in board["rows"] if row["name"] == name)


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
