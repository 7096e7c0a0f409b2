"""RecPrompt's CSVs become a MIND folder, whole or not at all, tried on an invented pair of the same form."""

import csv
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from mindlab.common.errors import UserError
from mindlab.data import download, recprompt
from mindlab.data.check import examine
from mindlab.data.mind import read_mind
from mindlab.evaluation.predictions import read_predictions
from mindlab.recommenders.base import Method
from mindlab.recommenders.category import CategoryShare
from mindlab.runs import compare
from mindlab.runs.run import Request
from mindlab.tasks import Dev, task_of
from tests.asked import ask
from tests.conftest import ROOT
from tests.handmade import write_recprompt_csvs

NAMES = ("MIND_test.csv", "MIND_valid.csv")
TSVS = [f"{split}/{name}.tsv" for split in ("dev", "valid") for name in ("news", "behaviors")]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The invented pair's folder and the SHA-256 of its files."""
    folder = tmp_path_factory.mktemp("csvs")
    return folder, write_recprompt_csvs(folder)


@pytest.fixture(scope="module")
def made(pair, tmp_path_factory):
    """The MIND folder made of it."""
    out = tmp_path_factory.mktemp("made") / "recprompt"
    assert recprompt.get(out, *pair)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in NAMES
    }


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def test_every_row_is_the_csvs(pair, made):
    splits = Dev().splits(read_mind(made, ("valid", "dev")))
    news = read_mind(made, ("valid", "dev")).news
    assert {name: len(part) for name, part in splits.items()} == {"valid": 20, "test": 40}
    for name, split in zip(NAMES, ("test", "valid"), strict=True):
        part = splits[split]
        for i, row in enumerate(rows_of(pair[0] / name)):
            assert part.ids[i] == int(row["impression_id"])
            assert part.users[i] == "U" + row["impression_id"]
            assert str(part.times[i]) == "2019-11-15T12:00:00"
            assert part.candidate_labels(i).tolist() == [int(row["label"] == f"C{k}") for k in range(1, 11)]
            for told, found in (("history", part.user_history(i)), ("candidate", part.candidates(i))):
                assert news.ids[found].tolist() == row[f"{told}_news_id"].split("\n")
                for column, texts in (
                    ("title", news.title), ("category", news.category),
                    ("subvert", news.subcategory), ("abstract", news.abstract),
                ):  # fmt: skip
                    expected = [text.strip() for text in row[f"{told}_{column}"].split("\n")]
                    assert texts[found].tolist() == expected
    assert any(row["candidate_title"].startswith(" ") for row in rows_of(pair[0] / NAMES[0]))
    assert (news.abstract == "").any()


def test_a_news_article_is_written_once_and_the_first_details_count(pair, tmp_path):
    folder = tmp_path / "csvs"
    folder.mkdir()
    rows = {name: rows_of(pair[0] / name) for name in NAMES}
    first = rows[NAMES[0]][0]
    name = first["history_news_id"].split("\n")[0]
    title = first["history_title"].split("\n")[0].strip()
    other = rows[NAMES[1]][0]  # the same id again, in the other file, with a title of its own
    other.update(
        {
            f"history_{key}": first[f"history_{key}"].split("\n")[0]
            for key in ("news_id", "category", "subvert")
        }
    )
    other.update(history_title="Another title", history_abstract="")
    for file, its in rows.items():
        write_rows(folder / file, its)
    recprompt.get(tmp_path / "out", folder, None)
    for split in ("dev", "valid"):
        lines = (tmp_path / "out" / split / "news.tsv").read_text(encoding="utf-8").splitlines()
        cells = [line.split("\t") for line in lines]
        assert [cell[3] for cell in cells if cell[0] == name] == [title]
        assert len({cell[0] for cell in cells}) == len(cells)
        assert all(cell[5:] == ["", "[]", "[]"] for cell in cells)
    assert read_mind(tmp_path / "out", ("valid", "dev")).report["news_rows_differing"] == 0


def test_control_characters_become_blanks():
    assert recprompt.clean("\ta\tb\r\u2028c\x00 ") == "a b  c"


def test_the_same_bytes_whoever_asks(pair, made, tmp_path):
    again = tmp_path / "elsewhere"
    recprompt.get(again, *pair)
    assert contents(again) == contents(made)
    assert sorted(contents(made)) == sorted([*TSVS, "manifest.json"])


def test_the_manifest_tells_where_it_comes_from(pair, made, monkeypatch, tmp_path):
    told = json.loads((made / "manifest.json").read_text(encoding="utf-8"))
    assert told["csv_sha256"] == pair[1]
    assert told["impressions"] == {"dev": 40, "valid": 20}
    assert told["sha256"] == {name: hashlib.sha256((made / name).read_bytes()).hexdigest() for name in TSVS}
    assert download.LICENCE in told["licence"]
    assert told["source"] == "a pair of one's own"
    assert recprompt.is_one(made)
    assert not recprompt.is_published(made)
    assert not recprompt.is_one(ROOT / "data" / "sample")
    monkeypatch.setattr(recprompt, "SHA256", pair[1])
    recprompt.get(tmp_path / "out", *pair)
    told = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert told["source"] == {"repository": recprompt.REPOSITORY, "commit": recprompt.COMMIT}
    assert recprompt.is_published(tmp_path / "out")


def test_what_is_there_is_left_alone_and_what_was_changed_is_mended(pair, tmp_path):
    out, said = tmp_path / "out", []
    assert recprompt.get(out, *pair)
    before = contents(out)
    times = {name: (out / name).stat().st_mtime_ns for name in before}
    assert not recprompt.get(out, *pair, log=said.append)
    assert said == [f"{out}: already here"]
    assert {name: (out / name).stat().st_mtime_ns for name in before} == times
    (out / "dev" / "news.tsv").write_text("N1\n", encoding="utf-8")
    (out / "valid" / "behaviors.tsv").unlink()
    assert recprompt.changed(out) == ["dev/news.tsv", "valid/behaviors.tsv"]
    assert recprompt.get(out, *pair)
    assert contents(out) == before


def test_the_manifest_comes_last(pair, tmp_path, monkeypatch):
    written = recprompt.write_text

    def full(path, text):
        if path.parent.name == "valid":
            raise OSError(28, "No space left on device", str(path))
        written(path, text)

    monkeypatch.setattr(recprompt, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        recprompt.get(tmp_path / "out", *pair)
    assert not recprompt.is_one(tmp_path / "out")
    monkeypatch.undo()
    assert recprompt.get(tmp_path / "out", *pair)
    assert recprompt.is_one(tmp_path / "out")


def test_a_folder_holds_the_rows_of_one_pair(pair, tmp_path):
    other = write_recprompt_csvs(tmp_path / "csvs", seed=1)
    recprompt.get(tmp_path / "out", *pair)
    with pytest.raises(UserError, match="holds the rows of other CSVs"):
        recprompt.get(tmp_path / "out", tmp_path / "csvs", other)


def test_other_contents_than_the_published_are_refused_unless_asked_for(pair, tmp_path):
    with pytest.raises(
        UserError, match=r"MIND_test.csv: SHA-256 is .*the published file's is .*--any-contents"
    ):
        recprompt.get(tmp_path / "out", pair[0])
    assert not (tmp_path / "out").exists()
    assert recprompt.get(tmp_path / "out", pair[0], None)
    with pytest.raises(UserError, match=r"no such file; --from takes a folder that holds MIND_test.csv and"):
        recprompt.get(tmp_path / "out", tmp_path, None)


def relabel(label):
    return lambda rows: rows[2].update(label=label)


def drop_an_abstract(rows):
    rows[2]["candidate_abstract"] = rows[2]["candidate_abstract"].rpartition("\n")[0]


def drop_an_id(rows):
    rows[1]["history_news_id"] = rows[1]["history_news_id"].rpartition("\n")[0]


def no_news_id(rows):
    rows[2]["candidate_news_id"] = rows[2]["candidate_news_id"].replace("N", "X", 1)


def the_same_id_again(rows):
    rows[2]["impression_id"] = rows[0]["impression_id"]


def no_number(rows):
    rows[2]["impression_id"] = "seven"


def reordered(rows):
    rows[2]["candidate"] = "\n".join(reversed(rows[2]["candidate"].split("\n")))


def one_candidate_twice(rows):
    for key in ("news_id", "title", "category", "subvert", "abstract"):
        first, _, *rest = rows[2][f"candidate_{key}"].split("\n")
        rows[2][f"candidate_{key}"] = "\n".join([first, first, *rest])
    titles = rows[2]["candidate_title"].split("\n")
    rows[2]["candidate"] = "\n".join(f"C{k}: {title}" for k, title in enumerate(titles, 1))


def no_label_column(rows):
    for row in rows:
        del row["label"]


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (relabel("C11"), "row 3: label 'C11', expected the clicked candidate, one of C1 to C10"),
        (relabel("C0"), "row 3: label 'C0'"),
        (relabel("5"), "row 3: label '5'"),
        (relabel(""), "row 3: label ''"),
        (drop_an_abstract, "row 3: lists of unequal length .*9 in candidate_abstract"),
        (drop_an_id, "row 2: lists of unequal length .24 in history_news_id, 25 in history_title"),
        (no_news_id, "row 3: candidate_news_id has 'X"),
        (the_same_id_again, "row 3: impression 7000 was already in row 1"),
        (no_number, "row 3: impression_id 'seven', expected digits"),
        (reordered, "row 3: the lines of candidate are not C1, C2"),
        (one_candidate_twice, "row 3: a news article is twice among the candidates"),
        (no_label_column, "no column label; expected a CSV with"),
        (lambda rows: rows.__delitem__(slice(1, None)) or drop_an_abstract([0, 0, rows[0]]), "row 1"),
    ],
)
def test_a_malformed_row_is_named(pair, tmp_path, break_it, message):
    for name in NAMES:
        rows = rows_of(pair[0] / name)
        if name == NAMES[0]:
            break_it(rows)
        write_rows(tmp_path / name, rows)
    with pytest.raises(UserError, match=f"MIND_test.csv(, |: ){message}") as raised:
        recprompt.get(tmp_path / "out", tmp_path, None)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no column impression_id"),
        (b"<html>sign in</html>", "no column"),
        (b"\xff\xfe\x00", "not a CSV in UTF-8"),
        ("header alone", "no row below the header"),
        ("cut", r"not a CSV in UTF-8 \(unexpected end of data|expected 14 cells|lists of unequal length"),
    ],
)
def test_a_file_that_is_none_is_named(pair, tmp_path, data, message):
    whole = (pair[0] / NAMES[1]).read_bytes()
    data = {"header alone": whole[: whole.index(b"\n") + 1], "cut": whole[: len(whole) // 2]}.get(data, data)
    (tmp_path / NAMES[1]).write_bytes(data)
    with pytest.raises(UserError, match=f"MIND_valid.csv.*({message})"):
        recprompt.read_csv(tmp_path / NAMES[1])


def test_no_impression_is_both_chosen_on_and_reported(pair, tmp_path):
    for name in NAMES:
        write_rows(tmp_path / name, rows_of(pair[0] / NAMES[0]))
    with pytest.raises(UserError, match=r"MIND_valid.csv: impression 7000 is also in .*MIND_test.csv"):
        recprompt.get(tmp_path / "out", tmp_path, None)


class Handler(BaseHTTPRequestHandler):
    """Serves the pair; under /breaks a third of a file at a time, under /page a web page."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.requests.append((self.path, self.headers.get("Range")))
        _, what, name = self.path.split("/")
        body = b"<html>not found</html>" if what == "page" else (self.server.folder / name).read_bytes()
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        most = len(body) // 3 if what == "breaks" else len(body)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start:][:most])
        self.close_connection = True


@pytest.fixture
def server(pair, monkeypatch):
    monkeypatch.setattr(download, "WAITS", (0, 0))
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.folder, server.requests = pair[0], []
        server.at = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_download_goes_on_after_a_break_and_gives_the_same_bytes(server, pair, made, tmp_path):
    out = tmp_path / "out"
    assert recprompt.get(out, recprompt.route(f"{server.at}/breaks/"), pair[1])
    assert contents(out) == contents(made)
    asked = [place for path, place in server.requests if path.endswith(NAMES[0])]
    assert asked[0] is None
    assert all(place.startswith("bytes=") for place in asked[1:])
    assert len(asked) > 2
    before = len(server.requests)
    assert not recprompt.get(out, recprompt.route(f"{server.at}/breaks/"), pair[1])
    assert len(server.requests) == before


def test_the_part_of_an_earlier_call_is_used(server, pair, tmp_path):
    (tmp_path / f"{NAMES[0]}.part").write_bytes((pair[0] / NAMES[0]).read_bytes()[:1000])
    recprompt.get(tmp_path, recprompt.route(f"{server.at}/ok/"), pair[1])
    assert server.requests == [(f"/ok/{NAMES[0]}", "bytes=1000-"), (f"/ok/{NAMES[1]}", None)]


def test_a_download_of_other_contents_is_refused_and_not_kept(server, tmp_path):
    with pytest.raises(UserError, match=r"the published file's is .*run again"):
        recprompt.get(tmp_path / "out", recprompt.route(f"{server.at}/ok/"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(
        UserError, match=r"sent something else than a CSV .*in a browser from https://github.com/"
    ):
        recprompt.get(tmp_path / "out", recprompt.route(f"{server.at}/page/"))


def test_the_check_knows_the_published_form(tmp_path, monkeypatch):
    hashes = write_recprompt_csvs(tmp_path / "csvs", 400, 100)
    out = tmp_path / "out"
    recprompt.get(out, tmp_path / "csvs", hashes)
    found = [str(finding) for finding in examine(out)]
    assert not any(line.startswith("fault") for line in found)
    assert any("no training split" in line for line in found)
    assert any("not the published impressions" in line for line in found)
    assert any(
        "dev: 10 candidates and one click each, which stands at each place 40 times" in line for line in found
    )
    monkeypatch.setattr(recprompt, "SHA256", hashes)
    assert any("that the RecPrompt paper measured" in str(finding) for finding in examine(out))
    assert [finding.kind for finding in examine(out)].count("note") == 1
    path = out / "dev" / "behaviors.tsv"  # a click at another place, and one candidate less
    first, *rest = path.read_text(encoding="utf-8").splitlines(keepends=True)
    cells = first.rstrip("\n").split("\t")
    shown = [cell for cell in cells[4].split() if cell.endswith("-0")]
    cells[4] = " ".join([*shown[:8], shown[8].replace("-0", "-1")])
    path.write_text("\t".join(cells) + "\n" + "".join(rest), encoding="utf-8")
    faults = [finding.text for finding in examine(out) if finding.is_fault]
    assert "dev/behaviors.tsv: not as it was written; fetch the folder again (--size recprompt)" in faults
    assert "dev: 1 impressions without exactly 10 candidates" in faults
    assert sum("the click stands 39 to 4" in fault for fault in faults) == 1
    assert len(faults) == 3


def test_a_pair_of_ones_own_gets_notes(made):
    found = examine(made)
    assert {finding.kind for finding in found} == {"ok", "note"}
    assert any("dev: 40 impressions and not 400" in finding.text for finding in found)


def test_a_training_split_is_never_needed_where_nothing_learns(made, tmp_path):
    request = Request(str(made))
    names = ["random", "category", "tfidf"]
    for split, n in (("test", 40), ("valid", 20)):
        asked = Request(str(made), split=split)
        for run in compare.compare(asked, names, tmp_path / split):
            scored = read_predictions(run / "predictions.parquet")
            assert scored.num_rows == 10 * n
            assert set(json.loads((run / "manifest.json").read_text())["inputs_sha256"]) == {
                (made / name).as_posix() for name in TSVS
            }
    scored = read_predictions(tmp_path / "test" / "category" / "predictions.parquet")
    at_click = scored["score"].to_numpy()[scored["label"].to_numpy() == 1]
    others = scored["score"].to_numpy()[scored["label"].to_numpy() == 0]
    assert at_click.mean() > 2 * others.mean()
    with pytest.raises(
        UserError, match=r"popularity learns from clicks, and .* has no training split; leave it out"
    ):
        compare.compare(request, ["popularity"], tmp_path / "none")
    own = compare.own_methods(encoder_pair="some/bert")
    with pytest.raises(UserError, match="bert-cross-encoder learns from clicks"):
        compare.compare(request, ["bert-cross-encoder"], tmp_path / "none", methods=own)
    for protocol in ("seed", "sampled"):
        with pytest.raises(UserError, match=f"protocol {protocol} needs a training split"):
            compare.compare(Request(str(made), protocol), ["random"], tmp_path / "none")
    assert not (tmp_path / "none").exists()
    assert set(compare.names_of("sampled-impression", False)) == set(compare.names_of("dev", False))
    assert not {"popularity", "oracle", "nrms"} & set(compare.names_of("dev", False))


def test_no_history_of_a_test_user_is_learned_from(made, tmp_path, monkeypatch):
    """A recommender is fitted on nothing, and chooses on the 100."""
    seen = {}

    class Spy(CategoryShare):
        def fit(self, train, news, valid, rng):
            seen.update(train=train, valid=valid)
            return super().fit(train, news, valid, rng)

    monkeypatch.setitem(compare.METHODS, "category", Method.of(Spy))
    compare.compare(Request(str(made)), ["category"], tmp_path / "test")
    assert len(seen["train"]) == len(seen["train"].news) == len(seen["train"].history_news) == 0
    assert (seen["train"].ids >= 0).all()
    assert sorted(seen["valid"].ids.tolist()) == list(range(8000, 8020))
    compare.compare(Request(str(made), split="valid"), ["category"], tmp_path / "valid")
    assert seen["valid"] is None
    assert len(seen["train"]) == 0


def test_a_language_model_reads_the_folder(made):
    work = ask(str(made), "dev", "pointwise", "no/model", "smollm2").work()
    assert len(work.whole) == 40
    assert task_of("dev").files("test", made) == ("valid", "dev")


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "scripts" / "download_mind.py", *map(str, arguments)]
    return subprocess.run(command, env={**os.environ}, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("way", ["folder", "address"])
def test_the_script_does_nothing_without_the_licence(pair, server, tmp_path, way):
    source = pair[0] if way == "folder" else f"{server.at}/ok/"
    out = tmp_path / "out"
    asked = ("--size", "recprompt", "--out", out, "--from", source, "--any-contents")
    done = run(*asked)
    assert done.returncode == 2
    assert download.LICENCE in done.stderr
    assert "--accept-licence" in done.stderr
    assert not out.exists()
    assert server.requests == []
    done = run(*asked, "--accept-licence")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(out)
    assert "fault" not in done.stdout
    assert "no training split" in done.stdout
    assert "already here" in run(*asked, "--accept-licence").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--from", "no/such/folder"],
            "expected a folder that holds MIND_test.csv and MIND_valid.csv, or an address",
        ),
        (["--from", "data"], "data/MIND_test.csv: no such file"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, arguments, message):
    done = run("--size", "recprompt", "--accept-licence", "--out", tmp_path / "out", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_any_contents_goes_with_recprompt_alone():
    done = run("--size", "small", "--any-contents")
    assert done.returncode == 2
    assert "--any-contents goes with --size recprompt alone" in done.stderr


def test_the_published_rows_where_they_are_on_the_disk():
    folder = ROOT / "data" / "raw" / "recprompt"
    if not recprompt.is_published(folder):
        pytest.skip(
            "no data/raw/recprompt: python scripts/download_mind.py --size recprompt --accept-licence"
        )
    splits = Dev().splits(read_mind(folder, task_of("dev").files("test", folder)))
    assert {name: len(part) for name, part in splits.items()} == {"valid": 100, "test": 400}
    for part, each in ((splits["test"], 40), (splits["valid"], 10)):
        places = np.flatnonzero(part.labels) % 10
        assert np.bincount(places).tolist() == [each] * 10
    assert not any(finding.is_fault for finding in examine(folder))
