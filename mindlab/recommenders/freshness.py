"""Freshness: the newest news first."""

from typing import Self

import numpy as np

from mindlab.data.mind import Impressions, News
from mindlab.recommenders.base import TIMES, Method, Recommender
from mindlab.recommenders.past import PastLog


class Freshness(Recommender):
    """Score = minus the hours since the candidate was first shown to anybody; one never shown before is newest.

    It uses when news was shown, and no click. Those moments go on during the test day, so the track is streaming.
    """

    name = "freshness"
    track = "streaming"

    def fit(
        self, train: Impressions, news: News, valid: Impressions | None, rng: np.random.Generator
    ) -> Self:
        """Learn nothing."""
        return self

    def score(self, test: Impressions, news: News, past: PastLog | None) -> np.ndarray:
        """Return minus the ages, 0 for a news not shown before."""
        if past is None:
            raise ValueError("Freshness needs the log of the past")
        ages = past.age_hours(test.news, np.repeat(test.times, np.diff(test.offsets)))
        return -np.nan_to_num(ages, nan=0.0)


METHODS = (Method.of(Freshness, needs={TIMES}),)
