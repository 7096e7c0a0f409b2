"""Recommenders: one family a file, all with `fit` and `score` (see base.Recommender)."""

from functools import partial

from mindlab.errors import UserError
from mindlab.recommenders.base import Recommender
from mindlab.recommenders.boosting import Boosting
from mindlab.recommenders.category import CategoryShare
from mindlab.recommenders.chance import Random
from mindlab.recommenders.freshness import Freshness
from mindlab.recommenders.minilm import MiniLM
from mindlab.recommenders.popularity import StaticPopularity, StreamingPopularity
from mindlab.recommenders.tfidf import TfIdf


def _neural(name: str) -> Recommender:
    from mindlab.recommenders.neural import Neural  # imports torch: seconds

    return Neural(name)


NEURAL = ("nrms", "naml", "lstur")
STREAMING = (StreamingPopularity.name, Freshness.name, Boosting.name)
LEARNED = (Boosting.name, *NEURAL)  # whose weights depend on the training seed
# Those that need nothing but data; `oracle` needs a file and is built by its own class.
SIMPLE = {
    kind.name: kind
    for kind in (
        Random, StaticPopularity, StreamingPopularity, Freshness, CategoryShare, TfIdf, MiniLM, Boosting,
    )
} | {name: partial(_neural, name) for name in NEURAL}  # fmt: skip


def make_recommender(name: str) -> Recommender:
    """Return a new recommender by its name in the leaderboard.

    Raises:
        UserError: if no simple recommender has that name.

    >>> make_recommender("popularity").track
    'static'
    """
    if name not in SIMPLE:
        raise UserError(f"no recommender named {name!r}; expected one of {', '.join(SIMPLE)}")
    return SIMPLE[name]()
