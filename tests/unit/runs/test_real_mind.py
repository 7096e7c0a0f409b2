"""Real MIND beside GPT-4: the command on an invented pair, the committed numbers, and that no row of MIND is committed."""

import json
import subprocess
import sys

import numpy as np
import pytest

from mindlab import report as reporting
from mindlab.common import cli
from mindlab.data import recprompt
from mindlab.data.mind import Impressions, read_mind
from mindlab.evaluation.predictions import read_predictions
from mindlab.runs.compare import compare
from mindlab.runs.run import Request
from scripts import compare as script
from tests.asked import ask
from tests.conftest import ROOT
from tests.handmade import write_recprompt_csvs

FOLDER = ROOT / "data/raw/recprompt"
KEPT = ROOT / "data/reference_runs/recprompt"
needs_folder = pytest.mark.skipif(
    not recprompt.is_published(FOLDER),
    reason="data/raw/recprompt is not here: scripts/download_mind.py --size recprompt fetches it",
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A folder of the same form as RecPrompt's, with invented headlines."""
    csvs, folder = tmp_path_factory.mktemp("csvs"), tmp_path_factory.mktemp("made") / "recprompt"
    write_recprompt_csvs(csvs)
    recprompt.get(folder, csvs, expected=None)
    return folder


@pytest.fixture
def run_compare(monkeypatch, capsys, pair):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["compare.py", "--data", str(pair), *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.run(script.main)
        return end.value.code, *capsys.readouterr()

    return run


ONLY = "random,category,categories,tfidf"


def test_one_table_with_the_published_rows_apart(run_compare, tmp_path, monkeypatch):
    monkeypatch.setattr(recprompt, "is_published", lambda folder: True)
    out, kept = tmp_path / "out", tmp_path / "kept"
    words = ("--only", ONLY, "--blend", "both=tfidf+categories", "--blend", "chosen=tfidf+category,chosen")
    code, said, _ = run_compare(*words, "--out", out, "--keep", kept)
    assert code == 0
    rows = json.loads((out / "leaderboard.json").read_text("utf-8"))
    assert {row["name"] for row in rows} == {*ONLY.split(","), "both", "chosen"}
    assert {row["n_impressions"] for row in rows} == {40}
    for name in ("GPT-4, IO prompt", "RecPrompt CoT, GPT-4", "LSTUR"):
        places = [said, (out / "leaderboard.md").read_text("utf-8"), (out / "report.html").read_text("utf-8")]
        assert all(name in place for place in places)
        assert name not in {row["name"] for row in rows}
    assert said.count("not run here, no interval") >= 4
    # Weights were chosen on the other split, whose runs lie apart.
    weights = json.loads((out / "chosen" / "manifest.json").read_text("utf-8"))["chosen"]
    assert weights["on"] == "valid"
    assert sum(weights["weights"].values()) == pytest.approx(1)
    # Of data that may be MIND, nothing is kept but numbers.
    assert {file.name for file in kept.iterdir()} == {"metrics.json", "manifest.json", "slices.json"}
    texts = "".join(file.read_text("utf-8") for file in kept.iterdir())
    titles = read_mind(pair_of(out), ("valid", "dev")).news.title
    assert not any(title in texts for title in titles)


def pair_of(out):
    return json.loads((out / "category" / "request.json").read_text("utf-8"))["data"]


def test_an_invented_pair_is_not_shown_beside_gpt_4(run_compare, tmp_path):
    code, said, _ = run_compare("--only", "random,category", "--out", tmp_path)
    assert code == 0
    assert "GPT" not in said


def test_what_learns_from_clicks_and_what_needs_a_language_model_is_left_out(run_compare, tmp_path):
    usual = script.names_asked(arguments(pair_words(tmp_path)), False, False)
    assert {"category", "minilm-lme", "tfidf"} <= set(usual[0])
    assert not {"popularity", "nrms", "tokens-tfidf", "smollm2-hidden-states"} & set(usual[0])
    assert [blend.name for blend in usual[1]] == ["blend"]
    assert not [name for name in usual[0] if name.startswith("smollm2")]
    names, _ = script.names_asked(arguments(pair_words(tmp_path, "--llm")), False, False)
    rows = {
        f"smollm2-{row}" for row in ("next_topic-base", "next_click-base", "next_click-lora", "hidden-states")
    }
    assert rows <= set(names)
    code, _, error = run_compare("--only", "popularity", "--out", tmp_path)
    assert (code, "popularity learns from clicks" in error) == (2, True)


def pair_words(out, *words):
    return ["compare.py", "--data", "x", "--out", str(out), *words]


def arguments(words):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        return script.arguments()


@pytest.mark.parametrize("form", ["next_topic", "next_click", "pointwise"])
def test_a_language_model_does_not_see_where_a_candidate_stands(form, pair, tiny_glm):
    work = ask(str(pair), "dev", form, str(tiny_glm), "glm4", limit=3).work()
    rows = work.whole.take(work.rows).without_labels()
    score = work.ready._score
    straight = np.concatenate([one.scores for one in score(rows)])
    order = np.concatenate(
        [np.random.default_rng(i).permutation(np.arange(a, b)) for i, (a, b) in enumerate(bounds(rows))]
    )
    turned = Impressions(**{**vars(rows), "news": rows.news[order]})
    assert np.concatenate([one.scores for one in score(turned)]) == pytest.approx(straight[order], abs=1e-4)


def bounds(rows):
    return zip(rows.offsets[:-1], rows.offsets[1:], strict=True)


@needs_folder
def test_the_committed_metrics_are_those_of_the_rows(tmp_path):
    """Of the methods that take seconds; the others are numbers of the runs that their manifests name."""
    kept = {row["name"]: row for row in json.loads((KEPT / "metrics.json").read_text("utf-8"))}
    names = ["random", "category", "subcategory", "categories", "tfidf"]
    runs = compare(Request(FOLDER.as_posix()), names, tmp_path)
    for row in reporting.leaderboard(runs)["rows"]:
        for name, value in row.items():
            if isinstance(value, float) and name.startswith(("auc", "mrr", "ndcg")):
                assert kept[row["name"]][name] == pytest.approx(value, abs=1e-6), (row["name"], name)
        assert row["subset_sha"] == kept[row["name"]]["subset_sha"]
    click = read_predictions(tmp_path / "random" / "predictions.parquet").filter(
        read_predictions(tmp_path / "random" / "predictions.parquet")["label"].to_numpy() == 1
    )
    assert np.bincount(click["position"].to_numpy()).tolist() == [40] * 10


@needs_folder
def test_no_title_of_mind_is_committed(tmp_path):
    titles = sorted({title for title in read_mind(FOLDER, ("valid", "dev")).news.title if len(title) >= 25})
    assert len(titles) > 3000
    file = tmp_path / "titles.txt"
    file.write_text("\n".join(titles) + "\n", encoding="utf-8")
    search = ["git", "grep", "--fixed-strings", "--files-with-matches", "-f", str(file)]
    found = subprocess.run(search, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (1, "")
    # The search finds a title where there is one.
    (tmp_path / "leak.json").write_text(json.dumps([titles[7]], ensure_ascii=False), encoding="utf-8")
    search[2:2] = ["--no-index"]
    again = subprocess.run([*search, "--", "."], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "leak.json" in again.stdout
