"""mindlab.evaluation.calibration: by hand, a calibrated model, and one that is too sure."""

import numpy as np
import pyarrow as pa
import pytest

from mindlab.evaluation.calibration import calibration, log_odds_shift
from mindlab.evaluation.predictions import from_scores
from tests.handmade import make_impressions, make_news


def predictions(p, labels, users=20):
    """Predictions of one candidate each with the given P(Yes)."""
    rows = [(f"U{i % users}", i, [], [i % 50], [int(label)]) for i, label in enumerate(labels)]
    p = np.asarray(p)
    news = make_news([f"title {i}" for i in range(50)])
    return from_scores("test", make_impressions(rows), news, np.log(p) - np.log1p(-p))


def measured(p, labels, **options):
    return calibration(predictions(p, labels), **options)


def test_by_hand():
    found = measured([0.1, 0.3, 0.8, 0.6], [0, 1, 1, 0], n_bins=2)
    assert (found["n"], found["share"], found["mean"]) == (4, 0.5, pytest.approx(0.45))
    assert found["brier"] == pytest.approx((0.01 + 0.49 + 0.04 + 0.36) / 4)
    bins = [(one["n"], one["mean"], one["share"]) for one in found["bins"]]
    assert bins == [(2, pytest.approx(0.2), 0.5), (2, pytest.approx(0.7), 0.5)]
    assert found["ece"] == pytest.approx((0.3 + 0.2) / 2)


def test_a_calibrated_model_and_one_that_is_too_sure():
    rng = np.random.default_rng(1)
    p = rng.uniform(0.02, 0.6, 4000)
    labels = rng.random(4000) < p
    good = measured(p, labels)
    assert good["ece"] < 0.03
    assert sum(one["low"] <= one["mean"] <= one["high"] for one in good["bins"]) >= 8
    assert good["brier"] < good["share"] * (1 - good["share"])
    odds = p / (1 - p) * 4  # as if trained on a quarter of the non-clicks
    sure = measured(odds / (1 + odds), labels)
    assert sure["ece"] > 0.2
    assert [one["share"] for one in sure["bins"]] == [one["share"] for one in good["bins"]]
    assert (good["undone"], sure["undone"]) == (None, None)


def test_training_on_few_non_clicks_is_undone():
    rng = np.random.default_rng(1)
    p = rng.uniform(0.02, 0.3, 4000)
    clicks = rng.random(4000) < p
    kept = clicks | (rng.random(4000) < 0.2)
    shift = log_odds_shift(float(clicks[kept].mean()), float(clicks.mean()))
    odds = p / (1 - p) * 5  # what a model of the kept ones learns, being right about them
    found = measured(odds / (1 + odds), clicks, shift=shift)
    assert found["ece"] > 0.2 > 0.03 > found["undone"]["ece"]
    assert found["undone"]["mean"] == pytest.approx(found["share"], abs=0.01)
    assert found["undone"]["brier"] < found["brier"]


def test_odd_frames():
    assert len(measured([0.2, 0.4, 0.4], [0, 1, 0])["bins"]) == 3
    assert measured([0.2], [1])["bins"][0]["low"] is None
    huge = predictions([0.5, 0.5], [0, 1])
    huge = huge.set_column(huge.schema.get_field_index("score"), "score", pa.array([-1e4, 1e4]))
    assert calibration(huge)["brier"] == 0
