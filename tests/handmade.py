"""Impressions and news written by hand, for tests that know every value."""

import csv
import hashlib
import json

import numpy as np

from mindlab.data.mind import Impressions, News
from mindlab.evaluation.predictions import from_scores, write_predictions


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


# Invented, by category: its subcategories, each with words that its headlines are made of.
RECPROMPT_WORDS = {
    "sports": {"curling": "skip stone sheet sweeper", "rowing": "eight oar lake cox"},
    "travel": {"trains": "sleeper platform timetable carriage", "islands": "ferry lighthouse harbour dune"},
    "health": {"sleep": "nap pillow snoring dream", "teeth": "dentist molar floss brace"},
    "finance": {"savings": "deposit pension interest piggy", "tax": "refund levy form audit"},
    "foodanddrink": {"bread": "rye crust sourdough oven", "tea": "kettle oolong leaf cup"},
}


def write_recprompt_csvs(folder, n_test=40, n_valid=20, seed=0):
    """Write an invented MIND_test.csv and MIND_valid.csv of RecPrompt's form; return the SHA-256 of each by name.

    A user clicks on what is of the category of most of the history; the click stands at each place equally often.
    Some titles begin with a blank, hold quotes, commas and letters beyond ASCII; some abstracts are empty.
    """
    rng = np.random.default_rng(seed)
    topics = [(name, sub) for name, subs in RECPROMPT_WORDS.items() for sub in subs]
    pool = {name: [] for name in RECPROMPT_WORDS}
    for i in range(400):
        category, sub = topics[i % len(topics)]
        words = rng.permutation(RECPROMPT_WORDS[category][sub].split()).tolist()
        title = f'{" " * (i % 20 == 0)}{words[0].title()}, "{words[1]}" and the café {words[2]} no. {i}'
        abstract = "" if i % 15 == 0 else f"About {words[3]}, in  {sub}."
        pool[category].append((f"N{1000 + i}", title, category, sub, abstract))
    folder.mkdir(parents=True, exist_ok=True)
    hashes, first_id = {}, 7000
    for name, n in (("MIND_test.csv", n_test), ("MIND_valid.csv", n_valid)):
        clicked_at = rng.permutation(np.arange(n) % 10)
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            parts = ("news_id", "title", "category", "subvert", "abstract")
            writer.writerow(
                ["impression_id", "history", "candidate", "label"]
                + [f"{part}_{detail}" for part in ("history", "candidate") for detail in parts]
            )
            for row, place in enumerate(clicked_at.tolist()):
                liked, *others = rng.permutation(list(pool)).tolist()
                some = lambda category: pool[category][rng.integers(len(pool[category]))]  # noqa: E731
                length = (1, 25, int(rng.integers(1, 26)))[min(row, 2)]
                history = [some(liked if rng.random() < 0.7 else others[0]) for _ in range(length)]
                rest = [article for category in others for article in pool[category]]
                shown = [rest[k] for k in rng.choice(len(rest), 9, replace=False)]
                shown.insert(place, some(liked))
                cells = lambda articles: ["\n".join(texts) for texts in zip(*articles, strict=True)]  # noqa: E731
                lines = lambda letter, articles: "\n".join(  # noqa: E731
                    f"{letter}{k}: {article[1]}" for k, article in enumerate(articles, 1)
                )
                first = [first_id + row, lines("H", history), lines("C", shown), f"C{place + 1}"]
                writer.writerow([*first, *cells(history), *cells(shown)])
        first_id += 1000
        hashes[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    return hashes
