"""The harness finds nothing in the stages, and finds what is planted."""

import json
import os
import subprocess
import sys

import pytest

from mindlab.common.files import write_text
from tests.conftest import ROOT
from tests.torture.chaos.__main__ import EVERY, QUICK, break_stage, table
from tests.torture.chaos.stages import Stage

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc, forks"),
]


def run_harness(tmp_path, *words):
    """Run the harness as a user does; return what it tried, by stage."""
    found = tmp_path / "found.json"
    command = [sys.executable, "-m", "tests.torture.chaos", "--json", str(found), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return {row["stage"]: row for row in json.loads(found.read_text(encoding="utf-8"))}


def test_every_stage_but_the_training_comes_out_the_same_after_faults_and_kills(tmp_path):
    rows = run_harness(tmp_path, "--quick", "--kills", "3")
    assert tuple(rows) == QUICK
    for row in rows.values():
        points = sum(row["points"].values())
        assert points >= 30
        assert {"open", "write", "fsync", "rename"} <= set(row["points"])
        assert sum(row["faults"].values()) in (points // EVERY, points // EVERY + 1)
        assert len(row["faults"]) == 4
        assert min(row["faults"].values()) > 0
        assert row["kills"] >= 3
        assert row["differences"] == []


@pytest.mark.slow
def test_a_training_comes_out_the_same_after_faults_and_kills(tmp_path):
    row = run_harness(tmp_path, "--quick", "--stages", "train", "--kills", "8")["train"]
    points = sum(row["points"].values())
    assert points >= 20
    assert row["kills"] >= 8
    assert sum(row["faults"].values()) in (points // EVERY, points // EVERY + 1)
    assert len(row["faults"]) == 4
    assert row["differences"] == []


def torn(inputs, out):
    """Write under the final name, and take what is there for whole."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "a.txt").exists():
        with (out / "a.txt").open("w") as file:
            file.write("a" * 1000)


def doubled(inputs, out):
    """Add a row at each start."""
    out.mkdir(parents=True, exist_ok=True)
    rows = (out / "a.txt").read_text() if (out / "a.txt").exists() else ""
    write_text(out / "a.txt", rows + "row\n")
    write_text(out / "b.txt", "done\n")


def untold(inputs, out):
    """Let a traceback end what a full disk stopped."""
    try:
        write_text(out / "a.txt", "a")
    except OSError as error:
        raise RuntimeError("what now?") from error


def littering(inputs, out):
    """Leave a file of the way there behind."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{os.getpid()}.part").touch()
    write_text(out / "a.txt", "a")
    (out / f"{os.getpid()}.part").unlink()


@pytest.mark.parametrize(
    ("run", "what"),
    [
        (torn, "a.txt was half-written"),
        (torn, "differs in a.txt"),
        (doubled, "differs in a.txt"),
        (untold, "without one clear line"),
        (littering, ".part"),
    ],
)
def test_what_is_planted_is_found(tmp_path, run, what, capsys):
    tally = break_stage(Stage(run.__name__, run), tmp_path, tmp_path, kills=0, is_quick=False, seed=1)
    assert any(what in difference for difference in tally.differences)
    assert f"| {len(tally.differences)} |" in table([tally])
