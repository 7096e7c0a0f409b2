"""Impressions and news written by hand, for tests that know every value."""

import json

import numpy as np

from mindlab.mind import Impressions, News
from mindlab.predictions import from_scores, write_predictions


def make_news(titles, categories=None, subcategories=None):
    n = len(titles)
    texts = lambda values: np.array(list(values), dtype=object)  # noqa: E731
    empty = texts([""] * n)
    return News(
        ids=texts(f"N{i}" for i in range(n)),
        category=texts(categories or ["news"] * n),
        subcategory=texts(subcategories or [""] * n),
        title=texts(titles),
        abstract=empty,
        title_entities=empty,
        abstract_entities=empty,
    )


def make_impressions(rows, start="2019-11-15T08:00:00"):
    """`rows`: (user, minutes after start, history, candidates, labels); ids count from 1."""
    histories, index = [], {}
    for row in rows:
        if tuple(row[2]) not in index:
            index[tuple(row[2])] = len(histories)
            histories.append(row[2])
    flat = lambda lists, kind: np.array([x for values in lists for x in values], dtype=kind)  # noqa: E731
    offsets = lambda lists: np.cumsum([0] + [len(values) for values in lists]).astype(np.int64)  # noqa: E731
    minutes = np.array([row[1] for row in rows], dtype=np.int64)
    return Impressions(
        ids=np.arange(1, len(rows) + 1, dtype=np.int64),
        users=np.array([row[0] for row in rows], dtype=object),
        times=np.datetime64(start, "s") + (minutes * 60).astype("timedelta64[s]"),
        history=np.array([index[tuple(row[2])] for row in rows], dtype=np.int32),
        history_offsets=offsets(histories),
        history_news=flat(histories, np.int32),
        offsets=offsets([row[3] for row in rows]),
        news=flat([row[3] for row in rows], np.int32),
        labels=flat([row[4] for row in rows], np.int8),
    )


def random_impressions(rng, n=200, n_news=40, n_users=30, n_minutes=500):
    rows = []
    for _ in range(n):
        size = int(rng.integers(2, 12))
        clicks = int(rng.integers(1, size))
        labels = rng.permutation([1] * clicks + [0] * (size - clicks))
        user = int(rng.integers(n_users))
        history = np.random.default_rng(user).integers(0, n_news, size=user % 7).tolist()
        candidates = rng.choice(n_news, size=size, replace=False).tolist()
        rows.append((f"U{user}", int(rng.integers(n_minutes)), history, candidates, labels.tolist()))
    return make_impressions(rows)


def make_run(folder, signal, seed=1, *, impressions, **manifest):
    """A run whose scores are `signal` times the label plus noise, so that more signal is a higher AUC."""
    news = make_news([f"title {i}" for i in range(40)])
    noise = np.random.default_rng(seed).normal(0, 1, len(impressions.news))
    frame = from_scores("test", impressions, news, impressions.labels * signal + noise)
    write_predictions(folder / "predictions.parquet", frame)
    about = {
        "name": folder.name, "protocol": "dev", "track": "static", "params": 0, "train_seconds": 1.5,
        "seconds": 2.0, "ms_per_impression": 0.25, "peak_mb": 300, "command": "compare.py",
        "git_commit": "abc123", "python": "3.11.9", "packages": {"numpy": "2.0.0"},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(about | manifest))
    return folder
