"""The honest task: fit on 9-13 November, choose on the 14th, refit on 9-14, report on the 15th (MIND's dev split)."""

from typing import ClassVar

import numpy as np

from mindlab.data.mind import VALIDATION_DAY, Impressions, Mind
from mindlab.evaluation.metrics import LIST_METRICS, USUAL
from mindlab.tasks.base import SUBMISSION, SUBMITTED, VALIDATION, Task, labelled


class Dev(Task):
    """Every candidate of every impression of dev."""

    name: ClassVar = "dev"
    metrics: ClassVar = (*USUAL, *LIST_METRICS)

    def splits(self, mind: Mind, seed: int = 0) -> dict[str, Impressions]:
        """Return `fit` (9-13 Nov), `valid` (14 Nov), `train` (both, for the refit) and `test` (dev).

        `submission` is MIND's own test split, which has no labels: what its leaderboard wants ranked. Rows stay in
        file order. A split whose file was not read is left out. Of data without a training split that has ``valid/``,
        that is `valid`, and there is no `fit` and no `train`.
        """
        if "train" not in mind.splits and VALIDATION in mind.splits:
            splits = {VALIDATION: labelled(mind, VALIDATION)}
        else:
            train = labelled(mind, "train")
            is_valid = train.times.astype("datetime64[D]") >= VALIDATION_DAY
            splits = {
                "fit": train.take(np.flatnonzero(~is_valid)),
                VALIDATION: train.take(np.flatnonzero(is_valid)),
                "train": train,
            }
        if "dev" in mind.splits:
            splits["test"] = mind.splits["dev"]
        if SUBMITTED in mind.splits:
            splits[SUBMISSION] = mind.splits[SUBMITTED]
        return splits
