"""The fast metrics against hand-computed values, the official script's steps, and brute force."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import official
import pyarrow as pa
import pytest
from handmade import make_news, random_impressions
from hypothesis import given, settings
from hypothesis import strategies as st

from mindlab.errors import UserError
from mindlab.metrics import (
    FEW_CLUSTERS,
    RANKING_METRICS,
    answer_metrics,
    clustered_bootstrap,
    clustered_intervals,
    evaluate,
    paired_difference,
    paired_differences,
    ranking_metrics,
    sampled_metrics,
    subset_sha,
)
from mindlab.predictions import check_predictions, from_scores


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
    sizes = np.append([2, 300], rng.integers(2, 301, size=4998))
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


def test_bootstrap_of_a_known_case():
    # 400 users with one value each, half 0 and half 1: the mean's standard error is 0.5 / sqrt(400).
    values, users = np.tile([0.0, 1.0], 200), np.arange(400)
    found = clustered_bootstrap(values, users, rng=np.random.default_rng(0))
    assert (found.mean, found.n, found.n_clusters) == (0.5, 400, 400)
    assert found.low == pytest.approx(0.5 - 1.96 * 0.025, abs=0.005)
    assert found.high == pytest.approx(0.5 + 1.96 * 0.025, abs=0.005)
    narrow = clustered_bootstrap(values, users, rng=np.random.default_rng(0), level=0.5)
    assert narrow.high - narrow.low < 0.5 * (found.high - found.low)


def test_bootstrap_equals_drawing_users_one_by_one():
    rng = np.random.default_rng(3)
    users = rng.integers(0, 40, 200)
    values = rng.normal(size=200)
    fast = clustered_bootstrap(values, users, rng=np.random.default_rng(0))
    groups = [values[users == user] for user in np.unique(users)]
    means = []
    for _ in range(2000):
        drawn = rng.integers(0, len(groups), len(groups))
        means.append(np.concatenate([groups[g] for g in drawn]).mean())
    low, high = np.percentile(means, [2.5, 97.5])
    assert fast.low == pytest.approx(low, abs=0.03)
    assert fast.high == pytest.approx(high, abs=0.03)


def test_clustered_is_wider_when_users_repeat():
    rng = np.random.default_rng(4)
    users = np.repeat(np.arange(50), 20)
    values = np.repeat(rng.normal(size=50), 20) + rng.normal(0, 0.1, 1000)
    clustered = clustered_bootstrap(values, users, rng=rng)
    iid = clustered_bootstrap(values, np.arange(1000), rng=rng)
    assert clustered.high - clustered.low > 3 * (iid.high - iid.low)


def test_intervals_of_few_readers_are_too_narrow():
    """Of 400 intervals of 95 %, 380 should hold the true mean, give or take 9 (two standard errors)."""
    rng = np.random.default_rng(5)

    def held(n):
        drawn = rng.normal(size=(400, n))
        found = [clustered_bootstrap(one, np.arange(n), rng=rng, n_resamples=500) for one in drawn]
        return sum(interval.low <= 0 <= interval.high for interval in found)

    assert held(FEW_CLUSTERS // 3) < 371
    assert held(5 * FEW_CLUSTERS) >= 371


def test_bootstrap_leaves_nan_out_and_does_not_depend_on_the_chunk(monkeypatch):
    values = np.array([1.0, np.nan, 3.0, np.nan])
    users = np.array(["a", "a", "b", "c"])
    found = clustered_bootstrap(values, users, rng=np.random.default_rng(0))
    assert (found.mean, found.n, found.n_clusters) == (2.0, 2, 2)
    monkeypatch.setattr("mindlab.metrics.DRAWS_PER_CHUNK", 1)
    assert clustered_bootstrap(values, users, rng=np.random.default_rng(0)) == found


def test_one_cluster_has_no_interval():
    found = clustered_bootstrap(np.arange(3.0), np.zeros(3), rng=np.random.default_rng(0))
    assert found.mean == 1.0
    assert np.isnan([found.low, found.high]).all()


def test_several_columns_share_their_resamples():
    rng = np.random.default_rng(6)
    a, users = rng.normal(size=60), rng.integers(0, 20, 60)
    found = clustered_intervals({"a": a, "b": a + 1}, users, rng=np.random.default_rng(0))
    assert found["b"].low == pytest.approx(found["a"].low + 1)


def test_paired_difference_cancels_what_two_runs_share():
    rng = np.random.default_rng(7)
    users, hard = rng.integers(0, 80, 300), rng.normal(size=300)
    a, b = hard + 0.05 + rng.normal(0, 0.02, 300), hard
    paired = paired_difference(a, b, users, rng=rng)
    assert paired.low > 0.04
    assert clustered_bootstrap(a, users, rng=rng).low < clustered_bootstrap(b, users, rng=rng).high


def test_answer_metrics_by_hand():
    # The leak rule on 5,000 real impressions: TP 447, FP 0, FN 104, TN 4,449.
    yes = np.repeat([True, False, False], [447, 104, 4449])
    labels = np.repeat([1, 1, 0], [447, 104, 4449])
    found = answer_metrics(yes, labels, np.arange(5000), rng=np.random.default_rng(0))
    assert (found["tp"], found["fp"], found["fn"], found["tn"]) == (447, 0, 104, 4449)
    assert round(found["accuracy"], 4) == 0.9792
    assert found["precision"] == 1.0
    assert round(found["recall"], 4) == 0.8113
    assert round(found["f1"], 3) == 0.896
    assert round(found["always_no_accuracy"], 4) == 0.8898
    assert 0.974 < found["accuracy_low"] < 0.977 < 0.982 < found["accuracy_high"] < 0.984
    assert 0.77 < found["recall_low"] < 0.79 < 0.83 < found["recall_high"] < 0.85


def test_always_no_has_no_precision():
    found = answer_metrics(
        np.zeros(4, bool), np.array([0, 0, 0, 1]), np.arange(4), rng=np.random.default_rng(0)
    )
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
    found = evaluate(frame, rng=np.random.default_rng(0))
    expected = ranking_metrics(scores, impressions.labels, impressions.offsets)
    for name in RANKING_METRICS:
        assert found.summary[name] == pytest.approx(np.mean(expected[name]), abs=1e-12)
        assert found.summary[f"{name}_low"] < found.summary[name] < found.summary[f"{name}_high"]
    assert found.summary["n_users"] == len(set(impressions.users))
    assert found.summary["accuracy"] is None
    assert "recall5" not in found.summary
    assert evaluate(frame, rng=np.random.default_rng(0), protocol="sampled").summary["recall5"] > 0


def test_pairs_need_the_same_candidates_and_labels(impressions, news):
    scores = np.random.default_rng(0).random(len(impressions.news))
    rng = np.random.default_rng(0)
    whole = evaluate(from_scores("dev", impressions, news, scores), rng=rng)
    good = evaluate(from_scores("dev", impressions, news, impressions.labels.astype(float)), rng=rng)
    assert paired_differences(good, whole, rng=rng)["auc"]["low"] > 0
    part = impressions.take(np.arange(50))
    fewer = evaluate(from_scores("dev", part, news, scores[: part.offsets[-1]]), rng=rng)
    with pytest.raises(UserError, match="different impressions"):
        paired_differences(fewer, whole, rng=rng)


def test_rows_in_any_order_measure_the_same(impressions, news):
    scores = np.random.default_rng(0).random(len(impressions.news))
    frame = from_scores("dev", impressions, news, scores)
    shuffled = frame.take(pa.array(np.random.default_rng(1).permutation(len(frame))))
    assert not shuffled.equals(frame)
    one, other = (
        evaluate(check_predictions(table, "x"), rng=np.random.default_rng(0)) for table in (frame, shuffled)
    )
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
    right, moved = (evaluate(check_predictions(f, "x"), rng=np.random.default_rng(0)) for f in frames)
    assert moved.summary["auc"] == pytest.approx(right.summary["auc"])
    with pytest.raises(UserError, match="different impressions"):
        paired_differences(moved, right, rng=np.random.default_rng(0))


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
