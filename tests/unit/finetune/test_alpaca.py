"""mindlab.finetune.alpaca: counts, bytes, entries; and no sample that LLaMA-Factory would have to cut."""

import json
import pickle
import random
import subprocess
import sys
from dataclasses import replace
from itertools import chain, pairwise

import numpy as np
import pytest

from mindlab.common.errors import UserError
from mindlab.common.files import sha256
from mindlab.data.mind import Mind, read_mind
from mindlab.finetune.alpaca import (
    COLUMNS,
    BuildOptions,
    build,
    is_built,
    link_to,
    make_budget,
    share_of_yes,
)
from mindlab.prompts import (
    PROMPTS,
    LikesDislikes,
    LikesDislikesParts,
    NextClick,
    NextClickParts,
    NextTopicParts,
    PointwiseParts,
    SummaryParts,
    likes_dislikes_parts,
    neutral_titles,
)
from mindlab.prompts.base import Source
from mindlab.prompts.next_click import next_click_parts
from mindlab.prompts.next_topic import topics_of
from mindlab.prompts.records import SLACK, Budget, Shortening, blocks, records
from mindlab.prompts.special_tokens import neutralise
from mindlab.prompts.tutorial_writer import TutorialWriter
from mindlab.tasks import Seed
from tests.conftest import ROOT
from tests.factory_rows import factory_rows
from tests.handmade import make_impressions, make_news

SAMPLE = ROOT / "data" / "sample"
PAIRS = [("seed", "likes_dislikes"), *(("dev", form) for form in ("pointwise", "next_click", "next_topic"))]
NAMES = {
    "likes_dislikes": {"mind": "mind_train.json", "mind_test": "mind_test.json"},
    **{
        form: {
            f"mind_dev_{form}_{split}": f"mind_dev_{form}_{split}.json" for split in ("fit", "valid", "train")
        }
        for form in ("pointwise", "next_click", "next_topic")
    },
}


@pytest.fixture(scope="module")
def sample():
    return read_mind(SAMPLE)


@pytest.fixture(scope="module")
def titles(sample):
    return np.array([neutralise(title) for title in sample.news.title], dtype=object)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run scripts/build_dataset.py in this process; return its exit code, stdout and stderr."""
    from mindlab.common import cli
    from scripts import build_dataset

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["build_dataset.py", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.run(build_dataset.main)
        captured = capsys.readouterr()
        return end.value.code, captured.out, captured.err

    return run


def read(folder, manifest):
    """Return the records of every data set in a manifest."""
    return {
        name: json.loads((folder / made["file"]).read_text(encoding="utf-8"))
        for name, made in manifest["datasets"].items()
    }


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in (folder / "processed").iterdir()}


def a_week(rows):
    """`rows`: (user, day from 9 November on, minute, history, candidates, labels)."""
    train = make_impressions(
        [(user, day * 1440 + minute, *rest) for user, day, minute, *rest in rows], start="2019-11-09T00:00:00"
    )
    # The news t10 to t19 are of a subcategory of their own.
    news = make_news([f"t{i}" for i in range(20)], subcategories=["a"] * 10 + ["b"] * 10)
    return Mind(news, {"train": train}, {})


@pytest.mark.parametrize(("protocol", "form"), PAIRS)
def test_a_rebuild_gives_the_same_bytes_and_another_seed_does_not(sample, tmp_path, protocol, form):
    options = BuildOptions(protocol, form, limit=100)
    made = [build(sample, options, tmp_path / name) for name in "ab"]
    assert made[0] == made[1]
    first, again = bytes_of(tmp_path / "a"), bytes_of(tmp_path / "b")
    assert first == again
    assert (tmp_path / "a" / "dataset_info.json").read_bytes() == (
        tmp_path / "b" / "dataset_info.json"
    ).read_bytes()
    build(sample, replace(options, seed=43), tmp_path / "c")
    other = bytes_of(tmp_path / "c")
    assert all(first[name] != other[name] for name in first)


@pytest.mark.parametrize(("protocol", "form"), PAIRS)
def test_entries_manifest_and_record_shape(sample, tmp_path, protocol, form):
    options = BuildOptions(protocol, form, limit=100)
    manifest = build(sample, options, tmp_path, inputs_sha256={"x": "y"})
    info = json.loads((tmp_path / "dataset_info.json").read_text(encoding="ascii"))
    assert info == {
        name: {"file_name": f"processed/{file}", "columns": COLUMNS} for name, file in NAMES[form].items()
    }
    name = "mind" if protocol == "seed" else f"mind_dev_{form}"
    path = tmp_path / "processed" / f"{name}.manifest.json"
    assert json.loads(path.read_text(encoding="utf-8")) == json.loads(json.dumps(manifest))
    assert manifest["options"]["negatives"] == 4
    assert manifest["inputs_sha256"] == {"x": "y"}
    assert list(manifest["datasets"]) == list(NAMES[form])
    for name, rows in read(tmp_path, manifest).items():
        made = manifest["datasets"][name]
        assert made["records"] == len(rows) > 0
        assert made["impressions"] == 100
        assert made["tokens"] == "unchecked"
        assert made["sha256"] == sha256(tmp_path / made["file"])
        for record in rows:
            assert list(record) == ["system", "instruction", "input", "output"]
            assert all(isinstance(value, str) for value in record.values())
            assert record["output"]
        if form in ("likes_dislikes", "pointwise"):
            assert {record["output"] for record in rows} == {"Yes.", "No."}
            assert made["records_yes"] == sum(record["output"] == "Yes." for record in rows)


def test_the_tutorials_records_follow_the_shuffled_impressions(sample, titles, tmp_path):
    rows = read(tmp_path, build(sample, BuildOptions("seed", "likes_dislikes"), tmp_path))
    assert {name: len(records) for name, records in rows.items()} == {"mind": 2400, "mind_test": 600}
    test = Seed().splits(sample, 42)["test"]
    for i, record in enumerate(rows["mind_test"]):
        assert record["input"].endswith(f'target news "{titles[test.candidates(i)[-1]]}"?')
        assert record["output"] == ("Yes." if test.candidate_labels(i)[-1] else "No.")
        likes = record["input"].split("\nUser likes: ")[1].split("\nUser dislikes: ")[0]
        clicked = test.candidates(i)[:-1][test.candidate_labels(i)[:-1] == 1]
        assert likes == ", ".join(f'"{title}"' for title in titles[clicked])
        assert bool(likes) or record["output"] == "Yes."  # the leak


@pytest.mark.parametrize("negatives", [1, 4])
def test_pointwise_takes_every_click_and_that_many_non_clicks(sample, tmp_path, negatives):
    train = sample.splits["train"].take(np.arange(800))
    options = BuildOptions("dev", "pointwise", negatives=negatives)
    manifest = build(replace(sample, splits={"train": train}), options, tmp_path)
    clicks = np.add.reduceat(train.labels, train.offsets[:-1], dtype=np.int64)
    others = np.diff(train.offsets) - clicks
    expected = int((clicks + np.minimum(others, negatives * clicks)).sum())
    made = manifest["datasets"]["mind_dev_pointwise_train"]
    assert (made["records"], made["records_yes"]) == (expected, int(clicks.sum()))
    parts = {name: entry["records"] for name, entry in manifest["datasets"].items()}
    assert parts["mind_dev_pointwise_fit"] + parts["mind_dev_pointwise_valid"] == expected


def test_the_share_of_yes_of_a_data_set(sample, tmp_path):
    build(sample, BuildOptions("dev", "pointwise"), tmp_path)
    made = json.loads((tmp_path / "processed/mind_dev_pointwise_train.json").read_text("utf-8"))
    share = sum(record["output"] == "Yes." for record in made) / len(made)
    assert 0.1 < share < 0.5
    assert share_of_yes(tmp_path, "mind_dev_pointwise_train") == share
    assert share_of_yes(tmp_path, "mind_dev_pointwise") is None
    assert share_of_yes(tmp_path, "foreign") is None


def test_pointwise_by_hand(tmp_path):
    mind = a_week(
        [
            ("U1", 0, 5, [0, 1, 2], [3, 4, 5, 6], [0, 1, 0, 0]),
            ("U2", 5, 5, [], [7, 8], [1, 0]),
        ]
    )
    rows = read(
        tmp_path, build(mind, BuildOptions("dev", "pointwise", negatives=2, history_length=2), tmp_path)
    )
    found = {(r["input"], r["output"]) for r in rows["mind_dev_pointwise_fit"]}
    ask = "Will this reader click the following headline? Answer Yes. or No."
    assert len(found) == 3
    assert (f"- t1\n- t2\n{ask}\n- t4", "Yes.") in found
    assert found < {(f"- t1\n- t2\n{ask}\n- t{n}", "No." if n != 4 else "Yes.") for n in (3, 4, 5, 6)}
    assert {(r["input"], r["output"]) for r in rows["mind_dev_pointwise_valid"]} == {
        (f"(none yet)\n{ask}\n- t7", "Yes."),
        (f"(none yet)\n{ask}\n- t8", "No."),
    }


def test_next_click_by_hand(tmp_path, monkeypatch):
    monkeypatch.setattr("mindlab.prompts.next_click.NO_HISTORY_SHARE", 0.0)
    mind = a_week(
        [
            ("U1", 1, 9, [0, 1], [4, 5, 6], [0, 0, 1]),  # later than the next line
            ("U1", 0, 5, [0, 1], [2, 3], [1, 0]),
            ("U2", 0, 7, [], [8, 9], [0, 1]),
            ("U1", 5, 9, [0, 1], [7, 8], [1, 0]),
        ]
    )
    rows = read(
        tmp_path, build(mind, BuildOptions("dev", "next_click", history_length=4, interests=0), tmp_path)
    )
    outputs = {name: sorted(record["output"] for record in records) for name, records in rows.items()}
    assert outputs == {
        "mind_dev_next_click_fit": ["- t0\n- t1\n- t2\n- t6", "- t9"],
        "mind_dev_next_click_valid": ["- t0\n- t1\n- t7"],
        "mind_dev_next_click_train": ["- t1\n- t2\n- t6\n- t7", "- t9"],
    }


def test_next_click_by_interest_by_hand(monkeypatch):
    monkeypatch.setattr("mindlab.prompts.next_click.NO_HISTORY_SHARE", 0.0)
    mind = a_week(
        [
            ("U1", 0, 5, [0, 10, 1, 0, 11, 2], [3, 12], [1, 0]),  # "a": 0 1 2 3, and "b": 10 11
            ("U1", 1, 5, [0, 10, 1, 0, 11, 2], [4, 13], [0, 1]),  # "b" has three now
            ("U2", 0, 7, [5, 14], [6, 7], [0, 1]),  # no subcategory has three
        ]
    )

    def lists(interests):
        parts = next_click_parts(
            mind.splits["train"],
            mind.news.title,
            3,
            np.random.default_rng(0),
            mind.news.subcategory,
            interests,
        )
        return sorted(part.titles for part in parts)

    assert lists(1) == [["t1", "t2", "t3"], ["t10", "t11", "t13"]]
    assert lists(2) == [["t2", "t3", "t13"], ["t5", "t14", "t7"]]
    assert lists(0) == [["t2", "t3", "t13"], ["t5", "t14", "t7"]]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_fast_way_writes_the_same_bytes(sample, language, monkeypatch):
    """Titles with quotes, backslashes, control characters and other scripts; histories that are empty or long."""
    news = replace(sample.news, title=sample.news.title.copy())
    odd = [
        'He said "no"',
        "back\\slash",
        "tab\tline\nend",
        "新闻 — ünïcödé 🙂",
        "{history} {0} %s",
        "\x00\x1f",
    ]
    at = sample.splits["train"].news[:600]
    news.title[at] = [odd[i % len(odd)] for i in range(len(at))]
    form, titles = LikesDislikes(language), neutral_titles(news)
    train = sample.splits["train"].take(np.random.default_rng(1).permutation(1500))
    monkeypatch.setattr("mindlab.prompts.records.IMPRESSIONS", 400)
    write = pickle.loads(pickle.dumps(TutorialWriter(form, titles)))  # as another process gets it
    found = [write(block) for block in blocks(train, form.history_length)]
    simple = [form.record(parts) for parts in likes_dislikes_parts(train, titles)]
    text = "".join(f",\n{json.dumps(record, ensure_ascii=False)}" for record in simple)
    assert b"".join(part.data for part in found).decode() == text
    assert sum(part.records for part in found) == len(simple)
    assert sum(part.yes for part in found) == sum(record["output"] == "Yes." for record in simple)


def test_next_topic_by_hand(tmp_path, monkeypatch):
    monkeypatch.setattr("mindlab.prompts.next_topic.NO_HISTORY_SHARE", 0.0)
    monkeypatch.setattr("mindlab.prompts.next_topic.TOPICS_ASKED", 2)
    mind = a_week(
        [
            ("U1", 1, 9, [0, 10], [1, 11, 2], [0, 0, 1]),  # later than the next line: 0 10 3 2
            ("U1", 0, 5, [0, 10], [3, 4], [1, 0]),
            ("U2", 0, 7, [], [8, 9], [0, 1]),  # one click: nothing comes before it
            ("U1", 5, 9, [0, 10], [12, 8], [1, 0]),
        ]
    )
    a, b = (f"{mind.news.category[n]}, {mind.news.subcategory[n]}" for n in (0, 10))
    assert a != b
    rows = read(tmp_path, build(mind, BuildOptions("dev", "next_topic", history_length=2), tmp_path))
    found = {
        name: sorted((record["input"], record["output"]) for record in records)
        for name, records in rows.items()
    }
    assert found == {
        "mind_dev_next_topic_fit": [("- t0", b), ("- t0\n- t10", f"{a}\n{a}")],
        "mind_dev_next_topic_valid": [("- t0", f"{b}\n{b}")],
        "mind_dev_next_topic_train": [("- t0", f"{b}\n{a}"), ("- t10\n- t3", f"{a}\n{b}")],
    }


def test_a_topic_is_plain_text_too():
    news = replace(make_news(["t0"]), category=np.array(["<|user|>"]), subcategory=np.array(["[gMASK]"]))
    assert topics_of(news).tolist() == [neutralise("<|user|>, [gMASK]")] != ["<|user|>, [gMASK]"]


def test_a_data_set_without_a_record_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("mindlab.prompts.next_click.NO_HISTORY_SHARE", 0.0)
    monkeypatch.setattr("mindlab.prompts.next_topic.NO_HISTORY_SHARE", 0.0)
    mind = a_week([("U1", 0, 5, [0, 10], [3, 12], [1, 0]), ("U2", 5, 5, [1], [4, 5], [1, 0])])
    with pytest.raises(UserError, match=r"no user has 3 clicks in one subcategory \(--interests 0 asks"):
        build(mind, BuildOptions("dev", "next_click"), tmp_path)
    lonely = a_week([("U1", 0, 5, [], [3, 12], [1, 0]), ("U2", 5, 5, [], [4, 5], [1, 0])])
    with pytest.raises(UserError, match="no user has two clicks; give more data"):
        build(lonely, BuildOptions("dev", "next_topic"), tmp_path)
    assert not list(tmp_path.rglob("*.json"))


def test_next_click_has_one_record_per_reader_and_a_few_without_history(sample, tmp_path):
    options = BuildOptions("dev", "next_click", interests=0)
    rows = read(tmp_path, build(sample, options, tmp_path))
    readers = len(set(sample.splits["train"].users))
    alone = len(rows["mind_dev_next_click_train"]) - readers
    assert 0.02 <= alone / readers <= 0.09
    longest = max(record["output"].count("\n") for record in rows["mind_dev_next_click_train"])
    assert longest == NextClick.history_length - 1
    shuffled = sample.splits["train"].take(np.random.default_rng(0).permutation(3000))
    build(replace(sample, splits={"train": shuffled}), options, tmp_path / "again")
    name = "processed/mind_dev_next_click_train.json"
    assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_split_without_impressions_is_told_in_one_line(tmp_path):
    mind = a_week([("U1", 5, 5, [], [7, 8], [1, 0])])
    with pytest.raises(UserError, match="the fit split of protocol dev holds no impression"):
        build(mind, BuildOptions("dev", "pointwise"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_foreign_entries_stay_and_an_unchanged_file_stays_untouched(sample, tmp_path):
    path = tmp_path / "dataset_info.json"
    foreign = {"identity": {"file_name": "身份.json"}, "mind": {"file_name": "old.json"}}
    path.write_text(json.dumps(foreign, indent=4, ensure_ascii=False), encoding="utf-8")
    options = BuildOptions("seed", "likes_dislikes", limit=10)
    build(sample, options, tmp_path)
    info = json.loads(path.read_text(encoding="ascii"))  # LLaMA-Factory opens it in the locale's encoding
    assert list(info) == ["identity", "mind", "mind_test"]
    assert info["identity"] == foreign["identity"]
    assert info["mind"]["file_name"] == "processed/mind_train.json"
    path.write_text(json.dumps(info, indent=7), encoding="ascii")  # somebody else's hand
    before = path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino
    build(sample, options, tmp_path)
    assert (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) == before


def test_a_broken_dataset_info_is_the_users_to_mend(sample, tmp_path):
    (tmp_path / "dataset_info.json").write_text('{\n"a": 1,\n}', encoding="ascii")
    with pytest.raises(UserError, match=r"dataset_info.json: not JSON .*line [23] column"):
        build(sample, BuildOptions("seed", "likes_dislikes", limit=5), tmp_path)
    assert (tmp_path / "dataset_info.json").read_text() == '{\n"a": 1,\n}'


def test_is_built_sees_other_options_other_data_and_other_bytes(sample, tmp_path):
    options, inputs = BuildOptions("seed", "likes_dislikes", limit=10), {"news.tsv": "1"}
    assert not is_built(tmp_path, options, inputs)
    build(sample, options, tmp_path, inputs_sha256=inputs)
    assert is_built(tmp_path, options, inputs)
    assert not is_built(tmp_path, replace(options, limit=11), inputs)
    assert not is_built(tmp_path, options, {"news.tsv": "2"})
    with (tmp_path / "processed" / "mind_test.json").open("a") as file:
        file.write(" ")
    assert not is_built(tmp_path, options, inputs)


def test_link_to_copies_the_files_and_merges_the_entries(sample, tmp_path):
    out, factory = tmp_path / "out", tmp_path / "LLaMA-Factory"
    (factory / "data").mkdir(parents=True)
    (factory / "data" / "dataset_info.json").write_text('{"identity": {"file_name": "identity.json"}}')
    manifest = build(sample, BuildOptions("seed", "likes_dislikes", limit=10), out)
    build(sample, BuildOptions("dev", "next_click", limit=10), out)  # not to be linked
    link_to(out, factory, list(manifest["datasets"]))
    info = json.loads((factory / "data" / "dataset_info.json").read_text())
    assert list(info) == ["identity", "mind", "mind_test"]
    for name in manifest["datasets"]:
        file = info[name]["file_name"]
        assert (factory / "data" / file).read_bytes() == (out / file).read_bytes()
    with pytest.raises(UserError, match="no such folder"):
        link_to(out, tmp_path / "nowhere", ["mind"])


# Shortening


@pytest.fixture(params=["glm4", pytest.param("smollm2", marks=pytest.mark.model)])
def counting(request):
    """A model folder, its chat template, and a cutoff_len at which many samples are too long."""
    folder = request.getfixturevalue({"glm4": "tiny_glm", "smollm2": "smollm2"}[request.param])
    chat = request.getfixturevalue({"glm4": "glm4_chat", "smollm2": "smollm2_chat"}[request.param])
    return folder, chat, {"glm4": 700, "smollm2": 300}[request.param]


def test_the_control_holds_the_same_titles_in_other_lists(sample, tmp_path):
    made = {}
    for is_control in (False, True):
        options = BuildOptions("dev", "next_click", permute_titles=is_control)
        rows = read(tmp_path, build(sample, options, tmp_path))["mind_dev_next_click_train"]
        made[is_control] = [record["output"].split("\n") for record in rows]
    plain, control = made[False], made[True]
    assert [len(lines) for lines in control] == [len(lines) for lines in plain]
    assert sorted(chain(*control)) == sorted(chain(*plain))
    category = {f"- {neutralise(t)}": c for t, c in zip(sample.news.title, sample.news.category, strict=True)}

    def share_alike(lists):
        """Return how often two neighbours in a list are of one category."""
        pairs = [(category[a], category[b]) for lines in lists for a, b in pairwise(lines)]
        return np.mean([a == b for a, b in pairs])

    assert share_alike(plain) > 2 * share_alike(control)
    with pytest.raises(UserError, match="next_click or next_topic alone, not with pointwise"):
        build(sample, BuildOptions("dev", "pointwise", permute_titles=True), tmp_path)


def test_the_control_of_next_topic_shows_other_readers_titles_for_the_same_topics(sample, tmp_path):
    made = {}
    for is_control in (False, True):
        options = BuildOptions("dev", "next_topic", permute_titles=is_control)
        made[is_control] = read(tmp_path, build(sample, options, tmp_path))["mind_dev_next_topic_train"]
    plain, control = ([record["input"].split("\n") for record in made[kind]] for kind in (False, True))
    assert [record["output"] for record in made[True]] == [record["output"] for record in made[False]]
    assert [len(lines) for lines in control] == [len(lines) for lines in plain]
    assert sorted(chain(*plain)) == sorted(chain(*control))
    category = {f"- {neutralise(t)}": c for t, c in zip(sample.news.title, sample.news.category, strict=True)}
    category["(none yet)"] = None

    def share_alike(lists):
        """Return how often the latest title and the next topic are of one category."""
        pairs = zip(lists, made[False], strict=True)
        return np.mean([category[lines[-1]] == record["output"].split(",")[0] for lines, record in pairs])

    assert share_alike(plain) > 1.5 * share_alike(control)


def test_a_format_brings_its_own_history_length():
    found = [BuildOptions(protocol, form).history_length for protocol, form in PAIRS]
    assert found == [PROMPTS[form].history_length for _, form in PAIRS]
    assert BuildOptions("dev", "next_click", history_length=2).history_length == 2


def some_parts(sample, titles, protocol, form, n):
    options = BuildOptions(protocol, form, history_length=30, interests=0)
    train = sample.splits["train"].take(np.random.default_rng(1).permutation(3000)[:n])
    source = Source(train, sample.news, titles, options, np.random.default_rng(2))
    return list(PROMPTS[form]().samples(source))[:n]


def n_dropped(form, part, record):
    """Return how many titles the record leaves out."""
    return next(k for k in range(form.droppable(part) + 1) if form.record(part, k) == record)


@pytest.mark.parametrize(("protocol", "form"), PAIRS)
def test_a_shortened_sample_is_never_cut_and_loses_no_title_too_many(
    sample, titles, counting, protocol, form
):
    _, chat, cutoff_len = counting
    parts = some_parts(sample, titles, protocol, form, 120)
    made, done = PROMPTS[form](), Shortening()
    budget = Budget(chat.count, chat.estimate, cutoff_len)
    rows = list(records(made, parts, budget, done))
    whole = factory_rows(chat, rows)
    fits = [len(ids) <= cutoff_len for ids, _ in whole]
    assert factory_rows(chat, [r for r, f in zip(rows, fits, strict=True) if f], cutoff_len) == [
        w for w, f in zip(whole, fits, strict=True) if f
    ]  # LLaMA-Factory cuts nothing
    assert fits.count(False) == done.still_too_long
    dropped = [n_dropped(made, part, row) for part, row in zip(parts, rows, strict=True)]
    for part, row, k, is_fit in zip(parts, rows, dropped, fits, strict=True):
        assert is_fit or k == made.droppable(part)
        assert row["output"] == made.record(part, k)["output"]
        if form == "likes_dislikes":
            assert row["input"].endswith(f'\nWhether the user will like the target news "{part.target}"?')
        elif form == "pointwise":
            assert row["input"].endswith(f"Answer Yes. or No.\n- {part.candidate}")
        elif form == "next_topic":
            assert row["output"] == "\n".join(part.topics)
            assert row["input"].endswith(f"- {part.history[-1]}" if k < len(part.history) else "(none yet)")
        else:
            assert row["output"].endswith(f"- {part.titles[-1]}")
    shortened = [(part, k) for part, k, is_fit in zip(parts, dropped, fits, strict=True) if k and is_fit]
    assert len(shortened) >= 30
    for ids, _ in factory_rows(chat, [made.record(part, k - 1) for part, k in shortened]):
        assert len(ids) > cutoff_len  # one title more would not fit
    assert done.checked == len(parts)
    assert done.shortened == sum(k > 0 for k in dropped)
    assert done.titles_dropped == sum(dropped)
    assert cutoff_len - SLACK < max(len(ids) for ids, _ in whole)


@pytest.mark.parametrize("form", [name for name, prompt in PROMPTS.items() if prompt.trains])
def test_very_short_and_very_long_titles_are_dropped_one_by_one_too(glm4_chat, form):
    rng = random.Random(0)
    words = ["Hi", "A", "No", "B c", "1", "Why", "The news of the day " * 6, "北京" * 20]
    form = PROMPTS[form]()
    for cutoff_len in range(200, 300, 2):
        titles = rng.choices(words, k=60)
        part = {
            "next_click": NextClickParts(titles),
            "next_topic": NextTopicParts(titles, ["a, b"]),
            "pointwise": PointwiseParts(titles, "Hi", True),
            "pointwise_topics": PointwiseParts(titles, "Hi", True),
            "summary": SummaryParts("Hi there.", titles, "Hi", True),
            "likes_dislikes": LikesDislikesParts(["A"], ["B"], titles, "C", True),
        }[form.name]
        budget, done = Budget(glm4_chat.count, glm4_chat.estimate, cutoff_len), Shortening()
        (row,) = records(form, [part], budget, done)
        k = n_dropped(form, part, row)
        assert k > 0
        if done.still_too_long:
            assert k == form.droppable(part)
        else:
            assert glm4_chat.count(row) <= budget.cutoff_len < glm4_chat.count(form.record(part, k - 1))


def test_the_only_like_stays_and_none_is_invented(glm4_chat):
    dislikes = [f"Title number {i} that nobody clicked" for i in range(60)]
    budget = Budget(glm4_chat.count, glm4_chat.estimate, 400)
    for likes in (["The like"], ["The like", *dislikes]):
        part = LikesDislikesParts(["h"], likes, dislikes, "The target", False)
        (row,) = records(LikesDislikes(), [part], budget, Shortening())
        lines = row["input"].split("\n")
        assert lines[1].startswith('User likes: "The like"')
        assert lines[2].startswith("User dislikes: ")
        assert glm4_chat.count(row) <= 400
    (row,) = records(LikesDislikes(), [replace(part, likes=[])], budget, Shortening())
    assert row["input"].split("\n")[1] == "User likes: "
    # Too small for anything: the like and the target stay all the same, and it is counted.
    done = Shortening()
    (row,) = records(LikesDislikes(), [part], replace(budget, cutoff_len=50), done)
    assert 'User likes: "The like"\nUser dislikes: \n' in row["input"]
    assert done.still_too_long == 1


@pytest.mark.parametrize(("protocol", "form"), PAIRS)
def test_the_estimate_is_within_its_slack(sample, titles, counting, protocol, form):
    _, chat, _ = counting
    rows = [PROMPTS[form]().record(part) for part in some_parts(sample, titles, protocol, form, 60)]
    exact = [len(ids) for ids, _ in factory_rows(chat, rows)]
    assert [chat.count(row) for row in rows] == exact
    assert max(abs(a - b) for a, b in zip(chat.estimate(rows), exact, strict=True)) <= SLACK


def test_build_with_a_model_writes_only_samples_that_fit(sample, counting, tmp_path):
    folder, chat, cutoff_len = counting
    options = BuildOptions(
        "seed", "likes_dislikes", limit=30, model=str(folder), template=chat.name, cutoff_len=cutoff_len
    )
    manifest = build(sample, options, tmp_path, make_budget(options))
    for name, rows in read(tmp_path, manifest).items():
        tokens = manifest["datasets"][name]["tokens"]
        lengths = [len(ids) for ids, _ in factory_rows(chat, rows)]
        assert sum(length > cutoff_len for length in lengths) == tokens["still_too_long"]
        assert max(lengths) == tokens["longest"]
        assert tokens["checked"] == len(rows)
        assert tokens["cutoff_len"] == cutoff_len
        assert tokens["shortened"] > 0


# The command line


def test_the_script_builds_links_and_ends_with_the_path(run, tmp_path):
    (tmp_path / "factory").mkdir()
    words = ("--data", SAMPLE, "--protocol", "dev", "--format", "next_click", "--limit", 20)
    code, out, err = run(*words, "--out", tmp_path / "data", "--link-to", tmp_path / "factory")
    assert code == 0
    assert out.splitlines()[-1] == str(tmp_path / "data" / "processed")
    assert "records, tokens unchecked" in err
    for name in NAMES["next_click"].values():
        path = tmp_path / "factory" / "data" / "processed" / name
        assert path.read_bytes() == (tmp_path / "data" / "processed" / name).read_bytes()
    info = json.loads((tmp_path / "factory" / "data" / "dataset_info.json").read_text())
    assert list(info) == list(NAMES["next_click"])
    inputs = json.loads((tmp_path / "data" / "processed" / "mind_dev_next_click.manifest.json").read_text())
    files = [SAMPLE / split / name for split in ("dev", "train") for name in ("behaviors.tsv", "news.tsv")]
    assert inputs["inputs_sha256"] == {path.as_posix(): sha256(path) for path in files}


def test_no_shorten_keeps_the_bytes_and_says_unchecked(run, tiny_glm, glm4_chat, tmp_path, monkeypatch):
    monkeypatch.setattr("mindlab.prompts.chat.ChatTemplate.load", lambda *_: glm4_chat)
    words = ("--data", SAMPLE, "--protocol", "seed", "--format", "likes_dislikes", "--limit", 20)
    model = ("--model", tiny_glm, "--template", "glm4", "--cutoff-len", 500)
    assert run(*words, "--out", tmp_path / "plain")[0] == 0
    assert run(*words, "--out", tmp_path / "kept", *model, "--no-shorten")[0] == 0
    code, _, err = run(*words, "--out", tmp_path / "short", *model)
    assert code == 0
    assert "do not fit even at their shortest" in err
    plain, kept, short = (bytes_of(tmp_path / name) for name in ("plain", "kept", "short"))
    assert plain == kept
    assert plain["mind_train.json"] != short["mind_train.json"]
    tokens = {n: json.loads(b["mind.manifest.json"])["datasets"]["mind"]["tokens"] for n, b in
              (("plain", plain), ("kept", kept), ("short", short))}  # fmt: skip
    assert tokens["plain"] == tokens["kept"] == "unchecked"
    assert tokens["short"]["shortened"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--protocol", "mine", "--format", "pointwise"], "protocol 'mine': expected seed, dev"),
        (["--protocol", "seed", "--format", "pointwise"], "protocol 'seed' with format 'pointwise'"),
        (["--protocol", "dev", "--format", "likes_dislikes"], "expected one of seed x likes_dislikes"),
        (
            ["--protocol", "dev", "--format", "pointwise", "--negatives", "0"],
            "--negatives 0: expected at least 1",
        ),
        (
            ["--protocol", "dev", "--format", "pointwise", "--history", "0"],
            "--history 0: expected at least 1",
        ),
        (["--protocol", "dev", "--format", "pointwise", "--limit", "0"], "--limit 0: expected at least 1"),
        (["--protocol", "dev", "--format", "pointwise", "--limit", "-3"], "--limit -3: expected at least 1"),
        (
            ["--protocol", "dev", "--format", "pointwise", "--cutoff-len", "0"],
            "--cutoff-len 0: expected at least 1",
        ),
        (
            ["--protocol", "dev", "--format", "pointwise", "--model", "x"],
            "--model and --template go together",
        ),
        (["--protocol", "dev", "--format", "pointwise", "--data", "/nowhere"], "/nowhere"),
        (["--protocol", "dev", "--format", "summary"], "protocol 'dev' with format 'summary'"),
        (
            ["--protocol", "sampled", "--format", "summary", "--summary", "recurrent"],
            "is written by a model; give --model and --template",
        ),
        (
            [
                "--protocol",
                "dev",
                "--format",
                "pointwise",
                "--summary",
                "recurrent",
                "--model",
                "x",
                "--template",
                "y",
            ],
            "--summary recurrent goes with format summary alone, not with pointwise",
        ),
        (["--protocol", "dev", "--format", "pointwise", "--link-to", "/nowhere"], "/nowhere: no such folder"),
    ],
)
def test_a_users_mistake_ends_in_one_line_and_code_2(run, tmp_path, words, message):
    code, out, err = run("--data", SAMPLE, "--out", tmp_path / "out", *words)
    assert code == 2
    assert out == ""
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_script_itself_ends_with_code_2_and_no_traceback(tmp_path):
    words = ["--data", SAMPLE, "--protocol", "seed", "--format", "pointwise", "--out", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "build_dataset.py", *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: protocol 'seed' with format 'pointwise'")
