"""scripts/evaluate.py as its user runs it."""

import json
import re
import runpy
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from mindlab.common.files import write_json
from mindlab.common.manifest import data_hashes
from mindlab.data.mind import read_mind
from mindlab.data.synthetic import make_sample
from mindlab.evaluation.leak_rule import leak_rule
from mindlab.evaluation.predictions import from_scores, write_predictions
from mindlab.tasks import Seed
from tests.conftest import ROOT
from tests.handmade import make_impressions, make_news, random_impressions

SCRIPT = ROOT / "scripts" / "evaluate.py"
NEWS = make_news([f"title {i}" for i in range(40)])
IMPRESSIONS = random_impressions(np.random.default_rng(0), n=150)


@pytest.fixture
def evaluate(monkeypatch, capsys):
    """Run the script in this process, which saves importing pyarrow each time."""

    def call(*arguments, code=0):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        done = capsys.readouterr()
        assert (end.value.code or 0) == code, done.err
        return done

    return call


def make_run(folder, scores, impressions=IMPRESSIONS, answers=None, **manifest):
    write_predictions(folder / "predictions.parquet", from_scores("dev", impressions, NEWS, scores, answers))
    if manifest:
        (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def noise(tmp_path):
    scores = np.random.default_rng(1).random(len(IMPRESSIONS.news))
    return make_run(tmp_path / "noise", scores, protocol="dev")


@pytest.fixture
def hint(tmp_path):
    scores = IMPRESSIONS.labels + np.random.default_rng(2).normal(0, 0.8, len(IMPRESSIONS.news))
    return make_run(tmp_path / "hint", scores, name="hint of labels", protocol="dev")


def test_two_runs_are_tabled_and_compared(evaluate, noise, hint):
    done = evaluate(noise, hint)
    lines = done.out.splitlines()
    assert lines[-2:] == [str(noise / "metrics.json"), str(hint / "metrics.json")]
    assert "nDCG@10" in lines[0]
    first, second = (json.loads((run / "metrics.json").read_text()) for run in (noise, hint))
    assert (first["name"], second["name"], second["protocol"]) == ("noise", "hint of labels", "dev")
    assert first["subset_sha"] == second["subset_sha"]
    assert first["paired"] is None
    assert second["paired"]["against"] == "noise"
    assert second["paired"]["auc"]["mean"] == pytest.approx(second["auc"] - first["auc"])
    assert second["paired"]["auc"]["low"] > 0
    assert f"{second['auc']:.4f} [{second['auc_low']:.4f}, {second['auc_high']:.4f}]" in done.out
    assert f"{second['paired']['auc']['mean']:+.4f}" in done.out
    assert first["accuracy"] is None


def test_other_impressions_are_not_compared(evaluate, noise, tmp_path):
    part = IMPRESSIONS.take(np.arange(100))
    other = make_run(tmp_path / "other", np.zeros(len(part.news)), part)
    done = evaluate(noise, other, code=2)
    assert "different impressions" in done.err
    assert not (noise / "metrics.json").exists()


def test_runs_of_other_data_are_not_compared(evaluate, tmp_path):
    scores = np.zeros(len(IMPRESSIONS.news))
    one, other = (
        make_run(
            tmp_path / name, scores, protocol="dev", inputs_sha256={f"data/{name}/dev/behaviors.tsv": name}
        )
        for name in ("sample", "MINDsmall")
    )
    done = evaluate(one, other, code=2)
    assert "read other contents than" in done.err
    assert not (one / "metrics.json").exists()


def test_json_of_a_file_is_pure_and_repeats(evaluate, noise):
    path = noise / "predictions.parquet"
    one, again = (evaluate("--predictions", path, "--json").out for _ in range(2))
    assert one == again
    found = json.loads(one)
    assert found["n_impressions"] == 150
    assert found["auc_low"] < found["auc"] < found["auc_high"]
    assert {p.name for p in noise.iterdir()} == {"predictions.parquet", "manifest.json"}


def test_one_candidate_and_score_is_the_tutorials_task(evaluate, tmp_path):
    targets = make_impressions(
        [(u, 0, [], IMPRESSIONS.candidates(i)[-1:], IMPRESSIONS.candidate_labels(i)[-1:])
         for i, u in enumerate(IMPRESSIONS.users)]
    )  # fmt: skip
    is_yes = leak_rule(IMPRESSIONS, np.full(len(IMPRESSIONS), -1))
    run = make_run(tmp_path / "rule", np.where(is_yes, 1.0, -1.0), targets, protocol="seed")
    done = evaluate(run)
    found = json.loads((run / "metrics.json").read_text())
    assert found["auc"] is None
    assert found["answers_from"] == "score > 0"
    assert (found["precision"], found["fp"], found["n_answers"]) == (1.0, 0, 150)
    assert found["tp"] == is_yes.sum()
    assert "always No" in done.out
    assert "nDCG" not in done.out


def test_beside_a_tutorial_run_stand_always_no_and_the_leak_rule(evaluate, tmp_path):
    data = tmp_path / "data"
    make_sample(data, 300, 20, seed=2)
    mind = read_mind(data, ("train",))
    test = Seed().splits(mind, 7)["test"]
    rows = np.arange(1, 60, 2)
    cases = test.take(rows)
    last = cases.offsets[1:] - 1
    targets = replace(
        cases, offsets=np.arange(len(rows) + 1), news=cases.news[last], labels=cases.labels[last]
    )
    frame = from_scores(
        "test", targets, mind.news, np.zeros(len(rows)), ["Yes."] * len(rows),
        case_ids=rows, positions=np.diff(cases.offsets) - 1,
    )  # fmt: skip
    run = tmp_path / "run"
    write_predictions(run / "predictions.parquet", frame)
    manifest = {
        "protocol": "seed",
        "request": {"data": str(data), "seed": 7, "split": "test"},
        "inputs_sha256": data_hashes(data, ("train",)),
    }
    write_json(run / "manifest.json", manifest)
    done = evaluate(run)
    found = json.loads((run / "metrics.json").read_text())["beside"]
    assert [one["name"] for one in found] == ["always No", "leak rule"]
    n_clicked = int(targets.labels.sum())
    # By hand: the rule is right but for clicked targets that have a clicked sibling.
    missed = sum(
        cases.candidate_labels(i)[-1] == 1 and cases.candidate_labels(i)[:-1].any() for i in range(len(rows))
    )
    assert found[0]["accuracy"] == pytest.approx(1 - n_clicked / 30)
    assert (found[1]["fp"], found[1]["fn"], found[1]["tp"]) == (0, missed, n_clicked - missed)
    assert found[1]["tp"] > 0
    assert found[1]["accuracy_low"] <= found[1]["accuracy"] <= found[1]["accuracy_high"]
    assert re.search(r"^leak rule +30 ", done.out, re.MULTILINE)

    write_json(run / "manifest.json", manifest | {"request": manifest["request"] | {"seed": 8}})
    assert "the run's cases are not impressions of" in evaluate(run).err
    (data / "train" / "behaviors.tsv").write_text("changed")
    done = evaluate(run)
    assert "is not the data that the run was made from" in done.err
    assert json.loads((run / "metrics.json").read_text())["beside"] == []


def test_answers_are_read_leniently_and_nonsense_is_wrong(evaluate, tmp_path):
    rows = [(f"U{i}", 0, [], [i], [label]) for i, label in enumerate([1, 1, 0, 0, 1, 0, 1, 0])]
    answers = ["Yes.", " yes", "No.", "no, thanks", "Maybe", "Nothing", None, "Yes!"]
    run = make_run(tmp_path / "answers", np.zeros(8), make_impressions(rows), answers)
    found = json.loads(evaluate(run, "--json").out)
    assert found["answers_from"] == "answer"
    assert found["invalid_answers"] == 3
    assert (found["tp"], found["fp"], found["fn"], found["tn"]) == (2, 2, 2, 2)
    assert (found["accuracy"], found["always_no_accuracy"]) == (0.5, 0.5)


def test_an_unlabelled_split_is_submitted_not_measured(evaluate, tmp_path):
    run = make_run(
        tmp_path / "test", np.arange(len(IMPRESSIONS.news), dtype=float), IMPRESSIONS.without_labels()
    )
    assert "no label" in evaluate(run, code=2).err
    path = tmp_path / "prediction.zip"
    done = evaluate(run, "--prediction-zip", path)
    assert done.out.splitlines() == [str(path)]
    with zipfile.ZipFile(path) as archive:
        lines = archive.read("prediction.txt").decode().splitlines()
    assert len(lines) == 150
    assert lines[0] == f"1 [{','.join(str(r) for r in range(len(IMPRESSIONS.candidates(0)), 0, -1))}]"
    assert not (run / "metrics.json").exists()


def test_mistakes_are_one_clear_line(evaluate, noise, tmp_path):
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ([], "give RUN folders"),
        ([noise, "--predictions", noise / "predictions.parquet"], "not both"),
        ([tmp_path / "nowhere"], "no such run folder"),
        ([tmp_path / "empty"], "no such file"),
        ([noise / "predictions.parquet"], "use --predictions"),
        ([noise, "--split", "test"], "no split test; it holds dev"),
    ):
        done = evaluate(*arguments, code=2)
        assert message in done.err
        assert done.out == ""
        assert done.err.splitlines()[-1].startswith("error: ")


def test_help_shows_an_example(evaluate):
    assert "scripts/evaluate.py runs/popularity" in evaluate("--help").out


def test_as_a_command(tmp_path):
    command = [sys.executable, str(SCRIPT), str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=SCRIPT.parents[1], check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
