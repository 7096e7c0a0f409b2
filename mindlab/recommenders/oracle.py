"""Oracle: the utilities that a synthetic data set drew its clicks from, the ceiling of any ranking."""

from pathlib import Path
from typing import Self

import numpy as np

from mindlab.common.errors import UserError
from mindlab.data.mind import Impressions, News
from mindlab.recommenders.base import UTILITIES, Method, Recommender, ragged_rows
from mindlab.recommenders.past import PastLog
from mindlab.tasks import Task

FILE_NAME = "oracle_utility.npy"


class Oracle(Recommender):
    """Score = the true utility of the candidate for this user at this moment.

    Only synthetic data has one: a flat float16 array beside the split's behaviors.tsv, aligned with its
    candidates in the file's order.
    """

    name = "oracle"
    track = "ceiling"

    def on(self, task: Task, split: Impressions, folder: Path) -> Self:
        """Read the utilities in `folder`; `split` is that whole split, as read from the file.

        Raises:
            UserError: if the file is missing, or is not aligned with the split.
        """
        path = Path(folder) / FILE_NAME
        if not path.is_file():
            raise UserError(
                f"{path}: no such file; only synthetic data has an oracle (scripts/make_sample.py)"
            )
        try:
            utility = np.load(path, allow_pickle=False)
        except (ValueError, EOFError, OSError):
            raise UserError(f"{path}: not a NumPy array; make the sample again") from None
        if utility.shape != split.news.shape or not np.isfinite(utility).all():
            raise UserError(
                f"{path}: array of shape {utility.shape}, expected {len(split.news)} finite utilities, "
                "one per candidate; make the sample again"
            )
        self._path = path
        self._utility = utility
        self._split = split
        return self

    def fit(
        self, train: Impressions, news: News, valid: Impressions | None, rng: np.random.Generator
    ) -> Self:
        """Learn nothing."""
        return self

    def score(self, test: Impressions, news: News, past: PastLog | None = None) -> np.ndarray:
        """Return the utilities of the candidates; `test` may be any choice of the split's impressions.

        Raises:
            UserError: if `test` holds an impression that the split does not have.
        """
        order = np.argsort(self._split.ids)
        place = np.searchsorted(self._split.ids, test.ids, sorter=order)
        rows = order[np.minimum(place, len(order) - 1)]
        flat, offsets = ragged_rows(self._split.offsets, rows)
        is_same = (
            np.array_equal(self._split.ids[rows], test.ids)
            and np.array_equal(offsets, test.offsets)
            and np.array_equal(self._split.news[flat], test.news)
        )
        if not is_same:
            raise UserError(f"{self._path}: belongs to other impressions than those to be scored")
        return self._utility[flat].astype(np.float64)


METHODS = (Method.of(Oracle, needs={UTILITIES}),)
