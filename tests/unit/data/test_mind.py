"""The user of MIND: hand-written folders, a naive second user, and one line per broken folder."""

import gzip
import io
import tempfile
import zipfile
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindlab.common.errors import UserError
from mindlab.data import mind as module
from mindlab.data.mind import read_mind

NEWS = (
    "N1\tnews\tnewsus\tOne\tFirst.\thttps://x/1\t[]\t[]\n"
    "N22\tsports\tfootball_nfl\tTwo\t\thttps://x/2\t[]\t[]\n"
    "N3\tnews\tnewsworld\tThree\tThird.\thttps://x/3\t[]\t[]\n"
)
BEHAVIORS = (
    "1\tU1\t11/9/2019 9:05:00 AM\tN1 N3 N1\tN22-1 N3-0\n"
    "2\tU2\t11/09/2019 12:00:01 AM\t\tN1-0 N22-0 N3-1\n"
    "3\tU1\t11/14/2019 12:30:59 PM\tN1 N3 N1\tN3-1 N1-1\n"
)


def write_split(folder: Path, news: str | bytes = NEWS, behaviors: str | bytes = BEHAVIORS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("news.tsv", news), ("behaviors.tsv", behaviors)):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def write_zip(path: Path, members: dict[str, str | bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def rows_of(mind, split):
    """Return (id, user, time, history ids, candidate ids, labels or None) per impression."""
    impressions, ids = mind.splits[split], mind.news.ids
    return [
        (
            int(impressions.ids[i]),
            impressions.users[i],
            impressions.times[i].astype(datetime),
            ids[impressions.user_history(i)].tolist(),
            ids[impressions.candidates(i)].tolist(),
            None if impressions.labels is None else impressions.candidate_labels(i).tolist(),
        )
        for i in range(len(impressions))
    ]


def rows_naively(text):
    """Return what `rows_of` does, straight from the text of a behaviors.tsv."""
    rows = []
    for line in text.removesuffix("\n").split("\n"):
        number, user, time, history, impressions = line.split("\t")
        tokens = impressions.split()
        labels = [int(token.split("-")[1]) for token in tokens] if "-" in impressions else None
        when = datetime.strptime(time, "%m/%d/%Y %I:%M:%S %p")
        rows.append((int(number), user, when, history.split(), [t.split("-")[0] for t in tokens], labels))
    return rows


def test_columns_and_types(tmp_path):
    write_split(tmp_path)
    mind = read_mind(tmp_path, splits=("train",))
    train = mind.splits["train"]
    assert mind.news.ids.tolist() == ["N1", "N22", "N3"]
    assert mind.news.category.tolist() == ["news", "sports", "news"]
    assert mind.news.subcategory.tolist() == ["newsus", "football_nfl", "newsworld"]
    assert mind.news.title.tolist() == ["One", "Two", "Three"]
    assert mind.news.abstract.tolist() == ["First.", "", "Third."]
    assert mind.news.title_entities.tolist() == mind.news.abstract_entities.tolist() == ["[]"] * 3
    assert train.ids.tolist() == [1, 2, 3]
    assert train.users.tolist() == ["U1", "U2", "U1"]
    assert [str(time) for time in train.times] == [
        "2019-11-09T09:05:00",
        "2019-11-09T00:00:01",
        "2019-11-14T12:30:59",
    ]
    assert train.offsets.tolist() == [0, 2, 5, 7]
    assert train.news.tolist() == [1, 2, 0, 1, 2, 2, 0]
    assert train.labels.tolist() == [1, 0, 0, 0, 1, 1, 1]
    types = {name: getattr(train, name).dtype.str for name in train.__dataclass_fields__}
    assert types == {
        "ids": "<i8",
        "users": "|O",
        "times": "<M8[s]",
        "history": "<i4",
        "history_offsets": "<i8",
        "history_news": "<i4",
        "offsets": "<i8",
        "news": "<i4",
        "labels": "|i1",
    }
    assert {column.dtype.str for column in vars(mind.news).values()} == {"|O"}
    assert {type(text) for column in vars(mind.news).values() for text in column} == {str}


def test_distinct_histories_are_stored_once(tmp_path):
    write_split(tmp_path)
    train = read_mind(tmp_path, splits="train").splits["train"]
    assert train.history.tolist() == [0, 1, 0]
    assert train.history_offsets.tolist() == [0, 3, 3]
    assert train.history_news.tolist() == [0, 2, 0]
    assert train.user_history(1).tolist() == []


def test_report_counts_and_names_the_files(tmp_path):
    write_split(tmp_path)
    assert read_mind(tmp_path, splits=("train",)).report == {
        "files": [
            {"path": str(tmp_path / "news.tsv"), "bytes": len(NEWS)},
            {"path": str(tmp_path / "behaviors.tsv"), "bytes": len(BEHAVIORS)},
        ],
        "news": 3,
        "news_rows_differing": 0,
        "splits": {
            "train": {
                "news_rows": 3,
                "duplicate_news_rows": 0,
                "impressions": 3,
                "users": 2,
                "distinct_histories": 2,
                "candidates": 7,
                "clicks": 4,
                "impressions_without_click": 0,
                "unknown_news": 0,
                "dropped_candidates": 0,
                "dropped_history_entries": 0,
                "dropped_impressions": 0,
            }
        },
    }


def test_take_and_without_labels(tmp_path):
    write_split(tmp_path)
    mind = read_mind(tmp_path, splits=("train",))
    train, every = mind.splits["train"], rows_of(mind, "train")
    for rows, expected in (
        ([2, 0], [2, 0]),
        ([0, 0, 1], [0, 0, 1]),
        ([], []),
        (np.array([-1]), [2]),
        (np.array([False, True, True]), [1, 2]),
    ):
        mind.splits["train"] = train.take(rows)
        assert rows_of(mind, "train") == [every[i] for i in expected]
    taken = train.take([2])
    assert taken.history_news is train.history_news
    assert taken.offsets.tolist() == [0, 2]
    assert taken.labels.tolist() == [1, 1]
    unlabelled = train.without_labels()
    assert unlabelled.labels is None
    assert unlabelled.take([1]).labels is None
    assert unlabelled.news is train.news
    with pytest.raises(IndexError):
        train.take([3])


def test_unlabelled_test_split(tmp_path):
    write_split(tmp_path / "MINDlarge_test", behaviors="1\tU1\t11/16/2019 1:00:00 AM\tN1\tN22 N3\n")
    mind = read_mind(tmp_path, splits=None)
    assert list(mind.splits) == ["test"]
    assert mind.splits["test"].labels is None
    assert mind.splits["test"].news.tolist() == [1, 2]
    assert mind.report["splits"]["test"]["clicks"] is None


def test_zero_width_space_is_removed(tmp_path):
    news = "N1\tnews\tus\t\u200bA\u200b title\tText\u200b\t\t[]\t[]\n" + NEWS.split("\n", 1)[1]
    write_split(tmp_path, news=news)
    found = read_mind(tmp_path, splits=("dev",)).news
    assert (found.title[0], found.abstract[0]) == ("A title", "Text")


UNBALANCED = 'N1\tnews\tus\t"A quote that never ends\tIt "goes" on\t\t[]\t[]\n' + NEWS.split("\n", 1)[1]


def assert_quotes_are_text(folder):
    write_split(folder, news=UNBALANCED)
    news = read_mind(folder, splits=("dev",)).news
    assert news.title.tolist() == ['"A quote that never ends', "Two", "Three"]
    assert news.abstract[0] == 'It "goes" on'


def test_quotes_are_text(tmp_path, monkeypatch):
    assert_quotes_are_text(tmp_path)

    def quoting(source, columns, line, block, is_cut):
        frame = pd.read_csv(io.BytesIO(block), sep="\t", names=columns, dtype=str, na_filter=False)
        return module._Block(line, {name: pa.array(frame[name]) for name in columns}, is_cut)

    monkeypatch.setattr(module, "_parse_block", quoting)  # as most MIND code does it
    with pytest.raises((AssertionError, pd.errors.ParserError)):
        assert_quotes_are_text(tmp_path)


def test_news_of_splits_are_merged(tmp_path):
    write_split(tmp_path / "train")
    extra = "N3\tnews\tother\tThree\t\t\t[]\t[]\nN4\ttv\ttv\tFour\t\t\t[]\t[]\n"
    write_split(tmp_path / "dev", news=extra * 2, behaviors="1\tU9\t11/15/2019 1:00:00 AM\tN1\tN4-1 N3-0\n")
    mind = read_mind(tmp_path)
    assert list(mind.splits) == ["train", "dev"]
    assert mind.news.ids.tolist() == ["N1", "N22", "N3", "N4"]
    assert mind.news.subcategory[2] == "newsworld"
    assert mind.splits["dev"].news.tolist() == [3, 2]
    assert mind.splits["dev"].history_news.tolist() == [0]
    assert mind.report["news"] == 4
    assert mind.report["news_rows_differing"] == 2
    counts = mind.report["splits"]
    assert (counts["train"]["duplicate_news_rows"], counts["dev"]["duplicate_news_rows"]) == (0, 2)


def make_folder(root, name):
    both = {"news.tsv": NEWS, "behaviors.tsv": BEHAVIORS}
    match name:
        case "train/":
            write_split(root / "train")
        case "MINDsmall_train/":
            write_split(root / "MINDsmall_train")
        case "gzip":
            packed = {f"{key}.gz": gzip.compress(value.encode()) for key, value in both.items()}
            (root / "train").mkdir()
            for key, value in packed.items():
                (root / "train" / key).write_bytes(value)
        case "unpacked twice":
            write_split(root / "train" / "MINDsmall_train")
        case "zip":
            write_zip(root / "MINDsmall_train.zip", both)
        case "zip with a folder":
            members = {f"MINDsmall_train/{key}": value for key, value in both.items()}
            write_zip(root / "train.zip", {**members, "__MACOSX/._news.tsv": "", "README.txt": ""})
        case "folder beside its zip":
            write_split(root / "MINDsmall_train")
            write_zip(root / "MINDsmall_train.zip", {"news.tsv": "wrong"})
        case "empty folder beside the zip":
            (root / "train").mkdir()
            write_zip(root / "MINDsmall_train.zip", both)
        case "zip of all":
            return write_zip(root / "mind.zip", {f"train/{key}": value for key, value in both.items()})
        case "zip of all in a folder":
            return write_zip(root / "mind.zip", {f"MIND/train/{key}": value for key, value in both.items()})
        case "zip of one split":
            return write_zip(root / "MINDsmall_train.zip", both)
        case "zip of gzips":
            packed = {f"x/{key}.gz": gzip.compress(value.encode()) for key, value in both.items()}
            return write_zip(root / "x.zip", packed)
        case "zip of zips":
            inner = write_zip(root / "inner.zip", {f"MINDsmall_train/{key}": both[key] for key in both})
            return write_zip(root / "mind.zip", {"MINDsmall_train.zip": inner.read_bytes()})
        case "BOM and CRLF":
            write_split(
                root / "train",
                b"\xef\xbb\xbf" + NEWS.replace("\n", "\r\n").encode(),
                BEHAVIORS.replace("\n", "\r\n"),
            )
        case "no newline at the end":
            write_split(root / "train", NEWS.rstrip("\n"), BEHAVIORS.rstrip("\n"))
    return root


@pytest.mark.parametrize(
    "name",
    [
        "train/",
        "MINDsmall_train/",
        "gzip",
        "unpacked twice",
        "zip",
        "zip with a folder",
        "folder beside its zip",
        "empty folder beside the zip",
        "zip of all",
        "zip of all in a folder",
        "zip of one split",
        "zip of gzips",
        "zip of zips",
        "BOM and CRLF",
        "no newline at the end",
    ],
)
def test_every_layout_reads_the_same(tmp_path, name):
    folder = make_folder(tmp_path, name)
    mind = read_mind(folder, splits=("train",))
    assert mind.news.title.tolist() == ["One", "Two", "Three"]
    assert rows_of(mind, "train") == rows_naively(BEHAVIORS)
    assert all(Path(file["path"]).stat().st_size == file["bytes"] for file in mind.report["files"])
    if name != "zip of gzips":  # nothing there names the split
        assert list(read_mind(folder, splits=None).splits) == ["train"]


def test_missing_drop_counts_what_it_drops(tmp_path):
    behaviors = (
        "1\tU1\t11/9/2019 9:05:00 AM\tN1 N9 N3\tN8-1 N3-0\n"
        "2\tU2\t11/9/2019 9:05:00 AM\tN22\tN8-1\n"
        "3\tU1\t11/9/2019 9:06:00 AM\tN1 N9 N3\tN1-1\n"
    )
    write_split(tmp_path, behaviors=behaviors)
    mind = read_mind(tmp_path, splits=("train",), missing="drop")
    when = datetime(2019, 11, 9, 9, 5)
    assert rows_of(mind, "train") == [
        (1, "U1", when, ["N1", "N3"], ["N3"], [0]),
        (3, "U1", when.replace(minute=6), ["N1", "N3"], ["N1"], [1]),
    ]
    counts = mind.report["splits"]["train"]
    assert counts["unknown_news"] == 2
    assert counts["dropped_candidates"] == 2
    assert counts["dropped_history_entries"] == 1
    assert counts["dropped_impressions"] == 1
    assert counts["impressions_without_click"] == 1
    with pytest.raises(ValueError, match="missing must be"):
        read_mind(tmp_path, missing="ignore")


def replaced(text, old, new):
    assert text.count(old) >= 1
    return text.replace(old, new, 1)


def behaviors_with(old, new):
    return {"behaviors": replaced(BEHAVIORS, old, new)}


# Name: (what to write, the file and line that the message must name, its own decisive words).
BROKEN = {
    "html": ({"news": "\n<!DOCTYPE html><html>Sign in</html>\n"}, "news.tsv, line 1:", "a web page"),
    "empty": ({"behaviors": ""}, "behaviors.tsv:", "the file is empty"),
    "too few columns": (
        behaviors_with("2\tU2\t", "2\t"),
        "behaviors.tsv, line 2:",
        "4 tab-separated columns, expected 5",
    ),
    "too many columns": (
        {"news": replaced(NEWS, "Three", "Th\tree")},
        "news.tsv, line 3:",
        "9 tab-separated columns, expected 8",
    ),
    "not UTF-8": (
        {"news": NEWS.replace("Two", "Zwö").encode("latin-1")},
        "news.tsv, line 2:",
        "byte 0xf6 is not UTF-8",
    ),
    "UTF-16": (
        {"behaviors": BEHAVIORS.encode("utf-16-le")},
        "behaviors.tsv, line 1:",
        "byte 0x00 is not UTF-8",
    ),
    "news id": ({"news": replaced(NEWS, "N22", "22")}, "news.tsv, line 2:", "'22' is not a news id"),
    "titles in one file": (
        {"news": NEWS + NEWS.replace("One", "Uno")},
        "news.tsv, line 4:",
        "N1 has the title 'Uno', but 'One' on line 1 of the same file",
    ),
    "impression id": (
        behaviors_with("2\tU2", "two\tU2"),
        "behaviors.tsv, line 2:",
        "'two' is not an impression id",
    ),
    "repeated impression id": (
        behaviors_with("3\tU1", "1\tU1"),
        "behaviors.tsv, line 3:",
        "impression id 1 was already used on line 1",
    ),
    "time without its space": (
        behaviors_with("11/14/2019 12:30:59 PM", "11/14/201912:30:59 PM"),
        "behaviors.tsv, line 3:",
        "'11/14/201912:30:59 PM' is not a time like 11/15/2019",
    ),
    "a day that November lacks": (
        behaviors_with("11/14/2019 12:30:59 PM", "11/31/2019 12:30:59 PM"),
        "behaviors.tsv, line 3:",
        "'11/31/2019 12:30:59 PM' is not a time like 11/15/2019",
    ),
    "time": (
        behaviors_with("12:30:59 PM", "25:30:59"),
        "behaviors.tsv, line 3:",
        "'11/14/2019 25:30:59' is not a time like 11/15/2019",
    ),
    "history id": (
        behaviors_with("N1 N3 N1", "N1 3 N1"),
        "behaviors.tsv, line 1:",
        "'3' in the history is not a news id",
    ),
    "labelled history": (
        behaviors_with("N1 N3 N1", "N1-1 N3"),
        "behaviors.tsv, line 1:",
        "'N1-1' in the history is not a news id",
    ),
    "no candidates": (
        behaviors_with("N1-0 N22-0 N3-1", " "),
        "behaviors.tsv, line 2:",
        "an impression with no candidates",
    ),
    "candidate id": (
        behaviors_with("N3-1 N1-1", "N3-1 x1-1"),
        "behaviors.tsv, line 3:",
        "'x1-1' is not a candidate",
    ),
    "label 2": (
        behaviors_with("N3-1 N1-1", "N3-2 N1-1"),
        "behaviors.tsv, line 3:",
        "candidate 'N3-2' has a label other than 0 or 1",
    ),
    "label 10": (
        behaviors_with("N3-1 N1-1", "N3-10 N1-1"),
        "behaviors.tsv, line 3:",
        "candidate 'N3-10' has a label other than 0 or 1",
    ),
    "label missing": (
        behaviors_with("N3-1 N1-1", "N3 N1-1"),
        "behaviors.tsv, line 3:",
        "candidate N3 has no label",
    ),
    "label added": (
        behaviors_with("N22-1 N3-0", "N22 N3"),
        "behaviors.tsv, line 2:",
        "candidate N1-0 has a label, but those before it have none",
    ),
    "unknown news": (
        behaviors_with("N3-1 N1-1", "N9-1 N1-1"),
        "behaviors.tsv, line 3:",
        "1 of the 4 news ids in this file are not in news.tsv (N9)",
    ),
    "small and large": (
        behaviors_with("N1-0 N22-0 N3-1", "N4-0 N5-0 N6-0 N7-0 N8-1"),
        "behaviors.tsv, line 2:",
        "covers only 3 of the 8 news ids in this file: probably a mix of small and large",
    ),
    "cut": (
        {"behaviors": BEHAVIORS[:-20]},
        "behaviors.tsv, line 3:",
        "the file is cut off in this, its last line",
    ),
    "missing file": ({"news": None}, "news.tsv:", "no such file (nor news.tsv.gz); there is: behaviors.tsv;"),
}


def broken_message(folder, **files):
    write_split(folder, **{name: text or "" for name, text in files.items()})
    for name, text in files.items():
        if text is None:
            (folder / f"{name}.tsv").unlink()
    with pytest.raises(UserError) as caught:
        read_mind(folder, splits=("train",))
    return str(caught.value)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file_has_its_own_line(tmp_path, name):
    files, place, words = BROKEN[name]
    message = broken_message(tmp_path, **files)
    assert f"{tmp_path}/{place}" in message
    assert words in message
    assert "\n" not in message
    assert [other for other, (_, _, its_words) in BROKEN.items() if its_words in message] == [name]
    next_step = message.rsplit(";", 1)[-1] if ";" in message else message.rsplit(":", 1)[-1]
    assert len(next_step.split()) > 2


@pytest.mark.parametrize("missing", ["error", "drop"])
def test_mixed_small_and_large_is_never_dropped(tmp_path, missing):
    write_split(tmp_path, **BROKEN["small and large"][0])
    with pytest.raises(UserError, match="small and large"):
        read_mind(tmp_path, splits=("train",), missing=missing)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("behaviors", BEHAVIORS[: BEHAVIORS.index("N3-1 N1-1")]),
        ("behaviors", BEHAVIORS[: BEHAVIORS.index(" N1-1")] + " N"),
        ("behaviors", BEHAVIORS[: BEHAVIORS.index(" N1-1")] + " N1"),
        ("behaviors", BEHAVIORS[: BEHAVIORS.index(" N1-1")] + " N1-"),
        ("behaviors", BEHAVIORS[: BEHAVIORS.index("\tN3-1 N1-1")]),
        ("news", NEWS[: NEWS.index("\thttps://x/3")]),
        ("news", NEWS.rstrip("]\n")),
        ("news", NEWS[: NEWS.index("hree")].encode() + "é".encode()[:1]),
    ],
)
def test_cut_last_line(tmp_path, name, text):
    message = broken_message(tmp_path, **{name: text})
    assert message.startswith(f"{tmp_path}/{name}.tsv, line 3: the file is cut off in this, its last line")


def test_five_unknown_ids_are_listed(tmp_path):
    news = "".join(NEWS.split("\n")[0].replace("N1", f"N{i}") + "\n" for i in range(1, 31))
    behaviors = (
        BEHAVIORS + "4\tU4\t11/9/2019 9:05:00 AM\t\t" + " ".join(f"N{i}-1" for i in range(20, 41)) + "\n"
    )
    message = broken_message(tmp_path, news=news, behaviors=behaviors)
    assert "behaviors.tsv, line 4: 10 of the 23 news ids" in message
    assert "(N31, N32, N33, N34, N35, ...)" in message


def test_title_conflict_between_splits_names_both_files(tmp_path):
    write_split(tmp_path / "train")
    write_split(tmp_path / "dev", news=replaced(NEWS, "Two", "Deux"))
    with pytest.raises(UserError) as caught:
        read_mind(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/dev/news.tsv, line 2: N22 has the title 'Deux', but 'Two' in ")
    assert f"{tmp_path}/train/news.tsv, line 2" in message


def broken_layout(root, name):
    both = {"news.tsv": NEWS, "behaviors.tsv": BEHAVIORS}
    match name:
        case "no folder":
            return root / "nowhere"
        case "a file":
            (root / "news.tsv").write_text(NEWS)
            return root / "news.tsv"
        case "missing split":
            write_split(root / "train")
            (root / "notes.txt").write_text("")
        case "one split, two asked":
            write_split(root)
        case "twice":
            write_split(root / "MINDsmall_train")
            write_split(root / "MINDlarge_train")
        case "empty split folder":
            (root / "train").mkdir()
            write_split(root / "dev")
        case "not a zip":
            (root / "train.zip").write_text("<html>")
        case "half a zip":
            data = write_zip(root / "train.zip", both).read_bytes()
            (root / "train.zip").write_bytes(data[: len(data) // 2])
        case "damaged zip":
            data = bytearray(write_zip(root / "train.zip", both).read_bytes())
            data[60] ^= 0xFF
            (root / "train.zip").write_bytes(data)
            write_split(root / "dev")
        case "half a gzip":
            write_split(root / "dev")
            write_split(root / "train")
            (root / "train" / "behaviors.tsv").unlink()
            (root / "train" / "behaviors.tsv.gz").write_bytes(gzip.compress(BEHAVIORS.encode())[:60])
        case "not a gzip":
            write_split(root / "dev")
            write_split(root / "train")
            (root / "train" / "news.tsv").rename(root / "train" / "news.tsv.gz")
    return root


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no folder", ["nowhere: no such folder"]),
        ("a file", ["news.tsv: this is a file"]),
        ("missing split", ["no split 'dev' here", "there is: notes.txt, train/;", "download_mind.py"]),
        ("one split, two asked", ["the folder of one split, not of 2"]),
        ("twice", ["split 'train' is here more than once (MINDlarge_train, MINDsmall_train)"]),
        ("empty split folder", ["train/news.tsv: no such file", "there is: nothing"]),
        ("not a zip", ["train.zip: not a zip file"]),
        ("half a zip", ["train.zip: not a zip file"]),
        ("damaged zip", ["train.zip/news.tsv: the compressed file is corrupt or cut off"]),
        ("half a gzip", ["train/behaviors.tsv.gz: the compressed file is corrupt or cut off"]),
        ("not a gzip", ["train/news.tsv.gz: the compressed file is corrupt or cut off"]),
    ],
)
def test_broken_layout_has_its_own_line(tmp_path, name, words):
    folder = broken_layout(tmp_path, name)
    with pytest.raises(UserError) as caught:
        read_mind(folder)
    for word in words:
        assert word in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_line_numbers_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_BYTES", 97)
    lines = [f"{i}\tU{i}\t11/9/2019 9:05:00 AM\tN1 N3\tN22-1 N3-0\n" for i in range(1, 41)]
    write_split(tmp_path, behaviors="".join(lines))
    mind = read_mind(tmp_path, splits=("train",))
    assert rows_of(mind, "train") == rows_naively("".join(lines))
    assert len(mind.splits["train"].history_offsets) == 2
    lines[30] = lines[30].replace("N3-0", "N3-7")
    message = broken_message(tmp_path, behaviors="".join(lines))
    assert "behaviors.tsv, line 31: candidate 'N3-7'" in message


CATALOGUE = ["N1", "N2", "N02", "N30", "N100000", "N99999999999999999"]
IDS = st.sampled_from(CATALOGUE)
TEXT = st.text(
    st.characters(exclude_characters="\t\n\0\u200b", exclude_categories=["Cs"]), max_size=20
).filter(lambda text: not text.endswith("\r"))


@st.composite
def behaviors_files(draw):
    is_labelled = draw(st.booleans())
    candidate = st.builds("{}-{}".format, IDS, st.integers(0, 1)) if is_labelled else IDS
    histories = draw(st.lists(st.lists(IDS, max_size=6), min_size=1, max_size=3))
    lines = []
    for number in draw(st.lists(st.integers(0, 10**12), min_size=1, max_size=12, unique=True)):
        time = draw(st.datetimes(datetime(2019, 1, 1), datetime(2020, 12, 31))).strftime(
            "%m/%d/%Y %I:%M:%S %p"
        )
        history = " ".join(draw(st.sampled_from(histories)))
        candidates = " ".join(draw(st.lists(candidate, min_size=1, max_size=8)))
        lines.append(f"{number}\tU{draw(st.integers(0, 3))}\t{time}\t{history}\t{candidates}")
    return "\n".join(lines) + "\n" * draw(st.booleans())


@settings(max_examples=30, deadline=None)
@given(
    text=behaviors_files(),
    titles=st.lists(TEXT, min_size=6, max_size=6),
    block=st.sampled_from([64, 1 << 24]),
)
def test_reads_what_a_naive_reader_reads(text, titles, block):
    news = "".join(f"{i}\tnews\tus\t{t}\t{t}\t\t[]\t[]\n" for i, t in zip(CATALOGUE, titles, strict=True))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK_BYTES", block)
        write_split(Path(folder), news=news, behaviors=text)
        mind = read_mind(folder, splits=("dev",), missing="drop")
    assert mind.news.title.tolist() == titles
    assert mind.news.abstract.tolist() == titles
    assert rows_of(mind, "dev") == rows_naively(text)
    histories = {line.split("\t")[3] for line in text.split("\n") if line}
    assert len(mind.splits["dev"].history_offsets) == 1 + len(histories)
