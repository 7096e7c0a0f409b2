"""Words that a language model wrote, as features of classic rankers; the model here is one that anybody can foresee."""

import json
from dataclasses import replace

import numpy as np
import pytest

from mindlab.evaluation.metrics import ranking_metrics
from mindlab.llm.augmentation import Augmenter
from mindlab.prompts import NewsTokens, ReaderProfile
from mindlab.prompts.chat import record_prompt
from mindlab.recommenders import augmented
from mindlab.recommenders.augmented import TextBoosting, TokenTfIdf
from mindlab.recommenders.base import score_without_labels
from mindlab.recommenders.tfidf import TfIdf
from mindlab.report import remarks, written_text
from tests.handmade import make_impressions, make_news

TOPICS = ("football", "cooking", "stocks", "weather")
N = 120


class Knowing:
    """A writer that knows the topic of a headline by its number, as no counting of the title's words can."""

    batch = 8
    spoilt = ()  # titles that it answers badly

    def __init__(self, model, template, schema):
        self.model, self.schema = model, schema
        self.tokens_read = self.tokens_written = 0

    def about(self):
        return {"model": self.model, "schema": self.schema, "spoilt": list(self.spoilt)}

    def write(self, records):
        Knowing.seen += [record_prompt(r) for r in records]
        return [self.answer(r["input"]) for r in records]

    def answer(self, text):
        numbers = [int(word) for word in text.replace("\n", " ").split() if word.isdigit()]
        topics = [TOPICS[k % 4] for k in numbers]
        if text.startswith("Headline") and numbers[0] in self.spoilt:
            return ["", "no idea", '{"topics":["x"]}'][numbers[0] % 3]
        if text.startswith("Headline"):
            return json.dumps(
                {"keywords": ["word"] * 3, "topics": [topics[0]] * 2, "audience": topics[0] + " fans"}
            )
        return json.dumps(
            {"interests": (topics * 3)[:3], "profile": f"likes {max(topics, key=topics.count)}"}
        )


@pytest.fixture(autouse=True)
def _nothing_seen():
    Knowing.seen = []


NEWS = make_news(
    [f"story {k} {'abcdefghij'[k * 7 % 10] * 3}" for k in range(N)], [f"c{k % 3}" for k in range(N)]
)


def world(n, seed, start="2019-11-13T08:00:00"):
    """Users of one topic each, who click it alone; one has no history."""
    rng, rows = np.random.default_rng(seed), []
    for k in range(n):
        topic = int(rng.integers(4))
        of_topic = np.arange(topic, N, 4)
        history = rng.choice(of_topic, size=5, replace=False).tolist() if k else []
        others = rng.choice(np.setdiff1d(np.arange(N), of_topic), size=5, replace=False)
        click = rng.choice(np.setdiff1d(of_topic, history))
        order = rng.permutation(6)
        candidates = np.append(others, click)[order].tolist()
        rows.append((f"U{k}", k * 20, history, candidates, (order == 5).astype(int).tolist()))
    return make_impressions(rows, start)


@pytest.fixture
def augmenter(tmp_path):
    return Augmenter("a model", "smollm2", cache=tmp_path, make_writer=Knowing)


def auc(scores, test):
    return np.nanmean(ranking_metrics(scores, test.labels, test.offsets)["auc"])


class TestAugmenter:
    def test_each_news_is_asked_about_once(self, augmenter):
        first, again = augmenter.news(NEWS), augmenter.news(NEWS)
        assert len(Knowing.seen) == N
        assert (first.is_kept, again.is_kept) == (False, True)
        assert first.words == again.words
        assert first.words[5] == "word word word cooking cooking cooking fans"
        assert (first.saved_seconds, again.saved_seconds) == (0.0, first.cost["seconds"])
        assert {key: first.cost[key] for key in ("answers", "usable")} == {"answers": N, "usable": N}

    def test_bad_answers_are_counted_and_leave_nothing(self, augmenter, monkeypatch):
        monkeypatch.setattr(Knowing, "spoilt", (3, 4, 5, 7))
        found = augmenter.news(NEWS)
        assert [k for k, words in enumerate(found.words) if not words] == [3, 4, 5, 7]
        assert [found.answers[k] for k in (3, 4, 5, 7)] == [None] * 4
        faults = {key: found.cost[key] for key in ("usable", "empty", "no JSON", "wrong form")}
        assert faults == {"usable": N - 4, "empty": 1, "no JSON": 2, "wrong form": 1}

    def test_a_reader_without_history_is_not_asked_about(self, augmenter):
        found = augmenter.users([[], [0, 4, 1], []], NEWS)
        assert found.words == ["", "football football cooking likes football", ""]
        assert len(Knowing.seen) == 1
        assert found.cost["answers"] == 1

    def test_the_latest_titles_are_shown_in_order_and_as_plain_text(self, augmenter):
        news = replace(NEWS, title=np.array([f"{k} <|im_end|>" for k in range(N)], dtype=object))
        augmenter.users([list(range(20))], news)
        length = ReaderProfile.history_length
        wanted = "\n".join(f"- {k} < |im_end|>" for k in range(20 - length, 20))
        assert f"\n{wanted}\n" in Knowing.seen[0]
        assert "- 11 <" not in Knowing.seen[0]
        augmenter.news(news)
        assert not any("<|im_end|>" in prompt for prompt in Knowing.seen)

    def test_both_languages_ask(self):
        for form, shown in ((NewsTokens, "T"), (ReaderProfile, ["T"])):
            for language in ("en", "zh"):
                record = form(language).record(shown)
                assert "T" in record["input"]
                assert record["output"] == ""


class TestTokenTfIdf:
    def test_it_counts_words_that_the_titles_do_not_have(self, augmenter):
        test = world(80, 1)
        plain = TfIdf().fit(test, NEWS, None, np.random.default_rng(0))
        tokens = TokenTfIdf(augmenter).fit(test, NEWS, None, np.random.default_rng(0))
        with_history = test.take(np.arange(1, 80))
        assert auc(score_without_labels(plain, with_history, NEWS), with_history) < 0.7
        assert auc(score_without_labels(tokens, with_history, NEWS), with_history) > 0.99
        assert tokens.written["news_tokens"]["usable"] == N
        assert set(score_without_labels(tokens, test, NEWS)[: test.offsets[1]]) == {0.0}, (
            "no history: all tie"
        )


class TestTextBoosting:
    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch):
        monkeypatch.setattr(augmented, "MOST_IMPRESSIONS", 150)

    def fitted(self, augmenter, seed=0):
        train = world(200, 2)
        valid = train.take(np.arange(160, 200))
        return TextBoosting("x", augmenter).fit(train, NEWS, valid, np.random.default_rng(seed))

    def test_what_the_model_wrote_is_learned_from(self, augmenter):
        test = world(60, 3, "2019-11-18T08:00:00").take(np.arange(1, 60))
        with_words = score_without_labels(self.fitted(augmenter), test, NEWS)
        without = score_without_labels(self.fitted(None), test, NEWS)
        assert auc(with_words, test) > 0.95
        assert auc(without, test) < 0.7

    def test_profiles_are_written_for_the_readers_it_was_fitted_on_and_asked_for(self, augmenter):
        model, test = self.fitted(augmenter), world(30, 3)
        n_train = model.written["profiles of training users"]["answers"]
        assert 140 <= n_train <= 150, "of MOST_IMPRESSIONS readers, one of them without history"
        assert len(Knowing.seen) == N + n_train
        score_without_labels(model, test, NEWS)
        assert model.written["profiles of test users"]["answers"] == 29
        again = self.fitted(augmenter, seed=5)  # another seed asks nothing new
        score_without_labels(again, test, NEWS)
        assert len(Knowing.seen) == N + n_train + 29
        kept = [cost["seconds"] for what, cost in again.written.items() if "test" not in what]
        assert again.saved_seconds == pytest.approx(sum(kept) + again._vectors.saved_seconds)
        assert again.saved_scoring_seconds == again.written["profiles of test users"]["seconds"]

    def test_labels_and_other_impressions_do_not_matter(self, augmenter):
        model, test = self.fitted(augmenter), world(30, 3)
        whole = score_without_labels(model, test, NEWS)
        flipped = replace(test, labels=(1 - test.labels).astype(np.int8))
        assert np.array_equal(whole, score_without_labels(model, flipped, NEWS))
        part = score_without_labels(model, test.take(np.array([7])), NEWS)
        assert part == pytest.approx(whole[test.offsets[7] : test.offsets[8]], abs=1e-6)

    def test_useless_answers_stop_nothing(self, augmenter, monkeypatch):
        monkeypatch.setattr(Knowing, "answer", lambda self, text: "I am sorry.")
        model, test = self.fitted(augmenter), world(30, 3)
        assert np.isfinite(score_without_labels(model, test, NEWS)).all()
        assert [cost["usable"] for cost in model.written.values()] == [0, 0, 0]


def test_the_table_says_what_was_written_and_what_was_of_no_use():
    cost = {"answers": 20, "usable": 17, "empty": 1, "no JSON": 2, "seconds": 8.0}
    said = "tokens: 20 news_tokens written in 8.0 s, 17 of use (empty 1, no JSON 2)."
    assert written_text("tokens", "news_tokens", cost) == said
    board = {
        "rows": [], "context": {}, "clustered_by": "user", "n_users": 100,
        "manifests": {"tokens": {"texts_written": {"news_tokens": cost}}, "old": {}, "popularity": {"texts_written": None}},
    }  # fmt: skip
    assert said in remarks(board)
