"""Random: the floor that every method must leave."""

from typing import Self

import numpy as np

from mindlab.data.mind import Impressions, News
from mindlab.recommenders.base import Method, Recommender
from mindlab.recommenders.past import PastLog


class Random(Recommender):
    """Scores drawn uniformly from [0, 1), the same ones each time a fitted instance is asked."""

    name = "random"

    def fit(
        self, train: Impressions, news: News, valid: Impressions | None, rng: np.random.Generator
    ) -> Self:
        """Draw the seed of all later scores from `rng`."""
        self._seed = int(rng.integers(2**63))
        return self

    def score(self, test: Impressions, news: News, past: PastLog | None = None) -> np.ndarray:
        """Return one uniform draw per candidate."""
        return np.random.default_rng(self._seed).random(len(test.news))


METHODS = (Method.of(Random),)
