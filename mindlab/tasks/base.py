"""What every task declares, and what they share."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import numpy as np

from mindlab.common.errors import UserError
from mindlab.data.mind import Impressions, Mind, splits_in
from mindlab.evaluation.metrics import USUAL

VALIDATION = "valid"  # a split; of MIND's files only where there is no training split
SUBMISSION, SUBMITTED = "submission", "test"  # a split, and MIND's name for it
# What one case of a task is: an impression to rank, one user with a list to rank, or one candidate to answer about.
IMPRESSION, USER, CANDIDATE = "impression", "user", "candidate"


class Task(ABC):
    """Splits of MIND's data, and how methods are measured on them.

    What a method needs and a task offers decides together who takes part; no list of names does.
    """

    name: ClassVar[str]
    case: ClassVar[str] = IMPRESSION
    headline: ClassVar[str] = "auc"  # the metric to quote
    metrics: ClassVar[tuple[str, ...]] = USUAL  # of `mindlab.evaluation.metrics.METRICS`
    needs_training: ClassVar[bool] = False  # of the data; without a training split it can't be made
    has_times: ClassVar[bool] = (
        True  # what was clicked before an impression can be told from what comes after it
    )
    is_whole: ClassVar[bool] = True  # test cases have all candidates of their impressions
    counts_histories: ClassVar[bool] = False  # the clicks to count are in the histories, not in a log
    writes_test: ClassVar[bool] = False  # training data sets have a test split too

    @abstractmethod
    def splits(self, mind: Mind, seed: int) -> dict[str, Impressions]:
        """Return the splits by name; `train` and `test` are the two that all have on whole data.

        Raises:
            UserError: if the data has not what the task needs.
        """

    def files(self, split: str, data: str | Path) -> tuple[str, ...]:
        """Return the splits of MIND's files in the folder `data` that a split of the task needs.

        Whether they are there and whole, `read_mind` says. A folder with ``valid/`` in place of ``train/``
        (mindlab/data/recprompt.py) has nothing to train on.

        Raises:
            UserError: if `data` has no training split and the task needs one.
        """
        try:
            here = splits_in(data)
        except UserError:
            here = ()
        has_training = "train" in here or VALIDATION not in here
        if not has_training:
            self.check_training(here, str(data))
        return self._files(split, has_training)

    def _files(self, split: str, has_training: bool) -> tuple[str, ...]:
        first = "train" if has_training else VALIDATION
        return (first, "dev", *([SUBMITTED] if split == SUBMISSION else []))

    def check_training(self, splits: Iterable[str], data: str = "the data") -> None:
        """Raise `UserError` if the task needs a training split and it is not one of `splits`, those there are."""
        if self.needs_training and "train" not in splits:
            raise UserError(
                f"protocol {self.name} needs a training split, and {data} has no train split, only {', '.join(splits)}; "
                "choose --protocol dev, or give a folder that holds train/"
            )

    def share_of_clicks(self, known: Impressions) -> float:
        """Return the share of clicks among the candidates of a case; `known` are labelled impressions of the data."""
        return float(known.labels.mean())

    def notes(self, test: Impressions) -> list[str]:
        """Return what must be said under every table of the task, a sentence each."""
        return []


def labelled(mind: Mind, name: str) -> Impressions:
    """Return a split of MIND's files; UserError if it is not there or has no labels."""
    if name not in mind.splits:
        raise UserError(
            f"the data has no {name} split, only {', '.join(mind.splits)}; give a folder that holds {name}/"
        )
    impressions = mind.splits[name]
    if impressions.labels is None:
        raise UserError(f"the {name} split carries no labels; this protocol needs them")
    return impressions


def limit(n: int, most: int | None, seed: int) -> np.ndarray:
    """Return the rows of a seeded random choice of at most `most` of `n` impressions, ascending."""
    if most is None or most >= n:
        return np.arange(n)
    if most < 1:
        raise UserError(f"--limit {most}: expected at least 1")
    return np.sort(np.random.default_rng(seed).choice(n, size=most, replace=False))
