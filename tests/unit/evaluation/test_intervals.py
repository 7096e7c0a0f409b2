"""mindlab.evaluation.intervals: by hand, against a slow second implementation, and how often they hold the truth."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import t as student_t

from benchmarks.coverage import study
from mindlab.evaluation.intervals import Shares, mean_interval, mean_intervals, paired_difference


def test_users_alone_by_hand():
    # Of independent values the jackknife is the textbook's standard error, sqrt(s^2 / n).
    values = np.tile([0.0, 1.0], 200)
    found = mean_interval(values, np.arange(400))
    half = student_t.ppf(0.975, 399) * np.sqrt(values.var(ddof=1) / 400)
    assert (found.mean, found.n, found.n_clusters) == (0.5, 400, 400)
    assert found.low == pytest.approx(0.5 - half)
    assert found.high == pytest.approx(0.5 + half)
    narrow = mean_interval(values, np.arange(400), level=0.5)
    assert narrow.high - narrow.low < 0.5 * (found.high - found.low)


def slow(values, users, news):
    """Leave out one cluster after the other and measure the mean of the rest."""

    def variance(labels):
        moves = [np.mean(values[labels != one]) - np.mean(values) for one in np.unique(labels)]
        return (1 - 1 / len(moves)) * np.sum(np.square(moves))

    parts = variance(users), variance(news), -variance(1000 * users + news)
    fewest = min(len(np.unique(users)), len(np.unique(news)))
    half = student_t.ppf(0.975, fewest - 1) * np.sqrt(max(sum(parts), parts[0]))
    return np.mean(values) - half, np.mean(values) + half


def test_two_ways_are_what_leaving_out_one_after_the_other_gives():
    rng = np.random.default_rng(3)
    values, users, news = rng.normal(size=90), rng.integers(0, 25, 90), rng.integers(0, 12, 90)
    values += rng.normal(size=12)[news]
    found = mean_interval(values, users, news)
    assert (found.low, found.high) == pytest.approx(slow(values, users, news))
    assert found.n_clusters == 12


def test_values_that_are_undefined_are_left_out_with_their_clusters():
    values, users, news = (
        np.array([1.0, np.nan, 3.0, np.nan]),
        np.array(["a", "a", "b", "c"]),
        np.array([7, 8, 9, 6]),
    )
    found = mean_interval(values, users, news)
    assert (found.mean, found.n, found.n_clusters) == (2.0, 2, 2)
    assert found == mean_interval(values[[0, 2]], users[[0, 2]], news[[0, 2]])


def test_one_cluster_has_no_interval():
    for clusters in ((np.zeros(3),), (np.arange(3), np.zeros(3))):
        found = mean_interval(np.arange(3.0), *clusters)
        assert found.mean == 1.0
        assert np.isnan([found.low, found.high]).all()


def shares(parts, users, news):
    n = len(parts)
    return Shares(np.asarray(parts, float), np.ones(n), np.arange(n), users, news)


def test_a_metric_stays_between_0_and_1_and_a_difference_need_not():
    one = shares(np.r_[np.ones(30), 0.0], np.arange(31), np.arange(31))
    assert one.interval().high == 1
    assert one.minus(replace(one, parts=np.zeros(31))).high > 1
    alone = mean_interval(one.parts, one.users)
    assert one.minus(replace(one, parts=np.zeros(31)), by_users=True) == alone


def test_shares_of_some_impressions():
    rng = np.random.default_rng(9)
    one = shares(rng.random(40), rng.integers(0, 30, 40), rng.integers(0, 20, 40))
    mask = np.arange(40) % 3 == 0
    some = mean_interval(one.parts[mask], one.users[mask], one.news[mask])
    assert one.take(mask).interval().low == pytest.approx(max(some.low, 0))


def test_several_columns_are_measured_alike():
    rng = np.random.default_rng(6)
    a, users = rng.normal(size=60), rng.integers(0, 20, 60)
    found = mean_intervals({"a": a, "b": a + 1}, users)
    assert found["b"].low == pytest.approx(found["a"].low + 1)


def test_paired_difference_cancels_what_two_runs_share():
    rng = np.random.default_rng(7)
    users, hard = rng.integers(0, 80, 300), rng.normal(size=300)
    a, b = hard + 0.05 + rng.normal(0, 0.02, 300), hard
    assert paired_difference(a, b, users).low > 0.04
    assert mean_interval(a, users).low < mean_interval(b, users).high


def test_a_headline_that_many_clicked_widens_the_interval():
    rng = np.random.default_rng(4)
    clicked = rng.integers(0, 40, 800)
    values = rng.normal(size=40)[clicked] + rng.normal(0, 0.1, 800)
    alone = mean_interval(values, np.arange(800))
    both = mean_interval(values, np.arange(800), clicked)
    assert both.high - both.low > 3 * (alone.high - alone.low)


def test_what_single_articles_add_to_a_difference():
    # Article 7 was clicked twice and gained 0.6 and 0.2, article 8 once and lost 0.4; of four impressions.
    ours = shares([0.9, 0.5, 0.1, 0.3], np.arange(4), np.array([7, 7, 8, 9]))
    theirs = replace(ours, parts=np.array([0.3, 0.3, 0.5, 0.3]))
    found = ours.of_clicked(theirs)
    assert [one["clicks"] for one in found] == [2, 1]
    assert [one["adds"] for one in found] == pytest.approx([0.2, 0.0])
    assert theirs.of_clicked(ours)[0] == {"adds": pytest.approx(-0.2), "clicks": 2}
    assert sum(one["adds"] for one in ours.of_clicked(theirs, most=9)) == pytest.approx(0.1)


def test_intervals_over_users_and_news_hold_the_truth_and_those_over_users_do_not():
    """The short form of `python -m benchmarks.coverage`: 95 % are 380 of 400, give or take 9 (two standard errors)."""
    (row,) = study(sizes=[400], shares=[0.10], exposures=[0.5], n_sets=200, n_truth=300)
    assert 0.92 <= row["users and news"]["held"] <= 0.98
    assert row["users"]["held"] < 0.88
