"""The predictions contract: what is written comes back, and what breaks it is named."""

import zipfile
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mindlab.common.errors import UserError
from mindlab.data.mind import read_mind
from mindlab.evaluation.metrics import evaluate
from mindlab.evaluation.predictions import (
    SCHEMA,
    case_offsets,
    check_predictions,
    from_scores,
    read_predictions,
    write_prediction_zip,
    write_predictions,
)
from tests import official
from tests.handmade import make_impressions, make_news, random_impressions

NEWS = make_news(["a", "b", "c", "d"])
ROWS = [("U1", 0, [0], [1, 2, 3], [0, 1, 0]), ("U2", 5, [], [3, 0], [1, 0])]
IMPRESSIONS = make_impressions(ROWS)
SCORES = np.array([0.25, 0.5, 0.5, -1.0, 2.0])


@pytest.fixture
def frame():
    return from_scores("dev", IMPRESSIONS, NEWS, SCORES)


def replaced(frame, name, values, kind=None):
    column = pa.array(values, kind or SCHEMA.field(name).type)
    return frame.set_column(frame.column_names.index(name), name, column)


def test_from_scores_fills_every_column(frame):
    rows = frame.to_pylist()
    assert frame.schema.equals(SCHEMA)
    assert rows[1] == {
        "split": "dev",
        "case_id": 0,
        "impression_id": 1,
        "position": 1,
        "news_id": "N2",
        "label": 1,
        "score": 0.5,
        "answer": None,
        "user_id": "U1",
    }
    assert [(row["case_id"], row["position"], row["news_id"]) for row in rows[3:]] == [
        (1, 0, "N3"),
        (1, 1, "N0"),
    ]


def test_from_scores_keeps_given_ids_slots_and_answers():
    last = make_impressions([(user, t, h, c[-1:], y[-1:]) for user, t, h, c, y in ROWS])
    frame = from_scores(
        "test", last, NEWS, np.zeros(2), ["Yes.", None], case_ids=np.array([7, 9]), positions=np.array([2, 1])
    )
    assert frame["case_id"].to_pylist() == [7, 9]
    assert frame["position"].to_pylist() == [2, 1]
    assert frame["answer"].to_pylist() == ["Yes.", None]


def test_without_labels_the_label_is_null():
    frame = from_scores("test", IMPRESSIONS.without_labels(), NEWS, SCORES)
    assert frame["label"].null_count == 5


@pytest.mark.parametrize(
    "scores", [np.zeros(4), np.array([0, 0, 0, 0, np.nan]), np.array([0, 0, 0, 0, np.inf])]
)
def test_from_scores_refuses_what_does_not_fit(scores):
    with pytest.raises(ValueError, match=r"do not fit|NaN or infinite"):
        from_scores("dev", IMPRESSIONS, NEWS, scores)


def test_round_trip_and_equal_bytes(tmp_path):
    impressions = random_impressions(np.random.default_rng(0))
    news = make_news([""] * 40)
    frame = from_scores("dev", impressions, news, np.random.default_rng(1).random(len(impressions.news)))
    one, other = tmp_path / "a" / "split=dev" / "one.parquet", tmp_path / "other.parquet"
    write_predictions(one, frame)
    write_predictions(other, frame)
    assert read_predictions(one).equals(frame)
    assert one.read_bytes() == other.read_bytes()
    assert np.array_equal(case_offsets(read_predictions(one)), impressions.offsets)


def test_rows_come_back_in_key_order(frame):
    shuffled = frame.take(pa.array([4, 1, 3, 0, 2]))
    assert check_predictions(shuffled, "x").equals(frame.combine_chunks())


def test_two_splits_may_use_the_same_case_numbers(frame):
    other = replaced(frame, "split", ["train"] * 5)
    both = check_predictions(pa.concat_tables([other, frame]), "x")
    assert both["split"].to_pylist() == ["dev"] * 5 + ["train"] * 5
    assert case_offsets(both).tolist() == [0, 3, 5, 8, 10]


def test_files_of_pandas_are_read(tmp_path, frame):
    pandas = frame.to_pandas().drop(columns="user_id").astype({"label": "float64", "case_id": "int32"})
    pandas.to_parquet(tmp_path / "p.parquet", index=False)
    back = read_predictions(tmp_path / "p.parquet")
    assert back["label"].to_pylist() == [0, 1, 0, 1, 0]
    assert back["user_id"].null_count == 5


BROKEN = {
    "column score missing": lambda f: f.drop_columns(["score"]),
    "unknown column rank": lambda f: f.append_column("rank", f["position"]),
    "column score is string, expected double": lambda f: replaced(f, "score", ["1"] * 5, pa.string()),
    "column case_id is double, expected int64": lambda f: replaced(f, "case_id", [0.5] * 5, pa.float64()),
    "column label is double": lambda f: replaced(f, "label", [0.5] * 5, pa.float64()),
    "label must be 0, 1 or null": lambda f: replaced(f, "label", [0, 2, 0, 1, 0]),
    "row 1: news_id is empty": lambda f: replaced(f, "news_id", ["N1", None, "N3", "N3", "N0"]),
    "score is NaN or infinite": lambda f: replaced(f, "score", [0, 1, np.nan, 2, 3]),
    r"1 of 5 rows; first at split dev, case_id 0, position 2": lambda f: replaced(
        f, "score", [0, 1, -np.inf, 2, 3]
    ),
    "position must be 0 or more": lambda f: replaced(f, "position", [-1, 1, 2, 0, 1]),
    "appears twice": lambda f: replaced(f, "position", [0, 1, 1, 0, 1]),
    "one impression_id": lambda f: replaced(f, "impression_id", [1, 1, 3, 2, 2]),
    "one user_id": lambda f: replaced(f, "user_id", ["U1", "U1", None, "U2", "U2"]),
    "one label given or not": lambda f: replaced(f, "label", [0, 1, None, 1, 0]),
    "no rows": lambda f: f.slice(0, 0),
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_broken_file_is_one_clear_line(tmp_path, frame, message):
    path = tmp_path / "p.parquet"
    pq.write_table(BROKEN[message](frame), path)
    with pytest.raises(UserError, match=message) as caught:
        read_predictions(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_and_foreign_files_are_named(tmp_path):
    (tmp_path / "text.parquet").write_text("impression,score\n")
    for name, message in (("none.parquet", "no such file"), ("text.parquet", "not a readable Parquet file")):
        with pytest.raises(UserError, match=message):
            read_predictions(tmp_path / name)


def test_nothing_is_written_of_a_broken_frame(tmp_path, frame):
    with pytest.raises(UserError, match="appears twice"):
        write_predictions(tmp_path / "p.parquet", replaced(frame, "position", [0, 1, 1, 0, 1]))
    assert list(tmp_path.iterdir()) == []


def test_submission_by_hand(tmp_path, frame, monkeypatch):
    path = tmp_path / "prediction.zip"
    write_prediction_zip(path, frame)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["prediction.txt"]
        # Scores .25 .5 .5: the tie goes to the earlier position.
        assert archive.read("prediction.txt") == b"1 [3,1,2]\n2 [2,1]\n"
    whole = path.read_bytes()
    monkeypatch.setattr("mindlab.evaluation.predictions.ZIP_CASES_PER_CHUNK", 1)
    write_prediction_zip(path, frame)
    with zipfile.ZipFile(path) as archive:
        assert archive.read("prediction.txt") == b"1 [3,1,2]\n2 [2,1]\n"
    assert whole == path.read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.slice(1, 4), "ranks every candidate"),
        (lambda f: replaced(f, "split", ["dev"] * 3 + ["train"] * 2), "one split"),
        (lambda f: replaced(f, "impression_id", [1] * 5), "ranked twice"),
    ],
)
def test_what_cannot_be_submitted_is_refused(tmp_path, frame, change, message):
    with pytest.raises(UserError, match=message):
        write_prediction_zip(tmp_path / "prediction.zip", change(frame))
    assert list(tmp_path.iterdir()) == []


def lines_of(path):
    with zipfile.ZipFile(path) as archive:
        return archive.read("prediction.txt").decode().splitlines(keepends=True)


@pytest.fixture
def large_test(tmp_path):
    """The shape of MINDlarge's test split: bare ids in the file, and labels that the server alone has."""
    rng = np.random.default_rng(0)
    sizes = np.append([2, 300], rng.integers(2, 100, 2998))
    ids = rng.permutation(3000) + 7  # not sorted: the file's order is the one to keep
    with (tmp_path / "behaviors.tsv").open("w") as file:
        for i, size in zip(ids, sizes, strict=True):
            shown = " ".join(f"N{n}" for n in rng.choice(400, size, replace=False))
            file.write(f"{i}\tU{i % 900}\t11/20/2019 9:05:00 AM\tN1 N2\t{shown}\n")
    catalogue = [f"N{n}\tnews\tus\tTitle {n}\t\t\t[]\t[]\n" for n in range(400)]
    (tmp_path / "news.tsv").write_text("".join(catalogue))
    labels = np.concatenate([rng.permutation(np.arange(size) < min(3, size - 1)) for size in sizes])
    return read_mind(tmp_path, splits=("test",)), ids, sizes, labels.astype(np.int8)


def test_the_official_script_finds_our_numbers_in_a_submission(large_test, tmp_path, monkeypatch):
    monkeypatch.setattr("mindlab.evaluation.predictions.ZIP_CASES_PER_CHUNK", 1000)
    mind, ids, sizes, labels = large_test
    test = mind.splits["test"]
    assert test.labels is None
    # Without ties, and neither perfect nor chance, which a wrong order could give as well.
    scores = np.random.default_rng(1).permutation(len(labels)) + 0.3 * len(labels) * labels + labels / 2
    assert len(np.unique(scores)) == len(scores)

    write_prediction_zip(tmp_path / "prediction.zip", from_scores("test", test, mind.news, scores))
    lines = lines_of(tmp_path / "prediction.zip")
    parsed = [official.parse_line(line) for line in lines]
    assert [impression_id for impression_id, _ in parsed] == [str(i) for i in ids]
    for (_, ranks), size in zip(parsed, sizes, strict=True):
        assert sorted(ranks) == list(range(1, size + 1))

    is_masked = np.arange(len(ids)) % 3 == 1  # the server masks some, and skips their lines
    parts = np.split(labels, test.offsets[1:-1])
    truth = [
        f"{i} [{'' if masked else ','.join(map(str, part))}]\n"
        for i, masked, part in zip(ids, is_masked, parts, strict=True)
    ]
    labelled = from_scores("test", replace(test, labels=labels), mind.news, scores)
    known = pa.array(labels, mask=np.repeat(is_masked, sizes))
    ours = evaluate(replaced(labelled, "label", known)).summary
    assert ours["n_unlabelled"] == 1000
    assert 0.6 < ours["auc"] < 0.9
    for name, value in official.score_submission(truth, lines).items():
        assert abs(ours[name] - value) < 1e-6


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda lines: [line.replace(",", ", ") for line in lines], ValueError, "Invalid Input Format"),
        (lambda lines: lines[::-1], ValueError, "Inconsistent Impression Id 2 and 1"),
        (lambda lines: ["1 [2,1]\n", lines[1]], ValueError, "inconsistent numbers of samples"),
        (lambda lines: ["1 [2,0,1]\n", lines[1]], ZeroDivisionError, "division by zero"),
        (lambda lines: ["1 [-3,1,2]\n", lines[1]], ValueError, "a rank is below 1"),
    ],
)
def test_the_official_script_refuses_a_spoilt_submission(tmp_path, frame, change, error, message):
    write_prediction_zip(tmp_path / "prediction.zip", frame)
    truth, lines = ["1 [0,1,0]\n", "2 [1,0]\n"], lines_of(tmp_path / "prediction.zip")
    assert official.score_submission(truth, lines)["auc"] == 0.5
    with pytest.raises(error, match=message):
        official.score_submission(truth, change(lines))
