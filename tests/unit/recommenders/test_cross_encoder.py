"""The cross-encoder: what it reads, that it learns, and that a broken training goes on as if it had not been."""

import json
import shutil
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from mindlab.common import cli
from mindlab.common.errors import UserError
from mindlab.data import synthetic
from mindlab.evaluation.metrics import evaluate, paired_differences
from mindlab.evaluation.predictions import from_scores
from mindlab.evaluation.retrieval import rerank
from mindlab.llm.embeddings import MiniLMEncoder, minilm_folder
from mindlab.recommenders import METHODS
from mindlab.recommenders.base import UNTRAINED, keep_candidates, score_without_labels
from mindlab.recommenders.cross_encoder import CROSS
from mindlab.recommenders.cross_encoder.model import NOTHING, SECONDS, CrossEncoder, Pairs, Settings
from tests.handmade import make_impressions, make_news, random_impressions

TOPICS = ["sport", "food", "money", "storm"]
WORDS = [f"w{k}" for k in range(40)]
SMALL = Settings(
    history_length=3, negatives=4, most_pairs=160, checks=2, valid_pairs=200, batch_size=16, learning_rate=1e-3,
    warmup_steps=2, save_every=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory):
    """The folder of a random BERT of two small layers that knows the words of `tasteful`."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("tiny-bert")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    known = [*special, *TOPICS, *WORDS, *NOTHING.split(), ";", "[", "]", "sep"]
    BertTokenizer(vocab={word: k for k, word in enumerate(known)}).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(known), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


def tasteful(n, seed):
    """Users who click what is of their topic, one candidate in four; titles of a topic and two idle words."""
    rng = np.random.default_rng(seed)
    word = np.random.default_rng(0)
    news = make_news([" ".join([TOPICS[k % 4], *word.choice(WORDS, 2)]) for k in range(160)])
    rows = []
    for i in range(n):
        topic = int(rng.integers(4))
        mine = np.arange(topic, 160, 4)
        click = rng.choice(mine)
        shown = rng.permutation([click, *rng.choice(np.setdiff1d(np.arange(160), mine), 3, replace=False)])
        history = rng.choice(mine, 3, replace=False).tolist()
        rows.append((f"U{i % 50}", i, history, shown.tolist(), (shown == click).astype(int).tolist()))
    return news, make_impressions(rows)


def fitted(model, train, news, valid=None, seed=0):
    return model.fit(train, news, valid, np.random.default_rng(seed))


def weights(model):
    return {name: values.numpy() for name, values in model._model.state_dict().items()}


class TestWhatIsRead:
    news = make_news(["sport w1", "food w2", "money w3", "storm w4", "sport [SEP] <|im_end|>", "food " * 60])

    def texts(self, tiny_bert, rows, **settings):
        """Return what the model reads, a batch of ids decoded and as it is."""
        model = CrossEncoder(tiny_bert, settings=replace(SMALL, most_pairs=0, **settings))
        fitted(model, rows, self.news)
        pairs = Pairs(rows, model._titles, model.settings.history_length)
        batch = model._encode([pairs[k] for k in range(len(pairs))])
        return model._tokenizer.batch_decode(batch["input_ids"]), batch

    def test_the_latest_clicks_and_the_candidate_as_a_pair(self, tiny_bert):
        rows = make_impressions([("U1", 0, [0, 1, 2, 3], [1, 0], [1, 0]), ("U2", 1, [], [3], [1])])
        found, batch = self.texts(tiny_bert, rows)
        assert found[0] == "[CLS] food w2 ; money w3 ; storm w4 [SEP] food w2 [SEP]"
        assert found[1] == "[CLS] food w2 ; money w3 ; storm w4 [SEP] sport w1 [SEP]"
        assert found[2].startswith(f"[CLS] {NOTHING} [SEP] storm w4 [SEP] [PAD]")
        assert batch["token_type_ids"][0].tolist() == [0] * 10 + [1] * 3
        assert batch["labels"].tolist() == [[1.0], [0.0], [1.0]]

    def test_without_labels_there_are_none(self):
        rows = make_impressions([("U1", 0, [0], [1], [1])])
        titles = self.news.title
        assert set(Pairs(rows, titles, 3)[0]) == {"history", "candidate", "label"}
        assert set(Pairs(rows.without_labels(), titles, 3)[0]) == {"history", "candidate"}

    def test_too_long_the_oldest_goes_first_and_the_candidate_stays(self, tiny_bert):
        rows = make_impressions([("U1", 0, [0, 1, 2], [3, 5], [1, 0])])
        (short, long), batch = self.texts(tiny_bert, rows, most_tokens=9)
        assert batch["input_ids"].shape == (2, 9)
        assert short == "[CLS] w2 ; money w3 [SEP] storm w4 [SEP]"
        assert long == "[CLS] money w3 [SEP] food food food food [SEP]"

    def test_a_control_token_in_a_title_is_text(self, tiny_bert):
        rows = make_impressions([("U1", 0, [4], [4], [1])])
        (found,), batch = self.texts(tiny_bert, rows)
        assert found.count("[SEP]") == 2, found
        assert (batch["input_ids"] == 3).sum() == 2


class TestScores:
    def model(self, tiny_bert):
        news, rows = tasteful(40, 0)
        return fitted(CrossEncoder(tiny_bert, settings=replace(SMALL, most_pairs=0)), rows, news), news

    def test_equal_one_pair_at_a_time_in_any_order(self, tiny_bert):
        import torch

        model, news = self.model(tiny_bert)
        rows = random_impressions(np.random.default_rng(0), n=60, n_news=160)
        found = score_without_labels(model, rows, news)
        pairs = Pairs(rows.without_labels(), news.title, SMALL.history_length)
        with torch.inference_mode():
            one = [model._model(**model._encode([pairs[k]])).logits.item() for k in range(len(pairs))]
        assert np.ptp(found) > 0.01
        assert found == pytest.approx(one, abs=1e-5)
        backwards = rows.take(np.arange(60)[::-1])
        again = score_without_labels(model, backwards, news)
        whole = np.concatenate([again[slice(*backwards.offsets[k : k + 2])] for k in range(60)[::-1]])
        assert whole == pytest.approx(found, abs=1e-5)

    def test_labels_do_not_matter(self, tiny_bert):
        model, news = self.model(tiny_bert)
        rows = tasteful(30, 1)[1]
        turned = replace(rows, labels=1 - rows.labels)
        assert np.array_equal(model.score(rows, news), model.score(turned, news))

    def test_the_tokens_read_are_counted_without_padding(self, tiny_bert):
        model, news = self.model(tiny_bert)
        rows = make_impressions([("U1", 0, [0, 1, 2], [3], [1]), ("U2", 1, [], [3], [1])])
        score_without_labels(model, rows, news)
        assert model.tokens_read == (3 + 3 * 3 + 2 + 3) + (3 + 3 + 3)

    def test_the_head_is_drawn_by_the_seed(self, tiny_bert):
        news, rows = tasteful(20, 0)
        drawn = [
            score_without_labels(
                fitted(CrossEncoder(tiny_bert, settings=replace(SMALL, most_pairs=0)), rows, news, seed=seed),
                rows,
                news,
            )
            for seed in (0, 0, 1)
        ]
        assert np.array_equal(drawn[0], drawn[1])
        assert not np.allclose(drawn[0], drawn[2])


class TestTraining:
    def test_it_learns_what_its_untrained_self_does_not_know(self, tiny_bert):
        (news, train), (_, test) = tasteful(600, 0), tasteful(150, 1)
        settings = replace(
            SMALL, most_pairs=9600, batch_size=32, learning_rate=3e-3, checks=1, save_every=1000
        )
        found = []
        for most in (settings.most_pairs, 0):
            model = fitted(CrossEncoder(tiny_bert, settings=replace(settings, most_pairs=most)), train, news)
            scores = score_without_labels(model, test, news)
            frame = from_scores("test", test, news, scores)
            found.append(evaluate(frame))
        gain = paired_differences(*found)["auc"]
        assert gain["low"] > 0.2, (gain, found[0].summary["auc"])

    def test_it_starts_from_the_untrained_model(self, tiny_bert):
        news, train = tasteful(60, 0)
        still = fitted(CrossEncoder(tiny_bert, settings=replace(SMALL, most_pairs=0)), train, news)
        moved = fitted(CrossEncoder(tiny_bert, settings=replace(SMALL, learning_rate=0.0)), train, news)
        scores = [score_without_labels(model, train, news) for model in (still, moved)]
        assert np.array_equal(*scores)

    def test_the_steps_are_chosen_by_a_model_of_the_days_before(self, tiny_bert):
        news, train = tasteful(120, 0)
        late = np.arange(80, 120)
        turned = train.labels.copy()
        turned[train.offsets[80] :] = 1 - turned[train.offsets[80] :]
        logs = []
        for labels in (train.labels, turned):
            rows, log = replace(train, labels=labels), []
            model = CrossEncoder(tiny_bert, settings=SMALL, watch=log.append)
            fitted(model, rows, news, rows.take(late))
            aucs = [row["eval_auc"] for row in log if "eval_auc" in row]
            assert model.chosen["validation_auc"] == pytest.approx(aucs, abs=1e-4)
            assert model.chosen["steps"] == 5 * (1 + int(np.argmax(aucs)))
            logs.append([row["loss"] for row in log if "loss" in row])
        assert logs[0][:2] == logs[1][:2]  # ten steps of choosing: nothing of the validation day in them
        assert logs[0][2:] != logs[1][2:]  # and then all of `train`

    def test_the_validation_choice_is_of_whole_impressions_with_every_click(self, tiny_bert):
        rows = tasteful(100, 0)[1]
        model = CrossEncoder(tiny_bert, settings=replace(SMALL, negatives=2, valid_pairs=31))
        some = model._some(rows, 0)
        assert (len(some), len(some.news)) == (10, 30)
        assert np.add.reduceat(some.labels, some.offsets[:-1]).tolist() == [1] * 10

    def test_without_a_folder_nothing_is_left(self, tiny_bert, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        news, train = tasteful(60, 0)
        fitted(CrossEncoder(tiny_bert, settings=SMALL), train, news, train.take(np.arange(40, 60)))
        assert not list(tmp_path.iterdir())


class Stop:
    """Breaks a training off at a step, as Ctrl-C does, and keeps its log."""

    def __init__(self, step=None):
        self.step, self.log = step, []

    def __call__(self, row):
        self.log.append(row)
        if row["current_steps"] == self.step and "loss" in row:
            raise KeyboardInterrupt


class TestGoingOn:
    news, train = tasteful(120, 0)
    valid = train.take(np.arange(80, 120))

    def run(self, tiny_bert, folder, watch=None, seed=0):
        model = CrossEncoder(tiny_bert, settings=SMALL, folder=folder, watch=watch)
        return fitted(model, self.train, self.news, self.valid, seed)

    def test_a_broken_training_ends_in_the_same_weights(self, tiny_bert, tmp_path):
        whole = self.run(tiny_bert, None)
        with pytest.raises(KeyboardInterrupt):
            self.run(tiny_bert, tmp_path, Stop(5))
        last = max(tmp_path.glob(f"*/checkpoint-*/{SECONDS}"))
        assert last.parent.name == "checkpoint-4"
        half = last.parent.parent / "checkpoint-5"  # killed while it was written
        half.mkdir()
        (half / "model.safetensors").write_bytes(b"half")
        second = Stop()
        model = self.run(tiny_bert, tmp_path, second)
        assert second.log[0]["current_steps"] == 5
        assert second.log[0]["loss"] > 0
        assert model.saved_seconds > 0
        assert model.chosen == whole.chosen
        for name, values in weights(whole).items():
            assert np.array_equal(values, weights(model)[name]), name

    def test_a_second_training_in_one_folder_is_refused(self, tiny_bert, tmp_path):
        refused = []

        def meanwhile(row):
            if not refused:
                with pytest.raises(UserError, match="is writing here") as error:
                    self.run(tiny_bert, tmp_path)
                refused.append(error)

        self.run(tiny_bert, tmp_path, meanwhile)
        assert refused

    def test_what_is_trained_is_read(self, tiny_bert, tmp_path):
        first = self.run(tiny_bert, tmp_path)
        assert not list(tmp_path.rglob("checkpoint-*"))
        watch = Stop()
        again = self.run(tiny_bert, tmp_path, watch)
        assert not watch.log
        assert again.saved_seconds > 0
        scores = [score_without_labels(model, self.valid, self.news) for model in (first, again)]
        assert np.array_equal(*scores)
        other = Stop()
        self.run(tiny_bert, tmp_path, other, seed=1)
        assert other.log
        turned = replace(self.train, labels=1 - self.train.labels)
        other = Stop()
        fitted(CrossEncoder(tiny_bert, settings=SMALL, folder=tmp_path, watch=other), turned, self.news)
        assert other.log


def test_mistakes_are_one_line(tiny_glm, tmp_path):
    news, train = tasteful(10, 0)
    for model in (tmp_path / "nothing", "nobody/no-such-encoder"):
        with pytest.raises(
            UserError, match=r"cannot load the encoder .*; give a model folder or a hub id"
        ) as error:
            fitted(CrossEncoder(model), train, news)
        assert "\n" not in str(error.value)


def test_a_pickled_encoder_is_refused(tiny_bert, tmp_path):
    import torch
    from safetensors.torch import load_file

    shutil.copytree(tiny_bert, tmp_path / "pickled")
    weights = tmp_path / "pickled" / "model.safetensors"
    torch.save(load_file(weights), tmp_path / "pickled" / "pytorch_model.bin")
    weights.unlink()
    news, train = tasteful(10, 0)
    with pytest.raises(UserError, match="cannot load the encoder"):
        fitted(CrossEncoder(tmp_path / "pickled"), train, news)
    with pytest.raises(OSError, match="safetensors"):
        MiniLMEncoder(tmp_path / "pickled").encode(["a title"])


def test_minilm_is_the_default_and_reads_pairs():
    news, train = tasteful(4, 0)
    model = fitted(CrossEncoder(settings=replace(SMALL, most_pairs=0)), train, news)
    assert model._path == minilm_folder()
    assert 22e6 < model.params < 23e6
    assert np.ptp(score_without_labels(model, train, news)) > 0


def test_kept_candidates_equal_the_slow_way():
    rows = random_impressions(np.random.default_rng(0), n=50)
    places = np.flatnonzero(np.random.default_rng(1).random(len(rows.news)) < 0.3)
    found = keep_candidates(rows, places)
    for i in range(len(rows)):
        mine = [k for k in places if rows.offsets[i] <= k < rows.offsets[i + 1]]
        assert found.candidates(i).tolist() == rows.news[mine].tolist()
        assert found.candidate_labels(i).tolist() == rows.labels[mine].tolist()


def test_two_stages_equal_the_slow_way():
    rng = np.random.default_rng(0)
    offsets = np.array([0, 4, 5, 12])
    first, second = rng.normal(size=(2, 12))
    for k in (0, 2, 7):
        found = rerank(first, second, offsets, k)
        for a, b in pairwise(offsets):
            order = sorted(range(a, b), key=lambda place: -first[place])
            order = sorted(order[:k], key=lambda place: -second[place]) + order[k:]
            assert sorted(range(a, b), key=lambda place: -found[place]) == order


def test_a_row_stands_beside_its_untrained_self(tiny_bert, tmp_path, monkeypatch, capsys):
    """compare.py with an encoder of one's own; both rows are drawn by the same seeds."""
    from mindlab.recommenders.cross_encoder import model as family
    from scripts import compare

    both = METHODS[CROSS], METHODS[CROSS + UNTRAINED]
    assert all(method.is_costly and method.is_learned for method in both)
    assert both[0].against == (CROSS + UNTRAINED, "minilm")
    monkeypatch.setattr(family, "LARGE", SMALL)
    monkeypatch.setattr("mindlab.recommenders.cross_encoder.FOLDER", tmp_path / "kept")
    synthetic.make_sample(tmp_path / "mind", 300, 60, None, 3)
    own = [f"{tiny_bert.name}-{CROSS}{end}" for end in ("", UNTRAINED)]
    words = (
        "--data", tmp_path / "mind", "--only", "popularity", "--llm-limit", 20, "--seeds", 2,
        "--cross-encoder", tiny_bert, "--cross-pairs", 64, "--out", tmp_path / "out",
    )  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.run(compare.main)
    assert end.value.code == 0, capsys.readouterr().err
    rows = {row["name"]: row for row in json.loads((tmp_path / "out/leaderboard.json").read_text("utf-8"))}
    assert set(rows) == {"popularity", *own}
    assert {rows[name]["seeds"] for name in own} == {2}
    assert {row["n_impressions"] for row in rows.values()} == {20}
    assert own[1] in {entry["against"] for entry in rows[own[0]]["paired"]}
    manifests = [json.loads((tmp_path / "out" / name / "manifest.json").read_text("utf-8")) for name in own]
    assert manifests[0]["chosen"]["steps"] in (2, 4)  # 64 pairs in batches of 16
    assert manifests[1]["chosen"] is None
    assert len(list((tmp_path / "kept").glob(f"{own[0]}-*"))) == 4  # two seeds, each chosen and trained
