"""Recommenders: one family a file, each with the rows of the leaderboard that it makes (`METHODS`).

A new one is a file and a line here. What a method says of itself is in `base.Method`, what it does in `base.Recommender`.
"""

from collections.abc import Iterable

from mindlab.common.errors import UserError
from mindlab.recommenders import (
    augmented,
    blind,
    boosting,
    category,
    chance,
    cross_encoder,
    embedding,
    freshness,
    neural,
    oracle,
    pagerank,
    popularity,
    smollm2,
    tfidf,
)
from mindlab.recommenders.base import Method, Recommender

FAMILIES = (
    *(chance, popularity, freshness, category, tfidf, boosting),
    *(embedding, augmented, pagerank, neural, cross_encoder, oracle, blind, smollm2),
)
METHODS: dict[str, Method] = {method.name: method for family in FAMILIES for method in family.METHODS}


def make_recommender(name: str) -> Recommender:
    """Return a new recommender by its name in the leaderboard.

    Raises:
        UserError: if no recommender has that name.

    >>> make_recommender("popularity").track
    'static'
    """
    if name not in METHODS:
        raise UserError(f"no recommender named {name!r}; expected one of {', '.join(METHODS)}")
    return METHODS[name].make()


def pairs_among(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return which of the rows with these names are to be compared with which.

    >>> pairs_among(["minilm", "minilm-lme", "category"])
    [('minilm-lme', 'minilm')]
    """
    here = list(names)
    known = [METHODS[name] for name in METHODS if name in here]
    return [(method.name, against) for method in known for against in method.against if against in here]
