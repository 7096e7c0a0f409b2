"""PastLog: clicks and exposures strictly before a moment, the only view of labels while streaming."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from mindlab.data.mind import Impressions

# Weights grow as 2 ** (age of the log in half-lives); doubles end at 2 ** 1023.
MAX_HALF_LIVES = 960


class PastLog:
    """Exposures and clicks of labelled impressions, answered per news and moment.

    An event at the very second of the question is left out: the labels of an impression share its
    timestamp, so "at or before" would hand a candidate its own label. A question is answered from
    earlier events alone, bit for bit: later events do not even change the rounding.
    """

    def __init__(self, impressions: Impressions | Sequence[Impressions]) -> None:
        """Build the log of one or several labelled splits, in O(n log n).

        Raises:
            ValueError: if a split has no labels.
        """
        splits = [impressions] if isinstance(impressions, Impressions) else list(impressions)
        if any(split.labels is None for split in splits):
            raise ValueError("a log of the past needs labelled impressions")
        news, times, clicks = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for split in splits:
            news.append(split.news.astype(np.int64))
            times.append(np.repeat(_seconds(split.times), np.diff(split.offsets)))
            clicks.append(split.labels.astype(np.int64))
        time = np.concatenate(times)
        self._start = int(time.min(initial=np.iinfo(np.int64).max)) if len(time) else 0
        span = int(time.max()) - self._start if len(time) else 0
        # One sorted integer per (news, second): all seconds of a news are neighbours, in order. Room
        # for one second before and one after the log, where questions from outside are clipped to.
        self._width = span + 3
        key = np.concatenate(news) * self._width + (time - self._start + 1)
        self._keys, event = np.unique(key, return_inverse=True)
        exposures = np.bincount(event, minlength=len(self._keys))
        clicked = np.bincount(event, weights=np.concatenate(clicks), minlength=len(self._keys))
        self._set_events(np.stack([clicked.astype(np.int64), exposures]))
        self._decayed: dict[float, np.ndarray] = {}

    def counts(
        self, news: np.ndarray, times: np.ndarray, half_life_hours: float | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (clicks, exposures) of each news strictly before each time.

        Args:
            news: int (n,), news indices.
            times: datetime64 (n,), one moment per news.
            half_life_hours: if given, an event of age a counts 0.5 ** (a / half-life); else each counts 1.

        Returns:
            Two float64 (n,); 0 for a news that was not shown before.

        Raises:
            ValueError: if the half-life is not positive, or so short that the weights overflow.
        """
        news = np.asarray(news, dtype=np.int64)
        moment = np.clip(_seconds(times) - self._start + 1, 0, self._width - 1)
        end = self._first_at_or_after(news * self._width + moment)
        start = self._first_at_or_after(news * self._width)
        if half_life_hours is None:
            clicks, exposures = (self._sums[:, end] - self._sums[:, start]).astype(np.float64)
            return clicks, exposures
        sums = self._decayed_sums(half_life_hours)
        is_seen = end > start
        if not is_seen.any():
            return np.zeros(len(news)), np.zeros(len(news))
        last = np.where(is_seen, end - 1, 0)
        first_time = self._keys[np.where(is_seen, start, 0)] % self._width - 1 + self._start
        age = np.where(is_seen, _seconds(times) - first_time, 0)
        weight = np.where(is_seen, 0.5 ** (age / (half_life_hours * 3600.0)), 0.0)
        clicks, exposures = sums[:, last] * weight
        return clicks, exposures

    def age_hours(self, news: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Return the hours since each news was first shown, float64 (n,); NaN if it was not, strictly before `times`.

        MIND has no time of publication; the first exposure is the nearest thing to it.
        """
        news = np.asarray(news, dtype=np.int64)
        moment = _seconds(times)
        start = self._first_at_or_after(news * self._width)
        ages = np.full(len(news), np.nan)
        if len(self._keys):
            key = self._keys[np.minimum(start, len(self._keys) - 1)]
            first = key % self._width - 1 + self._start
            is_seen = (key // self._width == news) & (first < moment)
            ages[is_seen] = (moment - first)[is_seen] / 3600.0
        return ages

    def by(self, group: np.ndarray) -> "PastLog":
        """Return the log with every news replaced by its `group`, int (n_news,): the past of a topic, say."""
        other = object.__new__(PastLog)
        other._start, other._width, other._decayed = self._start, self._width, {}
        key = np.asarray(group, dtype=np.int64)[self._keys // self._width] * self._width
        other._keys, event = np.unique(key + self._keys % self._width, return_inverse=True)
        sums = [np.bincount(event, weights=row, minlength=len(other._keys)) for row in self._events]
        other._set_events(np.array(sums).astype(np.int64))
        return other

    def _set_events(self, events: np.ndarray) -> None:
        """Keep clicks and exposures of every key, (2, n_keys), and their running sums."""
        self._events = events  # whole numbers: sums are exact
        self._sums = np.concatenate([np.zeros((2, 1), np.int64), np.cumsum(events, axis=1)], axis=1)

    def _first_at_or_after(self, keys: np.ndarray) -> np.ndarray:
        """Return the index of the first event at or after each key; sorted keys search faster."""
        distinct, inverse = np.unique(keys, return_inverse=True)
        return np.searchsorted(self._keys, distinct, side="left")[inverse]

    def _decayed_sums(self, half_life_hours: float) -> np.ndarray:
        """Return float64 (2, n_keys): per news, the running sums of events weighted 2 ** (age / half-life).

        Ages count from the news' own first event, and each news is summed on its own: neither a later
        event nor another news can touch the rounding of an earlier sum.
        """
        if half_life_hours in self._decayed:
            return self._decayed[half_life_hours]
        if not half_life_hours > 0:
            raise ValueError(f"half_life_hours is {half_life_hours}, expected a positive number")
        if self._width / (half_life_hours * 3600.0) > MAX_HALF_LIVES:
            raise ValueError(
                f"half_life_hours {half_life_hours} is too short for a log of {self._width / 86400:.1f} days"
            )
        key_news = self._keys // self._width
        starts = np.flatnonzero(np.diff(key_news, prepend=-1))
        bounds = np.append(starts, len(self._keys))
        first = np.repeat(self._keys[starts], np.diff(bounds))
        sums = self._events * 2.0 ** ((self._keys - first) / (half_life_hours * 3600.0))
        for start, end in pairwise(bounds.tolist()):
            np.cumsum(sums[:, start:end], axis=1, out=sums[:, start:end])
        self._decayed[half_life_hours] = sums
        return sums


def _seconds(times: np.ndarray) -> np.ndarray:
    """Return datetime64 as int64 seconds since 1970."""
    return np.asarray(times).astype("datetime64[s]").astype(np.int64)
