"""mindlab.tasks: who trains, who tests, by hand and at MIND's own size."""

from dataclasses import replace

import numpy as np
import pytest

from mindlab.common.errors import UserError
from mindlab.data.mind import Impressions, Mind, read_mind
from mindlab.data.synthetic import MINDSMALL
from mindlab.tasks import Dev, Seed, limit, task_of
from mindlab.tasks.sampled import INTERACTIONS
from mindlab.tasks.sampled_impression import NEGATIVES, sampled_impressions, short_share
from tests.conftest import ROOT
from tests.handmade import make_impressions, make_news, random_impressions


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
    splits = Seed().splits(Mind(make_news(["a", "b"]), {"train": whole}, {}), 42)
    assert {name: len(split) for name, split in splits.items()} == {"train": 125_572, "test": 31_393}
    ids = np.concatenate([splits["train"].ids, splits["test"].ids])
    assert (np.sort(ids) == whole.ids).all()
    assert not (np.diff(splits["train"].ids) > 0).all()  # shuffled
    # Days are mixed, as in the tutorial: the test part is spread over the whole span.
    assert abs(np.mean(splits["test"].ids) / len(whole) - 0.5) < 0.01


def test_the_seed_split_follows_its_seed():
    mind = Mind(make_news(["a", "b"]), {"train": plain_impressions(50)}, {})
    first, again, other = (Seed().splits(mind, seed)["test"].ids.tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_dev_splits_by_day(week):
    splits = task_of("dev").splits(week, 0)
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
    assert list(Dev().splits(replace(week, splits={"train": week.splits["train"]}))) == [
        "fit",
        "valid",
        "train",
    ]


def test_a_protocol_that_is_not_there_is_the_users_to_mend(week):
    with pytest.raises(UserError, match="protocol 'mine': expected seed, dev, sampled"):
        task_of("mine").splits(week, 0)
    with pytest.raises(UserError, match="no train split, only dev"):
        Seed().splits(replace(week, splits={"dev": week.splits["dev"]}), 0)
    bare = {"train": week.splits["train"].without_labels()}
    with pytest.raises(UserError, match="carries no labels"):
        Dev().splits(replace(week, splits=bare))


def test_data_without_a_training_split_chooses_on_valid_and_reports_on_dev(week):
    valid, dev = week.splits["train"].take([0, 1, 2]), week.splits["dev"]
    bare = replace(week, splits={"valid": valid, "dev": dev})
    assert Dev().splits(bare) == {"valid": valid, "test": dev}
    for name, part in task_of("sampled-impression").splits(bare, 0).items():
        assert part.ids.tolist() == {"valid": valid, "test": dev}[name].ids.tolist()
    for protocol in ("seed", "sampled"):
        with pytest.raises(
            UserError, match=f"protocol {protocol} needs a training split, .* only valid, dev"
        ):
            task_of(protocol).splits(bare, 0)
    # Where there is a training split, its last day is the one to choose on.
    both = task_of("dev").splits(replace(week, splits={**week.splits, "valid": valid}), 0)
    assert both["valid"].ids.tolist() == task_of("dev").splits(week, 0)["valid"].ids.tolist()
    assert list(both) == ["fit", "valid", "train", "test"]


def test_the_folders_that_a_protocol_reads(tmp_path):
    def make(*names):
        for name in names:
            (tmp_path / name).mkdir()
            (tmp_path / name / "news.tsv").write_text("x")
        return tmp_path

    # Where something is wrong with the data, the one who reads it says what.
    assert task_of("dev").files("test", tmp_path / "absent") == ("train", "dev")
    assert task_of("seed").files("test", make("dev")) == ("train",)
    assert task_of("dev").files("test", make("valid")) == ("valid", "dev")
    assert task_of("sampled-impression").files("valid", tmp_path) == ("valid", "dev")
    for protocol in ("seed", "sampled"):
        with pytest.raises(
            UserError, match=f"protocol {protocol} needs a training split, and .* only valid, dev"
        ):
            task_of(protocol).files("test", tmp_path)
    assert task_of("dev").files("test", make("MINDsmall_train")) == ("train", "dev")
    assert task_of("dev").files("submission", tmp_path) == ("train", "dev", "test")
    assert task_of("seed").files("test", tmp_path / "dev") == ("train",)  # one split's folder


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
    from mindlab.data.synthetic import make_sample
    from mindlab.finetune.alpaca import BuildOptions, build

    make_sample(tmp_path / "data", MINDSMALL["train"], 10, 2000, seed=1)
    mind = read_mind(tmp_path / "data", ("train",))
    made = build(mind, BuildOptions("seed", "likes_dislikes"), tmp_path / "out")["datasets"]
    assert {name: entry["records"] for name, entry in made.items()} == {"mind": 125_572, "mind_test": 31_393}
    for name, entry in made.items():
        text = (tmp_path / "out" / entry["file"]).read_text(encoding="utf-8")
        assert text.count('{"system"') == entry["records"], name


def test_sampled_impressions_have_one_click_and_others_of_the_same_impression():
    whole = random_impressions(np.random.default_rng(0), n=400)
    few = sampled_impressions(whole, seed=1, negatives=4)
    assert np.array_equal(few.ids, whole.ids)
    first = []
    for i in range(len(whole)):
        labels, shown = few.candidate_labels(i), few.candidates(i)
        clicked = set(whole.candidates(i)[whole.candidate_labels(i) == 1].tolist())
        others = set(whole.candidates(i).tolist()) - clicked
        assert labels.sum() == 1
        assert set(shown[labels == 1].tolist()) <= clicked
        assert set(shown[labels == 0].tolist()) <= others
        assert len(shown) == len(set(shown.tolist())) == 1 + min(4, len(others))
        first.append(labels[0] / (1 / len(labels)))
    assert np.mean(first) == pytest.approx(1, abs=0.2)  # the click stands anywhere
    shares = [len(whole.candidates(i)) - whole.candidate_labels(i).sum() < 4 for i in range(len(whole))]
    assert short_share(few, 4) == pytest.approx(np.mean(shares))
    assert np.array_equal(sampled_impressions(whole, 1, 4).news, few.news)
    assert not np.array_equal(sampled_impressions(whole, 2, 4).news, few.news)


def test_sampled_asks_for_the_last_click():
    mind = read_mind(ROOT / "data/sample")
    splits = task_of("sampled").splits(mind, 7)
    known = {}
    for part in mind.splits.values():
        for i, user in enumerate(part.users):
            known.setdefault(str(user), []).append(part.user_history(i))
    test, train = splits["test"], splits["train"]
    assert not set(test.users) & set(train.users)
    assert len(train) == int(0.8 * (len(train) + len(test)))
    assert len(test) > 50
    assert (np.diff(test.offsets) == 1 + NEGATIVES).all()
    assert (np.diff(train.offsets) == 2).all()
    for part in (test, train):
        for i in range(len(part)):
            whole = known[part.users[i]][0]
            labels, shown, history = part.candidate_labels(i), part.candidates(i), part.user_history(i)
            assert shown[labels == 1].tolist() == [whole[-1]]
            assert not np.isin(shown[labels == 0], whole).any()
            assert history.tolist() == whole[whole != whole[-1]][-INTERACTIONS[1] :].tolist()
            assert INTERACTIONS[0] <= len(history) <= INTERACTIONS[1]
    assert test.labels[test.offsets[:-1]].mean() < 0.2
    again = task_of("sampled").splits(mind, 7)["test"]
    assert np.array_equal(again.news, test.news)


def test_sampled_needs_users_with_clicks(week):
    with pytest.raises(UserError, match="users with more than 10 clicks"):
        task_of("sampled").splits(week, 0)
