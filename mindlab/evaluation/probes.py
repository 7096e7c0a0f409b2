"""Probes: what moves the scores of a recommender that reads, beside the user's taste.

A probe changes what is shown and nothing else, the same method scores again, and the two are compared. The biases are
those of LLMRank (https://arxiv.org/abs/2305.08845): a list's order, popularity, and a history that is overlooked.
"""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.stats import rankdata

from mindlab.data.mind import Impressions
from mindlab.evaluation.intervals import Interval, mean_interval
from mindlab.evaluation.metrics import ranking_shares


def reverse_candidates(impressions: Impressions) -> tuple[Impressions, np.ndarray]:
    """Return the impressions with every list of candidates backwards, and int (n_candidates,) where each one stood.

    ``scores[places]`` of the changed lists are in the order of the old ones.
    """
    starts, ends = impressions.offsets[:-1], impressions.offsets[1:]
    places = np.repeat(starts + ends - 1, ends - starts) - np.arange(len(impressions.news))
    labels = None if impressions.labels is None else impressions.labels[places]
    return replace(impressions, news=impressions.news[places], labels=labels), places


def shuffle_histories(impressions: Impressions, rng: np.random.Generator) -> Impressions:
    """Return the impressions with the same clicks in every history, in an order by chance."""
    offsets = impressions.history_offsets
    rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    order = np.lexsort((rng.random(len(rows)), rows))
    return replace(impressions, history_news=impressions.history_news[order])


def swap_histories(impressions: Impressions, rng: np.random.Generator) -> Impressions:
    """Return the impressions with another user's history for everyone who has one: a fake history.

    Each history is handed on once. An empty one stays empty. Raises ValueError if fewer than two are not.
    """
    sizes = np.diff(impressions.history_offsets)
    used = np.unique(impressions.history)
    used = rng.permutation(used[sizes[used] > 0])
    if len(used) < 2:
        raise ValueError(f"{len(used)} histories with clicks: nothing to swap")
    given = np.arange(len(sizes), dtype=impressions.history.dtype)
    given[used] = np.roll(used, 1)
    return replace(impressions, history=given[impressions.history])


def moved(scores: np.ndarray, changed: np.ndarray, impressions: Impressions) -> dict[str, Any]:
    """Return what a change of the prompt did to float (n_candidates,) scores of the same candidates in the same order.

    ``first_place``: share of impressions whose first place is another's; ``rank_agreement``: mean Spearman correlation
    of the two; ``auc``, ``auc_changed`` and ``auc_difference``, before minus after: intervals over users and clicked news.
    """
    offsets, users = impressions.offsets, np.unique(impressions.users.astype(str), return_inverse=True)[1]
    case = impressions.labels, offsets, users, impressions.news
    before, after = (ranking_shares(one, *case)[1]["auc"] for one in (scores, changed))
    is_first = [
        one == np.repeat(np.maximum.reduceat(one, offsets[:-1]), np.diff(offsets))
        for one in (scores, changed)
    ]
    differs = np.logical_or.reduceat(is_first[0] != is_first[1], offsets[:-1])

    return {
        "first_place": float(differs.mean()),
        "rank_agreement": float(np.nanmean(rank_correlations(scores, changed, offsets))),
        "auc": before.interval(),
        "auc_changed": after.interval(),
        "auc_difference": before.minus(after),
    }


def rank_correlations(a: np.ndarray, b: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation of two float (n_candidates,) in each impression, float64 (n_impressions,).

    Ties have their mean rank. NaN where one of the two is the same for all candidates.

    >>> rank_correlations(np.array([1.0, 2, 3, 1, 1]), np.array([10.0, 30, 20, 1, 2]), np.array([0, 3, 5]))
    array([0.5, nan])
    """
    found = np.full(len(offsets) - 1, np.nan)
    for i, (start, end) in enumerate(pairwise(offsets)):
        x, y = (rankdata(one[start:end]) - (end - start + 1) / 2 for one in (a, b))
        if (norm := np.sqrt(np.dot(x, x) * np.dot(y, y))) > 0:
            found[i] = np.dot(x, y) / norm
    return found


def popularity_agreement(scores: np.ndarray, impressions: Impressions, clicks: np.ndarray) -> Interval:
    """Return the mean rank correlation of scores with int (n_news,) `clicks` of the training days; interval over users."""
    found = rank_correlations(scores, clicks[impressions.news].astype(np.float64), impressions.offsets)
    return mean_interval(found, impressions.users.astype(str))
