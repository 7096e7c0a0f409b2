"""Prompts, tasks, metrics and methods say what they are, and nobody asks for their name.

A comparison with a registered name, outside the file that declares it, is where the next addition would have to be
remembered.
"""

import ast
from pathlib import Path

import pytest

from mindlab.data.mind import SPLITS
from mindlab.evaluation.metrics import METRICS
from mindlab.prompts import PROMPTS
from mindlab.recommenders import METHODS
from mindlab.tasks import TASKS
from tests.conftest import ROOT

# `dev` is also the name of a split of MIND's files, and it is these that are asked about.
NAMES = {*METRICS, *PROMPTS, *METHODS, *TASKS} - {*SPLITS}
CLASSES = {type(task).__name__ for task in TASKS.values()} | {prompt.__name__ for prompt in PROMPTS.values()}
# Where names are declared.
HOMES = ("mindlab/evaluation/metrics.py", "mindlab/prompts/", "mindlab/recommenders/", "mindlab/tasks/")


def asked_for(source: str) -> list[str]:
    """Return the comparisons of a Python text with a registered name."""

    def is_name(node: ast.expr) -> bool:
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            return any(map(is_name, node.elts))
        if isinstance(node, ast.Attribute):
            return node.attr == "name" and isinstance(node.value, ast.Name) and node.value.id in CLASSES
        return isinstance(node, ast.Constant) and node.value in NAMES

    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            found += [ast.unparse(node)] * any(map(is_name, (node.left, *node.comparators)))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            is_asking = node.func.attr in ("startswith", "endswith", "removeprefix", "removesuffix")
            found += [ast.unparse(node)] * (is_asking and any(map(is_name, node.args)))
        elif isinstance(node, ast.MatchValue):
            found += [ast.unparse(node)] * is_name(node.value)
    return found


@pytest.mark.parametrize(
    "line",
    [
        "if form == 'next_click': pass",
        "x = NextClick.name != form",
        "y = task.name in ('seed', 'other')",
        "z = name.startswith('sampled')",
        "match form:\n    case 'pointwise':\n        pass",
    ],
)
def test_a_question_for_a_name_is_found(line):
    assert len(asked_for(line)) == 1


def test_nobody_asks_for_a_name():
    files = [path for folder in ("mindlab", "scripts") for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 50
    outside = [path for path in files if not path.relative_to(ROOT).as_posix().startswith(HOMES)]
    found = {
        path.relative_to(ROOT).as_posix(): asked
        for path in outside
        if (asked := asked_for(Path(path).read_text(encoding="utf-8")))
    }
    assert found == {}
