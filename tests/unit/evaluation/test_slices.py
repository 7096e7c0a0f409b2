"""Slices hold the impressions that their names say, and the means of those."""

import numpy as np
import pytest

from mindlab.evaluation.metrics import evaluate
from mindlab.evaluation.predictions import from_scores
from mindlab.evaluation.slices import FEWEST, masks, measure_slices
from tests.handmade import make_impressions, make_news, random_impressions

NEWS = make_news([f"title {i}" for i in range(40)], [f"c{i % 3}" for i in range(40)])


def test_masks_by_hand():
    train = make_impressions([("U1", 0, [5], [0, 1], [1, 0])])
    test = make_impressions(
        [
            ("U1", 10, [], [0, 2], [1, 0]),
            ("U2", 11, [5] * 12, [0, 2, 3, 4, 6, 7], [1, 1, 0, 0, 0, 0]),
            ("U3", 12, [5], [2, 5, 4], [1, 1, 0]),
        ]
    )
    found = masks(test, train, NEWS)
    said = {
        q: {name: np.flatnonzero(m).tolist() for name, m in answers.items()} for q, answers in found.items()
    }
    assert said["user"] == {"in training": [0], "new": [1, 2]}
    assert said["clicks in the history"] == {"0": [0], "1-9": [2], "10-49": [1], "50 or more": []}
    assert said["candidates"] == {"2-5": [0, 2], "6-20": [1], "21-100": [], "101 or more": []}
    assert said["clicked news"] == {"all shown in training": [0], "some shown": [1], "none shown": [2]}
    assert said["clicked category"] == {"c0": [0], "c2": [2], "c1": []}  # 0 and 2 are of two categories


def test_a_slice_has_the_mean_of_its_impressions():
    test = random_impressions(np.random.default_rng(0), n=300)
    train = random_impressions(np.random.default_rng(1), n=20, n_users=10)
    scores = test.labels + np.random.default_rng(2).normal(0, 1, len(test.news))
    found = evaluate(from_scores("test", test, NEWS, scores))
    parts = masks(test, train, NEWS)
    rows = measure_slices({"a": found}, parts)
    for question, answers in parts.items():
        for name, mask in answers.items():
            (row,) = [r for r in rows if (r["question"], r["slice"]) == (question, name)]
            assert row["n"] == mask.sum()
            if row["n"] < FEWEST:
                assert row["methods"] == {}
            else:
                one = row["methods"]["a"]
                assert one["mean"] == pytest.approx(found.values["auc"][mask].mean())
                assert one["low"] <= one["mean"] <= one["high"]
        if question in ("user", "clicks in the history", "candidates", "clicked news"):
            assert sum(mask.astype(int) for mask in answers.values()).tolist() == [1] * len(test)
    with pytest.raises(ValueError, match="300 impressions, the slices have 20"):
        measure_slices({"a": found}, masks(train, train, NEWS))
