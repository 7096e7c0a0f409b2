"""mindlab.protocols: who trains, who tests, by hand and at MIND's own size."""

from dataclasses import replace

import numpy as np
import pytest

from mindlab.errors import UserError
from mindlab.mind import Impressions, Mind, read_mind
from mindlab.protocols import dev_splits, limit, seed_splits, splits_of
from mindlab.synthetic import MINDSMALL
from tests.handmade import make_impressions, make_news


def plain_impressions(n: int) -> Impressions:
    """Return n impressions of two candidates, the second one clicked, without a loop."""
    return Impressions(
        ids=np.arange(1, n + 1),
        users=np.full(n, "U1", dtype=object),
        times=np.datetime64("2019-11-09T00:00:00", "s") + np.arange(n).astype("timedelta64[s]"),
        history=np.zeros(n, np.int32),
        history_offsets=np.array([0, 1]),
        history_news=np.zeros(1, np.int32),
        offsets=np.arange(0, 2 * n + 1, 2),
        news=np.tile(np.array([0, 1], np.int32), n),
        labels=np.tile(np.array([0, 1], np.int8), n),
    )


@pytest.fixture(scope="module")
def week() -> Mind:
    """One impression at the first and the last second of every day of MINDsmall, and five of dev."""
    minutes = [day * 1440 + at for day in range(6) for at in (0, 1439)]
    train = make_impressions([(f"U{m}", m, [], [0, 1], [1, 0]) for m in minutes], start="2019-11-09T00:00:59")
    dev = make_impressions([("U1", m, [], [0, 1], [1, 0]) for m in range(5)], start="2019-11-15T00:00:00")
    return Mind(make_news(["a", "b"]), {"train": train, "dev": dev}, {})


def test_the_seed_split_of_mindsmall_has_the_tutorials_sizes():
    whole = plain_impressions(MINDSMALL["train"])
    splits = seed_splits(Mind(make_news(["a", "b"]), {"train": whole}, {}), 42)
    assert {name: len(split) for name, split in splits.items()} == {"train": 125_572, "test": 31_393}
    ids = np.concatenate([splits["train"].ids, splits["test"].ids])
    assert (np.sort(ids) == whole.ids).all()
    assert not (np.diff(splits["train"].ids) > 0).all()  # shuffled
    # Days are mixed, as in the tutorial: the test part is spread over the whole span.
    assert abs(np.mean(splits["test"].ids) / len(whole) - 0.5) < 0.01


def test_the_seed_split_follows_its_seed():
    mind = Mind(make_news(["a", "b"]), {"train": plain_impressions(50)}, {})
    first, again, other = (seed_splits(mind, seed)["test"].ids.tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_dev_splits_by_day(week):
    splits = splits_of("dev", week, seed=0)
    assert list(splits) == ["fit", "valid", "train", "test"]
    days = {name: sorted({str(t)[8:10] for t in split.times}) for name, split in splits.items()}
    assert days["fit"] == ["09", "10", "11", "12", "13"]
    assert days["valid"] == ["14"]
    assert days["train"] == ["09", "10", "11", "12", "13", "14"]
    assert days["test"] == ["15"]
    assert len(splits["fit"]) + len(splits["valid"]) == len(splits["train"]) == 12
    for split in splits.values():
        assert (np.diff(split.ids) > 0).all()  # file order


def test_dev_splits_without_a_dev_file_have_no_test(week):
    assert list(dev_splits(replace(week, splits={"train": week.splits["train"]}))) == [
        "fit",
        "valid",
        "train",
    ]


def test_a_protocol_that_is_not_there_is_the_users_to_mend(week):
    with pytest.raises(UserError, match="protocol 'mine': expected seed or dev"):
        splits_of("mine", week, 0)
    with pytest.raises(UserError, match="no train split, only dev"):
        seed_splits(replace(week, splits={"dev": week.splits["dev"]}), 0)
    bare = {"train": week.splits["train"].without_labels()}
    with pytest.raises(UserError, match="carries no labels"):
        dev_splits(replace(week, splits=bare))


def test_limit_is_a_seeded_ascending_choice():
    rows = limit(1000, 50, 42)
    assert len(rows) == len(set(rows.tolist())) == 50
    assert (np.diff(rows) > 0).all()
    assert rows.min() >= 0
    assert rows.max() < 1000
    assert rows.tolist() == limit(1000, 50, 42).tolist() != limit(1000, 50, 43).tolist()
    assert rows.tolist() != list(range(50))
    for most in (None, 1000, 2000):
        assert limit(1000, most, 42).tolist() == list(range(1000))
    for most in (0, -1):
        with pytest.raises(UserError, match="expected at least 1"):
            limit(1000, most, 42)


@pytest.mark.slow
def test_the_builder_gives_the_tutorials_counts_from_files_of_mindsmalls_size(tmp_path):
    from mindlab.alpaca import BuildOptions, build
    from mindlab.synthetic import make_sample

    make_sample(tmp_path / "data", MINDSMALL["train"], 10, 2000, seed=1)
    mind = read_mind(tmp_path / "data", ("train",))
    made = build(mind, BuildOptions("seed", "likes_dislikes"), tmp_path / "out")["datasets"]
    assert {name: entry["records"] for name, entry in made.items()} == {"mind": 125_572, "mind_test": 31_393}
    for name, entry in made.items():
        text = (tmp_path / "out" / entry["file"]).read_text(encoding="utf-8")
        assert text.count('{"system"') == entry["records"], name
