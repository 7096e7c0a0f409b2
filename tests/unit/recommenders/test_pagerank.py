"""Personalised PageRank beside networkx's, on graphs small enough to draw."""

import json
from dataclasses import replace

import networkx
import numpy as np
import pytest

from mindlab.recommenders.pagerank import PageRank, entities, transitions
from tests.handmade import make_impressions, make_news

NEWS = make_news(
    ["a", "b", "c", "d", "e"], ["sports", "sports", "news", "news", "food"], ["x", "y", "x", "z", "w"]
)
NEWS = replace(
    NEWS,
    title_entities=np.array(
        [json.dumps([{"WikidataId": "Q1"}]), "", json.dumps([{"WikidataId": "Q1"}]), "[]", ""], object
    ),
)
TRAIN = make_impressions([("U1", 0, [0, 0], [3, 4], [1, 0]), ("U2", 1, [1], [2, 4], [0, 1])])
TEST = make_impressions([("U3", 9, [0, 2], [1, 3, 4], [1, 0, 0]), ("U4", 9, [], [1, 2], [1, 0])])


def graph():
    """The same graph, by hand."""
    made = networkx.Graph()
    made.add_nodes_from(range(5))
    made.add_edges_from((i, c) for i, c in enumerate(NEWS.category))
    made.add_edges_from(
        (i, f"{c}/{s}") for i, (c, s) in enumerate(zip(NEWS.category, NEWS.subcategory, strict=True))
    )
    made.add_edges_from([(0, "Q1"), (2, "Q1"), (0, "U1"), (3, "U1"), (1, "U2"), (4, "U2")])
    return made


def test_scores_are_networkxs():
    model = PageRank(steps=200).fit(TRAIN, NEWS, None, np.random.default_rng(0))
    found = model.score(TEST.without_labels(), NEWS)
    expected = networkx.pagerank(graph(), alpha=model.damping, personalization={0: 0.5, 2: 0.5}, tol=1e-12)
    assert found[:3] == pytest.approx([expected[i] for i in (1, 3, 4)], abs=1e-6)
    assert found[3:].tolist() == [0.0, 0.0]  # nothing was clicked


def test_a_graph_without_users():
    none = TRAIN.take(np.array([], int))
    none = replace(none, history_offsets=np.zeros(1, np.int64), history_news=none.history_news[:0])
    steps = transitions(none, NEWS)
    assert steps.shape == (5 + 3 + 5 + 1,) * 2
    assert np.allclose(steps.sum(axis=0), 1)


def test_entities_by_hand():
    assert list(entities(NEWS)) == [(0, "Q1"), (2, "Q1")]


def test_what_is_divided_out_is_chosen_on_the_validation_day():
    rows = [("U5", 5, [0], [1, 2], [1, 0]), ("U6", 5, [2], [3, 0], [0, 1])]
    model = PageRank().fit(TRAIN, NEWS, make_impressions(rows), np.random.default_rng(0))
    assert set(model.chosen) == {"divided by a walk from anywhere"}
