"""Cross-encoders, trained and as they were drawn; `model` has them, and imports torch and transformers."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from mindlab.recommenders.base import CLICKS, UNTRAINED, Method, Recommender
from mindlab.tasks.base import IMPRESSION

CROSS = "cross-encoder"
FOLDER = Path("runs/cross_encoders")  # what is trained is kept here


def make(name: str = CROSS, model: str | None = None, pairs: int | None = None) -> Recommender:
    """Return a cross-encoder, of MiniLM unless another encoder is given; what it trains is kept in `FOLDER`.

    `pairs` is how many its training reads, if not the number of its settings; 0 for the untrained one.
    """
    from mindlab.recommenders.cross_encoder import model as family  # imports torch: seconds

    settings = family.Settings() if model is None else family.LARGE
    if pairs is not None:
        settings = replace(settings, most_pairs=pairs)
    return family.CrossEncoder(model, name, settings, FOLDER)


def methods(model: str | None = None, pairs: int | None = None) -> tuple[Method, ...]:
    """Return the two rows of an encoder, MiniLM unless another is given: trained, and as it was drawn.

    >>> [method.name for method in methods("google-bert/bert-base-uncased")]
    ['bert-base-uncased-cross-encoder', 'bert-base-uncased-cross-encoder-untrained']
    """
    name = CROSS if model is None else f"{Path(model).name}-{CROSS}"
    given = {"cross_encoder": model, "cross_pairs": pairs}
    options = [
        {key: value for key, value in given.items() if value is not None and key in mine}
        for mine in (given, ["cross_encoder"])
    ]
    declared = {
        "needs": {CLICKS},
        "cases": (IMPRESSION,),
        "is_learned": True,
        "is_costly": True,
        "is_slow": True,
    }
    return (
        Method(
            name,
            partial(make, name, model, pairs),
            against=(name + UNTRAINED, "minilm"),
            options=options[0],
            **declared,
        ),
        Method(name + UNTRAINED, partial(make, name + UNTRAINED, model, 0), options=options[1], **declared),
    )


METHODS = methods()
