"""MIND's zips come whole through redirects, breaks and refusals, and a token never leaves its host."""

import hashlib
import io
import os
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mindlab.common.errors import UserError
from mindlab.data import download
from mindlab.data.download import Route, fetch
from mindlab.data.mind import read_mind
from tests.conftest import ROOT

SAMPLE = ROOT / "data" / "sample"
NAME = "MINDsmall_dev.zip"


def make_zip(split: str) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("news.tsv", "behaviors.tsv"):
            archive.write(SAMPLE / split / name, name)
    return data.getvalue()


ZIPS = {NAME: make_zip("dev"), "MINDsmall_train.zip": make_zip("train")}
BODY = ZIPS[NAME]


def hostile_zip(name: str, data: bytes) -> bytes:
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return body.getvalue()


HOSTILE = {"climbs": hostile_zip("../news.tsv", b"x"), "bomb": hostile_zip("news.tsv", bytes(2**26))}
CUT = len(BODY) // 3


class Handler(BaseHTTPRequestHandler):
    """The first part of the path says how to behave, the last which zip is asked for."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.requests.append((self.path, dict(self.headers)))
        *_, what, name = self.path.split("/")
        nth = sum(path == self.path for path, _ in self.server.requests)
        body = ZIPS[name]
        if self.path.startswith(download.PATH):  # the hub: gated, then a redirect to its storage
            if self.headers.get("Authorization") == "Bearer of-someone-else":
                self.answer(403)
            elif self.headers.get("Authorization") != "Bearer mine":
                self.answer(401)
            else:
                self.answer(302, {"Location": self.other("ok", name), "X-Linked-ETag": etag(body)})
        elif what == "wrong-hash":
            self.answer(302, {"Location": self.other("ok", name), "X-Linked-ETag": etag(b"else")})
        elif what.isdigit():
            self.answer(int(what))
        elif what == "busy" and nth <= 2:
            self.answer(503)
        elif what == "page":
            self.answer(200, {"Content-Type": "text/html; charset=utf-8"}, b"<html>log in</html>")
        elif what == "page-as-zip":
            self.answer(200, {}, b"<!DOCTYPE html><p>log in")
        elif what in HOSTILE:
            self.answer(200, {}, HOSTILE[what])
        elif what == "damaged":
            self.answer(200, {}, body[: CUT - 8] + bytes(8) + body[CUT:])
        elif what == "breaks":  # at every third of the file
            self.send(body, CUT)
        elif what == "breaks-without-range":
            self.send(body, CUT if nth == 1 else None, with_range=False)
        elif what == "stalls-at-once":
            self.send(body, 0)
        else:
            self.send(body)

    def other(self, what, name):
        return f"http://localhost:{self.server.server_port}/{what}/{name}"

    def answer(self, code, headers=None, body=b""):
        self.send_response(code)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def send(self, body, most=None, with_range=True):
        start = 0
        asked = self.headers.get("Range") if with_range else None
        if asked:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                self.answer(416, {"Content-Range": f"bytes */{len(body)}"})
                return
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start:][:most])
        self.close_connection = True


def etag(body: bytes) -> str:
    return f'"{hashlib.sha256(body).hexdigest()}"'


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requests = []
        server.at = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(download, "WAITS", (0, 0, 0, 0))


def ranges(server) -> list[str | None]:
    return [headers.get("Range") for _, headers in server.requests]


def test_a_redirect_is_followed_and_the_token_stays_with_its_host(server, tmp_path):
    path = fetch(NAME, tmp_path, Route(server.at + download.PATH, "mine", is_gated=True))
    assert path.read_bytes() == BODY
    (first, second) = [headers for _, headers in server.requests]
    assert first["Authorization"] == "Bearer mine"
    assert "Authorization" not in second
    assert len(read_mind(tmp_path, ("dev",)).splits["dev"]) == 600
    assert [file.name for file in tmp_path.iterdir()] == [NAME]
    assert fetch(NAME, tmp_path, Route("http://nowhere.invalid/")) == path  # nothing is asked for twice


def test_a_broken_transfer_goes_on_where_it_stopped(server, tmp_path):
    said = []
    path = fetch(NAME, tmp_path, Route(f"{server.at}/breaks/"), said.append)
    assert path.read_bytes() == BODY
    first, second, *_ = (int(asked.removeprefix("bytes=").rstrip("-")) for asked in ranges(server)[1:])
    assert CUT - download.CHUNK < first <= CUT
    assert first < second <= first + CUT
    assert f"the connection broke off; {first:,} bytes are kept in" in said[0]


def test_the_part_of_an_earlier_call_is_used(server, tmp_path):
    part = tmp_path / f"{NAME}.part"
    part.write_bytes(BODY[:1000])
    fetch(NAME, tmp_path, Route(f"{server.at}/ok/"))
    assert ranges(server) == ["bytes=1000-"]
    assert (tmp_path / NAME).read_bytes() == BODY


@pytest.mark.parametrize(("part", "asked"), [(BODY, 1), (BODY + b"more", 2)])
def test_a_part_that_is_whole_or_too_long_does_no_harm(server, tmp_path, part, asked):
    (tmp_path / f"{NAME}.part").write_bytes(part)
    fetch(NAME, tmp_path, Route(f"{server.at}/ok/"))
    assert (tmp_path / NAME).read_bytes() == BODY
    assert len(server.requests) == asked


def test_a_server_that_knows_no_ranges_begins_anew(server, tmp_path):
    fetch(NAME, tmp_path, Route(f"{server.at}/breaks-without-range/"))
    assert (tmp_path / NAME).read_bytes() == BODY


def test_a_busy_server_is_asked_again(server, tmp_path):
    fetch(NAME, tmp_path, Route(f"{server.at}/busy/"))
    assert len(server.requests) == 3


def test_a_server_that_sends_nothing_is_given_up_after_five_tries(server, tmp_path):
    with pytest.raises(UserError, match="run again to go on"):
        fetch(NAME, tmp_path, Route(f"{server.at}/stalls-at-once/"))
    assert len(server.requests) == 5


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("404", "404, no such file there; download it in a browser"),
        ("409", "closed to the public.*use the official page"),
        ("418", "answers 418"),
        ("401", "answers 401"),  # a place without accounts
        ("page", "sent a web page"),
        ("page-as-zip", r"something else than a zip \(it begins b'<!DOCTYPE"),
        ("damaged", "what came is damaged.*fetch it anew"),
        ("wrong-hash", "SHA-256 is [0-9a-f]{64}, the server says"),
    ],
)
def test_each_refusal_is_one_line_and_leaves_nothing(server, tmp_path, where, message):
    with pytest.raises(UserError, match=message) as raised:
        fetch(NAME, tmp_path, Route(f"{server.at}/{where}/"))
    assert "\n" not in str(raised.value)
    assert [file.name for file in tmp_path.iterdir() if file.stat().st_size] == []


@pytest.mark.parametrize(("what", "message"), [("climbs", r"'\.\./news.tsv'"), ("bomb", "would grow from")])
def test_a_hostile_zip_is_refused_and_gets_no_name(server, tmp_path, what, message):
    with pytest.raises(UserError, match=message):
        fetch(NAME, tmp_path / "raw", Route(f"{server.at}/{what}/"))
    assert not (tmp_path / "raw" / NAME).exists()
    assert not (tmp_path / "news.tsv").exists()


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, "hf auth login.*Accept the licence on"),
        ("of-someone-else", "may not read it yet.*Accept the licence on"),
    ],
)
def test_the_gate_says_what_to_do(server, tmp_path, token, message):
    with pytest.raises(UserError, match=message):
        fetch(NAME, tmp_path, Route(server.at + download.PATH, token, is_gated=True))


def test_no_server_and_no_such_host(tmp_path):
    with pytest.raises(UserError, match="connection refused"):
        fetch(NAME, tmp_path, Route("http://127.0.0.1:1/"))
    with pytest.raises(UserError, match=r"no such host, or no network.*in a browser"):
        fetch(NAME, tmp_path, Route("http://nowhere.invalid/"))


def test_a_file_in_the_way_is_named(server, tmp_path):
    (tmp_path / "taken").write_text("x")
    with pytest.raises(UserError, match="taken: cannot be made a folder"):
        fetch(NAME, tmp_path / "taken", Route(f"{server.at}/ok/"))


def run(*arguments: object, **env: str) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "scripts" / "download_mind.py", *map(str, arguments)]
    return subprocess.run(
        command, env={**os.environ, **env}, cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_the_script_fetches_from_the_gated_page_and_checks(server, tmp_path):
    done = run("--size", "small", "--out", tmp_path / "mind", HF_ENDPOINT=server.at, HF_TOKEN="mine")
    assert done.returncode == 1  # the sample under MINDsmall's name: whole, and too short
    faults = [line for line in done.stdout.splitlines() if line.startswith("fault")]
    assert [line.split(":")[0] for line in faults] == ["fault  train", "fault  dev"]
    assert all("as MINDsmall has" in line for line in faults)
    assert "3,000 impressions" in faults[0]
    assert done.stdout.splitlines()[-1] == str(tmp_path / "mind")
    assert "not to be passed on" in done.stderr
    assert NAME in done.stderr  # the bar

    again = run("--size", "small", "--out", tmp_path / "mind", HF_ENDPOINT=server.at, HF_TOKEN="")
    assert again.stdout == done.stdout
    assert "already here" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--size demo|small|large|recprompt to fetch, or --check DIR"),
        (["--size", "small", "--check", "x"], "--size demo|small|large|recprompt to fetch, or --check DIR"),
        (["--size", "demo"], "--from recommenders"),
        (["--size", "small", "--from", "ftp"], "expected official, recommenders, or an address"),
        (["--check", "no/such/folder"], "no such folder"),
    ],
)
def test_a_mistake_is_one_line(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
