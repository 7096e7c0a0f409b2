"""scripts/compare.py: every method on the same impressions, seeds pooled, done work kept."""

import json
import re
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mindlab.common import cli
from mindlab.common.errors import UserError
from mindlab.data import synthetic
from mindlab.data.mind import read_mind
from mindlab.evaluation.predictions import read_predictions, seed_files
from mindlab.finetune import factory
from mindlab.recommenders import METHODS
from mindlab.recommenders import smollm2 as models
from mindlab.recommenders.base import Method, Recommender
from mindlab.runs.compare import compare as run_methods
from mindlab.runs.run import Request, lead_of_last
from scripts import compare
from tests import official


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small synthetic MIND."""
    folder = tmp_path_factory.mktemp("mind")
    synthetic.make_sample(folder, 500, 150, None, 3)
    return folder


@pytest.fixture
def run_compare(monkeypatch, capsys, data):
    """Run the script on the small set; return exit code, stdout and stderr."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["compare.py", "--data", str(data), *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.run(compare.main)
        captured = capsys.readouterr()
        return end.value.code, captured.out, captured.err

    return run


def test_one_table_of_all(run_compare, tmp_path):
    only = "random,popularity,freshness,lightgbm,oracle"
    words = ("--only", only, "--seeds", 2, "--limit", 80, "--out", tmp_path)
    code, out, _ = run_compare(*words)
    assert code == 0
    assert out.splitlines()[-1] == str(tmp_path / "report.html")
    rows = {row["name"]: row for row in json.loads((tmp_path / "leaderboard.json").read_text("utf-8"))}
    assert list(rows) == [*sorted(only.split(","), key=list(rows).index)]
    assert set(rows) == set(only.split(","))
    assert {row["n_impressions"] for row in rows.values()} == {80}
    assert {name: row["track"] for name, row in rows.items() if row["track"] == "streaming"} == {
        "freshness": "streaming", "lightgbm": "streaming",
    }  # fmt: skip
    assert {name: row["seeds"] for name, row in rows.items()} == dict.fromkeys(rows, 1) | {"lightgbm": 2}
    assert "Synthetic data" in out
    assert max(rows.values(), key=lambda row: row["auc"])["name"] == "oracle"
    slices = json.loads((tmp_path / "slices.json").read_text("utf-8"))
    assert sum(row["n"] for row in slices if row["question"] == "user") == 80

    before = {file: file.stat().st_mtime_ns for name in rows for file in seed_files(tmp_path / name)}
    assert len(before) == 6
    assert run_compare(*words)[0] == 0
    assert {file: file.stat().st_mtime_ns for file in before} == before

    code, _, err = run_compare("--only", "random", "--limit", 80, "--out", tmp_path / "other")
    words = ("--only", "popularity", "--limit", 70, "--out", tmp_path / "few")
    code, _, err = run_compare(*words, "--add", tmp_path / "other/random")
    assert code == 2
    assert "scored different impressions" in err


def test_a_row_for_a_model_of_ones_own(run_compare, tmp_path, tiny_glm):
    """Hidden states of any causal model; what reading the titles took counts, also when it was done before."""
    name = f"{tiny_glm.name}-hidden-states"
    rows = []
    for out in (tmp_path / "first", tmp_path / "again"):
        words = ("--only", "popularity", "--limit", 40, "--encoder", tiny_glm, "--out", out)
        code, _, err = run_compare(*words)
        assert code == 0, err
        manifest = json.loads((out / name / "manifest.json").read_text("utf-8"))
        assert {"layer", "pooling", "centred", "reading"} <= set(manifest["chosen"])
        rows.append({row["name"]: row for row in json.loads((out / "leaderboard.json").read_text("utf-8"))})
    first, again = (one[name] for one in rows)
    assert first["auc"] == again["auc"]
    assert again["train_seconds"] > 0.5 * first["train_seconds"]
    code, _, err = run_compare(
        "--only", "popularity", "--encoder", tmp_path / "none", "--out", tmp_path / "x"
    )
    assert code == 2
    assert "cannot read the model" in err


def test_mistakes_are_one_line(run_compare, tmp_path):
    code, _, err = run_compare("--only", "populrity", "--out", tmp_path)
    assert code == 2
    assert err.splitlines()[-1].startswith("error: no recommender 'populrity'; expected one of random")
    for protocol, name, form in (
        ("dev", "smollm2-recent-base", "summary"),
        ("sampled", "smollm2-next_click-base", "next_click"),
        ("seed", "smollm2-recurrent-lora", "summary"),
    ):
        code, _, err = run_compare("--protocol", protocol, "--only", name, "--out", tmp_path)
        assert code == 2
        assert err.splitlines()[-1] == f"error: protocol {protocol} does not go with format {form}"


@pytest.mark.parametrize("protocol", ["sampled", "sampled-impression"])
def test_sampled_protocols(run_compare, tmp_path, protocol):
    code, out, _ = run_compare(
        "--protocol", protocol, "--only", "random,popularity,category", "--out", tmp_path
    )
    assert code == 0
    rows = json.loads((tmp_path / "leaderboard.json").read_text("utf-8"))
    assert {row["protocol"] for row in rows} == {protocol}
    assert all(0 < row["recall5"] < row["recall10"] <= 1 for row in rows)
    assert "not comparable with any other protocol" in out
    code, _, err = run_compare("--protocol", protocol, "--only", "oracle", "--out", tmp_path)
    assert code == 2
    assert f"oracle does not apply to protocol {protocol}" in err


def test_the_tutorials_protocol(run_compare, tmp_path):
    code, out, _ = run_compare(
        "--protocol", "seed", "--only", "always-no,leak-rule,popularity,random", "--out", tmp_path
    )
    assert code == 0
    assert "Accuracy here says nothing about ranking" in out
    rows = {row["name"]: row for row in json.loads((tmp_path / "leaderboard.json").read_text("utf-8"))}
    assert rows["leak-rule"]["accuracy"] > rows["always-no"]["accuracy"] > rows["popularity"]["accuracy"]
    assert {row["auc"] for row in rows.values()} == {None}
    slices = json.loads((tmp_path / "slices.json").read_text("utf-8"))
    assert {row["metric"] for row in slices} == {"accuracy"}
    assert "Accuracy with 95 % intervals" in (tmp_path / "report.html").read_text("utf-8")
    code, _, err = run_compare("--protocol", "dev", "--only", "leak-rule", "--out", tmp_path / "dev")
    assert code == 2
    assert "leak-rule does not apply to protocol dev" in err


def test_only_the_single_best_candidate_is_a_yes():
    scores = np.array([0.2, 0.9, 0.5, 0.5, 0.1, 0.7, 0.3])
    assert lead_of_last(scores, np.array([0, 2, 4, 7])) == pytest.approx([0.7, 0.0, -0.4])


def test_language_models_beside_the_others(run_compare, tmp_path, smollm2):
    names = ["popularity", *(f"smollm2-next_click-{kind}" for kind in ("base", "lora"))]
    document, keep = tmp_path / "table.md", tmp_path / "kept"
    marks = [f"<!-- {keep}{end} -->\n<!-- /{keep}{end} -->\n" for end in ("", "/all")]
    document.write_text("".join(marks))
    words = ("--data", "data/sample", "--only", ",".join(names), "--llm-limit", 2, "--out", tmp_path)
    code, out, err = run_compare(*words, "--keep", keep, "--update", document)
    assert code == 0, err
    assert "so it is not trained again" in err
    board = {row["name"]: row for row in json.loads((tmp_path / "leaderboard.json").read_text("utf-8"))}
    assert {name: row["n_impressions"] for name, row in board.items()} == dict.fromkeys(names, 2)
    assert len({row["subset_sha"] for row in board.values()}) == 1
    pair = [entry["against"] for entry in board[names[2]]["paired"]]
    assert names[1] in pair
    assert board[names[2]]["train_seconds"] > 60
    assert board[names[1]]["train_seconds"] is None
    assert "a seeded choice of 2 of the 600 impressions" in out
    (whole,) = json.loads((tmp_path / "all/leaderboard.json").read_text("utf-8"))
    assert (whole["name"], whole["n_impressions"]) == ("popularity", 600)
    table, of_all = document.read_text().split(marks[1][: marks[1].index("\n")])
    assert all(f"\n{name} " in table for name in names)
    assert "600 impressions" in of_all
    kept = {path.relative_to(keep).as_posix() for path in keep.rglob("*") if path.is_file()}
    tables = {"leaderboard.json", "leaderboard.md", "slices.json"}
    files = {f"{name}/{file}" for name in names[1:] for file in ("manifest.json", "predictions.parquet")}
    assert kept == tables | {f"all/{name}" for name in tables} | files

    code, _, err = run_compare("--protocol", "seed", "--only", names[1], "--out", tmp_path / "seed")
    assert code == 2
    assert "protocol seed does not go with format next_click" in err


def test_a_carried_adapter_is_taken_for_its_own_data_and_settings_alone(data, monkeypatch):
    name = "smollm2-next_click-lora"
    folder = Path("data/reference_runs/demo") / name / "adapter"
    assert METHODS[name].carried("data/sample") == folder
    assert METHODS[name].carried(data) is None
    assert METHODS["smollm2-pointwise-lora"].carried("data/sample") is None
    load = factory.load
    monkeypatch.setattr(factory, "load", lambda *args: load(*args) | {"learning_rate": 1.0})
    assert METHODS[name].carried("data/sample") is None


def test_a_tuned_row_of_several_seeds_holds_the_predictions_of_each(data, tmp_path, monkeypatch):
    """Three trainings, the first of them carried; what each adapter would score is its number."""
    trained = []

    def tune(form, data, folder, overrides, **_):
        trained.append((folder.name, overrides["seed"]))
        return folder

    class Seed(Recommender):
        def __init__(self, asked):
            self.adapter = asked.adapter

        def score(self, test, news, past=None):
            return np.full(len(test.news), float(Path(self.adapter).name.rpartition("-")[2] or 42))

    name = "smollm2-next_click-lora"
    carried = tmp_path / "adapter-42"
    monkeypatch.setattr(models, "tune", tune)
    monkeypatch.setattr(models.Tuned, "carried", lambda *_: carried)
    monkeypatch.setattr(models, "ranker", lambda name, asked, how: Method(name, lambda: Seed(asked)))
    (run,) = run_methods(Request(str(data), limit=5), [name], tmp_path / "out", n_long=3)
    assert trained == [(f"{name}-43", 43), (f"{name}-44", 44)]
    assert [set(read_predictions(file)["score"].to_pylist()) for file in seed_files(run)] == [
        {42.0},
        {43.0},
        {44.0},
    ]
    assert json.loads((run / "manifest.json").read_text())["seeds"] == [42, 43, 44]


def test_a_tuned_row_has_seen_the_validation_day(data, tmp_path):
    with pytest.raises(UserError, match="trained on the validation day"):
        run_methods(Request(str(data), split="valid"), ["smollm2-next_click-lora"], tmp_path)


@pytest.mark.parametrize("form", ["next_click", "pointwise"])
def test_the_records_of_a_training_are_built_once(data, tmp_path, monkeypatch, capsys, smollm2, form):
    """As demo.py and compare.py do before they train a row: with a bar, and not a second time."""
    monkeypatch.setattr(models, "MODEL", str(smollm2))
    models.build_records(str(data), form, tmp_path)
    err = capsys.readouterr().err
    for split in ("fit", "valid", "train"):
        name = f"mind_dev_{form}_{split}"
        n = len(json.loads((tmp_path / f"processed/{name}.json").read_text("utf-8")))
        assert n > 100
        assert f"{name}: {n if n < 1000 else f'{n / 1000:.2f}k'} records" in err
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    models.build_records(str(data), form, tmp_path)
    assert "already built" in capsys.readouterr().err
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_a_submission_for_minds_leaderboard(run_compare, data, tmp_path):
    """The unlabelled test split: one zip a method, in MIND's format, every impression ranked."""
    shutil.copytree(data, tmp_path / "mind")
    mind = read_mind(data)
    test = tmp_path / "mind/test"
    shutil.copytree(data / "dev", test)
    (test / "oracle_utility.npy").unlink()
    lines = (test / "behaviors.tsv").read_text("utf-8").splitlines()
    bare = [re.sub(r"-[01](?=\s|$)", "", line) for line in lines]
    (test / "behaviors.tsv").write_text("\n".join(bare) + "\n", "utf-8")
    words = ("--split", "submission", "--only", "popularity,popularity-streaming", "--out", tmp_path / "out")
    code, out, err = run_compare("--data", tmp_path / "mind", *words)
    assert code == 0, err
    zips = [Path(line) for line in out.splitlines()]
    assert [path.parent.name for path in zips] == ["popularity", "popularity-streaming"]
    with zipfile.ZipFile(zips[0]) as archive:
        ranked = archive.read("prediction.txt").decode().splitlines(keepends=True)
    found = [official.parse_line(line) for line in ranked]
    dev = mind.splits["dev"]
    assert [name for name, _ in found] == [str(i) for i in dev.ids]
    assert [sorted(ranks) for _, ranks in found] == [[*range(1, n + 1)] for n in np.diff(dev.offsets)]
    code, _, err = run_compare("--split", "submission", "--only", "popularity", "--out", tmp_path / "none")
    assert code == 2
    assert "test" in err.splitlines()[-1]
