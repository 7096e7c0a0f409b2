"""The audit finds planted leaks in layouts it was not written for, and is silent on their clean twins."""

import json
import re
import shutil
import sys

import numpy as np
import pytest

from mindlab.common import cli
from mindlab.common.errors import UserError
from mindlab.data import synthetic
from mindlab.data.mind import read_mind
from mindlab.evaluation.audit import _pairs, audit
from mindlab.finetune import alpaca
from scripts import audit as script
from tests.conftest import ROOT

WORDS = {
    "en": [
        "storm",
        "city",
        "game",
        "coach",
        "budget",
        "vote",
        "river",
        "star",
        "flight",
        "recipe",
        "court",
        "train",
        "snow",
        "market",
        "trial",
        "song",
    ],
    "zh": [
        "风暴",
        "城市",
        "比赛",
        "教练",
        "预算",
        "投票",
        "河流",
        "明星",
        "航班",
        "食谱",
        "法院",
        "火车",
        "大雪",
        "市场",
        "审判",
        "歌曲",
    ],
}


def title(rng, language):
    """Return a headline of five words or so; now and then with a colon or a comma."""
    words = rng.choice(WORDS[language], size=rng.integers(4, 8)).tolist()
    if language == "zh":
        return "".join(words) + str(rng.integers(1000))
    text = " ".join(words).capitalize() + f" {rng.integers(1000)}"
    return rng.choice([text, f"Watch: {text}", text.replace(" ", ", ", 1)], p=[0.8, 0.1, 0.1]).item()


def chinese(case):
    """Chinese labels with full-width colons, titles in 《》."""
    lines = [f"用户看过的新闻：{'、'.join(f'《{t}》' for t in case['history'])}"]
    for label, value in case["extra"]:
        name = {
            "liked": "喜欢",
            "disliked": "不喜欢",
            "mark": "标记",
            "place": "位置",
            "count": "点击数",
            "hint": "提示",
        }[label]
        lines.append(f"{name}：{'、'.join(f'《{t}》' for t in value) if isinstance(value, list) else value}")
    lines.append(f"候选新闻：《{case['candidate']}》\n用户会点击这条新闻吗？")
    return {
        "instruction": case["wording"],
        "input": "\n".join(lines),
        "output": "是" if case["click"] else "否",
    }


def json_lists(case):
    """One JSON object as the input; the answer is a digit."""
    value = {"clicked_before": case["history"], **dict(case["extra"]), "candidate": case["candidate"]}
    return {
        "instruction": case["wording"],
        "input": json.dumps(value),
        "output": "1" if case["click"] else "0",
    }


def other_order(case):
    """Headings, the candidate first, bulleted lists, everything in the instruction."""
    parts = [f"## Candidate\n{case['candidate']}"]
    parts += [
        f"## {label}\n" + ("\n".join(f"- {t}" for t in value) if isinstance(value, list) else str(value))
        for label, value in case["extra"]
    ]
    parts.append("## Read before\n" + "\n".join(f"- {t}" for t in case["history"]))
    text = "\n\n".join([*parts, f"{case['wording']} Answer click or skip."])
    return {"instruction": text, "input": "", "output": "click" if case["click"] else "skip"}


LAYOUTS = {"zh": chinese, "json": json_lists, "order": other_order}


def siblings(case, told, rng, new):
    likes = [] if told else [new() for _ in range(rng.integers(1, 3))]
    case["extra"] += [("liked", likes), ("disliked", [new() for _ in range(rng.integers(1, 6))])]


def future_history(case, told, rng, new):
    if told:
        case["history"].append(case["candidate"])


def a_field(case, told, rng, new):
    case["extra"].append(("mark", int(told)))


def a_hint(case, told, rng, new):
    case["extra"].append(("hint", "it was opened at once" if told else "it was passed over"))


def wording(case, told, rng, new):
    case["wording"] = "Decide whether it is opened." if told else "Decide if it is opened."


def history_length(case, told, rng, new):
    case["history"] = [new() for _ in range(rng.integers(6, 9) if told else rng.integers(1, 4))]


def place(case, told, rng, new):
    case["extra"].append(("place", 1 if told else int(rng.integers(2, 30))))


def a_marker(case, told, rng, new):
    case["candidate"] += " *" if told else ""


def letter_case(case, told, rng, new):
    """Or, in a script without case, a full stop."""
    text = case["candidate"]
    case["candidate"] = text if told else text.lower() if text.isascii() else f"{text}。"


def future_count(case, told, rng, new):
    case["extra"].append(("count", int(rng.integers(1, 5)) if told else int(rng.random() < 0.1)))


KINDS = (
    siblings, future_history, a_field, a_hint, wording, history_length, place, a_marker, letter_case, future_count,
)  # fmt: skip


def cases(kind, language, is_planted, n, rng):
    """Yield cases whose form tells the answer, or, in the clean twin, says something at random."""

    def new():
        return title(rng, language)

    for _ in range(n):
        click = bool(rng.random() < 0.3)
        case = {
            "history": [new() for _ in range(rng.integers(1, 9))], "candidate": new(), "extra": [],
            "click": click, "wording": "Decide whether the reader opens the candidate.",
        }  # fmt: skip
        # No leak tells all: one case in ten goes the other way.
        told = click != (rng.random() < 0.1) if is_planted else bool(rng.random() < 0.3)
        if kind is not None:
            kind(case, told, rng, new)
        yield case


def write(folder, layout, kind=None, is_planted=True, n=(500, 300), seed=0):
    """Write train.json and test.json of a data set."""
    rng = np.random.default_rng(seed)
    language = "zh" if layout == "zh" else "en"
    folder.mkdir(exist_ok=True)
    for split, size in zip(("train", "test"), n, strict=True):
        records = [LAYOUTS[layout](case) for case in cases(kind, language, is_planted, size, rng)]
        (folder / f"{split}.json").write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    return folder


def leaks(folder):
    """Return the checks that found a leak."""
    (found,) = audit(folder)
    return [verdict.check for verdict in found.verdicts if verdict.kind == "LEAK"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_planted_leak_is_found_and_its_clean_twin_is_not(tmp_path, kind, layout):
    assert leaks(write(tmp_path / "leaky", layout, kind)) == ["rule"]
    assert leaks(write(tmp_path / "clean", layout, kind, is_planted=False)) == []


def add_to_test(folder, choose):
    """Put training records that `choose` picks into the test file too."""
    train, test = (json.loads((folder / f"{split}.json").read_text("utf-8")) for split in ("train", "test"))
    records = [*test, *choose(train)]
    (folder / "test.json").write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_shared_impression_is_found(tmp_path, layout):
    folder = write(tmp_path / "data", layout, siblings, is_planted=False)
    assert leaks(folder) == []
    add_to_test(folder, lambda train: [max(train, key=lambda r: len(r["input"] + r["instruction"]))])
    assert leaks(folder) == ["shared impressions"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_candidate_at_a_time_may_come_again_but_not_a_test_set_of_training_records(tmp_path, layout):
    folder = write(tmp_path / "data", layout)
    add_to_test(folder, lambda train: sorted(train, key=lambda r: len(r["input"] + r["instruction"]))[-3:])
    assert leaks(folder) == []
    assert verdict(audit(folder)[0], "repeated pairs").count == 3
    add_to_test(folder, lambda train: train)
    assert leaks(folder) == ["shared impressions"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_question_that_is_cut_off_is_found(tmp_path, layout):
    folder = write(tmp_path / "data", layout)
    records = json.loads((folder / "train.json").read_text("utf-8"))
    key = "input" if records[0]["input"] else "instruction"
    longest = int(np.quantile([len(record[key]) for record in records], 0.95))
    cut = [{**record, key: record[key][:longest]} for record in records]
    (folder / "train.json").write_text(json.dumps(cut, ensure_ascii=False), encoding="utf-8")
    assert leaks(folder) == ["questions"]


def test_a_clean_data_set_that_was_counted_in_tokens(tmp_path):
    folder = write(tmp_path / "data", "order")
    (found,) = audit(folder, measure=lambda prompts: [len(p.head + p.body) for p in prompts], cutoff_len=2000)
    assert [v.kind for v in found.verdicts if v.check == "questions"] == ["ok"]
    (found,) = audit(folder, measure=lambda prompts: [len(p.head + p.body) for p in prompts], cutoff_len=300)
    assert [v.kind for v in found.verdicts if v.check == "questions"] == ["LEAK"]


def verdict(found, check):
    """Return the one verdict of a check."""
    (one,) = [v for v in found.verdicts if v.check == check]
    return one


def test_the_notes(tmp_path):
    folder = write(tmp_path / "data", "json")
    records = json.loads((folder / "train.json").read_text("utf-8"))
    records += [{**records[0], "output": output} for output in ("0", "1")] + [{**records[1], "output": 1}]
    (folder / "train.json").write_text(json.dumps(records), encoding="utf-8")
    test = json.loads((folder / "test.json").read_text("utf-8"))
    history = json.loads(records[0]["input"])["clicked_before"]
    test.append({**test[0], "input": json.dumps(json.loads(test[0]["input"]) | {"clicked_before": history})})
    (folder / "test.json").write_text(json.dumps(test), encoding="utf-8")
    (found,) = audit(folder)
    assert not found.has_leak
    dropped = verdict(found, "outputs")
    assert (dropped.kind, dropped.count, dropped.example) == ("NOTE", 1, "train.json, record 502: 1")
    assert verdict(found, "duplicate prompts").count == 3
    assert verdict(found, "shared users").count >= 1
    always = sum(record["output"] == "0" for record in test) / len(test)
    assert f"accuracy {always:.3f}" in verdict(found, "constant answer").text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        ("[]", "expected a list of Alpaca records, at least one"),
        ('[{"a": 1}]', "record 0 has no 'instruction' and 'output'"),
        ('{"instruction": "x", "output": "y"}', "expected a list of Alpaca records"),
    ],
)
def test_what_is_no_alpaca_file_is_said_in_one_line(tmp_path, content, said):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match=re.escape(said)):
        audit(tmp_path / "x.json")


def test_files_are_paired_by_name_and_columns_are_those_of_dataset_info(tmp_path):
    write(tmp_path / "processed", "zh", siblings)
    for old, new in (("train", "mine_train"), ("test", "mine_test")):
        records = json.loads((tmp_path / f"processed/{old}.json").read_text("utf-8"))
        renamed = [{"ask": r["instruction"], "given": r["input"], "say": r["output"]} for r in records]
        (tmp_path / f"processed/{new}.json").write_text(
            json.dumps(renamed, ensure_ascii=False), encoding="utf-8"
        )
        (tmp_path / f"processed/{old}.json").unlink()
    columns = {"prompt": "ask", "query": "given", "response": "say"}
    info = {
        name: {"file_name": f"processed/{name}.json", "columns": columns}
        for name in ("mine_train", "mine_test")
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    for path in (tmp_path, tmp_path / "processed", tmp_path / "processed/mine_test.json"):
        (found,) = audit(path)
        assert found.name.count("mine_") == 2
        assert found.has_leak


def test_fit_goes_with_valid_and_train_with_test(tmp_path):
    paths = [tmp_path / f"x_{role}.json" for role in ("fit", "train", "valid", "test")]
    assert _pairs(paths) == [(paths[0], paths[2]), (paths[1], paths[3])]
    assert _pairs(paths[:3]) == [(paths[0], paths[2]), (paths[1], None)]
    assert _pairs([tmp_path / "mind_train.json", tmp_path / "mind_test.json"])[0][1].name == "mind_test.json"


@pytest.fixture(scope="module")
def mind_folder(tmp_path_factory):
    """A small synthetic MIND."""
    folder = tmp_path_factory.mktemp("mind")
    synthetic.make_sample(folder, 800, 300, None, 5)
    return folder


def rewrite(folder, target, split, change):
    """Copy a MIND folder with the lines of one behaviors.tsv changed."""
    shutil.copytree(folder, target)
    path = target / split / "behaviors.tsv"
    lines = [line.split("\t") for line in path.read_text("utf-8").splitlines()]
    path.write_text("".join("\t".join(row) + "\n" for row in change(lines)), encoding="utf-8")
    return target


def test_a_mind_folder(mind_folder, tmp_path):
    assert leaks(mind_folder) == []

    def clicks_first(rows):
        return [[*r[:4], " ".join(sorted(r[4].split(), key=lambda c: c[-1] == "0"))] for r in rows]

    placed = rewrite(mind_folder, tmp_path / "a", "train", clicks_first)
    placed = rewrite(placed, tmp_path / "b", "dev", clicks_first)
    assert leaks(placed) == ["rule"]
    (found,) = audit(placed)
    assert {v.kind for v in found.verdicts if v.check == "label by place"} == {"NOTE"}
    first = (mind_folder / "train/behaviors.tsv").read_text("utf-8").splitlines()[0].split("\t")
    shared = rewrite(mind_folder, tmp_path / "c", "dev", lambda rows: [*rows, ["9999", *first[1:]]])
    assert leaks(shared) == ["shared impressions"]
    assert any(v.check == "shared days" for v in audit(shared)[0].verdicts)


def test_the_tutorials_data_leaks_and_ours_does_not(tmp_path, capsys, monkeypatch):
    """On data/sample: the audit exits 1 on `seed`, 0 on `dev` and on the impressions themselves."""
    mind = read_mind(ROOT / "data/sample")
    codes = {}
    for protocol, form in (("seed", "likes_dislikes"), ("dev", "pointwise")):
        alpaca.build(mind, alpaca.BuildOptions(protocol, form), tmp_path / protocol)
        codes[protocol] = run_audit(monkeypatch, tmp_path / protocol, "--json")
        found = json.loads(capsys.readouterr().out)
        if protocol == "seed":
            text = found[0]["verdicts"][0]["text"]
            assert "[User likes]" in text
            assert "accuracy 0.97" in text
    codes["mind"] = run_audit(monkeypatch, ROOT / "data/sample")
    assert codes == {"seed": 1, "dev": 0, "mind": 0}
    assert "candidates in the history" in capsys.readouterr().out
    assert run_audit(monkeypatch, tmp_path / "nothing") == 2
    assert run_audit(monkeypatch, tmp_path, "--model", "x") == 2


def run_audit(monkeypatch, *arguments):
    """Run scripts/audit.py; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["audit.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.run(script.main)
    return ended.value.code
