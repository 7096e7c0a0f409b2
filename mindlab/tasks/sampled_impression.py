"""Sampled impressions: `dev` with one click and 20 non-clicks of each test impression, as much of the literature has it."""

from dataclasses import replace
from typing import ClassVar

import numpy as np

from mindlab.data.mind import Impressions, Mind
from mindlab.evaluation.metrics import SAMPLED_METRICS, USUAL
from mindlab.tasks.dev import Dev

NEGATIVES = 20  # of a test case


class SampledImpression(Dev):
    """What `dev` asks, of fewer candidates: how sampling moves a number."""

    name: ClassVar = "sampled-impression"
    metrics: ClassVar = (*USUAL, *SAMPLED_METRICS)
    is_whole: ClassVar = False

    def splits(self, mind: Mind, seed: int) -> dict[str, Impressions]:
        """Return the splits of `dev`; those that nothing is trained on are sampled."""
        return {
            name: part if name in ("fit", "train") else sampled_impressions(part, seed)
            for name, part in super().splits(mind, seed).items()
        }

    def notes(self, test: Impressions) -> list[str]:
        """Return what is not comparable."""
        return [note(test)]


def note(test: Impressions) -> str:
    """Return what must be said under a table of sampled candidates."""
    return (
        f"One click and at most {NEGATIVES} others a case, so not comparable with any other protocol; "
        f"{short_share(test):.0%} of the cases have fewer others."
    )


def sampled_impressions(impressions: Impressions, seed: int, negatives: int = NEGATIVES) -> Impressions:
    """Return the impressions with one click and at most `negatives` non-clicks each, all by chance and shuffled.

    An impression with fewer non-clicks keeps all of them: `short_share` says how many those are.
    """
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(len(impressions)), np.diff(impressions.offsets))
    is_click = impressions.labels == 1
    order = np.lexsort((rng.random(len(owner)), ~is_click, owner))  # clicks first, each kind by chance
    clicks = np.bincount(owner, weights=is_click, minlength=len(impressions)).astype(np.int64)
    place = np.arange(len(owner)) - impressions.offsets[:-1][owner]
    rank = np.where(is_click[order], place, place - clicks[owner])
    kept = order[np.where(is_click[order], rank < 1, rank < negatives)]
    kept = kept[np.lexsort((rng.random(len(kept)), owner[kept]))]
    sizes = np.bincount(owner[kept], minlength=len(impressions))
    return replace(
        impressions,
        offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        news=impressions.news[kept],
        labels=impressions.labels[kept],
    )


def short_share(impressions: Impressions, negatives: int = NEGATIVES) -> float:
    """Return the share of impressions with fewer than `negatives` non-clicks."""
    return float(np.mean(np.diff(impressions.offsets) < 1 + negatives)) if len(impressions) else 0.0
