"""The fast metrics against hand-computed values, the official script's steps, and brute force."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindlab.common.errors import UserError
from mindlab.evaluation.metrics import (
    RANKING_METRICS,
    SAMPLED_METRICS,
    USUAL,
    answer_metrics,
    evaluate,
    paired_differences,
    ranking_metrics,
    ranking_shares,
    sampled_metrics,
    subset_sha,
    taken_apart,
)
from mindlab.evaluation.predictions import check_predictions, from_scores
from tests import official
from tests.handmade import make_impressions, make_news, random_impressions


def one(scores, labels, metric=ranking_metrics, **options):
    found = metric(np.array(scores, float), np.array(labels), np.array([0, len(scores)]), **options)
    return {name: float(value[0]) for name, value in found.items()}


def pairs_in_order(labels, scores):
    """The AUC as the share of (click, non-click) pairs in the right order; 20 times as fast as scikit-learn."""
    gap = scores[labels == 1][:, None] - scores[labels == 0][None, :]
    return np.mean((gap > 0) + 0.5 * (gap == 0))


def expected_by_permutation(labels, scores):
    """The mean of the official values over every order that breaks the ties."""
    totals, n = dict.fromkeys(RANKING_METRICS, 0.0), 0
    for jitter in permutations(range(len(scores))):
        found = official.measure(labels, np.asarray(scores) + np.array(jitter) * 1e-6, pairs_in_order)
        totals = {name: totals[name] + found[name] for name in totals}
        n += 1
    return {name: total / n for name, total in totals.items()}


def test_two_clicks_at_ranks_one_and_two_give_mrr_three_quarters():
    found = one([4, 3, 2, 1], [1, 1, 0, 0])
    assert found == {"auc": 1.0, "mrr": 0.75, "ndcg5": 1.0, "ndcg10": 1.0}


def test_hand_computed_impression():
    # Order by score: click (rank 1), no, no, click (rank 4), no, no.
    found = one([0.1, 0.9, 0.5, 0.8, 0.7, 0.2], [0, 1, 1, 0, 0, 0])
    assert found["auc"] == pytest.approx((4 + 2) / 8)
    assert found["mrr"] == pytest.approx((1 + 1 / 4) / 2)
    ideal = 1 + 1 / np.log2(3)
    assert found["ndcg5"] == pytest.approx((1 + 1 / np.log2(5)) / ideal)


def test_a_click_below_the_cutoff_earns_nothing():
    found = one(np.arange(12)[::-1], [0] * 7 + [1] + [0] * 4)  # rank 8
    assert found["ndcg5"] == 0.0
    assert found["ndcg10"] == pytest.approx(1 / np.log2(9))


def test_equals_the_official_script_without_ties():
    rng = np.random.default_rng(5)
    sizes = np.append([2, 300], rng.integers(2, 301, size=998))
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    scores = rng.permutation(offsets[-1]).astype(float)
    labels = np.zeros(offsets[-1], np.int8)
    for start, size in zip(offsets[:-1], sizes, strict=True):
        n_clicks = rng.integers(min(2, size - 1), min(size, 7))  # two candidates leave room for one
        labels[start + rng.choice(size, size=n_clicks, replace=False)] = 1
    found = ranking_metrics(scores, labels, offsets)
    for i in range(len(sizes)):
        part = slice(offsets[i], offsets[i + 1])
        for name, value in official.measure(labels[part], scores[part]).items():
            assert abs(found[name][i] - value) < 1e-9


def test_constant_scores_are_the_expectation_over_all_orders():
    labels = [1, 0, 0, 1, 0, 0, 0]
    found = one([3.0] * 7, labels)
    brute = expected_by_permutation(labels, [3.0] * 7)
    assert found["auc"] == 0.5
    assert found["mrr"] == pytest.approx(sum(1 / r for r in range(1, 8)) / 7)
    for name in RANKING_METRICS:
        assert found[name] == pytest.approx(brute[name], abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=2, max_size=5))
def test_ties_equal_brute_force(rows):
    scores, labels = [float(s) for s, _ in rows], [int(y) for _, y in rows]
    if len(set(labels)) < 2:
        return
    found, brute = one(scores, labels), expected_by_permutation(labels, scores)
    for name in RANKING_METRICS:
        assert found[name] == pytest.approx(brute[name], abs=1e-9)


def test_order_within_the_impression_does_not_matter():
    rng = np.random.default_rng(1)
    scores, labels = rng.integers(0, 4, 30).astype(float), rng.integers(0, 2, 30)
    order = rng.permutation(30)
    assert one(scores, labels) == pytest.approx(one(scores[order], labels[order]), abs=1e-12)


def test_impressions_do_not_touch_each_other():
    # Equal scores on both sides of a boundary must not form one tied group.
    scores, labels = np.array([1.0, 5.0, 5.0, 1.0]), np.array([0, 1, 0, 1])
    found = ranking_metrics(scores, labels, np.array([0, 2, 4]))
    assert found["auc"].tolist() == [1.0, 0.0]
    assert found["mrr"].tolist() == [1.0, 0.5]


def test_undefined_values_are_nan():
    found = ranking_metrics(np.arange(5.0), np.array([0, 0, 1, 1, 1]), np.array([0, 2, 4, 4, 5]))
    assert np.isnan(found["auc"]).all()
    assert np.isnan(found["mrr"]).tolist() == [True, False, True, False]
    assert found["ndcg5"][1] == 1.0


@pytest.mark.parametrize(
    ("scores", "labels", "offsets"),
    [([1.0, np.nan], [0, 1], [0, 2]), ([1.0, 2.0], [0, 2], [0, 2]), ([1.0, 2.0], [0, 1], [0, 1])],
)
def test_bad_input_is_refused(scores, labels, offsets):
    with pytest.raises(ValueError, match=r"finite|0 or 1|candidates"):
        ranking_metrics(np.array(scores), np.array(labels), np.array(offsets))


def test_permuted_labels_lose_the_signal():
    rng = np.random.default_rng(2)
    impressions = random_impressions(rng, n=400)
    scores = impressions.labels + rng.normal(0, 0.3, len(impressions.labels))
    informed = ranking_metrics(scores, impressions.labels, impressions.offsets)["auc"].mean()
    shuffled = ranking_metrics(rng.permutation(scores), impressions.labels, impressions.offsets)["auc"].mean()
    assert informed > 0.95
    assert abs(shuffled - 0.5) < 0.06


def test_sampled_metrics_by_hand():
    found = one([9, 8, 7, 6], [0, 0, 0, 1], sampled_metrics)
    assert found["recall3"] == 0.0
    assert found["recall5"] == 1.0
    assert found["mrr5"] == pytest.approx(0.25)
    tied = one([1.0] * 21, [1] + [0] * 20, sampled_metrics)
    assert tied["recall3"] == pytest.approx(3 / 21)
    assert tied["mrr3"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 21)


def shares_of(impressions, scores, **options):
    users = np.unique(impressions.users.astype(str), return_inverse=True)[1]
    case = impressions.labels, impressions.offsets, users, impressions.news
    return ranking_shares(scores, *case, **options)


def test_the_parts_of_an_impressions_candidates_sum_to_its_value(impressions):
    scores = np.random.default_rng(2).integers(0, 5, len(impressions.news)).astype(float)  # with ties
    values, shares = shares_of(impressions, scores, metrics=(*USUAL, *SAMPLED_METRICS))
    expected = ranking_metrics(scores, impressions.labels, impressions.offsets)
    expected |= sampled_metrics(scores, impressions.labels, impressions.offsets)
    assert set(expected) < set(shares)
    for name, one in shares.items():
        assert np.bincount(one.owner, weights=one.parts) == pytest.approx(values[name])
        assert np.bincount(one.owner, weights=one.weights) == pytest.approx(np.ones(len(impressions)))
        if name in expected:
            assert values[name] == pytest.approx(expected[name])
        others = impressions.labels == 0
        assert np.bincount(one.owner[others], weights=one.parts[others]) == pytest.approx(
            np.zeros(len(impressions))
        )


def test_a_non_click_in_the_way_is_charged_by_hand():
    # One click of score 2 among 3, 2, 1: AUC 0.5, and (0, 0.5, 1) against each; ranks 2 or 3, less 1 without the first.
    impressions = make_impressions([("U1", 0, [], [0, 1, 2, 3], [1, 0, 0, 0])])
    _, shares = shares_of(impressions, np.array([2.0, 3.0, 2.0, 1.0]))
    assert shares["auc"].parts.tolist() == pytest.approx([0.5, -1 / 6, 0.0, 1 / 6])
    step = np.interp(1.5, [1, 2], [1, 1 / 2]) - np.interp(2.5, [2, 3], [1 / 2, 1 / 3])
    mrr = (1 / 2 + 1 / 3) / 2
    assert shares["mrr"].parts.tolist() == pytest.approx([mrr, -step / 2, 0.0, step / 2])


def test_scores_taken_apart_by_hand():
    # News 4 has the mean 2, news 9 the mean 1; what is left of each score is personal.
    appeal, personal = taken_apart(np.array([1.0, 0.5, 3.0, 1.5]), np.array([4, 9, 4, 9]))
    assert appeal.tolist() == [2.0, 1.0, 2.0, 1.0]
    assert personal.tolist() == [-1.0, -0.5, 1.0, 0.5]


def test_parts_of_equal_scores_stay_ties():
    # 0.1 three times has a mean that is not 0.1 in binary.
    appeal, personal = taken_apart(np.array([0.1, 0.1, 0.1, 0.7]), np.array([1, 1, 1, 2]))
    assert len(set(personal.tolist())) == 1
    assert appeal.tolist() == pytest.approx([0.1, 0.1, 0.1, 0.7])


def test_a_method_of_appeal_alone_has_no_personal_part(impressions, news):
    by_news = np.random.default_rng(1).random(40)[impressions.news]
    found = evaluate(from_scores("dev", impressions, news, by_news)).summary
    assert found["auc_appeal"] == pytest.approx(found["auc"])
    assert found["auc_personal"] == 0.5


def test_answer_metrics_by_hand():
    # The leak rule on 5,000 real impressions: TP 447, FP 0, FN 104, TN 4,449.
    yes = np.repeat([True, False, False], [447, 104, 4449])
    labels = np.repeat([1, 1, 0], [447, 104, 4449])
    found = answer_metrics(yes, labels, np.arange(5000))
    assert (found["tp"], found["fp"], found["fn"], found["tn"]) == (447, 0, 104, 4449)
    assert round(found["accuracy"], 4) == 0.9792
    assert found["precision"] == 1.0
    assert round(found["recall"], 4) == 0.8113
    assert round(found["f1"], 3) == 0.896
    assert round(found["always_no_accuracy"], 4) == 0.8898
    assert 0.974 < found["accuracy_low"] < 0.977 < 0.982 < found["accuracy_high"] < 0.984
    assert 0.77 < found["recall_low"] < 0.79 < 0.83 < found["recall_high"] < 0.85


def test_always_no_has_no_precision():
    found = answer_metrics(np.zeros(4, bool), np.array([0, 0, 0, 1]), np.arange(4))
    assert found["precision"] is None
    assert found["precision_low"] is None
    assert (found["accuracy"], found["recall"], found["f1"]) == (0.75, 0.0, 0.0)
    assert answer_metrics(np.zeros(2, bool), np.array([0, 0]))["recall"] is None


@pytest.fixture
def impressions():
    return random_impressions(np.random.default_rng(8), n=120)


@pytest.fixture
def news():
    return make_news([f"title {i}" for i in range(40)])


def test_evaluate_is_the_plain_mean_over_impressions(impressions, news):
    scores = np.random.default_rng(0).random(len(impressions.news))
    frame = from_scores("dev", impressions, news, scores)
    found = evaluate(frame)
    expected = ranking_metrics(scores, impressions.labels, impressions.offsets)
    for name in RANKING_METRICS:
        assert found.summary[name] == pytest.approx(np.mean(expected[name]), abs=1e-12)
        assert found.summary[f"{name}_low"] < found.summary[name] < found.summary[f"{name}_high"]
    assert found.summary["n_users"] == len(set(impressions.users))
    assert found.summary["accuracy"] is None
    assert "recall5" not in found.summary
    assert evaluate(frame, ("auc", "recall5")).summary["recall5"] > 0


def test_pairs_need_the_same_candidates_and_labels(impressions, news):
    scores = np.random.default_rng(0).random(len(impressions.news))
    whole = evaluate(from_scores("dev", impressions, news, scores))
    good = evaluate(from_scores("dev", impressions, news, impressions.labels.astype(float)))
    assert paired_differences(good, whole)["auc"]["low"] > 0
    part = impressions.take(np.arange(50))
    fewer = evaluate(from_scores("dev", part, news, scores[: part.offsets[-1]]))
    with pytest.raises(UserError, match="different impressions"):
        paired_differences(fewer, whole)


def test_rows_in_any_order_measure_the_same(impressions, news):
    scores = np.random.default_rng(0).random(len(impressions.news))
    frame = from_scores("dev", impressions, news, scores)
    shuffled = frame.take(pa.array(np.random.default_rng(1).permutation(len(frame))))
    assert not shuffled.equals(frame)
    one, other = (evaluate(check_predictions(table, "x")) for table in (frame, shuffled))
    assert other.summary == one.summary


@pytest.mark.parametrize("column", ["case_id", "impression_id"])
def test_ids_dealt_out_to_other_rows_are_refused(impressions, news, column):
    frame = from_scores("dev", impressions, news, np.random.default_rng(0).random(len(impressions.news)))
    dealt = np.random.default_rng(1).permutation(frame[column].to_numpy())
    wrong = frame.set_column(frame.column_names.index(column), column, pa.array(dealt))
    with pytest.raises(UserError, match=r"appears twice|one impression_id"):
        check_predictions(wrong, "x")


@pytest.mark.parametrize("which", ["case_ids", "ids", "both"])
def test_ids_dealt_out_to_other_impressions_are_not_compared(impressions, news, which):
    """Within an impression all is well, so only the comparison can tell."""
    scores = np.random.default_rng(0).random(len(impressions.news))
    order = np.roll(np.arange(len(impressions)), 1)
    moved = impressions if which == "case_ids" else replace(impressions, ids=impressions.ids[order])
    frames = [
        from_scores("dev", impressions, news, scores),
        from_scores("dev", moved, news, scores, case_ids=None if which == "ids" else order),
    ]
    right, moved = (evaluate(check_predictions(f, "x")) for f in frames)
    assert moved.summary["auc"] == pytest.approx(right.summary["auc"])
    with pytest.raises(UserError, match="different impressions"):
        paired_differences(moved, right)


def test_subset_sha_sees_every_key_and_label_but_no_score(impressions, news):
    n = len(impressions.news)
    whole = subset_sha(from_scores("dev", impressions, news, np.zeros(n)))
    assert whole == subset_sha(from_scores("dev", impressions, news, np.ones(n), ["Yes."] * n))
    other_news = make_news(news.title)
    other_news.ids[3] = "N999"
    frames = [
        from_scores("train", impressions, news, np.zeros(n)),
        from_scores("dev", impressions, news, np.zeros(n), case_ids=np.arange(len(impressions)) + 1),
        from_scores("dev", replace(impressions, ids=impressions.ids + 1), news, np.zeros(n)),
        from_scores("dev", replace(impressions, news=np.roll(impressions.news, 1)), news, np.zeros(n)),
        from_scores("dev", replace(impressions, labels=np.roll(impressions.labels, 1)), news, np.zeros(n)),
        from_scores("dev", impressions, other_news, np.zeros(n)),
        from_scores("dev", impressions, news, np.zeros(n), positions=np.arange(n)),
    ]
    assert len({whole, *map(subset_sha, frames)}) == 8
