"""The tutorial's task, kept as it is: training impressions shuffled and cut 8 to 2, the last candidate the question."""

from typing import ClassVar

import numpy as np

from mindlab.data.mind import Impressions, Mind
from mindlab.tasks.base import CANDIDATE, Task, labelled

TRAIN_SHARE = 0.8


class Seed(Task):
    """One Yes/No question an impression. The other candidates and their labels may be shown: so it leaks."""

    name: ClassVar = "seed"
    case: ClassVar = CANDIDATE
    headline: ClassVar = "accuracy"
    needs_training: ClassVar = True
    has_times: ClassVar = False  # it trains and tests on the same days
    is_whole: ClassVar = False
    writes_test: ClassVar = True

    def splits(self, mind: Mind, seed: int) -> dict[str, Impressions]:
        """Return `train` and `test`: all training impressions, shuffled, cut 8 to 2.

        MINDsmall's 156,965 give 125,572 and 31,393. The shuffle mixes days and users, as the tutorial does.
        """
        self.check_training(mind.splits)
        train = labelled(mind, "train")
        order = np.random.default_rng(seed).permutation(len(train))
        cut = int(len(train) * TRAIN_SHARE)
        return {"train": train.take(order[:cut]), "test": train.take(order[cut:])}

    def _files(self, split: str, has_training: bool) -> tuple[str, ...]:
        return ("train",)

    def notes(self, test: Impressions) -> list[str]:
        """Return what the question is."""
        return [
            "The tutorial's protocol: the last candidate of an impression is the question. A recommender says Yes "
            "where it ranks that one alone at the top; leak-rule reads the other candidates' labels, as the "
            "tutorial's prompt shows them. Accuracy here says nothing about ranking."
        ]
