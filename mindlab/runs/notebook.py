"""Notebooks: the setup line inside them, and the making and checking of the committed .ipynb.

People edit the percent twin ``notebooks/src/NAME.py``; ``notebooks/NAME.ipynb`` is made from it by
``scripts/run_notebooks.py``, outputs included, and nobody edits that.
"""

import ast
import contextlib
import importlib
import io
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mindlab.common.errors import UserError
from mindlab.common.files import write_text
from mindlab.common.manifest import without_secrets
from mindlab.data.synthetic import make_sample
from mindlab.recommenders.oracle import FILE_NAME as ORACLE_FILE

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
SHOWN_VERSIONS = ("numpy", "pandas", "torch", "transformers", "llamafactory")
# A path from the root of somebody's machine, in a source or an output.
ABSOLUTE_PATH = re.compile(
    r"(?<![\w.:/~-])/(?:home|root|Users|usr|opt|tmp|var|mnt|media|work|workspace|content|private)(?:/|\b)"
    r"|\b[A-Za-z]:\\\w"
)
TIME_LIMIT = 3600  # seconds a cell may take
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def setup(data: str | Path, seed: int, generate: Mapping[str, int] | None = None) -> None:
    """Go to the root of the repository, print versions, the data in use and the seed, widen pandas' tables.

    A notebook opened in an editor starts in ``notebooks/``; all paths of the course count from the root. Where there is no
    `data` yet, a synthetic MIND of the sizes in `generate` (`mindlab.data.synthetic.make_sample`) is written there.

    Raises UserError if there is no `data` and nothing to generate.
    """
    import pandas as pd

    os.chdir(ROOT)
    if generate and not Path(data).exists():
        make_sample(data, **generate)
    if not Path(data).exists():
        raise UserError(
            f"{data}: no such folder in the repository; data/sample is there, see data/README.md for MIND"
        )
    # Headlines are longer than the 50 characters that pandas shows.
    pd.set_option("display.max_colwidth", 120, "display.width", 120)
    versions = ", ".join(f"{name} {version(name)}" for name in SHOWN_VERSIONS)
    print(f"python {platform.python_version()}, {versions}")
    print(
        f"data   {Path(data).as_posix()}"
        + (" (synthetic)" if (Path(data) / "train" / ORACLE_FILE).exists() else "")
    )
    print(f"seed   {seed}")


def bar(items: Iterable[Any], done: int, total: int, unit: str = " impressions") -> Iterator[Any]:
    """Show progress over `items` on stderr, which is never kept in a committed notebook."""
    from tqdm import tqdm

    return iter(tqdm(items, initial=done, total=total, unit=unit, file=sys.stderr))


batches_bar = partial(bar, unit=" batches")


class StopAfter:
    """A progress that does, when `n` items are done, what the stop button does, once; however many lists they are of."""

    def __init__(self, n: int):
        self.left = n

    def __call__(self, items: Iterable[Any], done: int, total: int) -> Iterator[Any]:
        """Yield the items as long as there are some left."""
        for item in items:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            yield item


class LossCurve:
    """A training loss that redraws itself in a notebook; give it to `mindlab.finetune.factory.train` as `watch`.

    With `stop_at` it does at that step what the stop button does, once.
    """

    def __init__(self, stop_at: int | None = None):
        from IPython.display import display

        self.stop_at = stop_at
        self._losses: dict[int, float] = {}
        self._display = display(self._draw(), display_id=True)

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Take one row of trainer_log.jsonl, and show it."""
        if "loss" in row:
            self._losses[row["current_steps"]] = row["loss"]
            self._display.update(self._draw())
        if row["current_steps"] == self.stop_at:
            self.stop_at = None
            raise KeyboardInterrupt

    def _draw(self) -> Any:
        from IPython.display import Image
        from matplotlib.figure import Figure

        # Not pyplot: it would keep every figure, and show each a second time at the end of the cell.
        figure = Figure(figsize=(7, 2.6), layout="constrained", dpi=80)
        axes = figure.subplots()
        axes.plot(list(self._losses), list(self._losses.values()), marker=".")
        axes.set(xlabel="step", ylabel="training loss")
        axes.grid(alpha=0.3)
        png = io.BytesIO()
        figure.savefig(png, format="png")
        return Image(png.getvalue())


def twins(names: Iterable[str] = (), folder: Path = NOTEBOOKS) -> list[Path]:
    """Return the percent twins in reading order, or those whose names begin with one of `names`.

    Raises UserError for a name that no twin, or more than one, begins with.
    """
    every = sorted((folder / "src").glob("*.py"))
    chosen = []
    for name in names:
        found = [path for path in every if path.stem.startswith(Path(name).stem)]
        if len(found) != 1:
            raise UserError(f"notebook {name!r}: expected one of {', '.join(path.stem for path in every)}")
        chosen += found
    return chosen or every


def convert(twin: Path) -> Any:
    """Return the notebook of a percent twin, without outputs; equal text gives an equal notebook."""
    import jupytext

    notebook = jupytext.read(twin, fmt="py:percent")
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:03d}"
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def tags(cell: Mapping[str, Any]) -> list[str]:
    """Return the tags of a cell."""
    return cell["metadata"].get("tags", [])


def parameters(notebook: Any) -> dict[str, Any]:
    """Return the names and values of the one cell tagged ``parameters``, which holds literals only.

    Raises UserError if there is not exactly one such cell, or it holds anything but ``name = literal``.
    """
    cells = [cell for cell in notebook.cells if "parameters" in tags(cell)]
    if len(cells) != 1:
        raise UserError(f"{len(cells)} cells are tagged parameters, expected one")
    found = {}
    for line in ast.parse(cells[0].source).body:
        if not (
            isinstance(line, ast.Assign) and len(line.targets) == 1 and isinstance(line.targets[0], ast.Name)
        ):
            raise UserError(f"the parameters cell holds {ast.unparse(line)!r}, expected name = literal")
        try:
            found[line.targets[0].id] = ast.literal_eval(line.value)
        except ValueError:
            raise UserError(f"the parameters cell holds {ast.unparse(line)!r}, which is no literal") from None
    return found


def missing_data(notebook: Any) -> str | None:
    """Return the folder under data/raw that a notebook reads and that is not here; None if nothing is missing."""
    data = parameters(notebook).get("data")
    is_fetched = isinstance(data, str) and Path(data).parts[:2] == ("data", "raw")
    return data if is_fetched and not (ROOT / data).exists() else None


def set_parameters(notebook: Any, given: Mapping[str, str]) -> None:
    """Change parameters of `notebook` in place; values are text as from a command line.

    Raises UserError for a name that the parameters cell does not have, or a value of another type.
    """
    known = parameters(notebook)
    for name, text in given.items():
        if name not in known:
            raise UserError(f"no parameter {name!r}; the notebook has {', '.join(known)}")
        old = known[name]
        try:
            value = text if isinstance(old, str) else ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        if old is not None and type(value) is not type(old):
            raise UserError(f"parameter {name}={text}: expected {type(old).__name__}, such as {old!r}")
        cell = next(cell for cell in notebook.cells if "parameters" in tags(cell))
        cell.source += f"\n{name} = {value!r}"


def execute(notebook: Any, log: Callable[[str], None] = lambda line: None) -> None:
    """Run `notebook` in place, in a fresh kernel of this very Python, from the root of the repository.

    Raises UserError, with the cell and its error, if a cell fails.
    """
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    class ThisPython(KernelSpecManager):
        """Whatever kernels the user has installed, take this environment's."""

        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            argv = [
                sys.executable,
                "-m",
                "ipykernel_launcher",
                "--log-level=ERROR",
                "-f",
                "{connection_file}",
            ]
            return KernelSpec(argv=argv, display_name="Python 3", language="python")

    n_code = sum(cell.cell_type == "code" for cell in notebook.cells)
    seen = 0

    def tell(cell: Any, cell_index: int) -> None:
        nonlocal seen
        seen += 1
        log(f"cell {seen}/{n_code}: {cell.source.strip().splitlines()[0] if cell.source.strip() else ''}")

    with tempfile.TemporaryDirectory() as profile:
        client = NotebookClient(
            notebook,
            km=AsyncKernelManager(kernel_spec_manager=ThisPython(), kernel_name="python3"),
            timeout=TIME_LIMIT,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(ROOT)}},
            on_cell_execute=tell,
        )
        try:
            # A profile of its own, so that nobody's IPython settings get into the outputs.
            client.execute(env={**os.environ, "IPYTHONDIR": profile, "PYTHONPATH": str(ROOT)})
        except CellExecutionError as error:
            raise UserError(
                f"a cell failed with {error.ename}: {error.evalue}", COLOURS.sub("", error.traceback)
            ) from None
        except (CellTimeoutError, DeadKernelError) as error:
            raise UserError(f"the kernel did not get through: {error}") from None


def is_progress(output: Mapping[str, Any]) -> bool:
    """Return whether an output is stderr or a widget: bars and warnings, of interest only while running."""
    widgets = [kind for kind in output.get("data", {}) if kind.startswith("application/vnd.jupyter.widget")]
    return output.get("name") == "stderr" or bool(widgets)


def normalise(notebook: Any) -> None:
    """Take out of the outputs, in place, what differs from machine to machine: bars, times, paths."""
    prefixes = sorted({f"{ROOT}{os.sep}", f"{os.path.realpath(ROOT)}{os.sep}"}, key=len, reverse=True)

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            for prefix in prefixes:
                value = value.replace(prefix, "")
            return without_secrets(value)
        if isinstance(value, list):
            return [clean(item) for item in value]
        if isinstance(value, dict):
            return type(value)({key: clean(item) for key, item in value.items()})
        return value

    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            kept = [output for output in cell.outputs if not is_progress(output)]
            cell.outputs = [clean(output) for output in kept]
    # nbclient puts the exact Python version of the machine there.
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.metadata.pop("widgets", None)


def write(notebook: Any, path: Path) -> None:
    """Write a notebook as JSON, whole or not at all."""
    import nbformat

    write_text(path, nbformat.writes(notebook).rstrip("\n") + "\n")


def problems(twin: Path, committed: Path) -> list[str]:
    """Return, a line each, what is wrong with a committed notebook: cells, outputs, errors, paths."""
    import nbformat

    if not committed.is_file():
        return [f"{committed.name}: no such file; run scripts/run_notebooks.py {twin.stem}"]
    wanted, notebook = convert(twin), nbformat.read(committed, as_version=4)
    found = []
    mine = [(cell.cell_type, cell.source, tags(cell)) for cell in wanted.cells]
    theirs = [(cell.cell_type, cell.source, tags(cell)) for cell in notebook.cells]
    if mine != theirs:
        differing = [i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b]
        place = differing[0] if differing else min(len(mine), len(theirs))
        found.append(
            f"{committed.name}: cell {place} is not the twin's; run scripts/run_notebooks.py {twin.stem}"
        )
    source = "\n".join(cell.source for cell in wanted.cells if cell.cell_type == "code")
    found += [f"{twin.name}: there is no {name}" for name in unknown_names(source)]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:
        first = (cell.source.splitlines() or [""])[0]
        if cell.execution_count is None:
            found.append(f"{committed.name}: not run: {first}")
        if any(output.output_type == "error" for output in cell.outputs):
            found.append(f"{committed.name}: ended in an error: {first}")
        if any(is_progress(output) for output in cell.outputs):
            found.append(f"{committed.name}: keeps stderr or a widget: {first}")
    if not any(cell.outputs for cell in code):
        found.append(f"{committed.name}: no outputs")
    for text in texts(notebook.cells):
        if match := ABSOLUTE_PATH.search(text):
            found.append(f"{committed.name}: holds an absolute path, {match[0]!r}")
    return found


def unknown_names(source: str) -> list[str]:
    """Return what a source imports from mindlab, or takes from a module of it, that is not there.

    >>> unknown_names("from mindlab.common import files, nothing\\nfiles.write_text; files.write_poem()")
    ['mindlab.common.nothing', 'mindlab.common.files.write_poem']
    """
    tree = ast.parse(source)
    modules, unknown = {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mindlab":
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                with contextlib.suppress(ModuleNotFoundError):
                    modules[alias.asname or alias.name] = importlib.import_module(whole)
                    continue
                if not hasattr(importlib.import_module(node.module), alias.name):
                    unknown.append(whole)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            if module is not None and not hasattr(module, node.attr):
                unknown.append(f"{module.__name__}.{node.attr}")
    return unknown


def texts(value: Any) -> Iterator[str]:
    """Yield every string of cells or outputs, images left out.

    >>> list(texts([{"source": "a", "data": {"text/plain": "b", "image/png": "c"}}]))
    ['a', 'b']
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if not key.startswith("image/"):
                yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)
