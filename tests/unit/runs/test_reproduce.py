"""What is run again comes out the same, and what was changed is found."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from mindlab.common.errors import UserError
from mindlab.common.manifest import data_hashes
from mindlab.data.mind import read_mind
from mindlab.data.synthetic import make_sample
from mindlab.evaluation.predictions import read_predictions, write_predictions
from mindlab.finetune import alpaca, factory
from mindlab.runs import compare
from mindlab.runs.reproduce import changes_of_environment, compare_predictions, reproduce
from mindlab.runs.run import Request
from tests.asked import ask
from tests.conftest import ROOT
from tests.unit.finetune.test_factory import RECORDS, YAML, make_data, overrides_for


@pytest.fixture
def data(tmp_path):
    make_sample(tmp_path / "data", 60, 40, seed=2)
    return tmp_path / "data"


@pytest.fixture
def scored(data, tiny_glm, tmp_path):
    """A finished run of the tiny GLM."""
    request = ask(str(data), "dev", "next_click", str(tiny_glm), "glm4", limit=8, history_length=3)
    return request.run(tmp_path / "scored")


def texts(found):
    return [(one.is_same, one.what, one.text) for one in found]


def change_scores(run, add):
    """Add numbers to the scores of a run's predictions."""
    frame = read_predictions(run / "predictions.parquet")
    scores = frame["score"].to_numpy() + add(len(frame))
    at = frame.schema.get_field_index("score")
    write_predictions(
        run / "predictions.parquet", frame.set_column(at, frame.schema.field(at), pa.array(scores))
    )


def test_a_scoring_comes_out_the_same_and_a_forged_one_does_not(scored, tmp_path):
    n = len(read_predictions(scored / "predictions.parquet"))
    assert texts(reproduce(scored, tmp_path / "a")) == [(True, "predictions.parquet", f"the same {n:,} rows")]
    change_scores(scored, lambda n: 1e-9 * np.arange(n))
    ((is_same, _, text),) = texts(reproduce(scored, tmp_path / "a"))
    assert is_same, text
    assert "metrics by at most" in text
    change_scores(scored, lambda n: np.random.default_rng(1).normal(size=n) * 10)
    ((is_same, _, text),) = texts(reproduce(scored, tmp_path / "a"))
    assert not is_same, text


def test_other_candidates_and_other_labels_are_found(scored, tmp_path):
    frame = read_predictions(scored / "predictions.parquet")
    assert not compare_predictions("x", "p", frame, frame.slice(0, len(frame) - 1)).is_same
    labels = pa.array(1 - frame["label"].to_numpy(), pa.int8())
    at = frame.schema.get_field_index("label")
    turned = frame.set_column(at, frame.schema.field(at), labels)
    assert not compare_predictions("x", "p", frame, turned).is_same
    unlabelled = [
        table.set_column(at, frame.schema.field(at), pa.nulls(len(frame), pa.int8()))
        for table in (frame, turned)
    ]
    assert compare_predictions("x", "p", *unlabelled).is_same


def test_nothing_is_run_on_other_data_or_without_it(scored, data, tmp_path):
    news = data / "dev" / "news.tsv"
    old = news.read_text(encoding="utf-8")
    news.write_text(old.replace("a", "o", 1), encoding="utf-8")
    assert texts(reproduce(scored, tmp_path / "again")) == [
        (False, news.as_posix(), "other contents than then; nothing was run")
    ]
    assert not (tmp_path / "again").exists()
    news.unlink()
    with pytest.raises(UserError, match=r"dev/news.tsv: no such file, but scored was made from it"):
        list(reproduce(scored, tmp_path / "again"))


def test_recommenders_come_out_the_same_a_folder_of_them_too(data, tmp_path):
    names = ["random", "popularity", "tfidf"]
    runs = compare.compare(Request(str(data)), names, tmp_path / "runs")
    found = list(reproduce(tmp_path / "runs", tmp_path / "again"))
    assert [(one.run, one.is_same) for one in found] == [(name, True) for name in sorted(names)]
    change_scores(runs[1], lambda n: np.arange(n))
    found = list(reproduce(tmp_path / "runs", tmp_path / "more"))
    assert {one.run: one.is_same for one in found} == {"random": True, "popularity": False, "tfidf": True}


def test_data_sets_come_out_the_same_bytes(data, tmp_path):
    options = alpaca.BuildOptions("dev", "next_click", interests=0)
    hashes = data_hashes(data, ("train", "dev"))
    alpaca.build(read_mind(data), options, tmp_path / "made", None, hashes)
    found = list(reproduce(tmp_path / "made" / "processed", tmp_path / "again"))
    assert len(found) >= 2
    assert all(one.is_same and "the same bytes" in one.text for one in found)
    path = tmp_path / "made" / "processed" / "mind_dev_next_click.manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["options"]["seed"] = 7
    path.write_text(json.dumps(manifest), encoding="utf-8")
    assert not any(one.is_same for one in reproduce(path, tmp_path / "other"))


def test_a_training_comes_out_the_same_bytes(tiny_glm, tmp_path, monkeypatch):
    """The same seed gives the same adapter; another seed, or another base, is found."""
    from llamafactory.train.tuner import run_exp

    def here(run, out, env, root, watch, handle):
        run_exp(factory.load(run[2], dict(word.split("=", 1) for word in run[3:-1])))
        return 0

    monkeypatch.setattr(factory, "follow", here)
    model = shutil.copytree(tiny_glm, tmp_path / "model")
    overrides = overrides_for(model, make_data(tmp_path / "data", RECORDS[0]), tmp_path / "out")
    settings = factory.load(YAML, {**overrides, "dataloader_num_workers": 0, "preprocessing_num_workers": 1})
    from omegaconf import OmegaConf

    OmegaConf.save(settings, tmp_path / "own.yaml")
    out = factory.train(tmp_path / "own.yaml")
    ((is_same, what, text),) = texts(reproduce(out, tmp_path / "again"))
    assert (is_same, what) == (True, "adapter_model.safetensors"), text

    record = json.loads((out / factory.RECORD).read_text(encoding="utf-8"))
    record["settings"]["seed"] = 7
    (out / factory.RECORD).write_text(json.dumps(record), encoding="utf-8")
    ((is_same, _, text),) = texts(reproduce(out, tmp_path / "other"))
    assert not is_same
    assert text.startswith("other bytes; weights differ by at most ")

    (model / "tokenizer.json").write_text((model / "tokenizer.json").read_text(encoding="utf-8") + "\n")
    assert texts(reproduce(out, tmp_path / "third")) == [
        (False, str(model), "other contents than then; nothing was run")
    ]


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (None, "no manifest.json, mindlab_run.json or"),
        (
            {"request": {"format": "x", "colour": "red"}},
            "of another version of this project: it asks for colour",
        ),
        ({"request": {"format": "x"}}, "not a whole request"),
    ],
)
def test_what_cannot_be_run_again_is_one_line(tmp_path, manifest, message):
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=message):
        list(reproduce(tmp_path, tmp_path / "out"))


def test_other_versions_are_told(tmp_path):
    assert changes_of_environment(tmp_path) == []
    (tmp_path / "manifest.json").write_text(json.dumps({"python": "2.7.18", "packages": {"torch": "0.4"}}))
    python, torch = changes_of_environment(tmp_path)
    assert python.startswith("python: 2.7.18 then, 3.11")
    assert torch.startswith("torch: 0.4 then, ")


def test_the_script_says_what_differs_by_its_exit_code(data, tmp_path):
    (run,) = compare.compare(Request(str(data)), ["popularity"], tmp_path / "runs")

    def script():
        command = [sys.executable, "scripts/reproduce.py", str(run)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        return done.returncode, done.stdout

    assert script() == (
        0,
        f"same  popularity, predictions.parquet: the same {len(read_predictions(run / 'predictions.parquet')):,} rows\n",
    )
    change_scores(run, lambda n: np.arange(n))
    code, printed = script()
    assert code == 1
    assert printed.startswith("DIFFERS  popularity, predictions.parquet: ")


SCORE = """
import os, sys
import torch
from mindlab.llm.options import Options
from mindlab.recommenders.llm import ranker
from mindlab.runs.compare import compare
from mindlab.runs.run import Request, run
from pathlib import Path
data, model, out, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
asked = Options("next_click", model, "glm4", history_length=12)
run(Request(data, limit=20), ranker("glm", asked), Path(out) / "glm")
compare(Request(data, limit=40), ["popularity", "category", "tfidf", "lightgbm"], Path(out))
"""


@pytest.mark.slow
def test_metrics_are_the_same_across_numbers_of_threads(tmp_path, tiny_glm, monkeypatch):
    data = tmp_path / "sample"
    make_sample(data, 300, 80, seed=3)
    for threads in "12":
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            monkeypatch.setenv(name, threads)
        command = [sys.executable, "-c", SCORE, str(data), str(tiny_glm), str(tmp_path / threads), threads]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    for run in sorted((tmp_path / "1").iterdir()):
        tables = [read_predictions(tmp_path / threads / run.name / "predictions.parquet") for threads in "12"]
        found = compare_predictions(run.name, "predictions.parquet", *tables)
        assert found.is_same, found.text
