"""LightGBM over counters and similarities: the strong classical row, with no neural network in it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from mindlab.common.errors import UserError
from mindlab.data.mind import Impressions, News
from mindlab.llm.embeddings import Encoder, MiniLMEncoder
from mindlab.recommenders.base import (
    CLICKS,
    TIMES,
    Method,
    Recommender,
    history_share,
    late_rows,
    training_labels,
)
from mindlab.recommenders.category import CategoryShare
from mindlab.recommenders.embedding import EmbeddingCosine, EmbeddingFeatures
from mindlab.recommenders.past import PastLog
from mindlab.recommenders.tfidf import TfIdf

HALF_LIVES = (2.0, 12.0, None)  # hours; None counts every earlier event alike
STRENGTH = 20.0  # exposures that the prior click rate is worth
MOST_ROUNDS = 400
PATIENCE = 30  # rounds without a better validation nDCG@10 until the number of rounds is chosen


class Boosting(Recommender):
    """LambdaRank over what is known of a candidate just before its impression.

    Counters (strictly before the impression): clicks, exposures and smoothed click rate of the news with several
    half-lives, the click rate of its category and subcategory, its age since the first exposure. Similarities:
    category and subcategory share of the history, TF-IDF and MiniLM cosine. Also the list's and the history's
    size. Each also as its rank within the impression. Track: streaming, for the counters.

    The number of rounds is chosen on `valid` by a model of the days before it; the model is then fitted on all of
    `train`. Source: Ke et al., LightGBM (NeurIPS 2017), and Burges on LambdaMART (MSR-TR-2010-82).
    """

    name = "lightgbm"
    track = "streaming"

    def __init__(self) -> None:
        self._similarities = (CategoryShare(), TfIdf(), EmbeddingCosine(MiniLMEncoder()))

    def fit(
        self, train: Impressions, news: News, valid: Impressions | None, rng: np.random.Generator
    ) -> Self:
        """Choose the rounds on `valid` (a part of `train`), then fit on all of `train`."""
        seed = int(rng.integers(2**31))
        for one in self._similarities:
            one.fit(train, news, valid, rng)
        self.saved_seconds = self._similarities[-1].saved_seconds
        self._rate = float(training_labels(train).mean())
        x = self.features(train, news, PastLog(train))
        self._model, self.rounds = lambdarank(x, train, valid, seed)
        return self

    def score(self, test: Impressions, news: News, past: PastLog | None) -> np.ndarray:
        """Return the model's scores."""
        if past is None:
            raise ValueError("Boosting needs the log of the past")
        return self._model.predict(self.features(test, news, past))

    def features(self, rows: Impressions, news: News, past: PastLog) -> np.ndarray:
        """Return float32 (n_candidates, n_features), from what was known before each impression."""
        times = np.repeat(rows.times, np.diff(rows.offsets))
        columns = [one.score(rows, news, None) for one in self._similarities]
        columns.append(history_share(rows, news.subcategory))
        for half_life in HALF_LIVES:
            clicks, exposures = past.counts(rows.news, times, half_life)
            columns += [exposures, (clicks + STRENGTH * self._rate) / (exposures + STRENGTH)]
        columns.append(np.nan_to_num(past.age_hours(rows.news, times), nan=-1.0))
        for topic in (news.category, news.subcategory):
            columns.append(self._topic_rate(rows, topic, times, past))
        return with_ranks(columns, rows)

    def _topic_rate(
        self, rows: Impressions, topic: np.ndarray, times: np.ndarray, past: PastLog
    ) -> np.ndarray:
        """Return the click rate of each candidate's topic over the earlier events of all its news."""
        code = np.unique(topic.astype(str), return_inverse=True)[1]
        clicks, exposures = past.by(code).counts(code[rows.news], times, 24.0)
        return (clicks + STRENGTH * self._rate) / (exposures + STRENGTH)


class EmbeddingBoosting(Recommender):
    """LightGBM's LambdaRank, as `Boosting`, on `EmbeddingFeatures` alone: no counter, no column but the text."""

    name = "embeddings-lightgbm"

    def __init__(self, encoders: Sequence[Encoder], cache: Path | None = None):
        self._features = EmbeddingFeatures(encoders, cache)

    def fit(
        self, train: Impressions, news: News, valid: Impressions | None, rng: np.random.Generator
    ) -> Self:
        """Choose the views and the rounds on `valid` (a part of `train`), then fit on all of `train`."""
        self._features.fit(train, news, valid, rng)
        self.saved_seconds = self._features.saved_seconds
        seed = int(rng.integers(2**31))
        self._model, self.rounds = lambdarank(self.features(train), train, valid, seed)
        return self

    def score(self, test: Impressions, news: News, past: PastLog | None = None) -> np.ndarray:
        """Return the model's scores."""
        return self._model.predict(self.features(test))

    def features(self, rows: Impressions) -> np.ndarray:
        """Return float32 (n_candidates, n_features)."""
        return with_ranks(list(self._features.of(rows).T), rows)


def lambdarank(x: np.ndarray, train: Impressions, valid: Impressions | None, seed: int) -> tuple[Any, int]:
    """Return a model of all of `train` and its number of rounds, which is chosen on `valid`.

    `x` is float32 (n_candidates, n_features) of `train`.
    """
    lightgbm = _lightgbm()
    owner = np.repeat(np.arange(len(train)), np.diff(train.offsets))
    settings = {
        "objective": "lambdarank", "metric": "ndcg", "eval_at": [10], "learning_rate": 0.05, "num_leaves": 15,
        "min_data_in_leaf": 100, "feature_fraction": 0.7, "bagging_fraction": 0.8, "bagging_freq": 1,
        "lambda_l2": 5.0, "seed": seed, "deterministic": True, "num_threads": 2, "verbosity": -1,
    }  # fmt: skip

    def data(part: np.ndarray, reference: Any = None) -> Any:
        groups = np.unique(owner[part], return_counts=True)[1]
        return lightgbm.Dataset(x[part], train.labels[part], group=groups, reference=reference)

    rounds = MOST_ROUNDS // 4
    is_late = late_rows(train, valid)[owner]
    if is_late.any():
        early = data(np.flatnonzero(~is_late))
        late = data(np.flatnonzero(is_late), early)
        stop = lightgbm.early_stopping(PATIENCE, verbose=False)
        rounds = lightgbm.train(settings, early, MOST_ROUNDS, [late], callbacks=[stop]).best_iteration
    return lightgbm.train(settings, data(np.arange(len(x))), rounds), rounds


def _lightgbm():
    """Import LightGBM; its wheel leaves the OpenMP library to the system."""
    try:
        import lightgbm
    except OSError as error:
        raise UserError(
            f"lightgbm needs OpenMP ({error}): apt install libgomp1, or on macOS brew install libomp"
        ) from None
    return lightgbm


def with_ranks(columns: list[np.ndarray], rows: Impressions) -> np.ndarray:
    """Return float32 (n_candidates, n): the columns, each also as its rank in the impression, and the two sizes."""
    sizes = np.diff(rows.offsets)
    owner = np.repeat(np.arange(len(rows)), sizes)
    ranked = [_rank_within(column, owner, sizes) for column in columns]
    history = np.diff(rows.history_offsets)[rows.history][owner]
    return np.column_stack([*columns, *ranked, sizes[owner], history]).astype(np.float32)


def _rank_within(values: np.ndarray, owner: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return each value's place in its impression as a share, 0 for the smallest; equal values share the mean."""
    from scipy.stats import rankdata

    order = np.lexsort((values, owner))
    # Ranks over all, of numbers that put one impression after the other.
    steps = np.concatenate([[True], (np.diff(values[order]) != 0) | (np.diff(owner[order]) != 0)])
    dense = np.empty(len(values), dtype=np.int64)
    dense[order] = np.cumsum(steps)
    starts = np.cumsum(sizes) - sizes
    return (rankdata(dense) - 1 - starts[owner]) / np.maximum(sizes[owner] - 1, 1)


METHODS = (
    Method.of(Boosting, needs={CLICKS, TIMES}, is_learned=True),
    Method(
        EmbeddingBoosting.name,
        lambda: EmbeddingBoosting([MiniLMEncoder()]),
        needs={CLICKS},
        is_learned=True,
        against=("minilm",),
    ),
)
