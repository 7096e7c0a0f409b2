"""Recommenders: one family a file, all with `fit` and `score` (see base.Recommender)."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from mindlab import embedded_model
from mindlab.augmentation import Augmenter
from mindlab.embeddings import HiddenStates, MiniLMEncoder
from mindlab.errors import UserError
from mindlab.recommenders.augmented import TextBoosting, TokenTfIdf
from mindlab.recommenders.base import Recommender
from mindlab.recommenders.boosting import Boosting, EmbeddingBoosting
from mindlab.recommenders.category import CategoriesShare, CategoryShare, SubcategoryShare
from mindlab.recommenders.chance import Random
from mindlab.recommenders.embedding import CENTRED, LME, READERS, EmbeddingCosine, EmbeddingLogistic
from mindlab.recommenders.freshness import Freshness
from mindlab.recommenders.popularity import StaticPopularity, StreamingPopularity
from mindlab.recommenders.tfidf import TfIdf

HIDDEN = "-hidden-states"  # after a model's name
UNTRAINED = "-untrained"  # after a neural row's
EMBEDDED = "smollm2" + HIDDEN
CROSS = "cross-encoder"
CROSS_ENCODERS = Path("runs/cross_encoders")  # what is trained is kept here


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


def _augmenter() -> Augmenter:
    return Augmenter(f"models/{embedded_model.NAME}", "smollm2")


def make_cross_encoder(name: str, model: str | None = None, pairs: int | None = None) -> Recommender:
    """Return the cross-encoder of a row's name, of MiniLM unless another encoder is given; what it trains is kept.

    `pairs` is how many its training reads, if not the number of its settings.
    """
    from mindlab.recommenders import cross_encoder as family  # imports torch: seconds

    settings = family.Settings() if model is None else family.LARGE
    if name.endswith(UNTRAINED):
        settings = replace(settings, most_pairs=0)
    elif pairs is not None:
        settings = replace(settings, most_pairs=pairs)
    return family.CrossEncoder(model, name, settings, CROSS_ENCODERS)


NEURAL = ("nrms", "naml", "lstur", "embeddings-nrms")
STREAMING = (StreamingPopularity.name, Freshness.name, Boosting.name)
# Whose scores depend on the training seed.
LEARNED = (
    *(Boosting.name, "embeddings-logistic", "embeddings-lightgbm", "titles-lightgbm", "tokens-lightgbm"),
    *NEURAL,
    *(name + UNTRAINED for name in NEURAL),
    *(CROSS, CROSS + UNTRAINED),
)
# Whose texts a language model writes, and who needs one at all.
WRITES = (TokenTfIdf.name, "tokens-lightgbm")
NEEDS_LLM = (EMBEDDED, *WRITES)
# What each learned row is compared with, beside popularity: itself before training, or what it started from.
PAIRS = [
    *((name, name + UNTRAINED) for name in NEURAL),
    *((name, "minilm") for name in ("embeddings-logistic", "embeddings-lightgbm", "minilm-readers")),
    ("categories", "category"),
    ("minilm-lme", "minilm"),
    (TokenTfIdf.name, TfIdf.name),
    ("titles-lightgbm", "minilm"),
    ("tokens-lightgbm", "titles-lightgbm"),
    (CROSS, CROSS + UNTRAINED),
    (CROSS, "minilm"),
]
# Those that need nothing but data, and the embedded model; `oracle` needs a file and is built by its own class.
SIMPLE = {
    kind.name: kind
    for kind in (
        *(Random, StaticPopularity, StreamingPopularity, Freshness),
        *(CategoryShare, SubcategoryShare, CategoriesShare, TfIdf, Boosting),
    )
} | {
    "minilm": lambda: EmbeddingCosine(MiniLMEncoder()),
    "minilm-lme": lambda: EmbeddingCosine(MiniLMEncoder(), "minilm-lme", (LME,)),
    "minilm-readers": lambda: EmbeddingCosine(MiniLMEncoder(), "minilm-readers", READERS, CENTRED),
    EMBEDDED: partial(hidden_states, f"models/{embedded_model.NAME}", EMBEDDED),
    "embeddings-logistic": lambda: EmbeddingLogistic([MiniLMEncoder()]),
    "embeddings-lightgbm": lambda: EmbeddingBoosting([MiniLMEncoder()]),
    "titles-lightgbm": lambda: TextBoosting("titles-lightgbm"),
    TokenTfIdf.name: lambda: TokenTfIdf(_augmenter()),
} | {name + kind: partial(_neural, name + kind) for name in NEURAL for kind in ("", UNTRAINED)}  # fmt: skip

# Those that learn nothing from training impressions, so they apply to data without a training split. The last two may
# choose on the validation split how vectors are read.
NEEDS_NO_CLICKS = (
    *(Random.name, CategoryShare.name, SubcategoryShare.name, CategoriesShare.name, TfIdf.name),
    *("minilm", "minilm-lme", "minilm-readers", EMBEDDED),
)

# Those that read a text for each pair of reader and candidate, or write one for each reader: seconds an impression on a
# CPU, so they are scored on a choice of impressions, as language models are.
COSTLY: dict[str, Callable[[], Recommender]] = {
    "tokens-lightgbm": lambda: TextBoosting("tokens-lightgbm", _augmenter()),
    **{name: partial(make_cross_encoder, name) for name in (CROSS, CROSS + UNTRAINED)},
}


def make_recommender(name: str) -> Recommender:
    """Return a new recommender by its name in the leaderboard.

    Raises:
        UserError: if no recommender has that name.

    >>> make_recommender("popularity").track
    'static'
    """
    kinds = SIMPLE | COSTLY
    if name not in kinds:
        raise UserError(f"no recommender named {name!r}; expected one of {', '.join(kinds)}")
    return kinds[name]()
