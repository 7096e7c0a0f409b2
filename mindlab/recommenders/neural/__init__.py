"""NRMS, NAML, LSTUR and NRMS over an encoder's vectors, each also as it was drawn; `model` has them, and imports torch."""

from functools import partial

from mindlab.llm.embeddings import MiniLMEncoder
from mindlab.recommenders.base import CLICKS, UNTRAINED, Method, Recommender
from mindlab.recommenders.embedding import EmbeddingCosine

OVER_VECTORS = "embeddings-nrms"
KINDS = ("nrms", "naml", "lstur", OVER_VECTORS)


def make(name: str, kind: str) -> Recommender:
    """Return the recommender of a kind; untrained where its name says so."""
    from mindlab.recommenders.neural.model import Neural, Settings  # imports torch: seconds

    settings = Settings(most_epochs=0) if name != kind else None
    news = EmbeddingCosine(MiniLMEncoder()) if kind == OVER_VECTORS else None
    return Neural(name, settings, kind=kind, news=news)


METHODS = tuple(
    Method(
        kind + end,
        partial(make, kind + end, kind),
        needs={CLICKS},
        is_learned=True,
        is_slow=True,
        against=() if end else (kind + UNTRAINED,),
    )
    for kind in KINDS
    for end in ("", UNTRAINED)
)
