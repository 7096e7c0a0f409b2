"""Measure predictions: ranking metrics and Yes/No accuracy, with intervals over users and news.

Examples:
  scripts/evaluate.py runs/popularity
  scripts/evaluate.py runs/popularity runs/tfidf        # adds tfidf minus popularity, paired
  scripts/evaluate.py --predictions my_scores.parquet --json
  scripts/evaluate.py runs/test_split --prediction-zip prediction.zip

A RUN is a folder with predictions.parquet (and manifest.json, which may give "name" and
"protocol"); metrics.json is written into it. With predictions-2.parquet and so on beside it, one for each
training seed, every impression counts the mean over seeds. Ranking metrics are MIND's own, ties counted as the
expectation over random order; accuracy is given where a case has one candidate or the method
wrote an answer, and beside a run of the protocol `seed` stand the two answers that look at no news,
always No and the leak rule (from the data that its manifest names). Intervals are 95 %, over users and news (docs/intervals.md).

With --json standard output is one JSON object (a list for several RUNs) and nothing else; the
path of what was written then goes to standard error. --predictions writes no metrics.json.
Exit codes: 0 done, 2 a mistake in what was given.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mindlab.common.cli import parser, run
from mindlab.common.errors import UserError
from mindlab.common.files import write_json
from mindlab.common.manifest import check_same_data, read_manifest
from mindlab.evaluation.metrics import (
    ANSWER_METRICS,
    METRICS,
    PART_METRICS,
    USUAL,
    Evaluation,
    evaluate,
    evaluate_seeds,
    paired_differences,
)
from mindlab.evaluation.predictions import codes, read_predictions, seed_files, write_prediction_zip
from mindlab.report import LABELS, PARTS
from mindlab.runs.compare import blind_answers
from mindlab.tasks import task_of
from mindlab.tasks.base import CANDIDATE


def main() -> int:
    options = parser(__doc__)
    options.add_argument(
        "runs", nargs="*", metavar="RUN", type=Path, help="run folder(s); the first is the baseline"
    )
    options.add_argument(
        "--predictions", metavar="FILE.parquet", type=Path, help="measure a file outside a run"
    )
    options.add_argument("--split", help="which split, if the file holds several")
    options.add_argument("--json", action="store_true", help="print JSON, not a table")
    options.add_argument("--prediction-zip", metavar="FILE", type=Path, help="also write the MIND submission")
    given = options.parse_args()
    if bool(given.runs) == bool(given.predictions):
        raise UserError("give RUN folders, or --predictions FILE.parquet, and not both; see --help")
    if given.prediction_zip and len(given.runs) > 1:
        raise UserError("--prediction-zip takes one RUN; give only the one to submit")

    sources = given.runs or [given.predictions]
    evaluations: list[Evaluation] = []
    written: list[Path] = []
    for source in sources:
        path = predictions_path(source) if given.runs else source
        about = about_run(source) if given.runs else {}
        print(f"reading {path}", file=sys.stderr)
        others = seed_files(source)[1:] if given.runs else []
        frame, *more = [one_split(read_predictions(file), given.split, file) for file in (path, *others)]
        if given.prediction_zip:
            write_prediction_zip(given.prediction_zip, frame)
            written.append(given.prediction_zip)
            if frame["label"].null_count == len(frame):
                print("no labels, so no metrics", file=sys.stderr)
                return finish(written, given.json, [{"metrics": None, "reason": "no labels"}])
        try:
            task = task_of(about["protocol"]) if about.get("protocol") else None
            found = evaluate_seeds([frame, *more], task.metrics if task else USUAL)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        name = about.get("name") or (source.resolve().name if given.runs else source.stem)
        head = {"name": name, "protocol": about.get("protocol")}
        beside = measure_blind(about, frame) if task and task.case == CANDIDATE else []
        evaluations.append(replace(found, summary=head | found.summary | {"paired": None, "beside": beside}))

    check_same_data({str(run): about_run(run) for run in given.runs})
    baseline = evaluations[0]
    for one, source in zip(evaluations[1:], sources[1:], strict=True):
        try:
            difference = paired_differences(one, baseline)
        except UserError as error:
            raise UserError(f"{sources[0]} and {source}: {error}") from None
        one.summary["paired"] = {"against": baseline.summary["name"], **difference}

    summaries = [one.summary for one in evaluations]
    for source, summary in zip(given.runs, summaries, strict=False):
        write_json(source / "metrics.json", summary)
        written.append(source / "metrics.json")
    if not given.json:
        print(table(summaries))
    return finish(written, given.json, summaries)


def predictions_path(run_folder: Path) -> Path:
    """Return the predictions file of a run folder."""
    if run_folder.is_file():
        raise UserError(
            f"{run_folder}: a file, expected a run folder; for a file use --predictions {run_folder}"
        )
    if not run_folder.is_dir():
        raise UserError(f"{run_folder}: no such run folder; scripts/predict.py --out {run_folder} makes one")
    return run_folder / "predictions.parquet"


def about_run(run_folder: Path) -> dict[str, Any]:
    """Return the run's manifest, {} if it has none."""
    manifest = read_manifest(run_folder)
    for key in ("name", "protocol"):
        if not isinstance(manifest.get(key), str | None):
            raise UserError(f"{run_folder / 'manifest.json'}: {key} is {manifest[key]!r}, expected a text")
    return manifest


def measure_blind(about: dict[str, Any], frame: pa.Table) -> list[dict[str, Any]]:
    """Return the summaries of always No and the leak rule on a run's cases; say so where they cannot be had."""
    try:
        tables = blind_answers(about, frame)
    except UserError as error:
        print(error, file=sys.stderr)
        return []
    return [{"name": name, **evaluate(table).summary} for name, table in tables.items()]


def one_split(frame: pa.Table, split: str | None, path: Path) -> pa.Table:
    """Return the rows of `split`; without one, the file must hold a single split."""
    names = codes(frame["split"])[1]
    if split is None and len(names) > 1:
        raise UserError(f"{path}: holds the splits {', '.join(names)}; name one with --split")
    if split is None:
        return frame
    if split not in names:
        raise UserError(f"{path}: no split {split}; it holds {', '.join(names)}")
    return frame.filter(pc.equal(frame["split"], split))


def finish(written: list[Path], as_json: bool, summaries: list[dict[str, Any]]) -> int:
    """Print the JSON if asked for, and the paths of what was written."""
    if as_json:
        value = summaries if len(summaries) > 1 else summaries[0]
        print(json.dumps(value, ensure_ascii=False, indent=1))
    for path in written:
        print(path, file=sys.stderr if as_json else sys.stdout)
    return 0


def table(summaries: list[dict[str, Any]]) -> str:
    """Return everything that was measured as text, one row a run."""
    parts = []
    names = [str(summary["name"]) for summary in summaries]
    ranked = [
        name
        for name, metric in METRICS.items()
        if (metric.by_click or metric.of_lists) and any(s.get(name) is not None for s in summaries)
    ]
    if ranked:
        head = ["ranking", "cases", *(LABELS.get(name, name) for name in ranked)]
        rows = [
            [name, f"{summary['n_ranked']:,}", *(cell(summary, metric) for metric in ranked)]
            for name, summary in zip(names, summaries, strict=True)
        ]
        parts.append(align([head, *rows]))
    answered = [(n, s) for n, s in zip(names, summaries, strict=True) if s["accuracy"] is not None]
    # Runs of the same cases share these two rows.
    blind = {(s["subset_sha"], one["name"]): one for s in summaries for one in s["beside"]}
    answered += [(one["name"], one) for one in blind.values()]
    if answered:
        head = ["answers", "n", *ANSWER_METRICS, "always No", "TP", "FP", "FN", "TN", "invalid"]
        rows = [
            [
                name,
                f"{summary['n_answers']:,}",
                *(cell(summary, metric) for metric in ANSWER_METRICS),
                f"{summary['always_no_accuracy']:.4f}",
                *(f"{summary[key]:,}" for key in ("tp", "fp", "fn", "tn", "invalid_answers")),
            ]
            for name, summary in answered
        ]
        parts.append(align([head, *rows]))
    paired = [(n, s["paired"]) for n, s in zip(names, summaries, strict=True) if s["paired"]]
    if paired:
        metrics = [name for name in (*ranked, "accuracy") if any(name in p for _, p in paired)]
        head = [f"minus {paired[0][1]['against']}", *(LABELS.get(name, name) for name in metrics)]
        rows = [[name, *(difference(found.get(metric)) for metric in metrics)] for name, found in paired]
        parts.append(align([head, *rows]))
    remarks = {}
    for name, summary in zip(names, summaries, strict=True):
        said = [f"over {summary['clustered_by']}s and news"]
        if summary["auc_undefined"]:
            said.append(f"AUC leaves out {summary['auc_undefined']:,} cases with one class only")
        if summary["n_unlabelled"]:
            said.append(f"{summary['n_unlabelled']:,} unlabelled cases left out")
        if summary["answers_from"] == "score > 0":
            said.append("answers are score > 0")
        remarks.setdefault("; ".join(said), []).append(name)
    notes = [f"{', '.join(who)}: {said}" if len(remarks) > 1 else said for said, who in remarks.items()]
    notes.insert(0, "95 % intervals in brackets")
    if set(PART_METRICS) & set(ranked):
        notes.insert(1, PARTS)
    return "\n\n".join(parts) + "\n\n" + "\n".join(notes)


def cell(summary: dict[str, Any], metric: str) -> str:
    """Return one number with its interval."""
    value, low, high = (summary.get(f"{metric}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return "-"
    return f"{value:.4f}" if low is None else f"{value:.4f} [{low:.4f}, {high:.4f}]"


def difference(found: dict[str, float | None] | None) -> str:
    """Return one paired difference with its interval and its sign."""
    if found is None or found["mean"] is None:
        return "-"
    interval = "" if found["low"] is None else f" [{found['low']:+.4f}, {found['high']:+.4f}]"
    return f"{found['mean']:+.4f}{interval}"


def align(rows: list[list[str]]) -> str:
    """Return rows of text as columns, the first to the left and the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


if __name__ == "__main__":
    run(main)
