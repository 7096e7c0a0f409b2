"""Coverage and novelty of what stands in the first places: by hand, with ties, and beside a count of orders."""

from itertools import permutations

import numpy as np
import pytest

from mindlab.evaluation.metrics import METRICS, FirstPlaces, evaluate
from mindlab.evaluation.predictions import from_scores
from tests.handmade import make_impressions, make_news, random_impressions


def places(cases, scores):
    offsets = np.cumsum([0, *(len(case) for case in cases)])
    users = np.arange(len(cases))
    return FirstPlaces.of(np.array(scores, float), offsets, users, np.concatenate(cases))


def test_first_places_by_hand():
    found = places([[7, 8, 9], [7, 9]], [3, 1, 1, 0, 5])
    assert found.above.tolist() == [0, 1, 1, 1, 0]
    assert found.tied.tolist() == [1, 2, 2, 1, 1]
    assert found.among(2).tolist() == [1, 0.5, 0.5, 1, 1]


def test_the_probability_is_a_share_of_orders():
    scores = [2, 1, 1, 1, 0]
    found = places([[0, 1, 2, 3, 4]], scores)
    orders = [
        order for order in permutations(range(5)) if sorted(order, key=lambda i: -scores[i]) == list(order)
    ]
    for k in range(1, 6):
        shares = [np.mean([i in order[:k] for order in orders]) for i in range(5)]
        assert found.among(k) == pytest.approx(shares)


def test_coverage_and_novelty_by_hand():
    # Articles 0 and 1 are shown twice, 2 once; the first places show 0 and 2.
    found = places([[0, 1], [0, 1, 2]], [1, 0, 0, 1, 2])
    coverage = METRICS["coverage10"].of_lists.func(found, 1)
    assert coverage[0] == pytest.approx(2 / 3)
    assert np.isnan(coverage[1:]).all()
    novelty, low, high = METRICS["novelty10"].of_lists.func(found, 1)
    assert novelty == pytest.approx((0 + 1) / 2)
    assert low <= novelty <= high


def test_a_method_that_shows_what_nobody_else_is_shown_is_novel():
    rows, news = random_impressions(np.random.default_rng(0), n=300), make_news([f"t{i}" for i in range(40)])
    shown = np.bincount(rows.news, minlength=40)
    asked = ("auc", "coverage10", "novelty10")
    rare, common = (
        evaluate(from_scores("test", rows, news, sign * shown[rows.news].astype(float)), asked).summary
        for sign in (-1, 1)
    )
    assert rare["novelty10"] >= common["novelty10"]
    assert 0 < common["coverage10"] <= 1
    flat = make_impressions([("U1", 0, [], [0, 1], [1, 0])])
    one = evaluate(from_scores("test", flat, news, np.zeros(2)), asked).summary
    assert one["coverage10"] == 1
    assert one["novelty10"] == 0
