"""The documents hold: links resolve, commands parse, paths exist, and the numbers in them are re-made here."""

import argparse
import importlib.util
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from mindlab import notebook
from mindlab.metrics import answer_metrics
from mindlab.mind import read_mind
from mindlab.protocols import seed_splits
from mindlab.published import LLM_TRSR
from mindlab.recommenders.leak_rule import leak_rule
from mindlab.statistics import MINDSMALL, describe, table
from tests.conftest import ROOT

DOCS = (
    *("README.md", "README_zh.md", "data/README.md", "configs/README.md"),
    *("docs/distributed.md", "docs/leaderboard.md", "docs/licences.md", "docs/performance.md"),
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


def outline(text):
    """Return the levels of a Markdown text's headings, in order."""
    return [
        len(marks)
        for marks in re.findall(r"^(#+) ", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    ]


def mirror_faults(text, mirror):
    """Return in what two READMEs differ that should not: headings, commands, links."""
    faults = []
    if outline(text) != outline(mirror):
        faults.append(f"headings: {outline(text)} and {outline(mirror)}")
    faults += sorted(set(commands(text)) ^ set(commands(mirror)))
    links = [set(re.findall(r"\]\(([^)\s]+)\)", one)) for one in (text, mirror)]
    return faults + sorted(link for link in links[0] ^ links[1] if "README" not in link)


def missing_paths(text):
    """Return the paths of the tree under "## Tree" that do not exist."""
    block = re.search(r"^## Tree\n+```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[1]
    paths = [line.split()[0] for line in block.splitlines()]
    assert len(paths) > 20
    return [path for path in paths if not (ROOT / path).exists()]


def block(text, name):
    """Return what stands between the two markers of a block that a program fills."""
    return re.search(rf"<!-- {name} -->(.*?)<!-- /{name} -->", text, re.DOTALL)[1].strip()


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


def test_the_readme_has_its_commands():
    lines = commands(read("README.md"))
    assert {"make demo", "make test"} <= set(lines)
    assert sum(line.startswith("python scripts/predict.py") for line in lines) >= 4


def test_the_tree_exists():
    assert missing_paths(read("README.md")) == []


def test_the_chinese_readme_mirrors_the_english_one():
    assert mirror_faults(read("README.md"), read("README_zh.md")) == []


@pytest.mark.parametrize("name", DOCS)
def test_configs_named_in_the_documents_exist(name):
    named = {word for text in code(read(name)) for word in re.findall(r"configs/[\w/]+\.yaml", text)}
    assert all((ROOT / path).is_file() for path in named), named


def unknown_overrides(line):
    """Return the keys of a llamafactory-cli command that no settings class declares.

    Their sources are read, not imported: tests/test_configs.py has LLaMA-Factory's parser, and its price.
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


def test_the_statistics_are_those_of_the_sample():
    found = describe(read_mind(ROOT / "data/sample"))
    assert block(read("data/README.md"), "statistics") == table(found, "data/sample")
    assert set(MINDSMALL) <= set(found)


def test_the_leak_rule_scores_what_the_readme_says():
    test = seed_splits(read_mind(ROOT / "data/sample"), 42)["test"]
    is_yes = leak_rule(test, np.full(len(test), -1))
    found = answer_metrics(is_yes, test.labels[test.offsets[1:] - 1])
    said = " ".join(block(read("README.md"), "leak-rule").split())
    assert said == (
        f"accuracy {found['accuracy']:.3f}, precision {found['precision']:.3f}, recall {found['recall']:.3f}, "
        f"where always No has {found['always_no_accuracy']:.3f}"
    )
    assert f"on the {len(test)} test records" in " ".join(read("README.md").split())


def test_describe_counts_by_hand(tmp_path):
    news = "".join(f"N{i}\tnews\tus\tA b c\t\t\t[]\t[]\n" for i in range(1, 5))
    behaviors = {
        "train": "1\tU1\t11/9/2019 9:05:00 AM\tN1 N1 N2\tN3-1 N1-0\n2\tU2\t11/14/2019 9:05:00 AM\t\tN4-1 N2-1 N3-0\n",
        "dev": "1\tU1\t11/15/2019 9:05:00 AM\tN1 N1 N2\tN3-0 N4-1\n",
    }
    for split, text in behaviors.items():
        (tmp_path / split).mkdir()
        (tmp_path / split / "news.tsv").write_text(news)
        (tmp_path / split / "behaviors.tsv").write_text(text)
    found = describe(read_mind(tmp_path))
    expected = {
        "news, train and dev together": 4,
        "users in both splits": 1,
        "categories": 1,
        "words per title, mean": 3,
        "news with an empty abstract": 100,
        "train: impressions": 2,
        "train: candidates per impression, mean": 2.5,
        "train: clicked candidates": 60,
        "train: impressions with one click": 50,
        "train: history length, median": 1.5,
        "train: impressions with an empty history": 50,
        "train: impressions whose history repeats a news": 50,
        "train: impressions showing a news of the history": 50,
        "dev: impressions showing a news of the history": 0,
        "dev: candidates not shown on 9-13 November": 50,
        "dev: clicks on news not shown on 9-13 November": 100,
    }
    assert {name: found[name] for name in expected} == expected


def test_the_gates_can_fail():
    links = (
        "[a](nowhere.md) [b](https://x.org) [c](#d) [e](#it-is-here) [f](README.md#tree) [g](README.md#no)"
    )
    assert dead_links(f"## It is *here*\n{links}", ROOT) == ["nowhere.md", "#d", "README.md#no"]
    assert wrong_command("python scripts/no_such.py")
    assert wrong_command("python scripts/predict.py --no-such-flag x")
    assert wrong_command("python scripts/build_dataset.py --data data/sample")  # required ones are missing
    assert wrong_command("python -m mindlab.statistics")
    assert wrong_command("python -m tests.chaos --no-such-flag")
    assert wrong_command("make coffee")
    assert wrong_command("pytest tests/test_nothing.py")
    assert wrong_command("llamafactory-cli train configs/nothing.yaml")
    assert wrong_command("llamafactory-cli train configs/new_train.yaml max_steps")
    assert unknown_overrides("llamafactory-cli train configs/new_train.yaml max_step=3 bf16=false") == [
        "max_step=3"
    ]
    assert mirror_faults("# A\n`make demo`\n", "# 甲\n`make test`\n[乙](b.md)\n## 丙\n") == [
        "headings: [1] and [1, 2]",
        "make demo",
        "make test",
        "b.md",
    ]
    listing = "\n".join(["mindlab/mind.py  x"] * 21 + ["mindlab/no_such.py  x"])
    assert missing_paths(f"## Tree\n\n```\n{listing}\n```\n") == ["mindlab/no_such.py"]
    text = "a `make demo` b\n\n```\npython scripts/x.py --a \\\n  --b  # why\n```\n"
    assert commands(text) == ["python scripts/x.py --a --b", "make demo"]


def test_the_papers_table_is_the_one_that_is_kept():
    page = (ROOT / "docs/leaderboard.md").read_text(encoding="utf-8")
    for name, values in LLM_TRSR.items():
        assert f"| {name} | {' | '.join(f'{value:.4f}' for value in values)} |" in page
        recall, reciprocal = values[:3], values[3:]
        assert sorted(recall) == list(recall), "recall falls with more places"
        assert sorted(reciprocal) == list(reciprocal)
        assert all(low <= high for low, high in zip(reciprocal, recall, strict=True))
