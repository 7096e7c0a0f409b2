"""Protocols: which impressions train, which test, and which candidates count.

`seed` is the tutorial's: MINDsmall's training impressions, shuffled and cut 8 to 2, the last candidate
of each as the target. `dev` is the honest one: fit on 9-13 November, choose on the 14th, refit on
9-14, report on the 15th (dev), every candidate of every impression.
"""

import numpy as np

from mindlab.errors import UserError
from mindlab.mind import Impressions, Mind

VALIDATION_DAY = np.datetime64("2019-11-14")
SEED_TRAIN_SHARE = 0.8


def seed_splits(mind: Mind, seed: int) -> dict[str, Impressions]:
    """Return `train` and `test` of the tutorial: all training impressions, shuffled, cut 8 to 2.

    MINDsmall's 156,965 give 125,572 and 31,393. The shuffle mixes days and readers, as the tutorial does.
    """
    train = _split(mind, "train")
    order = np.random.default_rng(seed).permutation(len(train))
    cut = int(len(train) * SEED_TRAIN_SHARE)
    return {"train": train.take(order[:cut]), "test": train.take(order[cut:])}


def dev_splits(mind: Mind) -> dict[str, Impressions]:
    """Return `fit` (9-13 Nov), `valid` (14 Nov), `train` (both, for the refit) and `test` (dev).

    Rows stay in file order. A split whose file is not there is left out.
    """
    train = _split(mind, "train")
    is_valid = train.times.astype("datetime64[D]") >= VALIDATION_DAY
    splits = {
        "fit": train.take(np.flatnonzero(~is_valid)),
        "valid": train.take(np.flatnonzero(is_valid)),
        "train": train,
    }
    if "dev" in mind.splits:
        splits["test"] = mind.splits["dev"]
    return splits


def splits_of(protocol: str, mind: Mind, seed: int) -> dict[str, Impressions]:
    """Return the splits of the protocol with that name."""
    if protocol == "seed":
        return seed_splits(mind, seed)
    if protocol == "dev":
        return dev_splits(mind)
    raise UserError(f"protocol {protocol!r}: expected seed or dev")


def limit(n: int, most: int | None, seed: int) -> np.ndarray:
    """Return the rows of a seeded random choice of at most `most` of `n` impressions, ascending."""
    if most is None or most >= n:
        return np.arange(n)
    if most < 1:
        raise UserError(f"--limit {most}: expected at least 1")
    return np.sort(np.random.default_rng(seed).choice(n, size=most, replace=False))


def _split(mind: Mind, name: str) -> Impressions:
    if name not in mind.splits:
        raise UserError(
            f"the data has no {name} split, only {', '.join(mind.splits)}; give a folder that holds {name}/"
        )
    impressions = mind.splits[name]
    if impressions.labels is None:
        raise UserError(f"the {name} split carries no labels; this protocol needs them")
    return impressions
