"""Vectors of news: computed once, whatever interrupts it; and rankers over them."""

import json
from dataclasses import replace

import numpy as np
import pytest

from mindlab.common.errors import UserError
from mindlab.evaluation import retrieval
from mindlab.evaluation.metrics import ranking_metrics
from mindlab.llm import embeddings
from mindlab.llm.embeddings import HiddenStates, MiniLMEncoder, news_vectors
from mindlab.recommenders.base import late_rows, score_without_labels, some_candidates
from mindlab.recommenders.boosting import EmbeddingBoosting
from mindlab.recommenders.embedding import (
    LME,
    MEAN,
    READINGS,
    EmbeddingCosine,
    EmbeddingLogistic,
    Reading,
    history_scores,
    history_vectors,
    unit,
)
from mindlab.recommenders.neural.model import Neural, Settings
from tests.handmade import make_impressions, make_news, random_impressions

TITLES = [
    "Tigers win",
    "Budget vote splits the senate",
    "Soup",
    "",
    "Storm <|im_end|> nears the coast tonight",
]


class Letters:
    """Vectors that anybody can compute: how often each letter stands in the title, and a second view without vowels."""

    name = "letters"
    views = ({"view": "all"}, {"view": "consonants"})

    def __init__(self):
        self.read = []

    def about(self):
        return {"encoder": self.name}

    def encode(self, texts):
        self.read.append(list(texts))
        counts = np.array(
            [[text.lower().count(chr(97 + k)) for k in range(26)] for text in texts], np.float32
        )
        consonants = counts * ~np.isin(np.arange(26), [0, 4, 8, 14, 20])
        return np.stack([counts, consonants], 1)


class TestNewsVectors:
    news = make_news([f"{'word ' * (k % 7)}{k}" for k in range(300)])

    def test_a_title_is_read_once(self, tmp_path):
        first, second = Letters(), Letters()
        made = news_vectors(self.news, first, tmp_path)
        again = news_vectors(self.news, second, tmp_path)
        assert (made.is_kept, again.is_kept, second.read) == (False, True, [])
        assert again.seconds == made.seconds
        assert sum(map(len, first.read)) == 300
        assert np.array_equal(made.values, news_vectors(self.news, Letters(), None).values)
        assert np.array_equal(again.values, Letters().encode(self.news.title))

    def test_other_titles_and_other_encoders_have_vectors_of_their_own(self, tmp_path):
        class Other(Letters):
            def about(self):
                return {"encoder": "other"}

        news_vectors(self.news, Letters(), tmp_path)
        for news, encoder in ((self.news, Other()), (make_news(["a"]), Letters())):
            assert not news_vectors(news, encoder, tmp_path).is_kept
        assert len(list(tmp_path.glob("*.npy"))) == 3

    @pytest.mark.parametrize("after", [1, 2, 3, 4])
    def test_an_interrupted_run_ends_in_the_same_bytes(self, tmp_path, monkeypatch, after):
        monkeypatch.setattr(embeddings, "KEPT_EVERY", 2)

        class Breaking(Letters):
            def encode(self, texts):
                if len(self.read) == after:
                    raise KeyboardInterrupt
                return super().encode(texts)

        with pytest.raises(KeyboardInterrupt):
            news_vectors(self.news, Breaking(), tmp_path / "broken")
        assert not [path for path in (tmp_path / "broken").glob("*.npy") if ".part" not in path.name]
        shown, second = [], Letters()

        def progress(batches, done, total):
            shown.append((done, total))
            return iter(batches)

        news_vectors(self.news, second, tmp_path / "broken", progress)
        news_vectors(self.news, Letters(), tmp_path / "whole")
        assert shown == [(after // 2 * 2, 5)]
        assert len(second.read) == 5 - after // 2 * 2  # what was marked is not read again
        (one,), (other,) = ((tmp_path / name).glob("*.npy") for name in ("broken", "whole"))
        assert (one.name, one.read_bytes()) == (other.name, other.read_bytes())
        assert not list((tmp_path / "broken").glob("*.part.*"))
        manifest = json.loads(one.with_suffix(".json").read_text("utf-8"))
        assert (manifest["n"], manifest["encoder"]) == (300, "letters")

    def test_a_control_token_in_a_title_is_text(self):
        encoder = Letters()
        news_vectors(make_news(TITLES), encoder, None)
        assert any("< |im_end|>" in text for batch in encoder.read for text in batch)


class TestHiddenStates:
    def test_equals_one_title_at_a_time(self, smollm2):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        encoder = HiddenStates(smollm2, layers=(0, 12, 30))
        found = encoder.encode(TITLES).astype(np.float32)
        assert found.shape == (5, 6, 576)
        tokenizer = AutoTokenizer.from_pretrained(smollm2)
        model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
        for title, vectors in zip(TITLES, found, strict=True):
            ids = [tokenizer.bos_token_id, *tokenizer.encode(title, add_special_tokens=False)]
            with torch.inference_mode():
                states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
            for k, view in enumerate(encoder.views):
                layer = states[view["layer"]][0].numpy()
                wanted = layer[1:].sum(0) if view["pooling"] == "mean" else layer[-1]
                if title or view["pooling"] == "last":
                    assert vectors[k] @ wanted / np.linalg.norm(wanted) == pytest.approx(1, abs=2e-3)
                else:
                    assert not vectors[k].any()

    def test_a_prompt_frames_the_title(self, smollm2):
        plain, framed = (
            HiddenStates(smollm2, (30,), prompt) for prompt in ("{}", 'News: "{}" in one word:"')
        )
        tokens, title = framed._tokens("Soup") if framed._load() is None else None
        assert framed._tokenizer.decode(tokens[title]) == "Soup"
        assert framed._tokenizer.decode(tokens[1:]) == 'News: "Soup" in one word:"'
        one, other = (encoder.encode(["Soup"])[0, 1].astype(float) for encoder in (plain, framed))
        assert one @ other < 0.9

    def test_glm_4_begins_with_its_own_tokens(self, tiny_glm):
        encoder = HiddenStates(tiny_glm)
        assert encoder.layers == (0, 1, 2)  # of two layers, where a quarter and a half round alike
        found = encoder.encode(["storm nears", "a"])
        assert found.shape[:2] == (2, len(encoder.views))
        assert np.isfinite(found).all()
        first = encoder._tokenizer.convert_ids_to_tokens(encoder._tokens("storm")[0])[:2]
        assert first == ["[gMASK]", "<sop>"]

    def test_mistakes_are_one_line(self, smollm2, tmp_path):
        with pytest.raises(UserError, match="has layers 0 to 30, not 31"):
            HiddenStates(smollm2, (31,)).views  # noqa: B018
        with pytest.raises(UserError, match="cannot read the model"):
            HiddenStates(tmp_path / "nothing").views  # noqa: B018


def naive_score(clicked, candidate, reading):
    if not len(clicked):
        return 0.0
    cosines = clicked @ candidate
    if reading.kind == "attention":
        weights = np.exp(reading.strength * cosines)
        return (weights * cosines).sum() / weights.sum()
    back = np.arange(len(clicked))[::-1]
    weights = 0.5 ** (back / reading.strength) if reading.kind == "recent" else np.ones(len(back))
    profile = (weights[:, None] * clicked).sum(0)
    return profile @ candidate / np.linalg.norm(profile)


def test_readers_equal_the_formulas():
    rng = np.random.default_rng(0)
    vectors, test = unit(rng.normal(size=(40, 6))), random_impressions(rng)
    found = history_scores(test, vectors, READINGS)
    profiles = history_vectors(test, vectors)
    for i in range(len(test)):
        clicked = vectors[test.user_history(i)]
        for k, reading in enumerate(READINGS):
            wanted = [naive_score(clicked, vectors[news], reading) for news in test.candidates(i)]
            assert found[k, test.offsets[i] : test.offsets[i + 1]] == pytest.approx(wanted, abs=1e-6)
        assert profiles[test.history[i]] @ vectors[0] == pytest.approx(
            naive_score(clicked, vectors[0], MEAN), abs=1e-6
        )


def test_log_mean_exp_by_hand():
    # Right angles and 45 degrees, so that every cosine is 0, 1 or 1 / sqrt(2).
    vectors = unit(np.array([[1, 0.0], [0, 1.0], [1, 1.0], [-1, 0.0]]))
    test = make_impressions([("U1", 0, [0, 1, 1], [0, 2, 3], [1, 0, 0]), ("U2", 1, [], [0, 1], [1, 0])])
    (found,) = history_scores(test, vectors, [Reading("lme", 2.0)])
    e = np.exp
    wanted = [np.log((e(2) + 1 + 1) / 3), 2 / np.sqrt(2), np.log((e(-2) + 1 + 1) / 3)]
    assert found == pytest.approx([*wanted, 0.0, 0.0], abs=1e-6)
    (far,) = history_scores(test, vectors, [Reading("lme", 1e4)])  # where exp alone would be infinite
    assert far[:3] == pytest.approx([1e4 - np.log(3), 1e4 / np.sqrt(2), np.log(2 / 3)], rel=1e-6, abs=1e-3)


def test_log_mean_exp_equals_the_plain_formula():
    rng = np.random.default_rng(0)
    vectors, test = unit(rng.normal(size=(40, 6))), random_impressions(rng)
    mean, found = history_scores(test, vectors, [MEAN, LME])
    assert mean == pytest.approx(history_scores(test, vectors, [MEAN])[0], abs=1e-6)
    for i in range(len(test)):
        clicked = vectors[test.user_history(i)].astype(float)
        for news, score in zip(test.candidates(i), found[test.offsets[i] : test.offsets[i + 1]], strict=True):
            wanted = np.log(np.exp(10 * clicked @ vectors[news]).mean()) if len(clicked) else 0.0
            assert score == pytest.approx(wanted, abs=1e-5)
    assert LME not in READINGS


def test_the_ranker_takes_log_mean_exp(tmp_path):
    news, train = tasteful(60, 0)
    model = EmbeddingCosine(Hidden(0.1), "lme", (LME,), cache=tmp_path).fit(train, news, None, None)
    assert model.chosen == {"centred": False, "reading": "lme", "strength": 10.0}
    scores = score_without_labels(model, train, news)
    assert np.array_equal(scores, history_scores(train, model.vectors, [LME])[0])
    assert auc_of(model, train, news) > 0.95


def test_what_matters_to_a_reader():
    """Old taste and new taste: the mean sees both alike, the others do not."""
    vectors = unit(np.array([[1, 0.0], [1, 0.1], [0, 1.0], [1, 1.0]]))
    test = make_impressions([("U1", 0, [0, 0, 0, 2], [1, 2], [1, 0])])
    mean, recent, attention = history_scores(
        test, vectors, [MEAN, Reading("recent", 0.5), Reading("attention", 20.0)]
    )
    assert mean[0] > mean[1]
    assert recent[0] < recent[1]
    assert attention[1] > 0.99 > mean[1]


class Hidden:
    """Each topic has a direction, and far more noise beside it: a cosine sees little, a learned weight may."""

    name, views = "hidden", ({},)

    def __init__(self, noise=1.5):
        self.noise = noise

    def about(self):
        return {"encoder": self.name, "noise": self.noise}

    def encode(self, texts):
        rows = []
        for text in texts:
            topic, number = map(int, text.split())
            noise = np.random.default_rng(number).normal(size=24) * self.noise
            rows.append([*np.eye(8)[topic], *noise])
        return np.array(rows, np.float32)[:, None]


def tasteful(n, seed):
    """Readers who click what is of their topic, out of six; news of eight topics."""
    rng = np.random.default_rng(seed)
    news = make_news([f"{k % 8} {k}" for k in range(160)])
    rows = []
    for i in range(n):
        topic = int(rng.integers(8))
        mine = np.arange(topic, 160, 8)
        click = rng.choice(mine)
        shown = rng.permutation([click, *rng.choice(np.setdiff1d(np.arange(160), mine), 5, replace=False)])
        history = rng.choice(mine, rng.integers(3, 8), replace=False).tolist()
        rows.append((f"U{i % 50}", i, history, shown.tolist(), (shown == click).astype(int).tolist()))
    return news, make_impressions(rows)


def auc_of(model, test, news):
    scores = score_without_labels(model, test, news)
    return ranking_metrics(scores, test.labels, test.offsets)["auc"].mean()


class TestRankers:
    def test_the_choice_is_made_on_the_validation_day(self, tmp_path):
        news, train = tasteful(200, 0)

        class Two(Hidden):
            views = ({"view": "noise"}, {"view": "topic"})

            def encode(self, texts):
                both = super().encode(texts)[:, 0]
                return np.stack([both * (np.arange(32) >= 8), both * (np.arange(32) < 8)], 1)

        model = EmbeddingCosine(Two(), "two", READINGS, (False, True), tmp_path)
        model.fit(train, news, train.take(np.arange(150, 200)), np.random.default_rng(0))
        assert model.chosen["view"] == "topic"
        assert len(model.tried) == 2 * 2 * len(READINGS)
        assert max(one["auc"] for one in model.tried) == pytest.approx(1.0)
        assert auc_of(model, tasteful(100, 1)[1], news) == pytest.approx(1.0)
        first = EmbeddingCosine(Two(), "two", READINGS, cache=tmp_path).fit(train, news, None, None)
        assert first.chosen == {"view": "noise", "centred": False, "reading": "mean", "strength": 0.0}
        assert first.saved_seconds > 0 or model.saved_seconds == 0

    def test_centring_takes_the_known_news_mean_away(self, tmp_path):
        news, train = tasteful(100, 0)
        seen = train.take(np.flatnonzero(train.news[train.offsets[:-1]] < 80))
        model = EmbeddingCosine(Hidden(), centred=(True,), cache=tmp_path).fit(seen, news, None, None)
        known = np.union1d(seen.news, seen.history_news)
        raw = unit(Hidden().encode(news.title)[:, 0])
        assert model.vectors == pytest.approx(unit(raw - raw[known].mean(0)), abs=1e-6)

    @pytest.mark.parametrize("kind", ["logistic", "lightgbm", pytest.param("nrms", marks=pytest.mark.slow)])
    def test_a_learned_ranker_beats_the_cosine_it_starts_from(self, tmp_path, kind):
        (news, train), (_, test) = tasteful(800, 0), tasteful(300, 1)
        valid = train.take(np.arange(600, 800))
        cosine = EmbeddingCosine(Hidden(), cache=tmp_path)
        settings = Settings(width=32, heads=4, most_epochs=8, batch_size=16, learning_rate=3e-3)
        encoder = Hidden() if kind != "lightgbm" else Hidden(0.6)  # it has only cosines to learn from
        make = {
            "logistic": lambda: EmbeddingLogistic([encoder], cache=tmp_path),
            "lightgbm": lambda: EmbeddingBoosting([encoder], cache=tmp_path),
            "nrms": lambda: Neural("embeddings-nrms", settings, news=cosine),
        }[kind]
        start = EmbeddingCosine(encoder, cache=tmp_path).fit(train, news, valid, np.random.default_rng(0))
        model = make().fit(train, news, valid, np.random.default_rng(0))
        trained = auc_of(model, test, news)
        if kind == "nrms":
            still = Neural("x", replace(settings, most_epochs=0), kind="embeddings-nrms", news=cosine)
            untrained = auc_of(still.fit(train, news, valid, np.random.default_rng(0)), test, news)
            assert trained > untrained + 0.1
        if kind == "lightgbm":  # nothing to gain over the cosine here, but nothing to lose either
            assert trained > auc_of(start, test, news) - 0.02
        else:
            assert trained > auc_of(start, test, news) + 0.05
        again = make().fit(train, news, valid, np.random.default_rng(0))
        assert np.array_equal(
            score_without_labels(model, test, news), score_without_labels(again, test, news)
        )

    def test_an_untrained_network_is_the_one_that_training_starts_from(self):
        news, train = tasteful(60, 0)
        settings = Settings(width=32, heads=4, most_epochs=0)
        cosine = EmbeddingCosine(Hidden())
        still = Neural("still", settings, kind="embeddings-nrms", news=cosine)
        moved = Neural(
            "moved", replace(settings, most_epochs=1, learning_rate=0.0), kind="embeddings-nrms", news=cosine
        )
        scores = [
            score_without_labels(model.fit(train, news, None, np.random.default_rng(3)), train, news)
            for model in (still, moved)
        ]
        assert np.array_equal(*scores)


def test_drawn_candidates_hold_every_click_and_its_non_clicks():
    train = random_impressions(np.random.default_rng(0))
    rows = some_candidates(train, 2, np.random.default_rng(1))
    owner = np.repeat(np.arange(len(train)), np.diff(train.offsets))
    for i in range(len(train)):
        labels = train.candidate_labels(i)
        here = train.labels[rows[owner[rows] == i]]
        assert here.sum() == labels.sum()
        assert (here == 0).sum() == min(2 * labels.sum(), (labels == 0).sum())
    assert np.array_equal(rows, np.unique(rows))
    other = some_candidates(train, 2, np.random.default_rng(2))
    assert not np.array_equal(rows, other)
    assert np.array_equal(rows, some_candidates(train, 2, np.random.default_rng(1)))


def test_late_rows_are_those_of_the_validation_day():
    train = random_impressions(np.random.default_rng(0))
    assert not late_rows(train, None).any()
    valid = train.take(np.flatnonzero(train.times >= np.sort(train.times)[150]))
    assert late_rows(train, valid).sum() == len(valid)


class TestRetrieval:
    def test_exact_search_is_a_sort(self):
        rng = np.random.default_rng(0)
        vectors, queries = unit(rng.normal(size=(500, 16))), unit(rng.normal(size=(20, 16)))
        found = retrieval.nearest(retrieval.exact_index(vectors), queries, 10)
        assert np.array_equal(found, np.argsort(-(queries @ vectors.T), axis=1)[:, :10])

    def test_a_graph_finds_more_with_more_effort(self):
        rng = np.random.default_rng(0)
        vectors, queries = unit(rng.normal(size=(4000, 64))), unit(rng.normal(size=(100, 64)))
        wanted = retrieval.nearest(retrieval.exact_index(vectors), queries, 10)
        graph = retrieval.graph_index(vectors, neighbours=8, effort=40)
        shares = [
            retrieval.recall(retrieval.nearest(graph, queries, 10, effort), wanted) for effort in (10, 400)
        ]
        assert shares[0] < 0.8 < shares[1]

    def test_found_clicks(self):
        test = make_impressions(
            [("U1", 0, [0], [1, 2, 3], [1, 1, 0]), ("U2", 1, [], [4, 5], [0, 1]), ("U1", 2, [0], [3], [1])]
        )
        found = np.array([[1, 3], [9, 8]])
        assert retrieval.found_clicks(found, test).tolist() == [0.5, 0.0, 1.0]


def test_minilm_is_a_unit_vector_a_title():
    vectors = MiniLMEncoder().encode(TITLES)
    assert vectors.shape == (5, 1, 384)
    assert np.linalg.norm(vectors, axis=-1) == pytest.approx(1.0, abs=1e-5)
