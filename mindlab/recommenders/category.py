"""Category share: the oldest personal signal there is."""

from typing import Self

import numpy as np

from mindlab.mind import Impressions, News
from mindlab.recommenders.base import used_histories
from mindlab.recommenders.past import PastLog


class CategoryShare:
    """Score = share of the reader's history that is in the candidate's category.

    A news that stands in the history twice counts twice. An empty history scores 0 for every candidate,
    so all of them tie.
    """

    name = "category"
    track = "static"

    def fit(
        self, train: Impressions, news: News, valid: Impressions | None, rng: np.random.Generator
    ) -> Self:
        """Learn nothing: the histories of the test impressions say it all."""
        return self

    def score(self, test: Impressions, news: News, past: PastLog | None = None) -> np.ndarray:
        """Return the shares of the candidates' categories."""
        names, category = np.unique(news.category.astype(str), return_inverse=True)
        row, history, offsets = used_histories(test)
        sizes = np.diff(offsets)
        owner = np.repeat(np.arange(len(sizes)), sizes)
        cells = np.bincount(owner * len(names) + category[history], minlength=len(sizes) * len(names))
        share = cells.reshape(len(sizes), len(names)) / np.maximum(sizes, 1)[:, None]
        return share[np.repeat(row, np.diff(test.offsets)), category[test.news]]
