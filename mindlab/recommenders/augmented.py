"""Classic rankers over what a language model wrote: words about news, and a profile of each user."""

from dataclasses import replace
from itertools import pairwise
from typing import Any, Self

import numpy as np

from mindlab.data.mind import Impressions, News
from mindlab.llm import embedded_model
from mindlab.llm.augmentation import Augmenter, Written
from mindlab.llm.embeddings import Encoder, MiniLMEncoder
from mindlab.recommenders.base import CLICKS, Method, Recommender, used_histories
from mindlab.recommenders.boosting import lambdarank, with_ranks
from mindlab.recommenders.embedding import MEAN, EmbeddingCosine, history_scores, unit
from mindlab.recommenders.past import PastLog
from mindlab.recommenders.tfidf import TfIdf, text_cosines, word_weights
from mindlab.tasks import limit
from mindlab.tasks.base import IMPRESSION

MOST_IMPRESSIONS = 300  # of the training split; a profile has to be written for each of their users


def behind_titles(news: News, written: Written) -> list[str]:
    """Return each title with what was written about it behind it."""
    return [f"{title} {more}".strip() for title, more in zip(news.title, written.words, strict=True)]


class TokenTfIdf(Recommender):
    """TF-IDF as `TfIdf`, over each title and the words that a language model wrote about it.

    Nothing is trained: what the words add is this row minus `tfidf`.
    """

    name = "tokens-tfidf"

    def __init__(self, augmenter: Augmenter):
        self.augmenter = augmenter

    def fit(
        self, train: Impressions, news: News, valid: Impressions | None, rng: np.random.Generator
    ) -> Self:
        """Have the model write, once for a catalogue, and weigh the words."""
        written = self.augmenter.news(news)
        self.written = {"news_tokens": written.cost}
        self.saved_seconds = written.saved_seconds
        self._texts = behind_titles(news, written)
        self._vectorizer = word_weights(self._texts)
        return self

    def score(self, test: Impressions, news: News, past: PastLog | None = None) -> np.ndarray:
        """Return the cosines."""
        return text_cosines(test, self._texts, self._vectorizer)


class TextBoosting(Recommender):
    """LightGBM's LambdaRank on how near a candidate's text is to its user's: no counter, no column of MIND.

    From the titles alone: the cosine of their words (TF-IDF) and of their vectors. With an augmenter also the cosine of
    the words it wrote, alone and behind the titles, and how near the user's profile is to these and to the title's
    vector. A profile has to be written for each user, so the model is fitted on `MOST_IMPRESSIONS` of the training
    split, the same ones with and without an augmenter.
    """

    def __init__(self, name: str, augmenter: Augmenter | None = None, encoder: Encoder | None = None):
        self.name, self.augmenter = name, augmenter
        self._vectors = EmbeddingCosine(encoder or MiniLMEncoder())

    def fit(
        self, train: Impressions, news: News, valid: Impressions | None, rng: np.random.Generator
    ) -> Self:
        """Have the model write, choose the rounds on `valid` (a part of `train`), fit on a part of `train`."""
        seed = int(rng.integers(2**31))
        self._vectors.fit(train, news, None, rng)
        self.saved_seconds = self._vectors.saved_seconds
        self.written, texts = {}, [list(news.title)]
        if self.augmenter:
            written = self.augmenter.news(news)
            self.written["news_tokens"] = written.cost
            self.saved_seconds += written.saved_seconds
            texts += [written.words, behind_titles(news, written)]
        self._texts = [(one, word_weights(one)) for one in texts]
        # The same part for every seed: another one would be other users to write about.
        some = train.take(limit(len(train), MOST_IMPRESSIONS, 0))
        x, profiles = self.features(some, news)
        if profiles:
            self.saved_seconds += profiles.saved_seconds
            self.written["profiles of training users"] = profiles.cost
        self._model, self.rounds = lambdarank(x, some, valid, seed)
        return self

    def score(self, test: Impressions, news: News, past: PastLog | None = None) -> np.ndarray:
        """Return the model's scores."""
        x, profiles = self.features(test, news)
        if profiles:
            self.saved_scoring_seconds = profiles.saved_seconds
            self.written["profiles of test users"] = profiles.cost
        return self._model.predict(x)

    def features(self, rows: Impressions, news: News) -> tuple[np.ndarray, Written | None]:
        """Return float32 (n_candidates, n_features), and the profiles of the users if there is an augmenter."""
        columns = [text_cosines(rows, *one) for one in self._texts]
        columns.append(self._vectors.score(rows, news))
        if self.augmenter is None:
            return with_ranks(columns, rows), None
        row, clicked, offsets = used_histories(rows)
        histories = [clicked[a:b].tolist() for a, b in pairwise(offsets)]
        profiles = self.augmenter.users(histories, news)
        # A profile stands in for the history: one more text, behind those of the catalogue, clicked once.
        n = len(histories)
        profiled = replace(
            rows,
            history=row.astype(np.int32),
            history_news=np.arange(len(news), len(news) + n, dtype=np.int32),
            history_offsets=np.arange(n + 1),
        )
        texts, vectorizer = self._texts[-1]
        columns.append(text_cosines(profiled, [*texts, *profiles.words], vectorizer))
        columns.append(history_scores(profiled, self._with_vectors(profiles.words), [MEAN])[0])
        return with_ranks(columns, rows), profiles

    def _with_vectors(self, profiles: list[str]) -> np.ndarray:
        """Return the unit vectors of the catalogue and, behind them, of the profiles; of zeros where one is empty."""
        titles = self._vectors.vectors
        vectors: Any = np.zeros((len(profiles), titles.shape[1]), np.float32)
        written = [k for k, words in enumerate(profiles) if words]
        for start in range(0, len(written), 64):
            some = written[start : start + 64]
            vectors[some] = unit(self._vectors.encoder.encode([profiles[k] for k in some])[:, 0])
        return np.concatenate([titles, vectors])


def _augmenter() -> Augmenter:
    return Augmenter(f"models/{embedded_model.NAME}", "smollm2")


METHODS = (
    Method(
        "titles-lightgbm",
        lambda: TextBoosting("titles-lightgbm"),
        needs={CLICKS},
        is_learned=True,
        against=("minilm",),
    ),
    Method(
        TokenTfIdf.name,
        lambda: TokenTfIdf(_augmenter()),
        needs_llm=True,
        on_request=True,
        is_slow=True,
        against=(TfIdf.name,),
    ),
    Method(
        "tokens-lightgbm",
        lambda: TextBoosting("tokens-lightgbm", _augmenter()),
        needs={CLICKS},
        cases=(IMPRESSION,),
        needs_llm=True,
        on_request=True,
        is_learned=True,
        is_slow=True,
        is_costly=True,
        against=("titles-lightgbm",),
    ),
)
