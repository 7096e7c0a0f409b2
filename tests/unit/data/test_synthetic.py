"""mindlab.data.synthetic looks like MIND, is reproducible to the byte, and its oracle is where it should be."""

import hashlib
import json
import time

import numpy as np
import pytest
from scipy.stats import spearmanr

from mindlab.common.errors import UserError
from mindlab.data.mind import read_mind
from mindlab.data.synthetic import MINDSMALL, default_news, make_sample
from mindlab.evaluation.leak_rule import leak_rule
from mindlab.evaluation.metrics import answer_metrics, evaluate, ranking_metrics
from mindlab.evaluation.predictions import read_predictions
from mindlab.recommenders import METHODS, make_recommender
from mindlab.recommenders.base import score_without_labels
from mindlab.recommenders.oracle import FILE_NAME, Oracle
from mindlab.recommenders.past import PastLog
from mindlab.tasks import Dev
from tests.asked import ask
from tests.conftest import ROOT

SAMPLE = ROOT / "data" / "sample"
FILES = sorted(
    ["manifest.json"]
    + [f"{split}/{name}" for split in ("train", "dev") for name in ("news.tsv", "behaviors.tsv", FILE_NAME)]
)


@pytest.fixture(scope="module")
def sample():
    return read_mind(SAMPLE)


@pytest.fixture(scope="module")
def both(sample):
    """Per impression of both splits: candidates, clicks, history length, whether its history repeats an id."""
    columns = []
    for split in sample.splits.values():
        histories = [split.user_history(i) for i in range(len(split))]
        columns.append(
            {
                "candidates": np.diff(split.offsets),
                "clicks": np.add.reduceat(split.labels, split.offsets[:-1], dtype=np.int64),
                "history": np.array([len(h) for h in histories]),
                "repeats": np.array([len(set(h.tolist())) < len(h) for h in histories]),
                "seen_before": np.array(
                    [bool(np.isin(split.candidates(i), h).any()) for i, h in enumerate(histories)]
                ),
            }
        )
    return {name: np.concatenate([column[name] for column in columns]) for name in columns[0]}


@pytest.fixture(scope="module")
def rows():
    """The rows of both news.tsv, as they stand in the files, by id."""
    found = {}
    for split in ("train", "dev"):
        lines = (SAMPLE / split / "news.tsv").read_text(encoding="utf-8").split("\n")
        assert lines.pop() == ""
        found.update((line.split("\t")[0], line.split("\t")) for line in lines)
    return found


def hashes(folder):
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths
    }


def auc(scores, impressions):
    return float(np.mean(ranking_metrics(scores, impressions.labels, impressions.offsets)["auc"]))


def leak_rule_metrics(impressions):
    last = np.full(len(impressions), -1)
    return answer_metrics(leak_rule(impressions, last), impressions.labels[impressions.offsets[1:] - 1])


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        make_sample(tmp_path / name, 60, 20, seed=seed)
    a, b, c = (hashes(tmp_path / name) for name in "abc")
    assert sorted(a) == FILES
    assert a == b
    assert all(a[name] != c[name] for name in FILES)


def test_the_committed_sample_can_be_made_again(tmp_path):
    make_sample(tmp_path, 3000, 600, seed=1)
    assert hashes(tmp_path) == hashes(SAMPLE)


def test_the_committed_sample_is_small_and_says_what_it_is():
    assert sorted(hashes(SAMPLE)) == FILES
    assert sum(path.stat().st_size for path in SAMPLE.rglob("*") if path.is_file()) <= 5_000_000
    manifest = json.loads((SAMPLE / "manifest.json").read_text(encoding="utf-8"))
    assert {name: manifest[name] for name in ("seed", "train", "dev")} == {
        "seed": 1,
        "train": 3000,
        "dev": 600,
    }
    assert "no row of it is Microsoft's" in manifest["what"]


def test_impressions_have_minds_sizes_and_clicks(both, sample):
    assert len(both["candidates"]) == 3600
    assert 20 <= np.median(both["candidates"]) <= 28
    assert 100 <= np.percentile(both["candidates"], 95) <= 135
    assert both["candidates"].min() == 2
    assert 200 <= both["candidates"].max() <= 300
    assert 0.036 <= both["clicks"].sum() / both["candidates"].sum() <= 0.045
    assert 0.68 <= np.mean(both["clicks"] == 1) <= 0.77
    assert both["clicks"].min() == 1
    assert (both["clicks"] < both["candidates"]).all()
    days = {name: np.unique(split.times.astype("datetime64[D]")) for name, split in sample.splits.items()}
    assert [str(day)[-2:] for day in days["train"]] == ["09", "10", "11", "12", "13", "14"]
    assert [str(day) for day in days["dev"]] == ["2019-11-15"]


def test_histories_have_minds_lengths_and_repeats(both):
    assert 15 <= np.median(both["history"]) <= 22
    assert 0.015 <= np.mean(both["history"] == 0) <= 0.04
    assert 0.15 <= np.mean(both["repeats"]) <= 0.26
    assert 0.02 <= np.mean(both["seen_before"]) <= 0.2  # a candidate that the user has clicked before


def test_a_reader_keeps_one_history(sample):
    found: dict[str, set[tuple[int, ...]]] = {}
    for split in sample.splits.values():
        for i, user in enumerate(split.users):
            found.setdefault(user, set()).add(tuple(split.user_history(i).tolist()))
    assert all(len(histories) == 1 for histories in found.values())
    train, dev = (set(sample.splits[name].users) for name in ("train", "dev"))
    assert 0.05 <= len(train & dev) / len(dev) <= 0.2  # MIND: 0.119


def test_dev_shows_mostly_news_that_the_first_five_days_did_not(sample):
    train, dev = sample.splits["train"], sample.splits["dev"]
    fit = train.take(np.flatnonzero(train.times < np.datetime64("2019-11-14")))
    is_new = ~np.isin(dev.news, fit.news)
    assert 0.66 <= is_new.mean() <= 0.78
    assert 0.82 <= is_new[dev.labels == 1].mean() <= 0.92


def test_categories_have_minds_shares(sample):
    names, counts = np.unique(sample.news.category.astype(str), return_counts=True)
    share = dict(zip(names, counts / counts.sum(), strict=True))
    assert len(share) == 18
    assert share["news"] == pytest.approx(0.30, abs=0.03)
    assert share["sports"] == pytest.approx(0.30, abs=0.03)
    assert sorted(share, key=share.get)[-2:] in (["sports", "news"], ["news", "sports"])
    assert len(np.unique(sample.news.subcategory.astype(str))) > 40


def test_titles_are_all_different_and_some_are_awkward(rows, sample):
    titles = [row[3] for row in rows.values()]
    assert 10 <= np.mean([len(title.split()) for title in titles]) <= 12
    assert len(set(sample.news.title)) == len(sample.news) == len(titles)
    assert any(title.count('"') == 1 for title in titles)
    assert any("\u200b" in title for title in titles)
    assert 0.03 <= np.mean([row[4] == "" for row in rows.values()]) <= 0.08
    assert all(title.strip() == title and "{" not in title for title in titles)


def test_news_files_have_minds_eight_columns(rows):
    assert {len(row) for row in rows.values()} == {8}
    for news_id, category, subcategory, _, _, url, entities, abstract_entities in rows.values():
        assert news_id[0] == "N"
        assert news_id[1:].isdigit()
        assert category
        assert subcategory
        assert url == f"https://news.invalid/{news_id}"
        assert abstract_entities == "[]"
        for entity in json.loads(entities):
            at, surface = entity["OccurrenceOffsets"][0], entity["SurfaceForms"][0]
            assert rows[news_id][3][at : at + len(surface)] == surface


def test_a_news_id_tells_nothing_about_time(sample):
    order = [sample.splits[name] for name in ("train", "dev")]
    news = np.concatenate([split.news for split in order])
    times = np.concatenate([np.repeat(split.times, np.diff(split.offsets)) for split in order])
    first = np.full(len(sample.news), np.datetime64("2030-01-01", "s"))
    np.minimum.at(first, news, times)
    shown = np.unique(news)
    numbers = np.array([int(name[1:]) for name in sample.news.ids[shown]])
    assert len(shown) > 1000
    assert abs(spearmanr(numbers, first[shown].astype(np.int64)).statistic) < 0.1


def test_the_leak_rule_scores_as_on_mind(tmp_path, sample):
    for split in sample.splits.values():
        found = leak_rule_metrics(split)
        assert 0.965 <= found["accuracy"] <= 0.99
        assert found["precision"] == 1.0
    make_sample(tmp_path, 20_000, 400, seed=5)
    found = leak_rule_metrics(read_mind(tmp_path).splits["train"])
    assert 0.97 <= found["accuracy"] <= 0.985
    assert found["precision"] == 1.0
    assert found["recall"] == pytest.approx(0.811, abs=0.06)  # 0.811 on 5,000 impressions of MIND
    assert found["always_no_accuracy"] == pytest.approx(0.890, abs=0.02)


def test_the_oracle_ranks_far_better_than_chance_and_not_perfectly(sample):
    for name, split in sample.splits.items():
        oracle = Oracle().on(Dev(), split, SAMPLE / name)
        scores = score_without_labels(oracle.fit(split, sample.news, None, None), split, sample.news)
        assert 0.72 <= auc(scores, split) <= 0.80
    shuffled = np.random.default_rng(0).permutation(scores)
    assert 0.45 <= auc(shuffled, split) <= 0.55


def test_every_default_size_follows_from_minds():
    assert default_news(MINDSMALL["train"], MINDSMALL["dev"]) == MINDSMALL["news"]
    assert default_news(20, 10) == 400


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((9, 20, 400), "--train 9: expected at least 10"),
        ((20, 9, 400), "--dev 9: expected at least 10"),
        ((20, 20, 149), "--news 149: expected at least 150"),
        ((20, 20, 0), "--news 0: expected at least 150"),
    ],
)
def test_a_size_too_small_is_the_users_to_mend(tmp_path, sizes, message):
    with pytest.raises(UserError, match=message):
        make_sample(tmp_path, *sizes)
    assert not list(tmp_path.iterdir())


def test_the_smallest_sizes_can_be_read(tmp_path):
    manifest = make_sample(tmp_path, 10, 10, 400, seed=1)
    mind = read_mind(tmp_path)
    assert len(mind.news) == manifest["news"] == 400
    assert [len(split) for split in mind.splits.values()] == [10, 10]


@pytest.mark.slow
def test_a_mindsmall_sized_set_takes_less_than_a_minute(tmp_path):
    begin = time.process_time()
    make_sample(tmp_path, MINDSMALL["train"], MINDSMALL["dev"], MINDSMALL["news"], seed=1)
    assert time.process_time() - begin < 60


BANDS = {
    "random": (0.49, 0.51),
    "popularity": (0.0, 1.0),  # only recorded: below 0.5 is a finding, not a bug
    "popularity-streaming": (0.60, 0.66),
    "category": (0.58, 0.67),
    "tfidf": (0.53, 0.60),
    "minilm": (0.58, 0.67),
    "oracle": (0.72, 0.80),
    "SmolLM2 untrained, next_click, 8 titles": (0.55, 0.63),
}


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    make_sample(folder, 30_000, 6_000, seed=11)
    return folder, read_mind(folder)


def check_band(name, found, n):
    """Print an AUC, and assert that it lies in its band."""
    print(f"\n{name}: AUC {found:.3f}, n = {n:,}")
    low, high = BANDS[name]
    assert low <= found <= high


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in BANDS if name in METHODS and METHODS[name].track != "ceiling"]
)
def test_simple_recommenders_land_around_their_mind_values(large, name):
    _, mind = large
    train, test = mind.splits["train"], mind.splits["dev"]
    recommender = make_recommender(name).fit(train, mind.news, None, np.random.default_rng(0))
    past = PastLog([train, mind.splits["dev"]])
    check_band(name, auc(score_without_labels(recommender, test, mind.news, past), test), len(test))


@pytest.mark.slow
def test_the_oracle_lands_in_its_band(large):
    folder, mind = large
    test = mind.splits["dev"]
    scores = score_without_labels(Oracle().on(Dev(), test, folder / "dev"), test, mind.news)
    check_band("oracle", auc(scores, test), len(test))


@pytest.mark.slow
def test_the_untrained_model_lands_in_its_band(large, tmp_path, smollm2):
    request = ask(str(large[0]), "dev", "next_click", str(smollm2), "smollm2", limit=300, history_length=8)
    frame = read_predictions(request.run(tmp_path / "run") / "predictions.parquet")
    found = evaluate(frame).summary
    check_band("SmolLM2 untrained, next_click, 8 titles", found["auc"], found["n_ranked"])
