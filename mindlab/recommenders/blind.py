"""The answers to the tutorial's task that look at no news, as rows of its table.

These are **not** recommenders: they read the labels of the impression that they answer for (`mindlab.evaluation.leak_rule`).
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from mindlab.data.mind import Impressions, News
from mindlab.evaluation.leak_rule import always_no, leak_rule
from mindlab.recommenders.base import Method, Recommender
from mindlab.recommenders.past import PastLog
from mindlab.tasks.base import CANDIDATE


class Blind(Recommender):
    """Score = 1 for Yes and -1 for No, about the last candidate of each impression and no other."""

    reads_labels = True
    answers_last = True

    def __init__(self, name: str, rule: Callable[[Impressions, np.ndarray], np.ndarray]):
        self.name, self.rule = name, rule

    def score(self, test: Impressions, news: News, past: PastLog | None = None) -> np.ndarray:
        """Return float64 (n_impressions,); `test` has its labels."""
        return np.where(self.rule(test, np.full(len(test), -1)), 1.0, -1.0)


METHODS = tuple(
    Method(name, partial(Blind, name, rule), cases=(CANDIDATE,))
    for name, rule in (("always-no", always_no), ("leak-rule", leak_rule))
)
