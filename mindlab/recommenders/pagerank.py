"""Personalised PageRank over the graph of users, news, entities and categories: a walk that starts at the clicks."""

import json
from collections.abc import Iterator
from typing import Self

import numpy as np
from scipy.sparse import csr_array

from mindlab.data.mind import Impressions, News
from mindlab.recommenders.base import Method, Recommender, mean_auc, used_histories
from mindlab.recommenders.past import PastLog

CELLS = 40_000_000  # of the dense block of walks that is held at a time, float32


class PageRank(Recommender):
    """Score = how often a walk is at the candidate that again and again starts anew at one of the user's clicks.

    From a node the walk goes on with probability `damping`, to any neighbour alike, or else begins again. News are neighbours
    of their category, subcategory and entities, and of the training users who clicked them; on data without training
    clicks there are no users. A walk is often at what has many neighbours, whoever the user is: whether that is divided
    out, by a walk that starts anywhere, is chosen on the validation day.

    Source: Page, Brin, Motwani and Winograd, The PageRank Citation Ranking (1999), section 6; Haveliwala, Topic-Sensitive
    PageRank (WWW 2002).
    """

    name = "pagerank"

    def __init__(self, damping: float = 0.7, steps: int = 12) -> None:
        """Take the damping, and how many steps of the power iteration are done."""
        self.damping, self.steps = damping, steps

    def fit(
        self, train: Impressions, news: News, valid: Impressions | None, rng: np.random.Generator
    ) -> Self:
        """Build the graph, and choose on `valid`, without which nothing is divided out."""
        self._walk = transitions(train, news)
        everywhere = np.zeros((self._walk.shape[0], 1), np.float32)
        everywhere[: len(news)] = 1.0 / max(1, len(news))
        self._anyone = np.maximum(self._spread(everywhere)[: len(news), 0], 1e-12)
        self.is_divided = False
        if valid is not None and len(valid):
            plain = self._scores(valid.without_labels())
            tried = {False: plain, True: plain / self._anyone[valid.news]}
            aucs = {how: mean_auc(scores, valid) for how, scores in tried.items()}
            self.is_divided = max(aucs, key=lambda how: aucs[how])
        self.chosen = {"divided by a walk from anywhere": self.is_divided}
        return self

    def score(self, test: Impressions, news: News, past: PastLog | None = None) -> np.ndarray:
        """Return the shares of the walks; an empty history has 0 for all."""
        scores = self._scores(test)
        return scores / self._anyone[test.news] if self.is_divided else scores

    def _scores(self, test: Impressions) -> np.ndarray:
        row, history, offsets = used_histories(test)
        owner = np.repeat(row, np.diff(test.offsets))
        sizes, scores = np.diff(offsets), np.zeros(len(test.news))
        at_once = max(1, CELLS // self._walk.shape[0])
        for first in range(0, len(sizes), at_once):
            some = sizes[first : first + at_once]
            start = np.zeros((self._walk.shape[0], len(some)), np.float32)
            column = np.repeat(np.arange(len(some)), some)
            clicked = history[offsets[first] : offsets[first + len(some)]]
            np.add.at(start, (clicked, column), 1.0 / np.maximum(some, 1)[column])
            reached = self._spread(start)
            mine = np.flatnonzero((owner >= first) & (owner < first + len(some)))
            scores[mine] = reached[test.news[mine], owner[mine] - first]
        return scores

    def _spread(self, start: np.ndarray) -> np.ndarray:
        """Return where walks are that start anew at `start`, (n_nodes, n_walks)."""
        reached = start
        for _ in range(self.steps):
            reached = self.damping * (self._walk @ reached) + (1 - self.damping) * start
        return reached


def transitions(train: Impressions, news: News) -> csr_array:
    """Return the probability of each step, from column to row, float32 (n_nodes, n_nodes); news are the first nodes.

    An edge that is there several times, such as a news clicked twice, counts once.
    """
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    n_nodes = len(news)

    def add(items: np.ndarray, names: np.ndarray) -> None:
        """Add an edge between each news and the node of its name."""
        nonlocal n_nodes
        known, number = np.unique(names, return_inverse=True)
        pairs.append((items.astype(np.int64), number + n_nodes))
        n_nodes += len(known)

    everything = np.arange(len(news))
    add(everything, news.category.astype(str))
    add(everything, np.char.add(np.char.add(news.category.astype(str), "/"), news.subcategory.astype(str)))
    found = list(entities(news))
    if found:
        items, names = zip(*found, strict=True)
        add(np.array(items), np.array(names))
    if len(train):
        _, first = np.unique(train.history, return_index=True)
        sizes = np.diff(train.history_offsets)
        user_of = np.full(len(sizes), "", dtype=object)
        user_of[train.history[first]] = train.users[first]
        clicks = train.labels == 1
        owner = np.repeat(train.users, np.diff(train.offsets))
        news_of = np.concatenate([train.history_news, train.news[clicks]])
        add(news_of, np.concatenate([np.repeat(user_of, sizes), owner[clicks]]).astype(str))
    rows, columns = (np.concatenate(side) for side in zip(*pairs, strict=True))
    both = np.concatenate([rows, columns]), np.concatenate([columns, rows])
    edges = csr_array((np.ones(len(both[0]), np.float32), both), shape=(n_nodes, n_nodes))
    edges.data[:] = 1.0  # duplicates are summed
    degree = edges.sum(axis=0)
    edges.data /= np.maximum(degree, 1.0)[edges.indices].astype(np.float32)
    return edges


def entities(news: News) -> Iterator[tuple[int, str]]:
    """Yield (news, Wikidata id) of every entity that a title or an abstract names."""
    for column in (news.title_entities, news.abstract_entities):
        for item, text in enumerate(column):
            for entity in json.loads(text or "[]"):
                if name := entity.get("WikidataId"):
                    yield item, name


METHODS = (Method.of(PageRank, against=("categories",)),)
