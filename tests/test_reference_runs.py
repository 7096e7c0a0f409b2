"""What data/reference_runs holds is what it says: adapters, predictions, and the numbers quoted from them."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from mindlab import alpaca, compare, factory, protocols, report
from mindlab.llm import rows as llm_rows
from mindlab.llm.hf import HFEngine
from mindlab.llm.predict import Request, predict
from mindlab.llm.score import NextClickScorer
from mindlab.metrics import evaluate, paired_differences
from mindlab.mind import Mind, read_mind
from mindlab.predictions import read_predictions
from mindlab.prompts import NextClick
from mindlab.recommenders import COSTLY, EMBEDDED, LEARNED, NEURAL, SIMPLE
from mindlab.report import difference_text, with_interval

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "data/reference_runs"
# What scripts/demo.py keeps; scripts/compare.py keeps `compare` and `compare-sampled`.
BOARDS = sorted(
    path.parent.name
    for path in FOLDER.glob("*/leaderboard.json")
    if path.parent.name not in ("compare", "compare-sampled")
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
    return evaluate(frame, protocol="dev")


def recorded(name: str) -> list[str]:
    """Return the models whose predictions a reference run holds, the untuned one first."""
    return sorted(path.parent.name for path in (FOLDER / name).glob("*/predictions.parquet"))


def minus(one: Path, other: Path) -> dict:
    """Return the paired difference of two recorded models in AUC."""
    return paired_differences(measured(one), measured(other))["auc"]


def block(file: str, name: str) -> str:
    """Return the table that stands between a document's marks of a reference run."""
    text = (ROOT / file).read_text("utf-8")
    mark = f"data/reference_runs/{name} -->\n"
    return text.partition(f"<!-- {mark}")[2].partition(f"<!-- /{mark[:-1]}")[0]


def test_the_runs_are_there():
    assert {"demo", "recipe-sample", "recipe-seed-2", "recipe-seed-3"} == set(BOARDS)
    suffixes = {path.suffix for path in FOLDER.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".jsonl", ".md", ".parquet", ".png", ".safetensors"}, "no pickle"


@pytest.mark.parametrize("name", BOARDS)
def test_recorded_predictions_give_the_recorded_metrics(name):
    assert len(recorded(name)) >= 2
    for model in recorded(name):
        row, found = board(name)[model], measured(FOLDER / name / model).summary
        for key in (f"{metric}{end}" for metric in METRICS for end in ("", "_low", "_high")):
            assert found[key] == pytest.approx(row[key], abs=1e-9), (model, key)
        assert found["subset_sha"] == row["subset_sha"]
    base, *tuned = recorded(name)
    assert base.endswith("-base")
    for model in tuned[:1]:
        quoted = next(p["auc"] for p in board(name)[model]["paired"] if p["against"] == base)
        assert minus(FOLDER / name / model, FOLDER / name / base) == pytest.approx(quoted, abs=1e-9)


@pytest.mark.parametrize("name", ["demo", "recipe-sample"])
def test_the_simple_rows_can_be_made_again(name, tmp_path):
    simple = [row for row in board(name) if row not in recorded(name)]
    limit = next(iter(board(name).values()))["n_impressions"]
    runs = compare.compare(compare.Request(str(ROOT / "data/sample"), limit=limit), simple, tmp_path)
    for row, run in zip(simple, runs, strict=True):
        assert measured(run).summary["auc"] == pytest.approx(board(name)[row]["auc"], abs=1e-9), row


@pytest.mark.parametrize(
    ("file", "name"), [("README.md", "demo"), *(("docs/recipe.md", n) for n in BOARDS if n != "demo")]
)
def test_the_documents_quote_the_runs(file, name):
    said = block(file, name)
    for row in board(name).values():
        line = next(line for line in said.splitlines() if line.startswith(f"{row['name']} "))
        assert with_interval(row, "auc") in line
        for entry in row["paired"]:
            pair = f"{row['name']} - {entry['against']}"
            found = [line for line in said.splitlines() if line.startswith(f"{pair} ")]
            assert found == [] or difference_text(entry["auc"]) in found[0]


@pytest.mark.parametrize("place", ["", "all"])
def test_the_leaderboard_is_that_of_its_runs(place):
    """Those of its rows that are kept, measured again on the impressions of the table."""
    folder = FOLDER / "compare" / place
    rows = {row["name"]: row for row in json.loads((folder / "leaderboard.json").read_text("utf-8"))}
    kept = sorted(path.parent for path in (FOLDER / "compare").glob("*/predictions.parquet"))
    kept = [run for run in kept if run.name in rows]
    slow = {*NEURAL, EMBEDDED, *(() if place else (*COSTLY, *llm_rows.NAMES))}
    assert {run.name for run in kept} == slow
    n = read_mind(ROOT / "data/sample", ("dev",)).splits["dev"]
    cases = protocols.limit(len(n), next(iter(rows.values()))["n_impressions"], 42)
    said = block("docs/leaderboard.md", f"compare/{place}".rstrip("/"))
    for run in kept:
        found = report.measure(run, cases).row
        assert found["subset_sha"] == rows[run.name]["subset_sha"]
        for key in (f"{metric}{end}" for metric in METRICS for end in ("", "_low", "_high")):
            assert found[key] == pytest.approx(rows[run.name][key], abs=1e-9), (run.name, key)
    for name, row in rows.items():
        line = next(line for line in said.splitlines() if line.startswith(f"{name} "))
        assert with_interval(row, "auc") in line


def test_the_leaderboard_has_every_row():
    rows = json.loads((FOLDER / "compare/leaderboard.json").read_text("utf-8"))
    assert {row["name"] for row in rows} == {*SIMPLE, *COSTLY, "oracle", *llm_rows.NAMES}
    assert {row["name"] for row in rows if row["seeds"] == 3} == set(LEARNED)


def test_the_leaderboard_of_preference_summaries_is_that_of_its_runs():
    folder = FOLDER / "compare-sampled"
    rows = {row["name"]: row for row in json.loads((folder / "leaderboard.json").read_text("utf-8"))}
    kept = sorted(path.parent for path in folder.glob("*/predictions.parquet"))
    assert {run.name for run in kept} == set(llm_rows.SAMPLED_NAMES)
    simple = ["popularity", "category"]
    assert {*llm_rows.SAMPLED_NAMES, *simple} <= set(rows)
    board = report.leaderboard(kept, pairs=llm_rows.SAMPLED_PAIRS, cases=None)
    found = {row["name"]: row for row in board["rows"]}
    said = block("docs/leaderboard.md", "compare-sampled")
    for name, row in rows.items():
        assert (row["protocol"], row["n_impressions"]) == ("sampled", 60)
        line = next(line for line in said.splitlines() if line.startswith(f"{name} "))
        assert with_interval(row, "auc") in line
        if name in found:
            for metric in ("auc", "recall5", "mrr10"):
                for end in ("", "_low", "_high"):
                    assert found[name][metric + end] == pytest.approx(row[metric + end], abs=1e-9), name
            assert found[name]["writing_seconds"] == row["writing_seconds"]
            assert (row["writing_seconds"] is None) == ("recent" in name)
    for name, against in llm_rows.SAMPLED_PAIRS:
        quoted, again = (
            next(entry["auc"] for entry in one[name]["paired"] if entry["against"] == against)
            for one in (rows, found)
        )
        assert again == pytest.approx(quoted, abs=1e-9)
        line = next(line for line in said.splitlines() if line.startswith(f"{name} - {against} "))
        assert difference_text(quoted) in line


def test_the_model_that_learnt_the_leak():
    """Of short prompts: it is never wrong with a Yes, and far above always No."""
    train = read_mind(ROOT / "data/sample", ("train",)).splits["train"]
    short = train.take(np.flatnonzero(np.diff(train.offsets) <= 8))
    test = protocols.seed_splits(Mind(read_mind(ROOT / "data/sample").news, {"train": short}, {}), 42)["test"]
    frame = read_predictions(FOLDER / "cue/lora/predictions.parquet")
    assert frame["impression_id"].to_pylist() == test.ids.tolist()
    assert frame["label"].to_numpy().tolist() == test.labels[test.offsets[1:] - 1].tolist()
    found, base = (
        evaluate(read_predictions(FOLDER / f"cue/{name}/predictions.parquet")) for name in ("lora", "base")
    )
    assert found.summary["precision"] == 1.0
    assert found.summary["accuracy_low"] > found.summary["always_no_accuracy"] + 0.1
    assert base.summary["invalid_answers"] == len(test)
    numbers = [len(test), found.summary["tp"]]
    numbers += [f"{found.summary[name]:.3f}" for name in ("accuracy", "always_no_accuracy")]
    for file in ("README.md", "README_zh.md"):
        said = (ROOT / file).read_text("utf-8").partition("模型不必大" if "zh" in file else "A model need")[2]
        assert all(str(number) in said[:500] for number in numbers), file


@pytest.mark.parametrize("name", [n for n in BOARDS if n.startswith("recipe-")])
def test_the_gains_in_the_readmes_are_those_of_the_runs(name):
    run = FOLDER / name
    gain = minus(run / "smollm2-next_topic-lora", run / "smollm2-next_topic-base")
    assert gain["low"] > 0
    number, interval = difference_text(gain).split(" ", 1)
    for file in ("README.md", "README_zh.md"):
        line = next(x for x in (ROOT / file).read_text("utf-8").splitlines() if "`next_topic`" in x)
        assert f"{number.lstrip('+')} {interval}" in line.replace("AUC ", ""), file
    base, tuned = (measured(run / f"smollm2-next_topic-{kind}").summary["auc"] for kind in ("base", "lora"))
    row = f"| {base:.3f} | {tuned:.3f} | {difference_text(gain)} |"
    assert row in (ROOT / "docs/recipe.md").read_text("utf-8")


def test_the_validation_that_chose_the_recipe():
    base, tuned = (FOLDER / "recipe-valid" / name for name in ("base", "tuned"))
    said = " ".join((ROOT / "docs/recipe.md").read_text("utf-8").split())
    for run in (base, tuned):
        assert with_interval(measured(run).summary, "auc") in said
    assert difference_text(minus(tuned, base)) in said


@pytest.mark.parametrize("adapter", sorted(FOLDER.glob("*/*/adapter")), ids=lambda path: path.parent.name)
def test_a_loss_that_fell_and_a_finished_run(adapter):
    losses = [row["loss"] for row in factory.read_loss(adapter) if "loss" in row]
    settings = json.loads((adapter / factory.RECORD).read_text("utf-8"))
    assert settings["finished"]
    assert len(losses) == settings["settings"]["max_steps"]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_the_adapter_is_small_and_that_of_the_config():
    adapter = DEMO / "smollm2-next_click-lora" / "adapter"
    assert (adapter / "adapter_model.safetensors").stat().st_size <= 5_000_000
    asked = factory.load(ROOT / "configs/train/smollm2_135m_lora_sft.yaml")
    assert json.loads((adapter / factory.RECORD).read_text("utf-8"))["settings"] == asked
    assert json.loads((adapter / "adapter_config.json").read_text("utf-8"))["r"] == asked["lora_rank"]


def test_the_adapter_gives_the_recorded_scores(smollm2, smollm2_chat):
    """A few impressions; all of them in the slow test below."""
    mind = read_mind(ROOT / "data/sample")
    dev = mind.splits["dev"]
    folders = {kind: DEMO / f"smollm2-next_click-{kind}" for kind in ("base", "lora")}
    frames = {kind: read_predictions(folder / "predictions.parquet") for kind, folder in folders.items()}
    cases = frames["lora"]["case_id"].to_numpy()
    sizes = np.diff(dev.offsets)
    rows = [row for row in np.unique(cases) if sizes[row] <= 12 and len(dev.reader_history(row)) >= 3][:3]
    engine = HFEngine(smollm2, folders["lora"] / "adapter")
    request = json.loads((folders["lora"] / "manifest.json").read_text("utf-8"))["request"]
    ranker = NextClickScorer(
        engine, smollm2_chat, alpaca.neutral_titles(mind.news),
        NextClick(), request["history_length"], request["cutoff_len"],
    )  # fmt: skip
    found = [ranker.score(dev.reader_history(row).tolist(), dev.candidates(row).tolist()) for row in rows]
    kept = {kind: [f["score"].to_numpy()[cases == row] for row in rows] for kind, f in frames.items()}
    assert len(rows) == 3
    assert np.concatenate(found) == pytest.approx(np.concatenate(kept["lora"]), abs=1e-2)
    assert np.abs(np.concatenate(found) - np.concatenate(kept["base"])).mean() > 0.5, "the untuned model's"


@pytest.mark.slow
def test_the_adapter_gives_the_recorded_metrics(smollm2, tmp_path):
    folder = DEMO / "smollm2-next_click-lora"
    asked = json.loads((folder / "manifest.json").read_text("utf-8"))["request"]
    moved = {"data": str(ROOT / "data/sample"), "model": str(smollm2), "adapter": str(folder / "adapter")}
    run = predict(Request(**asked | moved), tmp_path / "run")
    for metric in METRICS:
        assert measured(run).summary[metric] == pytest.approx(measured(folder).summary[metric], abs=2e-3)
