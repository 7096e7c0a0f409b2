"""Two answers to the tutorial's question that look at no news at all.

They read the labels of the impression that they answer for. That is the point. The tutorial's prompt shows the clicks among the other candidates, and every impression of
MIND has at least one click; so a prompt without likes gives its answer away.
"""

import numpy as np

from mindlab.data.mind import Impressions


def always_no(impressions: Impressions, target_positions: np.ndarray) -> np.ndarray:
    """Return bool (n_impressions,), all False: the accuracy that takes no skill."""
    _target_rows(impressions, target_positions)
    return np.zeros(len(impressions), bool)


def leak_rule(impressions: Impressions, target_positions: np.ndarray) -> np.ndarray:
    """Return bool (n_impressions,): Yes iff no other candidate of the impression was clicked.

    Args:
        impressions: labelled impressions; this reads the labels of all candidates but the target.
        target_positions: int (n_impressions,), slot of the target from 0; -1 is the last one.

    Raises:
        ValueError: if the impressions have no labels, or a position lies outside its impression.
    """
    target = _target_rows(impressions, target_positions)
    if impressions.labels is None:
        raise ValueError("the leak rule reads labels, and these impressions have none")
    total = np.concatenate([[0], np.cumsum(impressions.labels, dtype=np.int64)])
    clicks = total[impressions.offsets[1:]] - total[impressions.offsets[:-1]]
    return clicks - impressions.labels[target] == 0


def _target_rows(impressions: Impressions, target_positions: np.ndarray) -> np.ndarray:
    """Return the flat index of each impression's target."""
    sizes = np.diff(impressions.offsets)
    position = np.asarray(target_positions, dtype=np.int64)
    if position.shape != sizes.shape:
        raise ValueError(f"{position.shape} target positions for {len(sizes)} impressions")
    position = np.where(position < 0, position + sizes, position)
    if ((position < 0) | (position >= sizes)).any():
        raise ValueError("a target position lies outside its impression")
    return impressions.offsets[:-1] + position
