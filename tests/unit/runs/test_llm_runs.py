"""mindlab.recommenders.llm through mindlab.runs.run: whole runs, killed runs, and who may see a label."""

import json
import sys

import numpy as np
import pytest

from mindlab.common.errors import UserError
from mindlab.data.mind import read_mind
from mindlab.data.synthetic import make_sample
from mindlab.evaluation.predictions import read_predictions
from mindlab.llm import lists
from mindlab.llm.ask import Asking, Scored, make_scorer, orders_of
from mindlab.llm.engine import Engine
from mindlab.llm.options import Options, template_of
from mindlab.llm.writing import HFWriter
from mindlab.recommenders import llm
from mindlab.runs import run as runner
from mindlab.tasks import Dev, Seed, limit
from tests.asked import ask
from tests.handmade import make_impressions, make_news


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of synthetic MIND: 60 and 40 impressions."""
    folder = tmp_path_factory.mktemp("data")
    make_sample(folder, 60, 40, seed=2)
    return folder


@pytest.fixture
def request_of(data, tiny_glm, glm4_chat, monkeypatch):
    """Build a request on the tiny GLM; parts are three cases long."""
    monkeypatch.setattr(llm, "PART_SIZE", {"hf": 3})
    monkeypatch.setattr("mindlab.prompts.chat.ChatTemplate.load", lambda *_: glm4_chat)

    def request_of(form="next_click", **options):
        protocol = "seed" if form == "likes_dislikes" else "dev"
        base = ask(str(data), protocol, form, str(tiny_glm), "glm4", limit=8, history_length=3)
        return base.but(**options)

    return request_of


class FakeEngine(Engine):
    n_parameters = 5


@pytest.fixture
def fake_scorer(monkeypatch):
    """Take the model's place; keep every impression asked for."""
    asked = []

    def make_scorer(options, news, candidates=(), *_, **__):
        engine = FakeEngine()

        def score(impressions):
            found = []
            for i in range(len(impressions)):
                impression = impressions.take(np.array([i]))
                asked.append(impression)
                engine.tokens_read += 10
                scores = np.sin(impression.news.astype(float) + impression.ids[0])
                found.append(Scored(np.arange(len(scores)), scores))
            return found

        return score, engine

    monkeypatch.setattr(llm, "make_scorer", make_scorer)
    return asked


class KilledError(Exception):
    """Stands for a power cut."""


def killed_after(n):
    """Return a progress callback that dies before case n."""

    def progress(cases, done, total):
        for i, case in enumerate(cases):
            if i == n:
                raise KilledError
            yield case

    return progress


def rows_of(run):
    return read_predictions(run / "predictions.parquet").to_pylist()


@pytest.mark.parametrize("bulk", [1, 5])
@pytest.mark.parametrize("kills", [[0], [2], [3], [4], [7], [1, 4, 2]])
def test_a_killed_run_goes_on_and_loses_and_doubles_nothing(
    request_of, fake_scorer, tmp_path, monkeypatch, kills, bulk
):
    monkeypatch.setattr(FakeEngine, "bulk", bulk)
    whole = rows_of(request_of().run(tmp_path / "whole"))
    assert len(fake_scorer) == 8
    del fake_scorer[:]
    run = tmp_path / "killed"
    n_kept = 0
    for n in kills:
        with pytest.raises(KilledError):
            request_of().run(run, killed_after(n))
        assert not (run / "predictions.parquet").exists()
        assert not (run / "manifest.json").exists()
        n_kept += n // 3 * 3
        assert len(list((run / "parts").glob("*"))) == n_kept // 3  # whole parts alone, no temporary file
    seen = []

    def progress(cases, done, total):
        seen.append((done, total))
        return iter(cases)

    del fake_scorer[:]
    assert request_of().run(run, progress) == run
    assert seen == [(n_kept, 8)]
    assert len(fake_scorer) == 8 - n_kept  # nothing is scored again that was done
    assert rows_of(run) == whole
    assert not (run / "parts").exists()
    manifest = json.loads((run / "manifest.json").read_text())
    assert (manifest["tokens"], manifest["tokens_per_impression"]) == (80, 10.0)
    assert (manifest["n_impressions"], manifest["params"]) == (8, 5)


def test_a_readers_impressions_follow_each_other_and_the_file_is_in_the_splits_order(
    request_of, fake_scorer, tmp_path
):
    rows = rows_of(request_of(limit=None).run(tmp_path / "run"))
    readers = [impression.history[0] for impression in fake_scorer]
    turns = [b for a, b in zip([None, *readers], readers, strict=False) if a != b]
    assert len(turns) == len(set(readers)) < len(readers)  # each user once, some with several impressions
    asked = [int(impression.ids[0]) for impression in fake_scorer]
    assert asked != sorted(asked)
    places = [(row["case_id"], row["position"]) for row in rows]
    assert places == sorted(places)
    assert len({case for case, _ in places}) == len(readers) == 40


def test_a_run_killed_in_the_middle_goes_on_with_a_real_model(request_of, tmp_path):
    whole = rows_of(request_of().run(tmp_path / "whole"))
    run = tmp_path / "killed"
    with pytest.raises(KilledError):
        request_of().run(run, killed_after(5))
    resumed = rows_of(request_of().run(run))
    assert resumed == whole  # to the last bit, though the term without history was read anew
    assert np.std([row["score"] for row in whole]) > 1e-3


def test_a_run_killed_between_its_last_two_files_is_finished(request_of, fake_scorer, tmp_path, monkeypatch):
    real = runner.write_json

    def write_json(path, value):
        if path.name == "manifest.json":
            raise KilledError
        real(path, value)

    monkeypatch.setattr(runner, "write_json", write_json)
    with pytest.raises(KilledError):
        request_of().run(tmp_path)
    monkeypatch.setattr(runner, "write_json", real)
    del fake_scorer[:]
    request_of().run(tmp_path)
    assert fake_scorer == []
    assert len({row["case_id"] for row in rows_of(tmp_path)}) == 8


def test_a_finished_run_is_left_alone_and_loads_no_model(request_of, fake_scorer, tmp_path, monkeypatch):
    request_of().run(tmp_path)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    assert sorted(path.name for path in before) == ["manifest.json", "predictions.parquet", "request.json"]

    def refuse(*_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(llm, "make_scorer", refuse)
    monkeypatch.setattr(runner, "read_mind", refuse)
    assert request_of().run(tmp_path) == tmp_path
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()} == before
    with pytest.raises(AssertionError, match="a model was loaded"):
        request_of().run(tmp_path / "other")


@pytest.mark.parametrize("change", [{"limit": 7}, {"form": "pointwise"}, {"seed": 1}, {"cutoff_len": 900}])
@pytest.mark.parametrize("is_finished", [True, False])
def test_another_request_in_the_same_folder_is_refused(
    request_of, fake_scorer, tmp_path, change, is_finished
):
    if is_finished:
        request_of().run(tmp_path)
    else:
        with pytest.raises(KilledError):
            request_of().run(tmp_path, killed_after(4))
    with pytest.raises(UserError, match="holds another run"):
        request_of(**change).run(tmp_path)


def test_other_contents_of_the_same_files_are_another_request(request_of, fake_scorer, tmp_path, data):
    request_of().run(tmp_path / "run")
    path = data / "dev" / "news.tsv"
    before = path.read_bytes()
    try:
        path.write_bytes(before.replace(b"More on", b"More of"))
        with pytest.raises(UserError, match="holds another run"):
            request_of().run(tmp_path / "run")
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("form", ["next_click", "pointwise", "next_topic"])
@pytest.mark.parametrize("split", ["test", "valid"])
def test_predictions_carry_labels_that_the_scorer_never_sees(
    request_of, fake_scorer, data, tmp_path, form, split
):
    rows = rows_of(request_of(form, split=split).run(tmp_path))
    assert len(fake_scorer) == 8
    assert all(impression.labels is None for impression in fake_scorer)
    whole = Dev().splits(read_mind(data))[split]
    news = read_mind(data).news
    cases = limit(len(whole), 8, 42)
    expected = [
        (int(i), int(whole.ids[i]), whole.users[i], position, news.ids[n], int(label))
        for i in cases
        for position, (n, label) in enumerate(
            zip(whole.candidates(i), whole.candidate_labels(i), strict=True)
        )
    ]
    names = ("case_id", "impression_id", "user_id", "position", "news_id", "label")
    assert [tuple(row[name] for name in names) for row in rows] == expected
    assert {row["label"] for row in rows} == {0, 1}
    assert {(row["split"], row["answer"]) for row in rows} == {(split, None)}


def test_seed_scores_the_last_slot_and_keeps_the_answer(request_of, data, tmp_path):
    request = request_of("likes_dislikes", cutoff_len=900)
    rows = rows_of(request.run(tmp_path))
    test = Seed().splits(read_mind(data), 42)["test"]
    cases = limit(len(test), 8, 42)
    assert [row["case_id"] for row in rows] == cases.tolist()
    for row, i in zip(rows, cases, strict=True):
        assert row["impression_id"] == test.ids[i]
        assert row["position"] == len(test.candidates(i)) - 1
        assert row["news_id"] == read_mind(data).news.ids[test.candidates(i)[-1]]
        assert row["label"] == test.candidate_labels(i)[-1]
        assert isinstance(row["answer"], str)
        assert np.isfinite(row["score"])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert (manifest["protocol"], manifest["track"]) == ("seed", "static")
    assert manifest["request"]["format"] == "likes_dislikes"
    assert "git_commit" in manifest
    assert manifest["inputs_sha256"]


def test_pointwise_drops_history_until_the_longest_candidate_fits(tiny_glm, glm4_chat, monkeypatch):
    """All candidates share the history; the one with most tokens, not most characters, decides."""
    prompts = []

    class Engine(FakeEngine):
        def __init__(self, *_):
            pass

        def last_logits(self, prefix, lines, tokens):
            prompts.extend([*prefix, *line] for line in lines)
            return np.zeros((len(lines), 2))

    monkeypatch.setattr("mindlab.llm.hf.HFEngine", Engine)
    monkeypatch.setattr("mindlab.prompts.chat.ChatTemplate.load", lambda *_: glm4_chat)
    longest = 180
    titles = [*(f"Headline {i}" for i in range(8)), "a" * 20, "龘" * 18]
    impression = make_impressions([("U1", 0, list(range(8)), [8, 9], [1, 0])])
    asked = Options("pointwise", str(tiny_glm), "glm4", cutoff_len=longest)
    score, _ = make_scorer(asked, make_news(titles))
    score(impression.without_labels())
    assert len(prompts) == 2
    n_answer = 3  # No, the full stop and the end
    assert max(map(len, prompts)) + n_answer <= longest
    texts = [glm4_chat.tokenizer.decode(prompt) for prompt in prompts]
    shown = [[i for i in range(8) if f"Headline {i}\n" in text] for text in texts]
    assert shown[0] == shown[1] == list(range(shown[0][0], 8))
    assert 0 < shown[0][0] < 8


def test_a_request_that_cannot_be_met_leaves_nothing_behind(request_of, tmp_path):
    for change, message in (
        ({"protocol": "seed"}, "does not go with"),
        ({"protocol": "mine"}, "expected seed, dev"),
        ({"split": "best"}, "has no split 'best', only fit, valid, train, test"),
        ({"engine": "warp"}, "engine 'warp': expected hf or vllm"),
        ({"limit": 0}, "expected at least 1"),
        ({"adapter": str(tmp_path / "none")}, "cannot put the adapter"),
    ):
        with pytest.raises(UserError, match=message):
            request_of(**change).run(tmp_path / "run")
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "listwise", "protocol": "sampled"}, "protocol sampled does not go with format listwise"),
        ({"form": "pointwise", "base_url": "http://x/v1"}, "--base-url goes with --format json_list alone"),
        ({"form": "listwise", "thinking": True}, "--thinking goes with --format json_list alone"),
        ({"form": "pointwise", "constrained": True}, "--constrained goes with --format json_list alone"),
        ({"form": "pointwise", "orders": 2}, "--orders goes with --format listwise alone"),
        ({"form": "json_list", "thinking": True, "constrained": True}, "give one of them"),
        ({"form": "json_list", "engine": "vllm"}, "--base-url can"),
        ({"form": "json_list", "base_url": "http://x/v1", "adapter": "a"}, "--adapter does not go with"),
        ({"form": "json_list", "base_url": "http://x/v1", "constrained": True}, "--constrained does not go"),
        ({"form": "json_list", "base_url": "x/v1"}, "--base-url"),
    ],
)
def test_options_that_do_not_go_together_are_told(request_of, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        request_of(**options).run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("form", ["recency", "in_context", "listwise"])
def test_what_only_asks_scores_every_candidate_and_a_kill_changes_no_byte(request_of, tmp_path, form):
    whole = request_of(form).run(tmp_path / "whole")
    with pytest.raises(KilledError):
        request_of(form).run(tmp_path / "killed", killed_after(4))
    killed = request_of(form).run(tmp_path / "killed")
    files = [(run / "predictions.parquet").read_bytes() for run in (whole, killed)]
    assert files[0] == files[1]
    rows = rows_of(whole)
    asked = request_of(form).work()
    assert len(rows) == len(asked.whole.take(asked.rows).news)
    assert len({row["score"] for row in rows}) > len(rows) / 2
    assert all(np.isfinite(row["score"]) for row in rows)


def test_the_orders_of_a_list_are_the_requests_and_the_impressions_own(request_of, tmp_path):
    one, three = request_of("listwise", orders=1), request_of("listwise")
    assert [asked.options.orders for asked in (one, three, request_of())] == [1, 3, None]
    asking = Asking(three.options, 42, *[None] * 7)
    first, second, third = orders_of(asking, 5, 9)
    assert first.tolist() == list(range(9))
    assert sorted(second) == sorted(third) == list(range(9))
    assert second.tolist() != third.tolist()
    assert orders_of(asking, 5, 9)[1].tolist() == second.tolist()
    assert orders_of(asking, 6, 9)[1].tolist() != second.tolist()
    scores = [
        [row["score"] for row in rows_of(asked.run(tmp_path / str(k)))]
        for k, asked in enumerate((one, three))
    ]
    assert scores[0] != scores[1]


def test_a_list_of_noise_stops_nothing_and_a_kill_while_it_is_written_changes_no_byte(
    request_of, tmp_path, monkeypatch
):
    asked, real, killed = request_of("json_list"), HFWriter.write, []

    def write(self, records):
        if not killed and self.tokens_written:  # behind the first batch
            killed.append(len(records))
            raise KilledError
        return real(self, records)

    monkeypatch.setattr(lists, "TOKENS_EACH", 1)
    monkeypatch.setattr(lists, "AT_ONCE", 4)
    monkeypatch.setattr("mindlab.llm.writing.CACHE", tmp_path / "cache-whole")
    asked.run(tmp_path / "whole")
    monkeypatch.setattr("mindlab.llm.writing.CACHE", tmp_path / "cache-killed")
    monkeypatch.setattr(HFWriter, "write", write)
    with pytest.raises(KilledError):
        asked.run(tmp_path / "killed")
    assert killed
    with pytest.raises(KilledError):
        asked.run(tmp_path / "killed", killed_after(4))
    assert list((tmp_path / "killed/parts").iterdir())
    asked.run(tmp_path / "killed")
    files = [(tmp_path / name / "predictions.parquet").read_bytes() for name in ("killed", "whole")]
    assert files[0] == files[1]
    rows = rows_of(tmp_path / "whole")
    assert {(row["score"], row["answer"]) for row in rows} == {(lists.UNANSWERED, None)}
    manifest = json.loads((tmp_path / "whole/manifest.json").read_text())
    cost = manifest["texts_written"]["lists"]
    assert cost["answers"] >= 8
    assert cost["usable"] == 0
    assert cost["candidates without an answer"] == len(rows)
    assert manifest["seconds"] >= cost["seconds"] > 0
    assert manifest["tokens"] == cost["tokens_read"] + cost["tokens_written"]


def test_the_template_follows_from_the_model(tiny_glm, tmp_path):
    assert template_of(tiny_glm) == "glm4"
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert template_of(tmp_path) == "smollm2"
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    for folder in (tmp_path, tmp_path / "nothing", "zai-org/glm-4-9b-chat-hf"):
        with pytest.raises(UserError, match="give --template"):
            template_of(folder)


@pytest.fixture
def run_script(monkeypatch, capsys):
    """Run a script's main in this process; return its exit code, stdout and stderr."""
    from mindlab.common import cli
    from scripts import predict as predict_script

    def run(*words, script=predict_script):
        monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.run(script.main)
        captured = capsys.readouterr()
        return end.value.code, captured.out, captured.err

    return run


def test_the_script_ends_with_the_run_folder(run_script, request_of, data, tiny_glm, tmp_path):
    words = ("--data", data, "--protocol", "dev", "--format", "pointwise", "--model", tiny_glm)
    code, out, err = run_script(*words, "--limit", 2, "--out", tmp_path / "run")
    assert (code, out) == (0, f"{tmp_path / 'run'}\n")
    assert "2/2" in err
    assert (tmp_path / "run" / "predictions.parquet").is_file()
    code, out, err = run_script(*words, "--limit", 3, "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--limit", "0"], "--limit 0: expected at least 1"),
        (["--history", "0"], "--history 0: expected at least 1"),
        (["--token-budget", "0"], "--token-budget 0: expected at least 1"),
        (["--cutoff-len", "0"], "--cutoff-len 0: expected at least 1"),
        (["--model", "/nowhere"], "cannot tell the chat template of /nowhere"),
        (["--data", "/nowhere"], "/nowhere"),
    ],
)
def test_a_users_mistake_ends_in_one_line_and_code_2(
    run_script, request_of, data, tiny_glm, tmp_path, words, message
):
    words = ["--data", data, "--protocol", "dev", "--format", "pointwise", "--model", tiny_glm, *words]
    code, out, err = run_script(*words, "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("form", ["next_click", "pointwise"])
def test_own_headlines_get_the_scores_of_the_same_impression(request_of, data, tmp_path, form):
    request = request_of(form, limit=3)
    rows = rows_of(request.run(tmp_path / "run"))
    mind = read_mind(data)
    title_of = dict(zip(mind.news.ids, mind.news.title, strict=True))
    test = Dev().splits(mind)["test"]
    for case in limit(len(test), 3, 42):
        history = mind.news.title[test.user_history(case)].tolist()
        expected = {title_of[row["news_id"]]: row["score"] for row in rows if row["case_id"] == case}
        ranking = llm.rank_titles(request.options, history, list(expected))
        assert dict(ranking) == pytest.approx(expected, abs=1e-4)
        assert [score for _, score in ranking] == sorted((score for _, score in ranking), reverse=True)


def test_rank_reads_two_files_and_prints_a_ranking(run_script, request_of, tiny_glm, tmp_path):
    from scripts import rank

    request_of()
    (tmp_path / "history.txt").write_text(
        "\ufeff- A storm\n\nA game\n" + "More news\n" * 20, encoding="utf-8"
    )
    (tmp_path / "candidates.txt").write_text("A flood\nA match\n", encoding="utf-8")
    files = ["--history", tmp_path / "history.txt", "--candidates", tmp_path / "candidates.txt"]
    code, out, err = run_script(*files, "--model", tiny_glm, script=rank)
    assert code == 0
    assert sorted(line[15:] for line in out.splitlines()) == ["A flood", "A match"]
    assert "only the latest 12 of 22 clicks are read" in err
    code, out, _ = run_script(*files, "--model", tiny_glm, "--json", "--format", "pointwise", script=rank)
    assert [(row["rank"], row["title"] in ("A flood", "A match")) for row in json.loads(out)] == [
        (1, True),
        (2, True),
    ]


@pytest.mark.parametrize(
    ("history", "candidates", "message"),
    [
        (b"", b"A flood", "history.txt: holds no headline"),
        (b"A game", b" \n", "candidates.txt: holds no headline"),
        (b"A game", None, "candidates.txt: no such file"),
        (b"\xff\xfe", b"A flood", "history.txt: not a UTF-8 text file"),
    ],
)
def test_rank_names_the_file_that_is_wrong(run_script, tiny_glm, tmp_path, history, candidates, message):
    from scripts import rank

    (tmp_path / "history.txt").write_bytes(history)
    if candidates is not None:
        (tmp_path / "candidates.txt").write_bytes(candidates)
    files = ["--history", tmp_path / "history.txt", "--candidates", tmp_path / "candidates.txt"]
    code, out, err = run_script(*files, "--model", tiny_glm, script=rank)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_part_is_the_same_bytes_whatever_was_scored_before_it(request_of):
    """One user's impressions in two parts: the second would find the history read, and end in other digits."""
    request = request_of(limit=12)
    alone, after = request.work(), request.work()
    parts = [after.rows[i : i + 2] for i in range(0, 12, 2)]
    for part in parts:
        assert after(part).equals(alone(part))
        alone = request.work()
