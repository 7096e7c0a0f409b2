"""Preference summaries: blocks, rounds, faults, kills, and what never comes into one; the writer here is foreseeable."""

import json
import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mindlab import report
from mindlab.common.errors import UserError
from mindlab.data.mind import read_mind
from mindlab.data.synthetic import make_sample
from mindlab.finetune.alpaca import BuildOptions, build, is_built, share_of_yes, texts_written
from mindlab.llm.summaries import BLOCK, Summariser, read_summary
from mindlab.llm.writing import HFWriter
from mindlab.prompts import neutral_titles
from mindlab.prompts.special_tokens import PATTERN
from mindlab.recommenders import llm, smollm2
from mindlab.recommenders.base import Prepared
from mindlab.report import written_text
from mindlab.runs.compare import names_of
from mindlab.tasks import Sampled
from mindlab.tasks.sampled import INTERACTIONS
from tests.asked import ask
from tests.conftest import ROOT
from tests.handmade import make_impressions, make_news, make_run, random_impressions
from tests.unit.runs.test_llm_runs import KilledError, killed_after

SAMPLE = ROOT / "data/sample"
TITLES = neutral_titles(make_news([f"t{k}" for k in range(40)]))


class Quoting:
    """A writer that says in order which titles and texts it was asked about: "[t0 t1]." """

    batch = 4
    asked, batches, kill_at, spoilt = [], 0, None, {}

    def __init__(self, model, template, max_new_tokens):
        self.model = model
        self.tokens_read = self.tokens_written = 0

    def about(self):
        return {"writer": "quoting", "model": self.model, "spoilt": sorted(self.spoilt)}

    def write(self, records):
        if Quoting.batches == Quoting.kill_at:
            raise KilledError
        Quoting.batches += 1
        Quoting.asked += [record["input"] for record in records]
        self.tokens_read += 10 * len(records)
        self.tokens_written += 3 * len(records)
        return [self.answer(record["input"]) for record in records]

    def answer(self, text):
        said = " ".join(re.findall(r"\[.*\]|\bt\d+\b", text))
        return self.spoilt.get(said, f"[{said}].")


@pytest.fixture(autouse=True)
def _nothing_asked(monkeypatch):
    for name, value in (("asked", []), ("batches", 0), ("kill_at", None), ("spoilt", {})):
        monkeypatch.setattr(Quoting, name, value)


def users(*histories):
    rows = [(f"U{k}", k, history, [38, 39], [1, 0]) for k, history in enumerate(histories)]
    return make_impressions(rows).without_labels()


def summarise(way, impressions, cache, titles=TITLES):
    return Summariser("m", "glm4", way, cache=cache, make_writer=Quoting)(impressions, titles)


def quoted(first, end):
    return " ".join(f"t{k}" for k in range(first, end))


class TestWays:
    def test_hierarchical_puts_the_summaries_of_the_blocks_together(self, tmp_path):
        found = summarise("hierarchical", users(range(12), [7, 8, 9], []), tmp_path)
        assert found.texts == [f"[[{quoted(0, 5)}] [{quoted(5, 10)}] [{quoted(10, 12)}]].", "[t7 t8 t9].", ""]
        assert [text.count("\n") for text in Quoting.asked] == [2, 3, 5, 5, 3]  # by length, in two rounds
        assert {key: found.cost[key] for key in ("answers", "usable", "tokens_read", "tokens_written")} == {
            "answers": 5, "usable": 5, "tokens_read": 50, "tokens_written": 15,
        }  # fmt: skip

    def test_more_blocks_than_one_question_holds_take_a_round_more(self, tmp_path):
        n = BLOCK * BLOCK + 2
        found = summarise("hierarchical", users(range(n)), tmp_path)
        blocks = [f"[{quoted(k, min(k + BLOCK, n))}]" for k in range(0, n, BLOCK)]
        assert found.texts == [f"[[{' '.join(blocks[:BLOCK])}] {blocks[BLOCK]}]."]
        assert found.cost["answers"] == len(blocks) + 2, "a text that is alone is not asked about"

    def test_recurrent_takes_each_block_with_the_summary_so_far(self, tmp_path):
        found = summarise("recurrent", users(range(12), range(20, 27)), tmp_path)
        first, second = f"[{quoted(0, 5)}]", f"[{quoted(20, 25)}]"
        assert found.texts == [
            f"[[{first} {quoted(5, 10)}] {quoted(10, 12)}].",
            f"[{second} {quoted(25, 27)}].",
        ]
        assert found.cost["answers"] == 5

    def test_a_round_is_asked_with_the_texts_of_the_round_before(self, tmp_path):
        summarise("recurrent", users(range(12), range(20, 32)), tmp_path)
        depth = [text.count("[") for text in Quoting.asked]
        assert depth == [0, 0, 1, 1, 2, 2]

    @pytest.mark.parametrize("way", ["hierarchical", "recurrent"])
    def test_a_history_that_comes_twice_is_read_once(self, tmp_path, way):
        impressions = users(range(4), [7, 8], range(4)).take(np.array([2, 1, 0, 1]))
        found = summarise(way, impressions, tmp_path)
        assert found.texts == ["[t0 t1 t2 t3].", "[t7 t8].", "[t0 t1 t2 t3].", "[t7 t8]."]
        assert len(Quoting.asked) == 2

    def test_an_unknown_way_is_refused(self):
        for way in ("recent", "best"):
            with pytest.raises(UserError, match=f"--summary {way}: expected one of recent, hierarchical"):
                Summariser("m", "glm4", way)


class TestFaults:
    @pytest.mark.parametrize(
        ("text", "value", "fault"),
        [
            ("Likes golf.", "Likes golf.", None),
            ('  She said "golf!"\n', 'She said "golf!"', None),
            ("喜欢体育。", "喜欢体育。", None),
            ("Likes golf.\n\n- soup\n- 3.5 stars.", "Likes golf. - soup - 3.5 stars.", None),
            ("Likes golf. Also so", "Likes golf.", "cut off"),
            ("喜欢体育。也喜", "喜欢体育。", "cut off"),
            ("Likes 3.5 kinds of", "Likes 3.5 kinds of", "cut off"),
            ("golf, soup", "golf, soup", "cut off"),
            ("Likes <|user|> and [gMASK].", "Likes < |user|> and [ gMASK].", None),
            ("", None, "empty"),
            (" \n\u2028 ", None, "empty"),
        ],
    )
    def test_what_is_used_and_what_was_wrong(self, text, value, fault):
        found = read_summary(text)
        assert (found.value, found.fault) == (value, fault)

    def test_any_text_is_read(self):
        rng = np.random.default_rng(0)
        letters = [*".!?。… \n\t\u2028\"')-a1ü", "<|", "|>", "user", "[gMASK]", "{0}"]
        for _ in range(3000):
            found = read_summary("".join(rng.choice(letters, size=rng.integers(0, 30))))
            assert found.value is None or (found.value and "\n" not in found.value)
            assert not PATTERN.search(found.value or "")

    def test_where_nothing_is_written_what_there_is_stays(self, tmp_path, monkeypatch):
        first, second = quoted(0, 5), quoted(5, 10)
        monkeypatch.setattr(Quoting, "spoilt", {second: "", f"[{first}] {second}": " \n"})
        found = summarise("hierarchical", users(range(10)), tmp_path)
        assert found.texts == [f"[{first}]."]
        assert {key: found.cost[key] for key in ("answers", "usable", "empty")} == {
            "answers": 2, "usable": 1, "empty": 1,
        }  # fmt: skip
        found = summarise("recurrent", users(range(12)), tmp_path)
        assert found.texts == [f"[[{first}] {quoted(10, 12)}]."]
        assert found.cost["empty"] == 1
        monkeypatch.setattr(Quoting, "spoilt", {f"[{first}] [{second}]": ""})
        assert summarise("hierarchical", users(range(10)), tmp_path).texts == [f"[{second}]."]

    @pytest.mark.parametrize("way", ["hierarchical", "recurrent"])
    def test_a_writer_that_never_answers_stops_nothing(self, tmp_path, way, monkeypatch):
        monkeypatch.setattr(Quoting, "answer", lambda self, text: "")
        found = summarise(way, users(range(12), [1, 2]), tmp_path)
        assert found.texts == ["", ""]
        assert found.cost["usable"] == 0
        assert found.cost["empty"] == found.cost["answers"] == 4
        said = written_text("x", "summaries", found.cost)
        assert said.startswith("x: 4 summaries written in ")
        assert said.endswith(", 0 of use (empty 4).")


@pytest.mark.parametrize("way", ["hierarchical", "recurrent"])
def test_a_run_that_was_killed_ends_in_the_same_bytes(tmp_path, way, monkeypatch):
    impressions = users(*(range(k, k + n) for k, n in enumerate((12, 3, 25, 10, 17, 6, 11))))
    whole = summarise(way, impressions, tmp_path / "whole")
    n = Quoting.batches
    assert n > 5
    for kill_at in range(n):
        monkeypatch.setattr(Quoting, "batches", 0)
        monkeypatch.setattr(Quoting, "kill_at", kill_at)
        cache = tmp_path / f"killed-{kill_at}"
        with pytest.raises(KilledError):
            summarise(way, impressions, cache)
        monkeypatch.setattr(Quoting, "batches", 0)
        monkeypatch.setattr(Quoting, "kill_at", None)
        found = summarise(way, impressions, cache)
        assert Quoting.batches == n - kill_at, "what was written is not written again"
        assert found.texts == whole.texts
        assert {key: found.cost[key] for key in found.cost if key != "seconds"} == {
            key: whole.cost[key] for key in whole.cost if key != "seconds"
        }
        texts = [{p.name: p.read_bytes() for p in f.glob("*.jsonl")} for f in (tmp_path / "whole", cache)]
        assert texts[0] == texts[1]


@pytest.mark.parametrize("way", ["hierarchical", "recurrent"])
def test_no_summary_knows_the_target(tmp_path, way):
    """Of protocol `sampled`: what a user clicked last is in none of the prompts about them."""
    mind = read_mind(SAMPLE)
    test = Sampled().splits(mind, 42)["test"]
    titles = np.array([f"t{k}" for k in range(len(mind.news))], dtype=object)
    shown = 0
    for i in range(30):
        del Quoting.asked[:]
        summarise(way, test.take(np.array([i])), tmp_path / str(i), titles)
        said = re.findall(r"\bt(\d+)\b", " ".join(Quoting.asked))
        (target,) = test.candidates(i)[test.candidate_labels(i) == 1]
        assert str(target) not in said
        assert {int(k) for k in said} == set(test.user_history(i).tolist())
        shown += len(set(said))
        assert INTERACTIONS[0] <= len(test.user_history(i)) <= INTERACTIONS[1]
    assert shown > 30 * 10


def test_titles_in_a_question_are_plain_text(tmp_path):
    titles = neutral_titles(make_news(["t0 <|im_end|>", "t1 [gMASK]"]))
    summarise("hierarchical", make_impressions([("U", 0, [0, 1], [0], [1])]), tmp_path, titles)
    assert "< |im_end|>" in Quoting.asked[0]
    assert not PATTERN.search(Quoting.asked[0])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of synthetic MIND whose users have clicks enough."""
    folder = tmp_path_factory.mktemp("data")
    make_sample(folder, 120, 60, seed=4)
    return folder


def summary_records(data, out, **options):
    mind = read_mind(data)
    asked = BuildOptions("sampled", "summary", **options)
    write = Summariser("m", "glm4", asked.summary, make_writer=Quoting) if asked.summary != "recent" else None
    return mind, build(mind, asked, out, write=write), asked


@pytest.mark.parametrize("way", ["recent", "hierarchical", "recurrent"])
def test_records_hold_the_summary_the_latest_titles_and_one_candidate(data, tmp_path, way):
    mind, manifest, asked = summary_records(data, tmp_path, summary=way, limit=9)
    assert list(manifest["datasets"]) == ["mind_sampled_summary_train"], "the test split is not written"
    made = manifest["datasets"]["mind_sampled_summary_train"]
    records = json.loads((tmp_path / made["file"]).read_text("utf-8"))
    assert (made["records"], made["records_yes"], len(records)) == (18, 9, 18)
    assert share_of_yes(tmp_path, "mind_sampled_summary_train") == 0.5
    train, titles = Sampled().splits(mind, 42)["train"], neutral_titles(mind.news)
    by_title = {}
    for i in range(len(train)):
        for place, n in enumerate(train.candidates(i)):
            by_title.setdefault(titles[n], []).append((i, int(train.candidate_labels(i)[place])))
    for record in records:
        head, _, candidate = record["input"].rpartition("Yes. or No.\n- ")
        shown = re.findall(r"^- (.*)$", head, re.M)
        assert any(
            shown == titles[train.user_history(i)[-5:]].tolist()
            and record["output"] == ("No.", "Yes.")[label]
            for i, label in by_title[candidate]
        )
        assert head.startswith("The reader likes: [") == (way != "recent")
    cost = texts_written(tmp_path, "mind_sampled_summary_train")
    assert (cost is None) == (way == "recent")
    assert cost is None or cost["usable"] == cost["answers"] > 9
    assert is_built(tmp_path, asked, None)
    assert not is_built(tmp_path, replace(asked, limit=8), None)


def test_summaries_and_their_writer_go_together(data, tmp_path):
    mind = read_mind(data)
    for way, write in (("recent", Summariser("m", "glm4", "recurrent")), ("recurrent", None)):
        with pytest.raises(ValueError, match="`write` makes those that a model writes"):
            build(mind, BuildOptions("sampled", "summary", summary=way), tmp_path, write=write)
    with pytest.raises(UserError, match="--summary best: expected one of recent"):
        build(mind, BuildOptions("sampled", "summary", summary="best"), tmp_path)


@pytest.fixture
def request_of(data, tiny_glm, glm4_chat, monkeypatch):
    monkeypatch.setattr(llm, "PART_SIZE", {"hf": 3})
    monkeypatch.setattr("mindlab.prompts.chat.ChatTemplate.load", lambda *_: glm4_chat)
    base = ask(str(data), "sampled", "summary", str(tiny_glm), "glm4", limit=5)
    return lambda **options: base.but(**options)


def scores(run):
    return pq.read_table(run / "predictions.parquet")["score"].to_numpy()


def test_a_run_killed_while_writing_or_scoring_ends_in_the_same_bytes(request_of, tmp_path, monkeypatch):
    """With a model whose texts are noise: that stops nothing, and is counted."""
    asked, real, killed = request_of(summary="hierarchical"), HFWriter.write, []

    def write(self, records):
        if len(killed) < 2 and self.tokens_written:  # behind a writer's first batch
            killed.append(len(records))
            raise KilledError
        return real(self, records)

    monkeypatch.setattr(HFWriter.__init__, "__defaults__", (None, 12, None, 4, None, None))
    monkeypatch.setattr("mindlab.llm.writing.CACHE", tmp_path / "cache-killed")
    monkeypatch.setattr(HFWriter, "write", write)
    for _ in range(2):
        with pytest.raises(KilledError):
            asked.run(tmp_path / "killed")
    with pytest.raises(KilledError):
        asked.run(tmp_path / "killed", killed_after(4))
    assert len(killed) == 2
    assert list((tmp_path / "killed/parts").iterdir())
    asked.run(tmp_path / "killed")
    monkeypatch.setattr("mindlab.llm.writing.CACHE", tmp_path / "cache-whole")
    asked.run(tmp_path / "whole")
    files = [(tmp_path / name / "predictions.parquet").read_bytes() for name in ("killed", "whole")]
    assert files[0] == files[1]
    texts = [
        {p.name: p.read_bytes() for p in (tmp_path / f"cache-{name}").glob("*.jsonl")}
        for name in ("killed", "whole")
    ]
    assert texts[0] == texts[1] != {}
    written = json.loads((tmp_path / "whole/manifest.json").read_text())["texts_written"]
    (cost,) = written.values()
    assert list(written) == ["summaries of test users"]
    assert cost["answers"] > 5
    assert cost["cut off"] > 0
    row = report.leaderboard_row(tmp_path / "whole")
    assert row["writing_seconds"] == cost["seconds"] > 0
    assert row["recall5"] is not None


def test_the_summary_is_in_the_prompt_that_is_scored(request_of, tmp_path, monkeypatch):
    monkeypatch.setattr(Summariser.__init__, "__defaults__", ("en", tmp_path, Quoting, 60))
    runs = [request_of(summary=way).run(tmp_path / way) for way in ("recent", "recurrent")]
    assert not np.array_equal(*map(scores, runs))
    again = request_of(summary="recurrent", seed=42).run(tmp_path / "again")
    assert np.array_equal(scores(runs[1]), scores(again))


def test_a_worker_has_the_texts_and_writes_none(request_of, tmp_path, monkeypatch):
    monkeypatch.setattr(Summariser.__init__, "__defaults__", ("en", tmp_path, Quoting, 60))
    work = request_of(summary="recurrent").work()
    there = pickle.loads(pickle.dumps(work))
    n = len(Quoting.asked)
    assert n > 5
    assert there.prepared == work.prepared
    assert set(there.prepared.texts) == set(work.whole.history[work.rows].tolist())
    assert len(Quoting.asked) == n
    assert pickle.loads(pickle.dumps(request_of().work())).prepared == Prepared({}, None)


def test_a_format_without_a_place_for_it_refuses_a_summary(request_of, tmp_path):
    asked = request_of(protocol="dev", format="pointwise", summary="recurrent")
    with pytest.raises(UserError, match="goes with format summary alone, not with pointwise"):
        asked.run(tmp_path / "run")
    with pytest.raises(UserError, match="protocol dev does not go with format summary"):
        request_of(protocol="dev").run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_shift_of_an_adapter_trained_on_as_many_yes_as_no(request_of, data, tmp_path, monkeypatch):
    """Half of the records are a Yes, one of 21 candidates is: log 20."""
    summary_records(data, tmp_path, limit=9)
    settings = {"dataset_dir": str(tmp_path), "dataset": "mind_sampled_summary_train"}
    monkeypatch.setattr(llm.factory, "settings_of", lambda _: settings)
    found = request_of(adapter="a").work().recommender._shift()
    assert found == pytest.approx(np.log(20))
    assert request_of().work().recommender._shift() is None


def test_the_rows_belong_to_sampled_alone():
    rows = {method.name: method for method in smollm2.of_summaries()}
    assert set(rows) <= set(names_of("sampled"))
    assert not set(rows) & {*names_of("dev"), *names_of("sampled-impression")}
    assert "smollm2-recent-lora" in rows["smollm2-recurrent-lora"].against


def test_the_table_has_a_column_for_writing(tmp_path):
    make = {"impressions": random_impressions(np.random.default_rng(0), n=60)}
    cost = {"answers": 9, "usable": 8, "empty": 1, "seconds": 75.0, "tokens_read": 1, "tokens_written": 1}
    plain = make_run(tmp_path / "popularity", 0.2, 1, **make)
    wrote = make_run(tmp_path / "wrote", 0.3, 2, texts_written={"a": cost, "b": cost}, **make)
    without, board = report.leaderboard([plain]), report.leaderboard([plain, wrote])
    assert [row["writing_seconds"] for row in board["rows"]].count(150.0) == 1
    line = next(x for x in report.as_text(board).splitlines() if x.startswith("wrote "))
    assert "  2.5 min  " in line
    assert "writing" in report.as_text(board).splitlines()[2]
    assert "9 a written in 75.0 s, 8 of use (empty 1)." in report.as_text(board)
    assert "| training | writing |" in report.as_markdown(board)
    page = report.write_leaderboard(tmp_path / "page", board).read_text("utf-8")
    assert "<th>writing</th>" in page
    assert "<td>2.5 min</td>" in page
    for text in (report.as_text(without), report.as_markdown(without)):
        assert "writing" not in text
    assert "<th>writing</th>" not in report.write_leaderboard(tmp_path / "none", without).read_text("utf-8")


@pytest.mark.slow
@pytest.mark.model
def test_the_small_model_writes_and_is_scored_beside_the_others(smollm2, tmp_path, monkeypatch):
    """Two users: scripts/compare.py gives the row without a summary, the one with it, and the difference."""
    from mindlab.common import cli
    from scripts import compare

    names = ["popularity", "smollm2-recent-base", "smollm2-hierarchical-base"]
    words = ["--data", "data/sample", "--protocol", "sampled", "--only", ",".join(names), "--limit", "2"]
    monkeypatch.setattr("sys.argv", ["compare.py", *words, "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        cli.run(compare.main)
    assert end.value.code == 0
    rows = {row["name"]: row for row in json.loads((tmp_path / "leaderboard.json").read_text("utf-8"))}
    assert set(rows) == set(names)
    against = [entry["against"] for entry in rows[names[2]]["paired"]]
    assert set(against) == {"popularity", names[1]}
    assert rows[names[2]]["writing_seconds"] > 0
    assert rows[names[1]]["writing_seconds"] is None
    assert Path(tmp_path / "report.html").is_file()
