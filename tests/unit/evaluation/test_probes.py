"""mindlab.evaluation.probes: a probe changes what it names and nothing else, and finds a bias that was planted."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import spearmanr

from mindlab.evaluation import probes
from tests.handmade import make_impressions, random_impressions


@pytest.fixture
def impressions():
    return random_impressions(np.random.default_rng(4))


def same(a, b, *but):
    """Return whether two tables hold the same, `but` for the named columns."""
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in vars(a) if name not in but)


def by_place(impressions):
    """Score like a method that likes what stands first."""
    return -np.arange(len(impressions.news), dtype=float)


def by_news(impressions):
    return np.sin(impressions.news.astype(float))


def by_first_click(impressions):
    """Score by how near a candidate's number is to that of the oldest click."""
    first = [impressions.user_history(i)[:1].sum() for i in range(len(impressions))]
    return -np.abs(impressions.news - np.repeat(first, np.diff(impressions.offsets))).astype(float)


def test_candidates_reversed_are_the_same_candidates_backwards(impressions):
    changed, places = probes.reverse_candidates(impressions)
    assert same(impressions, changed, "news", "labels")
    for i in range(len(impressions)):
        assert changed.candidates(i).tolist() == impressions.candidates(i)[::-1].tolist()
        assert changed.candidate_labels(i).tolist() == impressions.candidate_labels(i)[::-1].tolist()
    assert np.array_equal(by_news(changed)[places], by_news(impressions))
    hidden, _ = probes.reverse_candidates(impressions.without_labels())
    assert hidden.labels is None
    assert np.array_equal(hidden.news, changed.news)


def test_a_liking_for_the_first_place_is_found_and_none_where_there_is_none(impressions):
    changed, places = probes.reverse_candidates(impressions)
    biased = probes.moved(by_place(impressions), by_place(changed)[places], impressions)
    assert (biased["first_place"], biased["rank_agreement"]) == (1, -1)
    assert biased["auc"].mean == pytest.approx(1 - biased["auc_changed"].mean)
    fair = probes.moved(by_news(impressions), by_news(changed)[places], impressions)
    assert (fair["first_place"], fair["rank_agreement"]) == (0, pytest.approx(1))
    difference = fair["auc_difference"]
    assert (difference.low, difference.mean, difference.high) == (0, 0, 0)


def test_a_history_shuffled_has_the_same_clicks_in_another_order(impressions):
    changed = probes.shuffle_histories(impressions, np.random.default_rng(0))
    assert same(impressions, changed, "history_news")
    pairs = [(impressions.user_history(i), changed.user_history(i)) for i in range(len(impressions))]
    assert all(sorted(a) == sorted(b) for a, b in pairs)
    long = [(a, b) for a, b in pairs if len(a) > 3]
    assert np.mean([a.tolist() != b.tolist() for a, b in long]) > 0.8
    found = probes.moved(by_first_click(impressions), by_first_click(changed), impressions)
    assert found["first_place"] > 0.2


def test_a_fake_history_is_anothers_and_nobodys_own(impressions):
    changed = probes.swap_histories(impressions, np.random.default_rng(0))
    assert same(impressions, changed, "history")
    has = np.array([len(impressions.user_history(i)) > 0 for i in range(len(impressions))])
    assert (changed.history != impressions.history)[has].all()
    assert (changed.history == impressions.history)[~has].all()
    assert 0 < has.sum() < len(has)
    assert sorted(set(changed.history)) == sorted(set(impressions.history))
    one = make_impressions([("U1", 0, [1], [2, 3], [0, 1]), ("U2", 0, [], [2, 3], [0, 1])])
    with pytest.raises(ValueError, match="1 histories with clicks"):
        probes.swap_histories(one, np.random.default_rng(0))


def test_a_method_that_reads_the_history_loses_by_a_fake_one_and_one_that_does_not_does_not(impressions):
    liked = by_first_click(impressions)
    best = np.maximum.reduceat(liked, impressions.offsets[:-1])
    clicked = (liked == np.repeat(best, np.diff(impressions.offsets))).astype(np.int8)
    table = replace(impressions, labels=clicked)
    fake = probes.swap_histories(table, np.random.default_rng(1))
    assert probes.moved(by_first_click(table), by_first_click(fake), table)["auc_difference"].low > 0.1
    assert probes.moved(by_news(table), by_news(fake), table)["auc_difference"].high == 0


def test_rank_correlations_are_scipys(impressions):
    rng = np.random.default_rng(2)
    a, b = (rng.integers(0, 4, len(impressions.news)).astype(float) for _ in range(2))
    found = probes.rank_correlations(a, b, impressions.offsets)
    with np.errstate(invalid="ignore"):
        expected = [
            np.nan if min(np.ptp(a[s:e]), np.ptp(b[s:e])) == 0 else spearmanr(a[s:e], b[s:e])[0]
            for s, e in pairwise(impressions.offsets)
        ]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert np.isnan(found).any()


def test_a_liking_for_what_is_popular_is_found(impressions):
    clicks = np.random.default_rng(3).permutation(60)
    found = probes.popularity_agreement(np.log1p(clicks[impressions.news]), impressions, clicks)
    assert (found.low, found.high) == (pytest.approx(1), pytest.approx(1))
    other = probes.popularity_agreement(by_news(impressions), impressions, clicks)
    assert abs(other.mean) < 0.5
    assert other.low < other.mean < other.high
