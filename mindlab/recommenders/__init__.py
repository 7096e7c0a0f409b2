"""Recommenders: one family a file, all with `fit` and `score` (see base.Recommender)."""

from functools import partial
from pathlib import Path

from mindlab import embedded_model
from mindlab.embeddings import HiddenStates, MiniLMEncoder
from mindlab.errors import UserError
from mindlab.recommenders.base import Recommender
from mindlab.recommenders.boosting import Boosting, EmbeddingBoosting
from mindlab.recommenders.category import CategoryShare
from mindlab.recommenders.chance import Random
from mindlab.recommenders.embedding import CENTRED, READERS, EmbeddingCosine, EmbeddingLogistic
from mindlab.recommenders.freshness import Freshness
from mindlab.recommenders.popularity import StaticPopularity, StreamingPopularity
from mindlab.recommenders.tfidf import TfIdf

HIDDEN = "-hidden-states"  # after a model's name
UNTRAINED = "-untrained"  # after a neural row's
EMBEDDED = "smollm2" + HIDDEN


def hidden_states(model: str | Path, name: str | None = None) -> EmbeddingCosine:
    """Return the recommender by a causal language model's hidden states, all choices left to the validation day."""
    encoder = HiddenStates(model)
    return EmbeddingCosine(encoder, name or encoder.name + HIDDEN, READERS, CENTRED)


def _neural(name: str) -> Recommender:
    from mindlab.recommenders.neural import Neural, Settings  # imports torch: seconds

    kind = name.removesuffix(UNTRAINED)
    settings = Settings(most_epochs=0) if kind != name else None
    news = EmbeddingCosine(MiniLMEncoder()) if kind == "embeddings-nrms" else None
    return Neural(name, settings, kind=kind, news=news)


NEURAL = ("nrms", "naml", "lstur", "embeddings-nrms")
STREAMING = (StreamingPopularity.name, Freshness.name, Boosting.name)
# Whose scores depend on the training seed.
LEARNED = (
    Boosting.name, "embeddings-logistic", "embeddings-lightgbm", *NEURAL, *(name + UNTRAINED for name in NEURAL),
)  # fmt: skip
# What each learned row is compared with, beside popularity: itself before training, or what it started from.
PAIRS = [
    *((name, name + UNTRAINED) for name in NEURAL),
    *((name, "minilm") for name in ("embeddings-logistic", "embeddings-lightgbm", "minilm-readers")),
]
# Those that need nothing but data, and the embedded model; `oracle` needs a file and is built by its own class.
SIMPLE = {
    kind.name: kind
    for kind in (Random, StaticPopularity, StreamingPopularity, Freshness, CategoryShare, TfIdf, Boosting)
} | {
    "minilm": lambda: EmbeddingCosine(MiniLMEncoder()),
    "minilm-readers": lambda: EmbeddingCosine(MiniLMEncoder(), "minilm-readers", READERS, CENTRED),
    EMBEDDED: partial(hidden_states, f"models/{embedded_model.NAME}", EMBEDDED),
    "embeddings-logistic": lambda: EmbeddingLogistic([MiniLMEncoder()]),
    "embeddings-lightgbm": lambda: EmbeddingBoosting([MiniLMEncoder()]),
} | {name + kind: partial(_neural, name + kind) for name in NEURAL for kind in ("", UNTRAINED)}  # fmt: skip


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
