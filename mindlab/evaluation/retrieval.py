"""Retrieval: the nearest news of a whole catalogue, by comparing with all of it or by an index that looks at a few.

Both are faiss's (Johnson, Douze and Jegou, Billion-scale similarity search with GPUs, 2019; the graph index is
Malkov and Yashunin's HNSW, 2018). Vectors are unit rows, so that the inner product is the cosine.
"""

from typing import Any

import numpy as np

from mindlab.data.mind import Impressions
from mindlab.evaluation.predictions import ranks


def exact_index(vectors: np.ndarray) -> Any:
    """Return an index that compares a query with every vector of (n, width)."""
    import faiss

    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors, np.float32))
    return index


def graph_index(vectors: np.ndarray, neighbours: int = 16, effort: int = 100) -> Any:
    """Return an HNSW index: a graph of `neighbours` links a vector, found with `effort`."""
    import faiss

    index = faiss.IndexHNSWFlat(vectors.shape[1], neighbours, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = effort
    index.add(np.ascontiguousarray(vectors, np.float32))
    return index


def nearest(index: Any, queries: np.ndarray, k: int, effort: int | None = None) -> np.ndarray:
    """Return the row numbers of the k vectors nearest to each query, the nearest first, int64 (n_queries, k).

    `effort` is how many candidates a graph index keeps while it walks; an exact index has none.
    """
    if effort is not None:
        index.hnsw.efSearch = effort
    return index.search(np.ascontiguousarray(queries, np.float32), k)[1]


def recall(found: np.ndarray, wanted: np.ndarray) -> float:
    """Return the share of the `wanted` rows, (n, k), that an approximate search `found`.

    >>> recall(np.array([[1, 2], [5, 6]]), np.array([[2, 1], [5, 7]]))
    0.75
    """
    hits = (found[:, :, None] == wanted[:, None, :]).any(1)
    return float(hits.mean())


def found_clicks(found: np.ndarray, test: Impressions) -> np.ndarray:
    """Return, for each impression, the share of its clicked news among what was retrieved for its history.

    Args:
        found: int (n_histories, k), from `nearest`, one row for each distinct history of `test`.
        test: impressions with labels.
    """
    owner = np.repeat(np.arange(len(test)), np.diff(test.offsets))
    clicks = np.flatnonzero(test.labels == 1)
    is_found = (found[test.history[owner[clicks]]] == test.news[clicks][:, None]).any(1)
    n_clicks = np.bincount(owner[clicks], minlength=len(test))
    return np.bincount(owner[clicks], weights=is_found, minlength=len(test)) / np.maximum(n_clicks, 1)


def rerank(first: np.ndarray, second: np.ndarray, offsets: np.ndarray, k: int) -> np.ndarray:
    """Return the scores of two stages: in each impression the k best by `first` stand on top, ordered by `second`.

    The others follow, ordered by `first`. Where `first` ties, the one shown earlier goes on.

    >>> rerank(np.array([3.0, 2.0, 1.0]), np.array([0.0, 5.0, 9.0]), np.array([0, 3]), 2).tolist()
    [4.0, 9.0, 1.0]
    """
    is_top = ranks(first, offsets) <= k
    return np.where(is_top, first.max() + 1 + second - second.min(), first)
