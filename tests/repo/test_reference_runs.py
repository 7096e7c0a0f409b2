"""What data/reference_runs holds is what it says: adapters, predictions, and the numbers quoted from them."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from mindlab import report
from mindlab.data.mind import Mind, read_mind
from mindlab.evaluation.metrics import evaluate, paired_differences
from mindlab.evaluation.predictions import read_predictions
from mindlab.finetune import factory
from mindlab.llm.hf import HFEngine
from mindlab.llm.score import NextClickScorer
from mindlab.prompts import NextClick, neutral_titles
from mindlab.runs import compare
from mindlab.runs.run import Request
from mindlab.tasks import Seed, limit
from scripts.dev import boards
from tests.asked import ask
from tests.conftest import ROOT

FOLDER = ROOT / "data/reference_runs"
# Every board that stands beside committed predictions, by its folder: `demo`, `compare`, `compare/all` ...
BOARDS = sorted(
    path.parent.relative_to(FOLDER).as_posix()
    for path in FOLDER.rglob("leaderboard.json")
    if any((FOLDER / path.relative_to(FOLDER).parts[0]).glob("*/predictions.parquet"))
)
DEMO = FOLDER / "demo"
METRICS = ("auc", "mrr", "ndcg5", "ndcg10")


@cache
def board(name: str) -> dict[str, dict]:
    """Return a leaderboard's rows by name."""
    return {row["name"]: row for row in json.loads((FOLDER / name / "leaderboard.json").read_text("utf-8"))}


@cache
def measured(folder: Path):
    """Measure recorded predictions as scripts/evaluate.py does."""
    frame = read_predictions(folder / "predictions.parquet")
    return evaluate(frame)


@cache
def recorded(name: str) -> dict[str, report.Measured]:
    """Return the rows of a board whose predictions are committed, measured again on the impressions of the board."""
    found = {}
    for row in board(name).values():
        places = (FOLDER / name.partition("/")[0] / row["name"], ROOT / row["run"])
        run = next(
            (run for run in places if FOLDER in run.parents and (run / "predictions.parquet").is_file()), None
        )
        if run is not None:
            n = len(np.unique(read_predictions(run / "predictions.parquet")["case_id"].to_numpy()))
            found[row["name"]] = report.measure(
                run, limit(n, row["n_impressions"], 42) if n > row["n_impressions"] else None
            )
    return found


def wrong(row: dict, found: dict) -> list[str]:
    """Return the metrics, and their ends, of a board's row that are not what was measured."""
    metrics = [key.removesuffix("_low") for key in row if key.endswith("_low")]
    keys = [f"{metric}{end}" for metric in metrics for end in ("", "_low", "_high")]
    return [key for key in keys if row[key] != pytest.approx(found[key], abs=1e-9)]


@pytest.mark.parametrize("name", BOARDS)
def test_committed_predictions_give_the_numbers_of_their_board(name):
    """Each row against its own predictions. Which methods a board holds is its own affair."""
    rows, found = board(name), recorded(name)
    assert len(found) >= 2
    for row, again in found.items():
        assert wrong(rows[row], again.row) == [], row
        assert again.row["subset_sha"] == rows[row]["subset_sha"], row
        for entry in rows[row]["paired"]:
            if entry["against"] in found:
                pair = paired_differences(again.evaluation, found[entry["against"]].evaluation)
                for metric, difference in pair.items():
                    assert difference == pytest.approx(entry[metric], abs=1e-9), (
                        row,
                        entry["against"],
                        metric,
                    )


def test_numbers_of_other_predictions_are_noticed():
    base, tuned = sorted(recorded("demo"))
    assert wrong(board("demo")[base], recorded("demo")[base].row) == []
    assert {"auc", "auc_low", "mrr"} <= set(wrong(board("demo")[base], recorded("demo")[tuned].row))


@pytest.mark.parametrize("name", ["demo", "recipe-sample"])
def test_the_simple_rows_can_be_made_again(name, tmp_path):
    simple = [row for row in board(name) if row not in recorded(name)]
    limit = next(iter(board(name).values()))["n_impressions"]
    runs = compare.compare(Request(str(ROOT / "data/sample"), limit=limit), simple, tmp_path)
    for row, run in zip(simple, runs, strict=True):
        assert measured(run).summary["auc"] == pytest.approx(board(name)[row]["auc"], abs=1e-9), row


def moved_by(change: float) -> tuple[list[dict], dict]:
    """Return the rows of the demo's board, and a board of its committed rows in which one mean is another."""
    before = list(board("demo").values())
    after = [dict(row, spread=(FOLDER / "demo" / row["name"]).relative_to(ROOT).as_posix()) for row in before]
    after[1]["auc"] += change
    return before, {"rows": after}


@pytest.mark.parametrize(("change", "is_same"), [(0.0, True), (1e-6, False)])
def test_a_mean_of_committed_predictions_that_moves_is_a_problem(change, is_same, capsys):
    before, after = moved_by(change)
    assert boards.said("demo", before, after) is is_same
    assert "0 changed their verdict" in capsys.readouterr().out


def test_a_verdict_that_changes_is_said(capsys):
    before, after = moved_by(0.0)
    row = next(row for row in after["rows"] if row["name"] == "category")
    (entry,) = row["paired"]
    row["paired"] = [{**entry, "auc": {**entry["auc"], "low": -0.5}}]
    boards.said("demo", before, after)
    assert "category - popularity, AUC: " in capsys.readouterr().out


def test_a_board_keeps_the_costs_that_it_had():
    rows = [{"name": "tfidf", "ms_per_impression": 9.0, "trained_on": None}]
    after = {"rows": rows, "manifests": {"tfidf": {"trained_on": None}}}
    boards.keep_costs(after, [{"name": "tfidf", "ms_per_impression": 0.1}], "data/sample")
    assert rows[0]["ms_per_impression"] == 0.1


def test_the_model_that_learnt_the_leak():
    """Of short prompts: it is never wrong with a Yes, and far above always No."""
    train = read_mind(ROOT / "data/sample", ("train",)).splits["train"]
    short = train.take(np.flatnonzero(np.diff(train.offsets) <= 8))
    test = Seed().splits(Mind(read_mind(ROOT / "data/sample").news, {"train": short}, {}), 42)["test"]
    frame = read_predictions(FOLDER / "cue/lora/predictions.parquet")
    assert frame["impression_id"].to_pylist() == test.ids.tolist()
    assert frame["label"].to_numpy().tolist() == test.labels[test.offsets[1:] - 1].tolist()
    found, base = (
        evaluate(read_predictions(FOLDER / f"cue/{name}/predictions.parquet")) for name in ("lora", "base")
    )
    assert found.summary["precision"] == 1.0
    assert found.summary["accuracy_low"] > found.summary["always_no_accuracy"] + 0.1
    assert base.summary["invalid_answers"] == len(test)


@pytest.mark.parametrize("adapter", sorted(FOLDER.glob("*/*/adapter")), ids=lambda path: path.parent.name)
def test_a_loss_that_fell_and_a_finished_run(adapter):
    losses = [row["loss"] for row in factory.read_loss(adapter) if "loss" in row]
    settings = json.loads((adapter / factory.RECORD).read_text("utf-8"))
    assert settings["finished"]
    assert len(losses) == settings["settings"]["max_steps"]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_the_adapter_gives_the_recorded_scores(smollm2, smollm2_chat):
    """A few impressions; all of them in the slow test below."""
    mind = read_mind(ROOT / "data/sample")
    dev = mind.splits["dev"]
    folders = {kind: DEMO / f"smollm2-next_click-{kind}" for kind in ("base", "lora")}
    frames = {kind: read_predictions(folder / "predictions.parquet") for kind, folder in folders.items()}
    cases = frames["lora"]["case_id"].to_numpy()
    sizes = np.diff(dev.offsets)
    rows = [row for row in np.unique(cases) if sizes[row] <= 12 and len(dev.user_history(row)) >= 3][:3]
    engine = HFEngine(smollm2, folders["lora"] / "adapter")
    request = json.loads((folders["lora"] / "manifest.json").read_text("utf-8"))["request"]
    ranker = NextClickScorer(
        engine, smollm2_chat, neutral_titles(mind.news),
        NextClick(), request["history_length"], request["cutoff_len"],
    )  # fmt: skip
    found = [ranker.score(dev.user_history(row).tolist(), dev.candidates(row).tolist()) for row in rows]
    kept = {kind: [f["score"].to_numpy()[cases == row] for row in rows] for kind, f in frames.items()}
    assert len(rows) == 3
    assert np.concatenate(found) == pytest.approx(np.concatenate(kept["lora"]), abs=1e-2)
    assert np.abs(np.concatenate(found) - np.concatenate(kept["base"])).mean() > 0.5, "the untuned model's"


@pytest.mark.slow
def test_the_adapter_gives_the_recorded_metrics(smollm2, tmp_path):
    folder = DEMO / "smollm2-next_click-lora"
    asked = json.loads((folder / "manifest.json").read_text("utf-8"))["request"]
    moved = {"data": str(ROOT / "data/sample"), "model": str(smollm2), "adapter": str(folder / "adapter")}
    run = ask(**asked | moved).run(tmp_path / "run")
    for metric in METRICS:
        assert measured(run).summary[metric] == pytest.approx(measured(folder).summary[metric], abs=2e-3)
