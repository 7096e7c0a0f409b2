"""The package alone, from a wheel: it scores data elsewhere, from another working directory."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT

CODE = """
import mindlab
from mindlab import report
from mindlab.runs.compare import compare
from mindlab.runs.run import Request
print(mindlab.__file__)
runs = compare(Request("news", limit=50), ["popularity", "category"], "out")
print(report.write_leaderboard("out", report.leaderboard(runs)))
"""


@pytest.mark.slow
def test_a_wheel_scores_data_that_lies_elsewhere(tmp_path):
    source = tmp_path / "source"  # a build leaves folders behind
    shutil.copytree(ROOT / "mindlab", source / "mindlab", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements.txt", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", source, "-w", tmp_path], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel], check=True)
    shutil.copytree(ROOT / "data/sample", tmp_path / "work/news")
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=tmp_path / "work",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(str(tmp_path / "site"))
    rows = {row["name"]: row for row in json.loads((tmp_path / "work/out/leaderboard.json").read_text())}
    assert rows["category"]["n_impressions"] == 50
    assert rows["category"]["auc"] > 0.55
