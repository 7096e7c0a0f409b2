"""scripts/demo.py ends on real news where that is on the disk; tried on an invented pair of the same form."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from mindlab.common import cli
from mindlab.data import recprompt
from mindlab.recommenders import smollm2 as models
from mindlab.runs.compare import compare
from mindlab.runs.run import Request
from scripts import demo
from tests.conftest import ROOT
from tests.handmade import write_recprompt_csvs

DEMO = ROOT / "data/reference_runs/demo"
TUNED, BASE = "smollm2-next_click-lora", "smollm2-next_click-base"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A MIND folder made of the invented CSVs, and their SHA-256 by name."""
    csvs = tmp_path_factory.mktemp("csvs")
    hashes = write_recprompt_csvs(csvs)
    folder = tmp_path_factory.mktemp("raw") / "recprompt"
    recprompt.get(folder, csvs, None)
    return folder, hashes


@pytest.fixture
def real(pair, monkeypatch):
    monkeypatch.setattr(demo, "REAL", pair[0])
    return pair[0]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """The committed adapter, with its plot beside it as LLaMA-Factory leaves it."""
    folder = tmp_path_factory.mktemp("trained") / "adapter"
    shutil.copytree(DEMO / TUNED / "adapter", folder)
    shutil.copyfile(DEMO / "training_loss.png", folder / "training_loss.png")
    return folder


@pytest.fixture
def run_demo(adapter, monkeypatch, capsys, tmp_path):
    """Run the script without its model: what it would score ranks at random. Return exit code, stdout, what was scored."""
    scored = {}

    def score(data, form, which, limit, out):
        made = tmp_path / "random"
        (run,) = compare(Request(data, limit=limit), ["random"], made / str(len(scored)))
        shutil.copytree(run, out, dirs_exist_ok=True)
        manifest = json.loads((out / "manifest.json").read_text("utf-8"))
        (out / "manifest.json").write_text(json.dumps(manifest | {"name": out.name}), "utf-8")
        scored[out.relative_to(tmp_path / "out").as_posix()] = data, limit, which is None
        return out

    monkeypatch.setattr(models, "get_model", lambda: None)
    monkeypatch.setattr(models, "tune", lambda *_: adapter)
    monkeypatch.setattr(demo, "score", score)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["demo.py", "--out", str(tmp_path / "out"), *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.run(demo.main)
        return end.value.code, capsys.readouterr().out, scored

    return run


def read_board(folder: Path) -> dict[str, dict]:
    return {row["name"]: row for row in json.loads((folder / "leaderboard.json").read_text("utf-8"))}


@pytest.mark.slow
def test_both_models_and_two_methods_on_real_news(real, adapter, smollm2, monkeypatch, capsys, tmp_path):
    """Of a pair of one's own there are no published rows; what is done is not done again."""
    monkeypatch.setattr(models, "MODEL", str(smollm2))
    page = demo.on_real_news("next_click", adapter, 2, tmp_path, "make demo")
    out, err = capsys.readouterr()
    assert page == tmp_path / "report.html"
    assert page.is_file()
    board = read_board(tmp_path)
    assert set(board) == {"category", "minilm", BASE, TUNED}
    assert {row["n_impressions"] for row in board.values()} == {2}
    assert [entry["against"] for entry in board[TUNED]["paired"]] == [BASE]
    assert board[TUNED]["trained_on"] == "data/sample"
    assert board[BASE]["trained_on"] is None
    assert f"{TUNED} minus {BASE}" in out
    assert "GPT" not in out
    commands = [line.split("$ ")[1] for line in err.splitlines() if "$ " in line]
    assert [command.split()[1] for command in commands] == [*["scripts/predict.py"] * 2, "scripts/compare.py"]
    assert all(f"--data {real} " in command and "--limit 2 " in command for command in commands)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*")}
    assert demo.on_real_news("next_click", adapter, 2, tmp_path, "make demo") == page
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*")}


def test_the_published_rows_of_prompted_models_stand_below(real, pair, run_demo, monkeypatch, tmp_path):
    monkeypatch.setattr(recprompt, "SHA256", pair[1])
    code, out, _ = run_demo("--limit", 5)
    assert code == 0
    first, second = out.split("On real news:")
    assert "GPT" not in first
    lines = [line.split("  ")[0] for line in second.splitlines()]
    assert [line for line in lines if line.startswith("GPT-")] == [
        "GPT-3.5, IO prompt",
        "GPT-3.5, CoT prompt",
        "GPT-4, IO prompt",
        "GPT-4, CoT prompt",
        "GPT-4, IO prompt, with categories",
    ]
    assert not any(line.startswith(("RecPrompt", "NRMS", "MostPop")) for line in lines)
    assert "The published rows are of all 400 impressions, ours of a seeded 5 of them." in second
    page = (tmp_path / "out/recprompt/report.html").read_text("utf-8")
    assert "GPT-4, CoT prompt" in page
    assert "GPT" not in (tmp_path / "out/report.html").read_text("utf-8")


def test_the_demo_ends_with_both_pages(real, run_demo, tmp_path):
    """The demo's own is last; --limit counts for both tables."""
    code, out, scored = run_demo("--limit", 5)
    assert code == 0
    assert out.splitlines()[-2:] == [str(tmp_path / f"out/{name}report.html") for name in ("recprompt/", "")]
    assert scored == {
        TUNED: ("data/sample", 5, False),
        BASE: ("data/sample", 5, True),
        f"recprompt/{BASE}": (real.as_posix(), 5, True),
        f"recprompt/{TUNED}": (real.as_posix(), 5, False),
    }
    assert {row["n_impressions"] for row in read_board(tmp_path / "out/recprompt").values()} == {5}


def test_without_a_limit_each_table_has_its_own(real, run_demo, tmp_path):
    code, _, scored = run_demo()
    assert code == 0
    assert {name: limit for name, (_, limit, _) in scored.items()} == {
        TUNED: 150, BASE: 150, f"recprompt/{BASE}": 200, f"recprompt/{TUNED}": 200,
    }  # fmt: skip
    assert {row["n_impressions"] for row in read_board(tmp_path / "out/recprompt").values()} == {40}


def test_without_the_folder_one_line_says_how_to_get_it(run_demo, monkeypatch, tmp_path):
    """A folder that was not written to its end is none."""
    monkeypatch.setattr(demo, "REAL", tmp_path / "raw")
    (tmp_path / "raw/dev").mkdir(parents=True)
    code, out, scored = run_demo("--limit", 5)
    assert code == 0
    *_, line, last = out.splitlines()
    assert f"download_mind.py --size recprompt --accept-licence --out {tmp_path / 'raw'}" in line
    assert "licence" in line.partition("--out")[2]
    assert last == str(tmp_path / "out/report.html")
    assert set(scored) == {TUNED, BASE}
    assert not (tmp_path / "out/recprompt").exists()


def test_it_can_be_left_out(real, run_demo, tmp_path):
    code, out, scored = run_demo("--limit", 5, "--no-real")
    assert code == 0
    assert "real news" not in out
    assert set(scored) == {TUNED, BASE}
    assert out.splitlines()[-1] == str(tmp_path / "out/report.html")


def test_nothing_of_real_news_is_copied_to_what_a_repository_keeps(real, run_demo, tmp_path):
    code, _, scored = run_demo("--limit", 5, "--keep", tmp_path / "kept")
    assert code == 0
    assert f"recprompt/{TUNED}" in scored
    found = sorted((tmp_path / "kept").rglob("*"))
    names = {path.name for path in found}
    assert {BASE, TUNED, "leaderboard.md", "adapter_model.safetensors"} <= names
    assert "recprompt" not in names
    for path in found:
        if path.suffix in (".json", ".md"):
            assert str(real) not in path.read_text("utf-8"), path
