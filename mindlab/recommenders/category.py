"""Category share: the oldest personal signal there is."""

from typing import Self

import numpy as np

from mindlab.mind import Impressions, News
from mindlab.recommenders.base import history_share
from mindlab.recommenders.past import PastLog


class CategoryShare:
    """Score = share of the reader's history that is in the candidate's category.

    An empty history scores 0 for every candidate, so all of them tie.
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
        return history_share(test, news.category)
