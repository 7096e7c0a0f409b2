"""TF-IDF: do the words of the title occur in the titles that the user clicked?"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Self

import numpy as np

from mindlab.data.mind import Impressions, News
from mindlab.recommenders.base import Method, Recommender, ragged_rows, used_histories
from mindlab.recommenders.past import PastLog

# Dense history profiles held at a time; with MIND's 40,000 title words about 80 MB.
HISTORIES_PER_CHUNK = 256


class TfIdf(Recommender):
    """Score = cosine of the candidate's TF-IDF title and the mean TF-IDF title of the history.

    The word weights are fitted on all titles of the catalogue (texts, never labels). An empty
    history, or a title without a known word, scores 0.
    """

    name = "tfidf"

    def fit(
        self, train: Impressions, news: News, valid: Impressions | None, rng: np.random.Generator
    ) -> Self:
        """Fit the vocabulary and the word weights on the catalogue's titles."""
        self._vectorizer = word_weights(news.title)
        return self

    def score(self, test: Impressions, news: News, past: PastLog | None = None) -> np.ndarray:
        """Return the cosines."""
        return text_cosines(test, news.title, self._vectorizer)


def word_weights(texts: Sequence[str]) -> Any:
    """Return scikit-learn's TfidfVectorizer fitted on texts: unigrams, lower case, smoothed idf, L2-normalised rows.

    Of texts without a single word it knows none, and all their cosines are 0.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        return TfidfVectorizer().fit(texts)
    except ValueError:
        return TfidfVectorizer(vocabulary=["-"]).fit([""])


def text_cosines(test: Impressions, texts: Sequence[str], vectorizer: Any) -> np.ndarray:
    """Return the cosine of each candidate's text and its user's mean text, float64; 0 where either has no known word.

    `texts` has one text for each row that `test` names. Sparse texts meet one dense block of history profiles at a time.
    """
    from scipy.sparse import csr_array

    titles = csr_array(vectorizer.transform(texts))
    row, history, offsets = used_histories(test)
    n_histories = len(offsets) - 1
    sizes = np.diff(offsets)
    weights = np.repeat(1.0 / np.maximum(sizes, 1), sizes)
    means = csr_array((weights, history, offsets), shape=(n_histories, len(texts))) @ titles
    norms = np.sqrt((means**2).sum(axis=1))

    owner = np.repeat(row, np.diff(test.offsets))  # history of each candidate
    order = np.argsort(owner, kind="stable")
    bounds = np.searchsorted(
        owner[order], np.arange(0, n_histories + HISTORIES_PER_CHUNK, HISTORIES_PER_CHUNK)
    )
    scores = np.zeros(len(test.news))
    for chunk, (start, end) in enumerate(pairwise(bounds)):
        first = chunk * HISTORIES_PER_CHUNK
        dense = means[first : first + HISTORIES_PER_CHUNK].toarray()
        mine = order[start:end]
        flat, word_offsets = ragged_rows(titles.indptr, test.news[mine])
        candidate = np.repeat(np.arange(len(mine)), np.diff(word_offsets))
        products = dense[owner[mine][candidate] - first, titles.indices[flat]] * titles.data[flat]
        scores[mine] = np.bincount(candidate, weights=products, minlength=len(mine))
    norm = norms[owner]
    return np.divide(scores, norm, out=np.zeros_like(scores), where=norm > 0)


METHODS = (Method.of(TfIdf),)
