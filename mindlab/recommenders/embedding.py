"""Rankers over news vectors: cosine with a user's vector, and classic models that learn from such vectors."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from mindlab.data.mind import Impressions, News
from mindlab.llm import embedded_model
from mindlab.llm.embeddings import Encoder, HiddenStates, MiniLMEncoder, news_vectors
from mindlab.recommenders.base import (
    CLICKS,
    Method,
    Recommender,
    late_rows,
    mean_auc,
    some_candidates,
    training_labels,
)
from mindlab.recommenders.past import PastLog

CACHE = Path("runs/embeddings")
CHUNK = 200_000  # candidates


class Reading(NamedTuple):
    """How a history becomes one vector, or one score.

    - mean: the mean of the clicked news' vectors;
    - recent: the same with weights that halve every `strength` clicks back;
    - attention: each candidate weighs the history by the softmax of its cosines times `strength`, so that the news
      most like it count most (without learned weights; with them it is DIN's, Zhou et al., KDD 2018);
    - lme: log(mean over the clicks of exp(`strength` * cosine)), a smooth maximum: one click of the same subject counts
      for more than many of other subjects count against it.
    """

    kind: str = "mean"
    strength: float = 0.0


MEAN = Reading()
READINGS = (
    MEAN,
    *(Reading("recent", k) for k in (4.0, 16.0)),
    *(Reading("attention", k) for k in (5.0, 15.0)),
)
LME = Reading("lme", 10.0)  # not one of READINGS, which other rows choose among and take as features
CENTRED = (False, True)
PAIRWISE = (
    "attention",
    "lme",
)  # that read each click beside each candidate and have no vector of the history


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return the rows as float32 of length 1; a row of zeros stays.

    >>> unit(np.array([[3.0, 4.0], [0.0, 0.0]])).round(1).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    vectors = np.asarray(vectors, np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)


def history_scores(test: Impressions, vectors: np.ndarray, readings: Sequence[Reading]) -> np.ndarray:
    """Return the score of every candidate for each way to read a history, float64 (len(users), n_candidates).

    `vectors` are unit rows (n_news, width). `mean` and `recent` give the cosine of candidate and user, `attention`
    the weighted mean of the cosines with the history, `lme` up to `strength`. An empty history scores 0.
    """
    scores = np.zeros((len(readings), len(test.news)))
    latest, clicked, profiles = -1, vectors[:0], None
    for row in np.argsort(test.history, kind="stable"):  # users return: theirs is put together once
        if test.history[row] != latest:
            latest = test.history[row]
            clicked = vectors[test.history_news[slice(*test.history_offsets[latest : latest + 2])]]
            profiles = _profiles(clicked, readings)
        if not len(clicked):
            continue
        here = slice(*test.offsets[row : row + 2])
        candidates = vectors[test.news[here]]
        scores[:, here] = profiles @ candidates.T
        near = candidates @ clicked.T if any(one.kind in PAIRWISE for one in readings) else None
        for k, one in enumerate(readings):
            if one.kind in PAIRWISE:
                most = near.max(1, keepdims=True)  # taken away first, so that no exponential overflows
                weights = np.exp(one.strength * (near - most))
                if one.kind == "lme":
                    scores[k, here] = one.strength * most[:, 0] + np.log(weights.mean(1))
                else:
                    scores[k, here] = (weights * near).sum(1) / weights.sum(1)
    return scores


def history_vectors(test: Impressions, vectors: np.ndarray, reading: Reading = MEAN) -> np.ndarray:
    """Return the unit vector of each distinct history of `test`, float32 (n_histories, width); not for `PAIRWISE`."""
    bounds = zip(test.history_offsets[:-1], test.history_offsets[1:], strict=True)
    return np.concatenate([_profiles(vectors[test.history_news[a:b]], [reading]) for a, b in bounds])


def _profiles(clicked: np.ndarray, readings: Sequence[Reading]) -> np.ndarray:
    """Return one unit vector a user, of zeros for `PAIRWISE`, which have none."""
    weights = np.array([_weights(one, len(clicked)) for one in readings], np.float32)
    return unit(weights @ clicked)


def _weights(reading: Reading, n: int) -> np.ndarray:
    """Return what each of n clicks counts, the oldest first."""
    if reading.kind in PAIRWISE:
        return np.zeros(n)
    return 0.5 ** (np.arange(n)[::-1] / reading.strength) if reading.kind == "recent" else np.ones(n)


class EmbeddingCosine(Recommender):
    """Score = how near the candidate's vector is to the history's.

    Nothing is trained. Where there is a choice (of layers and poolings, of users, of centring) it is made by the AUC of
    the validation day. Centring takes the mean vector of the news known in training away: what all titles have in
    common tells no two of them apart (Mu and Viswanath, All-but-the-Top, ICLR 2018).
    """

    def __init__(
        self,
        encoder: Encoder,
        name: str | None = None,
        readings: Sequence[Reading] = (MEAN,),
        centred: Sequence[bool] = (False,),
        cache: Path | None = None,
    ):
        self.encoder, self.name = encoder, name or encoder.name
        self.readings, self.centred, self.cache = tuple(readings), tuple(centred), cache
        self.saved_seconds = 0.0  # that reading vectors from the cache saved

    def fit(
        self, train: Impressions, news: News, valid: Impressions | None, rng: np.random.Generator
    ) -> Self:
        """Compute or read the vectors of the catalogue, and choose on `valid`; without it the first choice is taken."""
        found = news_vectors(news, self.encoder, CACHE if self.cache is None else self.cache)
        self.saved_seconds = found.seconds if found.is_kept else 0.0
        known = np.union1d(train.news, train.history_news)
        if valid is not None:  # a part of `train`, where there is a training split
            known = np.union1d(known, np.union1d(valid.news, valid.history_news))
        self.tried: list[dict[str, Any]] = []
        views = list(product(range(len(self.encoder.views)), self.centred))
        best = 0
        if valid is not None and len(valid) and len(views) * len(self.readings) > 1:
            unlabelled = valid.without_labels()
            for view in views:
                vectors = _view(found.values, known, *view)
                by_reading = history_scores(unlabelled, vectors, self.readings)
                for reading, scores in zip(self.readings, by_reading, strict=True):
                    self.tried.append(self._about(view, reading) | {"auc": mean_auc(scores, valid)})
            best = int(np.argmax([one["auc"] for one in self.tried]))
        view, self.reading = views[best // len(self.readings)], self.readings[best % len(self.readings)]
        self.vectors = _view(found.values, known, *view)
        self.chosen = self._about(view, self.reading)
        return self

    def score(self, test: Impressions, news: News, past: PastLog | None = None) -> np.ndarray:
        """Return the scores of the chosen vectors and user."""
        return history_scores(test, self.vectors, [self.reading])[0]

    def _about(self, view: tuple[int, bool], reading: Reading) -> dict[str, Any]:
        return {
            **self.encoder.views[view[0]],
            "centred": view[1],
            "reading": reading.kind,
            "strength": reading.strength,
        }


def _view(values: np.ndarray, known: np.ndarray, view: int, is_centred: bool) -> np.ndarray:
    """Return the unit vectors of one view of (n_news, n_views, width)."""
    vectors = unit(values[:, view])
    return unit(vectors - vectors[known].mean(0)) if is_centred and len(known) else vectors


class EmbeddingFeatures:
    """How near a candidate is to its user, by encoder and way to read: what classic models are given.

    Each encoder's view is chosen on the validation day (`EmbeddingCosine`); the scores of all `READINGS` are features.
    """

    def __init__(self, encoders: Sequence[Encoder], cache: Path | None = None):
        self.parts = [
            EmbeddingCosine(one, readings=READINGS, centred=CENTRED, cache=cache) for one in encoders
        ]

    def fit(
        self, train: Impressions, news: News, valid: Impressions | None, rng: np.random.Generator
    ) -> Self:
        """Choose the views."""
        for part in self.parts:
            part.fit(train, news, valid, rng)
        self.saved_seconds = sum(part.saved_seconds for part in self.parts)
        return self

    def of(self, rows: Impressions) -> np.ndarray:
        """Return float64 (n_candidates, len(encoders) * len(READINGS))."""
        return np.concatenate([history_scores(rows, part.vectors, READINGS) for part in self.parts]).T


class EmbeddingLogistic(Recommender):
    """Logistic regression on `EmbeddingFeatures` and on the products, dimension by dimension, of user and candidate.

    A cosine is the sum of these products (of the first encoder); here each has a weight of its own. Trained on every
    click and K non-clicks a click of its impression. The penalty is chosen on `valid` by a model of the days before.
    """

    name = "embeddings-logistic"
    penalties = (1e-4, 1e-3, 1e-2, 1e-1)  # scikit-learn's C, the smallest first

    def __init__(self, encoders: Sequence[Encoder], negatives: int = 4, cache: Path | None = None):
        self.negatives = negatives
        self._features = EmbeddingFeatures(encoders, cache)

    def fit(
        self, train: Impressions, news: News, valid: Impressions | None, rng: np.random.Generator
    ) -> Self:
        """Choose the penalty on `valid` (a part of `train`), then fit on all of `train`."""
        self._features.fit(train, news, valid, rng)
        self.saved_seconds = self._features.saved_seconds
        rows = some_candidates(train, self.negatives, rng)
        (x,) = self._inputs(train, [rows])
        y = training_labels(train)[rows]
        best, self.tried = self.penalties[1], []
        is_late = late_rows(train, valid)
        if is_late.any():
            early = ~np.repeat(is_late, np.diff(train.offsets))[rows]
            late = train.take(np.flatnonzero(is_late))
            models = [_logistic(x[early], y[early], penalty) for penalty in self.penalties]
            for penalty, scores in zip(
                self.penalties, self._scores(models, late.without_labels()), strict=True
            ):
                self.tried.append({"C": penalty, "auc": mean_auc(scores, late)})
            best = max(self.tried, key=lambda one: one["auc"])["C"]
        self.chosen = {"C": best}
        self._model = _logistic(x, y, best)
        self.params = self._model[-1].coef_.size + 1
        return self

    def score(self, test: Impressions, news: News, past: PastLog | None = None) -> np.ndarray:
        """Return the log odds of a click."""
        return self._scores([self._model], test)[0]

    def _scores(self, models: Sequence[Any], test: Impressions) -> np.ndarray:
        """Return float64 (len(models), n_candidates); the inputs are made once for all models."""
        rows = np.arange(len(test.news))
        parts = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
        found = [[model.decision_function(x) for model in models] for x in self._inputs(test, parts)]
        return np.concatenate(found, axis=1).astype(np.float64)

    def _inputs(self, rows: Impressions, parts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield float32 (n, n_features) for each part, an array of candidates' places in ``rows.news``."""
        vectors = self._features.parts[0].vectors
        near, readings = self._features.of(rows), history_vectors(rows, vectors)
        owner = np.repeat(rows.history, np.diff(rows.offsets))
        for part in parts:
            products = readings[owner[part]] * vectors[rows.news[part]]
            yield np.column_stack([near[part], products]).astype(np.float32)


def _logistic(x: np.ndarray, y: np.ndarray, penalty: float) -> Any:
    """Return scikit-learn's model of standardised inputs."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=1000)).fit(x, y)


HIDDEN = "-hidden-states"  # after a model's name
EMBEDDED = f"smollm2{HIDDEN}"


def hidden_states(model: str | Path, name: str | None = None) -> EmbeddingCosine:
    """Return the recommender by a causal language model's hidden states, all choices left to the validation day."""
    encoder = HiddenStates(model)
    return EmbeddingCosine(encoder, name or encoder.name + HIDDEN, READINGS, CENTRED)


def of_model(model: str | Path, name: str | None = None) -> Method:
    """Return the row of a causal language model's hidden states.

    >>> of_model("zai-org/glm-4-9b-chat-hf").name
    'glm-4-9b-chat-hf-hidden-states'
    """
    name = name or Path(model).name + HIDDEN
    options = {} if name == EMBEDDED else {"encoder": str(model)}
    return Method(name, partial(hidden_states, model, name), needs_llm=True, is_slow=True, options=options)


METHODS = (
    Method("minilm", lambda: EmbeddingCosine(MiniLMEncoder())),
    Method("minilm-lme", lambda: EmbeddingCosine(MiniLMEncoder(), "minilm-lme", (LME,)), against=("minilm",)),
    Method(
        "minilm-readers",
        lambda: EmbeddingCosine(MiniLMEncoder(), "minilm-readers", READINGS, CENTRED),
        against=("minilm",),
    ),
    of_model(f"models/{embedded_model.NAME}", EMBEDDED),
    Method(
        EmbeddingLogistic.name,
        lambda: EmbeddingLogistic([MiniLMEncoder()]),
        needs={CLICKS},
        is_learned=True,
        against=("minilm",),
    ),
)
