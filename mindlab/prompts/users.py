"""What users clicked, for prompts whose records are of users and not of impressions."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from mindlab.data.mind import Impressions

NO_HISTORY_SHARE = 0.05  # records in the form without history, of next_click (one title alone) and next_topic


def clicks_of_users(impressions: Impressions) -> dict[str, list[int]]:
    """Return the news that each user clicked, in history and then in these impressions, oldest first."""
    order = np.lexsort((impressions.ids, impressions.times))
    clicked: dict[str, list[int]] = {}
    for i in order:
        user = impressions.users[i]
        if user not in clicked:
            clicked[user] = impressions.user_history(i).tolist()
        clicked[user].extend(impressions.candidates(i)[impressions.candidate_labels(i) == 1].tolist())
    return clicked


def permute_titles(parts: Iterable[Any], field: str, rng: np.random.Generator) -> Iterator[Any]:
    """Yield `parts` with the titles of their `field` dealt out anew, as many to each as before.

    What a model learns from these is how headlines and answers read, and nothing of what goes together.
    """
    parts = list(parts)
    titles = [title for part in parts for title in getattr(part, field)]
    order = iter(rng.permutation(len(titles)).tolist())
    for part in parts:
        yield replace(part, **{field: [titles[next(order)] for _ in getattr(part, field)]})
