"""The committed notebooks are their twins' and were run. Nothing here runs a whole one."""

import subprocess
import sys

import nbformat
import pytest

from mindlab.common.errors import UserError
from mindlab.runs import notebook
from tests.conftest import ROOT

TWINS = notebook.twins()
SOURCE = """# %% [markdown]
# # A title

# %% tags=["parameters"]
n = 3
name = "x"
share = 0.5

# %%
import sys

print("hello", n, name)
print("progress", file=sys.stderr)
"""


@pytest.fixture
def twin(tmp_path):
    path = tmp_path / "src" / "01_small.py"
    path.parent.mkdir()
    path.write_text(SOURCE, encoding="utf-8")
    return path


def as_if_run(twin, outputs=()):
    """Write the twin's notebook as if it had been run; return its path."""
    book = notebook.convert(twin)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.execution_count = 1
            cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text="hello\n"), *outputs]
    path = twin.parent.parent / "01_small.ipynb"
    notebook.write(book, path)
    return path


def code_cells(book):
    return [cell for cell in book.cells if cell.cell_type == "code"]


def test_there_are_notebooks():
    assert [path.stem[:2] for path in TWINS] == sorted(path.stem[:2] for path in TWINS)
    assert len(TWINS) >= 2
    orphans = {path.stem for path in notebook.NOTEBOOKS.glob("*.ipynb")} - {path.stem for path in TWINS}
    assert not orphans, "notebooks without a twin"


@pytest.mark.parametrize("path", TWINS, ids=lambda path: path.stem)
def test_the_committed_notebook_is_in_step(path):
    assert notebook.problems(path, notebook.NOTEBOOKS / f"{path.stem}.ipynb") == []


def test_a_notebook_in_step_has_no_problem(twin):
    assert notebook.problems(twin, as_if_run(twin)) == []


def test_problems_finds_a_changed_twin(twin):
    path = as_if_run(twin)
    twin.write_text(SOURCE.replace("n = 3", "n = 4"), encoding="utf-8")
    assert "cell 1 is not the twin's" in notebook.problems(twin, path)[0]
    twin.write_text(SOURCE + "\n# %%\nprint(1)\n", encoding="utf-8")
    assert "cell 3 is not the twin's" in notebook.problems(twin, path)[0]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (nbformat.v4.new_output("error", ename="ValueError", evalue="", traceback=[]), "ended in an error"),
        (nbformat.v4.new_output("stream", name="stderr", text="50%"), "keeps stderr"),
        (
            nbformat.v4.new_output("display_data", {"application/vnd.jupyter.widget-view+json": {}}),
            "keeps stderr or a widget",
        ),
        (nbformat.v4.new_output("stream", name="stdout", text="in /home/me/mindlab"), "absolute path"),
        (nbformat.v4.new_output("stream", name="stdout", text="in C:\\mindlab"), "absolute path"),
    ],
)
def test_problems_finds_a_bad_output(twin, output, expected):
    found = notebook.problems(twin, as_if_run(twin, [output]))
    assert any(expected in line for line in found), found


def test_problems_finds_a_name_that_the_package_no_longer_has(twin):
    twin.write_text(
        f"{SOURCE}\n# %%\nfrom mindlab.finetune import alpaca\n\nalpaca.fit_poem\n", encoding="utf-8"
    )
    assert notebook.problems(twin, as_if_run(twin)) == [
        f"{twin.name}: there is no mindlab.finetune.alpaca.fit_poem"
    ]


def test_problems_finds_what_was_not_run_or_not_written(twin):
    path = twin.parent.parent / "01_small.ipynb"
    assert "no such file" in notebook.problems(twin, path)[0]
    notebook.write(notebook.convert(twin), path)
    found = notebook.problems(twin, path)
    assert any("not run" in line for line in found)
    assert any("no outputs" in line for line in found)


@pytest.mark.parametrize("text", ["https://a.org/home/x", "data/home/x", "1/2", "and/or", "a /b/ c"])
def test_what_is_no_absolute_path(text):
    assert not notebook.ABSOLUTE_PATH.search(text)


def test_parameters_are_literals_and_strict(twin):
    book = notebook.convert(twin)
    assert notebook.parameters(book) == {"n": 3, "name": "x", "share": 0.5}
    notebook.set_parameters(book, {"n": "5", "name": "7"})
    assert notebook.parameters(book) == {"n": 5, "name": "7", "share": 0.5}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"m": "5"}, "no parameter 'm'; the notebook has n, name, share"),
        ({"n": "many"}, "expected int"),
        ({"n": "2.5"}, "expected int"),
        ({"n": ""}, "expected int"),
    ],
)
def test_a_wrong_parameter_is_refused(twin, given, expected):
    with pytest.raises(UserError, match=expected):
        notebook.set_parameters(notebook.convert(twin), given)


@pytest.mark.parametrize("line", ["n = 1 + k", "n = len('a')", "print(1)", "n, m = 1, 2"])
def test_a_parameters_cell_with_more_than_literals_is_refused(twin, line):
    twin.write_text(SOURCE.replace("n = 3", line), encoding="utf-8")
    with pytest.raises(UserError, match="parameters cell holds"):
        notebook.parameters(notebook.convert(twin))


def test_a_notebook_needs_one_parameters_cell(twin):
    twin.write_text(SOURCE.replace(' tags=["parameters"]', ""), encoding="utf-8")
    with pytest.raises(UserError, match="0 cells are tagged parameters"):
        notebook.parameters(notebook.convert(twin))


def test_converting_twice_gives_the_same_notebook(twin):
    assert notebook.convert(twin) == notebook.convert(twin)


def test_execute_keeps_stdout_and_drops_the_machine(twin):
    twin.write_text(SOURCE + "\n# %%\nimport os\nprint(os.getcwd() + '/data')\n", encoding="utf-8")
    book = notebook.convert(twin)
    notebook.set_parameters(book, {"n": "5"})
    notebook.execute(book)
    notebook.normalise(book)
    outputs = [cell.outputs for cell in code_cells(book)]
    assert [output.get("text") for output in outputs[1]] == ["hello 5 x\n"]
    assert outputs[2][0].text == "data\n"
    assert "execution" not in book.cells[1].metadata


def test_execute_says_which_cell_failed(twin):
    twin.write_text(SOURCE + "\n# %%\nassert n > 3, 'too few'\n", encoding="utf-8")
    with pytest.raises(UserError, match="AssertionError: too few"):
        notebook.execute(notebook.convert(twin))


def test_setup_prints_what_is_in_use(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    notebook.setup("data/sample", 42)
    out = capsys.readouterr().out
    assert "llamafactory" in out
    assert "data   data/sample (synthetic)\nseed   42\n" in out
    with pytest.raises(UserError, match="no such folder"):
        notebook.setup("data/nowhere", 42)


def test_setup_generates_data_once_where_there_is_none(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    sizes = {"n_news": 150, "n_train": 20, "n_dev": 10, "seed": 1}
    for n_dev in (10, 20):  # what is there stays
        notebook.setup(tmp_path / "paper", 42, generate={**sizes, "n_dev": n_dev})
        assert "paper (synthetic)" in capsys.readouterr().out
        assert len((tmp_path / "paper/dev/behaviors.tsv").read_text(encoding="utf-8").splitlines()) == 10


def test_twins_are_found_by_the_beginning_of_their_name():
    assert [path.stem for path in notebook.twins(["02"])] == ["02_build_the_dataset"]
    with pytest.raises(UserError, match="expected one of"):
        notebook.twins(["99"])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["02", "-p", "n_wrong=3"], 2, "no parameter 'n_wrong'"),
        (["99"], 2, "notebook '99'"),
        (["--help"], 0, ""),
    ],
)
def test_the_script_ends_as_it_should(arguments, code, message):
    run = subprocess.run(
        [sys.executable, "scripts/run_notebooks.py", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == code, run.stderr
    assert message in run.stderr
    assert "Traceback" not in run.stderr


def test_the_loss_curve_redraws_itself_and_can_stop_once(monkeypatch):
    shown = []

    class Handle:
        def update(self, image):
            shown.append(image)

    monkeypatch.setattr("IPython.display.display", lambda image, display_id: shown.append(image) or Handle())
    curve = notebook.LossCurve(stop_at=2)
    curve({"current_steps": 1, "loss": 3.0})
    with pytest.raises(KeyboardInterrupt):
        curve({"current_steps": 2, "loss": 2.0})
    curve({"current_steps": 2, "loss": 2.1})  # a resumed run logs the step again
    curve({"current_steps": 3})  # the last row of a log has no loss
    assert len(shown) == 4
    assert len({image.data for image in shown}) == 4
    assert all(image.data.startswith(b"\x89PNG") for image in shown)


def test_a_progress_that_stops_counts_over_several_lists_and_stops_once():
    stop, seen = notebook.StopAfter(3), []
    seen += stop([1, 2], 0, 2)
    with pytest.raises(KeyboardInterrupt):
        seen.extend(stop([3, 4], 0, 2))
    assert seen == [1, 2, 3]


def test_a_notebook_on_data_that_must_be_fetched_first_is_known(twin):
    def missing(data):
        book = notebook.convert(twin)
        book.cells[1].source += f"\ndata = {data!r}"
        return notebook.missing_data(book)

    assert missing("data/raw/never-here") == "data/raw/never-here"
    assert missing("data/sample") is None
    assert missing("runs/made-by-setup") is None
