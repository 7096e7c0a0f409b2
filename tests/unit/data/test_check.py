"""`--check` names each fault of a MIND folder in one line, and finds none in a good one."""

import gzip
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mindlab.common.errors import UserError
from mindlab.data import check as doctor
from mindlab.data.check import examine
from tests.conftest import ROOT

SAMPLE = ROOT / "data" / "sample"


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines(keepends=True)


def write(path: Path, rows: list[str]) -> None:
    path.write_text("".join(rows), encoding="utf-8")


def edit(path: Path, row: int, change) -> None:
    rows = lines(path)
    rows[row] = change(rows[row])
    write(path, rows)


def nothing_in_it(folder):
    for split in ("train", "dev"):
        shutil.rmtree(folder / split)


def a_page_as_tsv(folder):
    write(folder / "train" / "news.tsv", ["<!DOCTYPE html>\n<title>Sign in</title>\n"])


def a_page_as_zip(folder):
    shutil.rmtree(folder / "train")
    write(folder / "train.zip", ["<html>409 Public access is not permitted</html>"])


def half_a_zip(folder):
    with zipfile.ZipFile(folder / "whole.zip", "w") as archive:
        for name in ("news.tsv", "behaviors.tsv"):
            archive.write(folder / "dev" / name, name)
    shutil.rmtree(folder / "dev")
    data = (folder / "whole.zip").read_bytes()
    (folder / "whole.zip").unlink()
    (folder / "dev.zip").write_bytes(data[: len(data) // 2])


def a_cut_last_line(folder):
    path = folder / "train" / "behaviors.tsv"
    path.write_bytes(path.read_bytes()[:-20])


def a_missing_file(folder):
    (folder / "dev" / "behaviors.tsv").unlink()


def a_spreadsheet(folder):
    edit(folder / "dev" / "news.tsv", 6, lambda line: line.replace("\t", ";"))


def a_truncated_gzip(folder):
    path = folder / "dev" / "news.tsv"
    (folder / "dev" / "news.tsv.gz").write_bytes(gzip.compress(path.read_bytes())[:-100])
    path.unlink()


def news_of_another_size(folder):
    rows = [
        f"N{10**6 + i}\t" + line.split("\t", 1)[1]
        for i, line in enumerate(lines(folder / "train" / "news.tsv"))
    ]
    for split in ("train", "dev"):
        write(folder / split / "news.tsv", rows)


def two_sizes_by_name(folder):
    (folder / "train").rename(folder / "MINDsmall_train")
    (folder / "dev").rename(folder / "MINDlarge_dev")


def news_of_the_other_split_only(folder):
    shutil.copyfile(folder / "train" / "news.tsv", folder / "dev" / "news.tsv")


def swapped_splits(folder):
    (folder / "train").rename(folder / "x")
    (folder / "dev").rename(folder / "train")
    (folder / "x").rename(folder / "dev")


def the_same_split_twice(folder):
    shutil.rmtree(folder / "dev")
    shutil.copytree(folder / "train", folder / "dev")


def a_test_split_as_dev(folder):
    path = folder / "dev" / "behaviors.tsv"
    write(path, [line.replace("-0", "").replace("-1", "") for line in lines(path)])


def no_dev(folder):
    shutil.rmtree(folder / "dev")


def lost_lines(folder):
    for split in ("train", "dev"):
        (folder / split).rename(folder / f"MINDsmall_{split}")


def the_same_id_twice(folder):
    edit(folder / "train" / "behaviors.tsv", 9, lambda line: "1\t" + line.split("\t", 1)[1])


def dates_with_the_day_first(folder):
    path = folder / "dev" / "behaviors.tsv"
    write(path, [line.replace("11/15/2019", "15/11/2019") for line in lines(path)])


def one_day_of_training(folder):
    path = folder / "train" / "behaviors.tsv"
    write(path, [line for line in lines(path) if "\t11/10/2019" in line])


FAULTS = [
    (nothing_in_it, "no split 'train' here"),
    (a_page_as_tsv, "train/news.tsv, line 1: a web page"),
    (a_page_as_zip, "train.zip: not a zip file (a web page"),
    (half_a_zip, "dev.zip: not a zip file"),
    (a_cut_last_line, "train/behaviors.tsv, line 3000: the file is cut off"),
    (a_missing_file, "dev/behaviors.tsv: no such file"),
    (a_spreadsheet, "dev/news.tsv, line 7: 1 tab-separated columns, expected 8"),
    (a_truncated_gzip, "dev/news.tsv.gz: the compressed file is corrupt or cut off"),
    (news_of_another_size, "probably a mix of small and large"),
    (two_sizes_by_name, "MINDlarge and MINDsmall in one folder"),
    (news_of_the_other_split_only, "dev: 222 of its news ids are in no news.tsv here"),
    (swapped_splits, "dev begins on 2019-11-09, before train ends on 2019-11-15"),
    (the_same_split_twice, "dev begins on 2019-11-09, before train ends on 2019-11-14"),
    (a_test_split_as_dev, "dev: candidates without -0 or -1"),
    (no_dev, "no dev split"),
    (lost_lines, "train: 3,000 impressions and not 156,965, 3,320 news and not 51,282"),
    (the_same_id_twice, "train/behaviors.tsv, line 10: impression id 1 was already used on line 1"),
    (dates_with_the_day_first, "'15/11/2019 "),
    (one_day_of_training, "no impressions on both sides of 2019-11-14"),
]

IN_BOTH_SPLITS = (news_of_another_size, lost_lines)


@pytest.fixture
def folder(tmp_path) -> Path:
    for split in ("train", "dev"):
        (tmp_path / "mind" / split).mkdir(parents=True)
        for name in ("news.tsv", "behaviors.tsv"):
            shutil.copyfile(SAMPLE / split / name, tmp_path / "mind" / split / name)
    return tmp_path / "mind"


def faults(folder: Path) -> list[str]:
    return [str(finding) for finding in examine(folder) if finding.is_fault]


@pytest.mark.parametrize(("break_it", "message"), FAULTS, ids=[f.__name__ for f, _ in FAULTS])
def test_what_is_wrong_is_said_in_one_line(folder, break_it, message):
    assert faults(folder) == []
    break_it(folder)
    found = faults(folder)
    assert any(message in line for line in found), found
    assert all("\n" not in line for line in found)
    assert len(found) == (2 if break_it in IN_BOTH_SPLITS else 1), found


def test_both_broken_splits_are_named_at_once(folder):
    a_cut_last_line(folder)
    a_missing_file(folder)
    assert ["train/behaviors.tsv, line 3000" in line for line in faults(folder)] == [True, False]
    assert "dev/behaviors.tsv: no such file" in faults(folder)[1]


def counts_of_the_sample() -> dict[str, tuple[int, int, int, int]]:
    return {"train": (3_000, 3_320, 956, 111_848), "dev": (600, 3_011, 410, 20_454)}


def test_a_released_size_is_known_by_its_counts_and_held_to_them(folder, monkeypatch):
    monkeypatch.setattr(doctor, "COUNTS", {"MINDtiny": counts_of_the_sample()})
    assert {finding.kind for finding in examine(folder)} == {"ok"}
    path = folder / "train" / "behaviors.tsv"
    write(path, lines(path)[:-1])
    assert any("train: 2,999 impressions and not 3,000" in line for line in faults(folder))


@pytest.mark.parametrize("is_mind", [True, False])
def test_what_is_odd_is_a_fault_only_in_mind(folder, monkeypatch, is_mind):
    edit(folder / "dev" / "behaviors.tsv", 0, lambda line: line.replace("-1", "-0"))
    rows = lines(folder / "train" / "behaviors.tsv")
    users = [row.split("\t")[1] for row in rows]
    again = next(i for i, user in enumerate(users) if user in users[:i])
    fields = rows[again].split("\t")
    fields[3] = fields[3] + " N1" if fields[3] else "N1"
    known = lines(folder / "train" / "news.tsv")[0].split("\t")[0]
    fields[3] = fields[3].replace("N1", known)
    rows[again] = "\t".join(fields)
    write(folder / "train" / "behaviors.tsv", rows)
    if is_mind:
        monkeypatch.setattr(doctor, "COUNTS", {"MINDtiny": counts_of_the_sample()})
    kind = "fault" if is_mind else "note"
    odd = [finding.text for finding in examine(folder) if finding.kind == kind]
    assert any("dev: 1 impressions without a click" in text for text in odd)
    assert any("train: 1 users have more than one history" in text for text in odd)


def test_a_validation_split_is_read_beside_the_others(folder):
    """MIND has none, so there are no days that it must have."""
    shutil.copytree(folder / "dev", folder / "valid")
    found = [finding.text for finding in examine(folder)]
    assert any(text.startswith("valid: 600 impressions") for text in found)
    assert faults(folder) == []
    shutil.rmtree(folder / "train")  # and takes no place of train/ where nothing says that it should
    assert [line for line in faults(folder) if "no train split" in line]


def test_no_such_folder_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        examine(tmp_path / "absent")


@pytest.mark.parametrize("is_broken", [False, True])
def test_the_script_says_it_by_its_exit_code(folder, is_broken):
    if is_broken:
        a_cut_last_line(folder)
    command = [sys.executable, ROOT / "scripts" / "download_mind.py", "--check", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == int(is_broken)
    assert ("fault" in done.stdout) == is_broken
    assert done.stdout.splitlines()[-1] == str(folder)
