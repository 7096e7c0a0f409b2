"""95 % intervals over users and news.

Two impressions of one user are alike, and so are two that show the same news article: a method that happens to like one
headline wins where it was clicked and loses where it was passed over. MIND's dev split is one day, and a tenth of its
clicks are on one article. So a metric is taken apart by candidate (`Shares`), and candidates of one user, or of one news
article, are not independent (docs/intervals.md: how often such intervals hold the truth, and others do not).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from scipy.special import stdtrit  # the quantile of Student's t; scipy.stats takes a second to import

# With fewer users, or news, an interval stands on too little to go without a word.
FEW_CLUSTERS = 30


@dataclass(frozen=True)
class Interval:
    """A mean with its interval; NaN where it is undefined."""

    mean: float
    low: float
    high: float
    n: int  # numbers with a weight
    n_clusters: int  # users that hold them, or news, whichever are fewer


@dataclass(frozen=True)
class Shares:
    """A metric's mean over impressions, taken apart by candidate: it is ``sum(parts) / sum(weights)``.

    The parts of an impression's candidates sum to its value, the weights to 1; an impression where the metric is undefined
    has zeros. An impression's value is its clicks' doing; the part of a non-click says how much more than the other
    non-clicks of its impression it was in the way (`mindlab.evaluation.metrics.ranking_shares`).
    """

    parts: np.ndarray  # float64 (n,)
    weights: np.ndarray  # float64 (n,)
    owner: np.ndarray  # int (n,), the impression
    users: np.ndarray  # int (n,)
    news: np.ndarray  # int (n,)

    def take(self, impressions: np.ndarray) -> Self:
        """Return the shares of the impressions that a mask, bool (n_impressions,), holds."""
        rows = impressions[self.owner]
        return Shares(*(getattr(self, name)[rows] for name in ("parts", "weights", "owner", "users", "news")))

    def interval(self, *, level: float = 0.95, most: float = 1.0) -> Interval:
        """Return the mean with its interval, which ends at 0 and at what the metric is at `most`."""
        found = self._interval(level)
        return replace(found, low=max(found.low, 0.0), high=min(found.high, most))

    def minus(self, other: Self, *, level: float = 0.95, by_users: bool = False) -> Interval:
        """Return the difference to another method's mean over the same impressions, with its interval.

        With `by_users` it is over users alone: too narrow, to be shown beside the other.
        """
        return replace(self, parts=self.parts - other.parts)._interval(level, by_users)

    def of_clicked(self, other: Self, most: int = 2) -> list[dict[str, float | int]]:
        """Return what the `most` clicked news articles that add most to the difference add to it, and their clicks.

        The additions of all clicked articles sum to the difference. No article is named.
        """
        clicks = self.weights > 0
        number, n = _numbered(self.news[clicks])
        added = (
            np.bincount(number, weights=(self.parts - other.parts)[clicks], minlength=n) / self.weights.sum()
        )
        count = np.bincount(number, minlength=n)
        sign = 1.0 if added.sum() >= 0 else -1.0
        largest = np.argsort(-sign * added, kind="stable")[:most]
        return [{"adds": float(added[k]), "clicks": int(count[k])} for k in largest]

    def _interval(self, level: float, by_users: bool = False) -> Interval:
        columns = self.parts[:, None], self.weights[:, None]
        return ratio_intervals(*columns, self.users, None if by_users else self.news, level=level)[0]


def mean_intervals(
    columns: Mapping[str, np.ndarray],
    users: np.ndarray,
    news: np.ndarray | None = None,
    *,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Return the mean of each column with its interval; arguments as in `ratio_intervals`.

    NaN means undefined and is left out.
    """
    values = np.column_stack([np.asarray(column, dtype=np.float64) for column in columns.values()])
    is_defined = ~np.isnan(values)
    numerators = np.where(is_defined, values, 0.0)
    found = ratio_intervals(numerators, is_defined.astype(np.float64), users, news, level=level)
    return dict(zip(columns, found, strict=True))


def mean_interval(
    values: np.ndarray, users: np.ndarray, news: np.ndarray | None = None, *, level: float = 0.95
) -> Interval:
    """Return `mean_intervals` of one column.

    >>> mean_interval(np.array([0.0, 1.0, 0.0, 1.0]), np.arange(4)).high.__round__(3)
    1.419
    """
    return mean_intervals({"value": values}, users, news, level=level)["value"]


def paired_difference(
    a: np.ndarray, b: np.ndarray, users: np.ndarray, news: np.ndarray | None = None, *, level: float = 0.95
) -> Interval:
    """Return the mean of ``a - b`` with its interval.

    >>> paired_difference(np.array([0.5, 0.75]), np.array([0.25, 0.5]), np.array([1, 2]))
    Interval(mean=0.25, low=0.25, high=0.25, n=2, n_clusters=2)
    """
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    return mean_interval(difference, users, news, level=level)


def ratio_intervals(
    numerators: np.ndarray,
    denominators: np.ndarray,
    users: np.ndarray,
    news: np.ndarray | None = None,
    *,
    level: float = 0.95,
) -> list[Interval]:
    """Return, per column of two float (n, m), sum / sum with its interval over users and, if given, news.

    The variance is that over users plus that over news minus that over pairs of both (Cameron, Gelbach and Miller, Robust
    Inference With Multiway Clustering, JBES 2011), each the jackknife that leaves one cluster out after the other
    (MacKinnon, Nielsen and Webb, Fast and Reliable Jackknife and Bootstrap Methods for Cluster-Robust Inference, 2023),
    and not below that over users. The ends are Student's t with one degree of freedom fewer than there are users or news,
    whichever are fewer.

    Args:
        numerators: float (n, m).
        denominators: float (n, m); a row with 0 in both takes no part.
        users: (n,) labels.
        news: (n,) labels; None for users alone.
        level: coverage, 0.95 for a 95 % interval.

    Returns:
        An Interval a column; low and high are NaN if fewer than two clusters take part.
    """
    if len(users) != len(numerators):
        raise ValueError(f"{len(users)} users for {len(numerators)} values")
    user, n_users = _numbered(users)
    ways = [(1, user, n_users)]
    if news is not None:
        article, n_news = _numbered(news)
        ways += [(1, article, n_news), (-1, *_numbered(user * n_news + article))]
    columns = zip(numerators.T, denominators.T, strict=True)
    return [_ratio_interval(above, below, ways, level) for above, below in columns]


def _ratio_interval(
    numerator: np.ndarray, denominator: np.ndarray, ways: list[tuple[int, np.ndarray, int]], level: float
) -> Interval:
    total, n = denominator.sum(), int(np.count_nonzero(denominator))
    if not total:
        return Interval(np.nan, np.nan, np.nan, n, 0)
    mean = numerator.sum() / total
    apart = numerator - mean * denominator
    variances, sizes = [], []
    for sign, cluster, n_clusters in ways:
        weight = np.bincount(cluster, weights=denominator, minlength=n_clusters)
        size = int(np.count_nonzero(weight))
        if size < 2:
            return Interval(float(mean), np.nan, np.nan, n, size)
        # How far the ratio moves when the cluster is left out.
        moves = np.bincount(cluster, weights=apart, minlength=n_clusters) / (total - weight)
        variances.append(sign * (1 - 1 / size) * float(np.dot(moves, moves)))
        sizes.append(size)
    variance = max(sum(variances), variances[0])
    fewest = min(sizes[:2])
    half = float(stdtrit(fewest - 1, 0.5 + level / 2) * np.sqrt(variance))
    return Interval(float(mean), float(mean) - half, float(mean) + half, n, fewest)


def _numbered(labels: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the labels as numbers from 0, and how many there are."""
    names, number = np.unique(labels, return_inverse=True)
    return number, len(names)
