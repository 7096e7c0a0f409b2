"""Slices: for which users, and for which news, does a number hold?"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mindlab.data.mind import Impressions, News
from mindlab.evaluation.metrics import Evaluation

HISTORY = "clicks in the history"  # a question
HISTORIES = ((0, 0), (1, 9), (10, 49), (50, None))  # clicks in the history, both ends included
LISTS = ((2, 5), (6, 20), (21, 100), (101, None))  # candidates of the impression
MOST_CATEGORIES = 5
FEWEST = 20  # impressions of a slice below which no number is given

Masks = dict[str, dict[str, np.ndarray]]  # by question, then by answer: bool (n_impressions,)


def masks(test: Impressions, train: Impressions, news: News) -> Masks:
    """Return which labelled impressions of `test` belong to which slice, by question.

    The user: in the training impressions or not; the history's length; the list's length; whether the clicked
    news was shown in training (on MIND's test day most of it was not); the category of the clicked news, where
    all clicks of an impression are in one. Slices of one question do not overlap.
    """
    history = np.diff(test.history_offsets)[test.history]
    size = np.diff(test.offsets)
    is_known = np.isin(test.users.astype(str), np.unique(train.users.astype(str)))
    owner = np.repeat(np.arange(len(test)), size)
    clicks = np.flatnonzero(test.labels == 1)
    was_shown = np.isin(test.news, np.unique(train.news))
    n_clicks = np.bincount(owner[clicks], minlength=len(test))
    n_shown = np.bincount(owner[clicks], weights=was_shown[clicks], minlength=len(test))
    names, code = np.unique(news.category.astype(str), return_inverse=True)
    of_clicks = code[test.news[clicks]]
    lowest, highest = np.full(len(test), len(names)), np.full(len(test), -1)
    np.minimum.at(lowest, owner[clicks], of_clicks)
    np.maximum.at(highest, owner[clicks], of_clicks)
    only = np.where(lowest == highest, lowest, -1)
    common = np.argsort(-np.bincount(only[only >= 0], minlength=len(names)), kind="stable")[:MOST_CATEGORIES]
    found = {
        "user": {"in training": is_known, "new": ~is_known},
        HISTORY: _ranges(history, HISTORIES),
        "candidates": _ranges(size, LISTS),
        "clicked news": {
            "all shown in training": (n_shown == n_clicks) & (n_clicks > 0),
            "some shown": (n_shown > 0) & (n_shown < n_clicks),
            "none shown": (n_shown == 0) & (n_clicks > 0),
        },
        "clicked category": {str(names[k]): only == k for k in common},
    }
    if not len(train):  # then everybody is new, and nothing was shown
        del found["user"], found["clicked news"]
    return found


def measure_slices(
    found: Mapping[str, Evaluation], parts: Masks, metric: str = "auc"
) -> list[dict[str, Any]]:
    """Return one row a slice: ``question``, ``slice``, ``metric``, ``n`` and, by method, ``mean``, ``low``, ``high``.

    Intervals are 95 %, over users and news. A slice of fewer than `FEWEST` impressions has n alone.

    Args:
        found: evaluations by method, all of the impressions that `parts` was made for.
        parts: from `masks`.
        metric: which per-impression values to average.

    Raises:
        ValueError: if an evaluation holds another number of impressions.
    """
    rows = []
    for question, answers in parts.items():
        for name, mask in answers.items():
            row: dict[str, Any] = {
                "question": question, "slice": name, "metric": metric, "n": int(mask.sum()), "methods": {},
            }  # fmt: skip
            for method, one in found.items():
                values = one.values[metric]
                if len(values) != len(mask):
                    raise ValueError(f"{method}: {len(values)} impressions, the slices have {len(mask)}")
                if row["n"] >= FEWEST:
                    interval = one.shares[metric].take(mask).interval()
                    ends = {key: getattr(interval, key) for key in ("mean", "low", "high")}
                    row["methods"][method] = {k: None if np.isnan(v) else v for k, v in ends.items()}
            rows.append(row)
    return rows


def _ranges(values: np.ndarray, borders: tuple[tuple[int, int | None], ...]) -> dict[str, np.ndarray]:
    """Return which values lie in which range, by its name.

    >>> {name: mask.tolist() for name, mask in _ranges(np.array([0, 3, 99]), ((0, 0), (1, 9), (10, None))).items()}
    {'0': [True, False, False], '1-9': [False, True, False], '10 or more': [False, False, True]}
    """
    found = {}
    for low, high in borders:
        name = f"{low} or more" if high is None else str(low) if low == high else f"{low}-{high}"
        found[name] = (values >= low) & (values <= (np.inf if high is None else high))
    return found
