"""What every recommender is, and the one door through which they are asked for scores."""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from mindlab.common.errors import UserError
from mindlab.common.manifest import peak_memory_mb
from mindlab.data.mind import Impressions, News
from mindlab.recommenders.past import PastLog
from mindlab.tasks import Task
from mindlab.tasks.base import CANDIDATE, IMPRESSION, USER

# What a method may need, of a task or its data.
CLICKS = "clicks"  # labelled impressions to learn from
TIMES = "times"  # what was shown and clicked before an impression
UTILITIES = "utilities"  # what a generator drew the clicks of whole impressions from
TRACKS = ("static", "streaming", "ceiling")
UNTRAINED = "-untrained"  # after the name of a learned method: its twin, as it was drawn


class Recommender:
    """What a method is made of.

    `track` is "static" (labels end with the training split), "streaming" (may ask `past`, which also
    holds the labels of earlier test impressions) or "ceiling" (knows what nobody can know). They are never ranked
    together.
    """

    name: str
    track: str = "static"
    reads_labels: bool = False  # of the impressions that it scores: a control, and no recommender
    answers_last: bool = False  # its scores are of the last candidate of each impression alone
    answers: list[str | None] | None = None  # that it wrote beside its last scores
    scores_are_written: bool = False  # what it takes to score is what it takes to prepare
    # What fitting and scoring leave for the manifest.
    params: int | None = 0  # learned; None: unknown
    chosen: dict[str, Any] | None = None  # on the validation split
    written: dict[str, Any] | None = None  # by a language model: what, with answers, faults, cost
    saved_seconds: float = 0.0  # of fitting and of scoring, that an earlier run did
    saved_scoring_seconds: float = 0.0

    def on(self, task: Task, split: Impressions, folder: Path) -> "Recommender":
        """Return the recommender to use for a task, usually this one.

        `split` is the whole split of MIND's files that is scored, `folder` where it lies.
        """
        return self

    def fit(
        self, train: Impressions, news: News, valid: Impressions | None, rng: np.random.Generator
    ) -> Self:
        """Learn from labelled `train` (and choose settings on `valid`), and return self."""
        return self

    def score(self, test: Impressions, news: News, past: PastLog | None) -> np.ndarray:
        """Return float64 scores, flat and aligned with ``test.news``, higher is better.

        `test` has no labels. `past` is None for the static track.
        """
        raise NotImplementedError

    def prepare(self, test: Impressions, news: News) -> "Prepared":
        """Do what has to be done once for all impressions to be scored, `test` without labels; usually nothing."""
        return Prepared({}, None)

    def start(self, candidates: np.ndarray, news: News, prepared: "Prepared") -> None:
        """Get ready to score impressions whose candidates are among `candidates`, int (n,); usually nothing."""

    def cost(self) -> dict[str, float]:
        """Return what scoring has taken so far beside time: `tokens` read, `peak_mb` of memory."""
        return {"peak_mb": peak_memory_mb()}

    def about(self) -> dict[str, Any]:
        """Return what the manifest says of it beyond what every run says."""
        return {}

    def close(self) -> None:
        """End what scoring started."""


@dataclass(frozen=True)
class Prepared:
    """What a language model wrote before anything was scored."""

    texts: Mapping[int, Any]  # by what the recommender looks them up by
    cost: dict[str, Any] | None  # what was written: answers, faults, seconds, tokens; None for nothing


@dataclass(frozen=True)
class Method:
    """A row of the leaderboard: how its recommender is made, and what it says of itself before that.

    Whether it takes part in a task follows from what it needs, and what the task and the data have (`applies`).
    """

    name: str
    make: Callable[[], Recommender]
    track: str = "static"
    needs: Set[str] = frozenset()  # of CLICKS, TIMES, UTILITIES
    cases: tuple[str, ...] = (IMPRESSION, USER, CANDIDATE)  # of a task, that it can score
    against: tuple[str, ...] = ()  # the rows that it is compared with, beside popularity
    is_learned: bool = False  # its scores depend on the training seed
    is_slow: bool = False  # a minute or more to make: its predictions are worth keeping
    is_costly: bool = (
        False  # seconds an impression: scored on a choice of impressions, as language models are
    )
    needs_llm: bool = False
    on_request: bool = False  # where nothing can be trained: only if it is asked for by name
    sees_valid: bool = False  # its training has seen the validation day
    trains_long: bool = False  # an hour each: `compare` has a number of trainings of its own for these
    options: Mapping[str, Any] = field(
        default_factory=dict
    )  # what its scores depend on beside the impressions
    part_size: int | None = None  # impressions that are scored and kept at a time; None: all at once

    @classmethod
    def of(cls, kind: type[Recommender], **declared: Any) -> Self:
        """Return the method of a recommender that is made without arguments."""
        return cls(kind.name, kind, kind.track, **declared)

    def check(self, task: Task) -> None:
        """Raise UserError unless it takes part in a task."""
        if not self.applies(task):
            raise UserError(f"{self.name} does not apply to protocol {task.name} (see mindlab/tasks)")

    def inputs(self) -> dict[str, str]:
        """Return the SHA-256 of the files beside the data that decide its scores, by path."""
        return {}

    def anywhere(self) -> Self:
        """Return the method as a worker in another folder may make it."""
        return self

    def ready(self, data: str, out: Path, k: int) -> "Method":
        """Return the method as it is when it can be made: what it needs beside the data is there.

        `out` is the run folder, `k` the number of the training, from 0.
        """
        return self

    def applies(self, task: Task, has_training: bool = True) -> bool:
        """Return whether it takes part in a task, on data with or without a training split."""
        if not has_training and (task.needs_training or self.needs):
            return False
        has = {CLICKS: True, TIMES: task.has_times, UTILITIES: task.is_whole}
        return task.case in self.cases and all(has[need] for need in self.needs)


def score_without_labels(
    recommender: Recommender, test: Impressions, news: News, past: PastLog | None = None
) -> np.ndarray:
    """Return the recommender's scores, having taken the labels of `test` away first.

    A static recommender is not given `past` either.

    Raises:
        ValueError: if the recommender's track is unknown, it is streaming and there is no `past`, or it
            returns something else than one finite float64 per candidate.
    """
    if recommender.track not in TRACKS:
        raise ValueError(
            f"{recommender.name}: track {recommender.track!r}, expected one of {', '.join(TRACKS)}"
        )
    if recommender.track == "streaming" and past is None:
        raise ValueError(f"{recommender.name} is streaming and needs the log of the past")
    given = past if recommender.track == "streaming" else None
    scores = recommender.score(test.without_labels(), news, given)
    if scores.shape != test.news.shape or scores.dtype != np.float64:
        raise ValueError(
            f"{recommender.name} returned {scores.dtype} {scores.shape} for {len(test.news)} candidates"
        )
    if not np.isfinite(scores).all():
        raise ValueError(f"{recommender.name} returned a score that is NaN or infinite")
    return scores


def training_labels(train: Impressions) -> np.ndarray:
    """Return the labels of `train`; ValueError if it has none."""
    if train.labels is None:
        raise ValueError("a recommender cannot be fitted on impressions without labels")
    return train.labels


def late_rows(train: Impressions, valid: Impressions | None) -> np.ndarray:
    """Return which impressions of `train` are from the validation day on, bool (n,).

    `valid` is a part of `train`: what is chosen on it is chosen by a model of the others. None are late where there is no
    such choice: without `valid`, or with nothing before it.
    """
    is_late = np.zeros(len(train), bool)
    if valid is not None and len(valid):
        is_late = train.times >= valid.times.min()
    return is_late & ~is_late.all()


def mean_auc(scores: np.ndarray, rows: Impressions) -> float:
    """Return the AUC of labelled impressions, the mean over those that have one."""
    from mindlab.evaluation.metrics import ranking_metrics

    return float(np.nanmean(ranking_metrics(scores, rows.labels, rows.offsets)["auc"]))


def some_candidates(train: Impressions, negatives: int, rng: np.random.Generator) -> np.ndarray:
    """Return the places in ``train.news`` of all clicks and of `negatives` non-clicks a click, of its impression.

    An impression with fewer non-clicks gives all of them.
    """
    labels = training_labels(train)
    owner = np.repeat(np.arange(len(train)), np.diff(train.offsets))
    order = np.lexsort(
        (rng.random(len(labels)), labels, owner)
    )  # of an impression: non-clicks at random, clicks
    place = np.arange(len(order)) - np.repeat(train.offsets[:-1], np.diff(train.offsets))
    wanted = negatives * np.bincount(owner, weights=labels, minlength=len(train))
    return np.sort(order[(labels[order] == 1) | (place < wanted[owner])])


def keep_candidates(rows: Impressions, places: np.ndarray) -> Impressions:
    """Return the impressions with no candidates but those at the sorted `places` of ``rows.news``."""
    return replace(
        rows,
        offsets=np.searchsorted(places, rows.offsets).astype(np.int64),
        news=rows.news[places],
        labels=None if rows.labels is None else rows.labels[places],
    )


def ragged_rows(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (flat, new_offsets): the flat positions of the ragged `rows`, one row after the other.

    >>> flat, offsets = ragged_rows(np.array([0, 2, 2, 5]), np.array([2, 0]))
    >>> flat.tolist(), offsets.tolist()
    ([2, 3, 4, 0, 1], [0, 3, 5])
    """
    sizes = np.diff(offsets)[rows]
    new_offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    flat = np.repeat(offsets[:-1][rows] - new_offsets[:-1], sizes) + np.arange(new_offsets[-1])
    return flat, new_offsets


def used_histories(test: Impressions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the distinct histories that `test` uses, as one ragged array.

    Returns:
        row: int64 (n_impressions,), index of each impression's history among the used ones.
        news: int32 flat, the news of the used histories.
        offsets: int64 (n_used + 1,).
    """
    used, row = np.unique(test.history, return_inverse=True)
    flat, offsets = ragged_rows(test.history_offsets, used)
    return row, test.history_news[flat], offsets


def history_share(test: Impressions, topic: np.ndarray) -> np.ndarray:
    """Return, for each candidate, the share of its user's history that has its `topic` (n_news,).

    A news that stands in the history twice counts twice. An empty history has the share 0 of everything.
    """
    names, code = np.unique(topic.astype(str), return_inverse=True)
    row, history, offsets = used_histories(test)
    sizes = np.diff(offsets)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    # Only the cells that occur: MIND has 285 subcategories and 711,222 histories.
    cells, counts = np.unique(owner * len(names) + code[history], return_counts=True)
    users = np.repeat(row, np.diff(test.offsets))
    if not len(cells):
        return np.zeros(len(users))
    wanted = users * len(names) + code[test.news]
    at = np.minimum(np.searchsorted(cells, wanted), len(cells) - 1)
    return np.where(cells[at] == wanted, counts[at], 0) / np.maximum(sizes[users], 1)
