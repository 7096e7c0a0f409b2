"""Popularity: what everybody clicks, counted once in training or all the time."""

from pathlib import Path
from typing import Self

import numpy as np

from mindlab.data.mind import Impressions, News
from mindlab.recommenders.base import CLICKS, TIMES, Method, Recommender, training_labels, used_histories
from mindlab.recommenders.past import PastLog
from mindlab.tasks import Task


class StaticPopularity(Recommender):
    """Score = clicks of the news in the training impressions; news unseen there all tie at 0."""

    name = "popularity"

    def on(self, task: Task, split: Impressions, folder: Path) -> Recommender:
        """Return what counts the clicks that a task has: those in histories, where there is no log."""
        return HistoryPopularity() if task.counts_histories else self

    def fit(
        self, train: Impressions, news: News, valid: Impressions | None, rng: np.random.Generator
    ) -> Self:
        """Count the clicks of each news."""
        self._clicks = np.bincount(train.news, weights=training_labels(train), minlength=len(news))
        return self

    def score(self, test: Impressions, news: News, past: PastLog | None = None) -> np.ndarray:
        """Return the click counts of the candidates."""
        return self._clicks[test.news]


class HistoryPopularity(StaticPopularity):
    """Score = how often the news stands in the training users' histories or is their target: for `sampled`."""

    def fit(
        self, train: Impressions, news: News, valid: Impressions | None, rng: np.random.Generator
    ) -> Self:
        """Count the clicks of each news, those in histories too."""
        super().fit(train, news, valid, rng)
        _, history, _ = used_histories(train)
        self._clicks = self._clicks + np.bincount(history, minlength=len(news))
        return self


class StreamingPopularity(Recommender):
    """Score = click rate so far, (clicks + a * prior) / (exposures + a), over events before the impression.

    The prior is the click rate of the training impressions and `a` (`strength`) is how many exposures it
    is worth; a news never shown before scores exactly the prior. With a half-life old events fade,
    because most news lives for a day or two.
    """

    name = "popularity-streaming"
    track = "streaming"

    def __init__(self, half_life_hours: float | None = 12.0, strength: float = 50.0) -> None:
        if not strength > 0:
            raise ValueError(f"strength is {strength}, expected a positive number")
        self.half_life_hours = half_life_hours
        self.strength = strength

    def fit(
        self, train: Impressions, news: News, valid: Impressions | None, rng: np.random.Generator
    ) -> Self:
        """Take the prior from the training impressions."""
        labels = training_labels(train)
        self._prior = float(labels.mean()) if len(labels) else 0.0
        return self

    def score(self, test: Impressions, news: News, past: PastLog | None) -> np.ndarray:
        """Return the smoothed click rates of the candidates at the time of their impression."""
        if past is None:
            raise ValueError("StreamingPopularity needs the log of the past")
        times = np.repeat(test.times, np.diff(test.offsets))
        clicks, exposures = past.counts(test.news, times, self.half_life_hours)
        return (clicks + self.strength * self._prior) / (exposures + self.strength)


METHODS = (
    Method.of(StaticPopularity, needs={CLICKS}),
    Method.of(StreamingPopularity, needs={CLICKS, TIMES}),
)
