"""What a user of the documents does works: links lead somewhere, commands are taken, named configs exist."""

import argparse
import importlib.util
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from mindlab.runs import notebook
from tests.conftest import ROOT

DOCS = (
    *("README.md", "README_zh.md", "CONTRIBUTING.md", "data/README.md", "configs/README.md"),
    *(
        "docs/architecture.md",
        "docs/distributed.md",
        "docs/leaderboard.md",
        "docs/licences.md",
        "docs/performance.md",
    ),
    *("docs/planning.md", "docs/recipe.md", "docs/reliability.md", "docs/real_mind.md", "docs/intervals.md"),
    *("docs/teaching.md", "docs/troubleshooting.md"),
)
SHELL = re.compile(r"^(?:python |llamafactory-cli |pytest |make )")


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def code(text):
    """Return the lines of fenced blocks, continued ones joined, and the inline code of a Markdown text."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.split("  #")[0].strip() for b in blocks for line in re.sub(r"\\\n\s*", "", b).splitlines()]
    outside = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return lines + re.findall(r"`([^`\n]+)`", outside)


def commands(text):
    return [line for line in code(text) if SHELL.match(line)]


def anchors(text):
    """Return the anchors that GitHub gives the headings of a Markdown text."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def dead_links(text, folder):
    """Return the relative links of a Markdown text that lead nowhere, to no file or to no heading of one."""
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        file = folder / path
        if re.match(r"\w+:", link):
            continue
        target = file.read_text(encoding="utf-8") if path and file.is_file() else text
        if (path and not file.exists()) or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


class Caught(Exception):
    """Carries a parser out of a script's main()."""


@cache
def parser_of(path):
    """Return the argument parser that a script makes, without running more of it."""
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def stop(self, *_, **__):
        raise Caught(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(Caught) as caught:
            module.main()
    return caught.value.args[0]


def wrong_command(line):
    """Return what is wrong with a command of the documents, "" if nothing is."""
    words = shlex.split(line)
    if words[0] == "make":
        targets = re.findall(r"^(\w+):", read("Makefile"), re.MULTILINE)
        unknown = [word for word in words[1:] if "=" not in word and word not in targets]
        return f"no make target {unknown}" if unknown else ""
    if words[0] == "pytest":
        missing = [word for word in words if word.startswith("tests/") and not (ROOT / word).exists()]
        return f"no file {missing}" if missing else ""
    if words[0] == "llamafactory-cli":
        config, overrides = ROOT / words[2], words[3:]
        if words[1] not in ("train", "chat", "api", "webchat", "export") or not config.is_file():
            return f"no such verb or file: {words[1:3]}"
        return "" if all("=" in word for word in overrides) else f"not key=value: {overrides}"
    words = words[1:]
    if words[0] == "-m":
        name = words[1].replace(".", "/")
        path = ROOT / (f"{name}/__main__.py" if (ROOT / name).is_dir() else f"{name}.py")
        words = words[1:]
    else:
        path = ROOT / words[0]
    if not path.is_file():
        return f"no file {path.name}"
    try:
        parser_of(path).parse_args(words[1:])
    except SystemExit as end:
        return "" if end.code == 0 else f"{path.name} does not take these arguments"
    return ""


@pytest.mark.parametrize("name", DOCS)
def test_links_resolve(name):
    assert dead_links(read(name), (ROOT / name).parent) == []


@pytest.mark.parametrize("path", notebook.twins(), ids=lambda path: path.stem)
def test_links_of_notebooks_resolve(path):
    book = notebook.convert(path)
    texts = [cell.source for cell in book.cells if cell.cell_type == "markdown"]
    assert dead_links("\n".join(texts), notebook.NOTEBOOKS) == []


def test_the_handout_command_of_the_lecturers_takes_the_solutions_out(tmp_path):
    line = next(line for line in code(read("docs/teaching.md")) if line.startswith("jupyter nbconvert"))
    options = shlex.split(line)[1:-3]
    assert shlex.split(line)[-3:] == ["--output-dir", "handout", "notebooks/*.ipynb"]
    path = notebook.NOTEBOOKS / "02_build_the_dataset.ipynb"
    command = [sys.executable, "-m", "jupyter", *options, "--output-dir", str(tmp_path), str(path)]
    subprocess.run(command, check=True, capture_output=True)
    counts = [one.read_text(encoding="utf-8").count('"solution"') for one in (path, tmp_path / path.name)]
    assert counts == [3, 0]


@pytest.mark.parametrize("name", DOCS)
def test_commands_parse(name):
    found = {line: wrong for line in commands(read(name)) if (wrong := wrong_command(line))}
    assert found == {}


@pytest.mark.parametrize("name", DOCS)
def test_configs_named_in_the_documents_exist(name):
    named = {
        word
        for text in code(read(name))
        for word in re.findall(r"configs/[\w/]+\.yaml", text)
        if "MODEL" not in word
    }
    assert all((ROOT / path).is_file() for path in named), named


def unknown_overrides(line):
    """Return the keys of a llamafactory-cli command that no settings class declares.

    Their sources are read, not imported: tests/repo/test_configs.py has LLaMA-Factory's parser, and its price.
    """
    folders = {
        name: Path(importlib.util.find_spec(name).origin).parent for name in ("llamafactory", "transformers")
    }
    files = [*folders["llamafactory"].glob("hparams/*.py"), folders["transformers"] / "training_args.py"]
    fields = {
        key for path in files for key in re.findall(r"^    (\w+):", path.read_text("utf-8"), re.MULTILINE)
    }
    return [word for word in shlex.split(line)[3:] if word.split("=")[0] not in fields]


@pytest.mark.parametrize("name", DOCS)
def test_overrides_are_llamafactorys(name):
    lines = [line for line in commands(read(name)) if line.startswith("llamafactory-cli")]
    assert [unknown_overrides(line) for line in lines] == [[]] * len(lines)


def test_the_gates_can_fail():
    links = (
        "[a](nowhere.md) [b](https://x.org) [c](#d) [e](#it-is-here) [f](README.md#folders) [g](README.md#no)"
    )
    assert dead_links(f"## It is *here*\n{links}", ROOT) == ["nowhere.md", "#d", "README.md#no"]
    assert wrong_command("python scripts/no_such.py")
    assert wrong_command("python scripts/predict.py --no-such-flag x")
    assert wrong_command("python scripts/build_dataset.py --data data/sample")  # required ones are missing
    assert wrong_command("python -m mindlab.data.statistics")
    assert wrong_command("python -m tests.torture.chaos --no-such-flag")
    assert wrong_command("make coffee")
    assert wrong_command("pytest tests/test_nothing.py")
    assert wrong_command("llamafactory-cli train configs/nothing.yaml")
    assert wrong_command("llamafactory-cli train configs/new_train.yaml max_steps")
    assert unknown_overrides("llamafactory-cli train configs/new_train.yaml max_step=3 bf16=false") == [
        "max_step=3"
    ]
    text = "a `make demo` b\n\n```\npython scripts/x.py --a \\\n  --b  # why\n```\n"
    assert commands(text) == ["python scripts/x.py --a --b", "make demo"]
