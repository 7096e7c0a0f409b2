"""The writer behind an OpenAI-compatible server, against one that misbehaves and against LLaMA-Factory's own."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest

from mindlab.common.errors import UserError
from mindlab.data.synthetic import make_sample
from mindlab.evaluation.predictions import read_predictions
from mindlab.finetune import factory
from mindlab.llm import server as module
from mindlab.llm.lists import LEFT_OUT, NOT_ASKED, TWICE, UNANSWERED
from mindlab.llm.server import ServerWriter, serve_factory
from mindlab.llm.writing import EMPTY, NO_JSON, TEXT_AROUND, WRONG_FORM, write_texts
from mindlab.report import leaderboard_row
from tests.asked import ask
from tests.conftest import ROOT

FAULTS = (EMPTY, NO_JSON, WRONG_FORM, TEXT_AROUND, NOT_ASKED, TWICE, LEFT_OUT)

YAML = ROOT / "configs/news_inference.yaml"
SECRET = "planted-key-0123456789"
RECORD = {"system": "S", "instruction": "I", "input": "Q", "output": "not to be sent"}


def said(text):
    return {
        "choices": [{"message": {"content": text}}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3},
    }


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.asked.append((self.path, dict(self.headers), {}))
        self.send_response(200)
        self.end_headers()

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.guard:
            self.server.asked.append((self.path, dict(self.headers), body))
            code, reply = self.server.replies.pop(0) if self.server.replies else (200, said("fine"))
        if code == 0:  # breaks off
            return
        data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        self.send_response(code)
        if code == 302:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "WAITS", (0, 0))
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.asked, http.replies, http.guard = [], [], threading.Lock()
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield http
        http.shutdown()
        thread.join()


def writer(server, **how):
    return ServerWriter(f"http://127.0.0.1:{server.server_port}/v1/", "m", **how)


def test_a_record_is_asked_as_a_chat_with_the_key_in_its_header(server):
    server.replies = [(200, said("  Yes.\n"))]
    one = writer(server)
    assert one.write([RECORD]) == ["Yes."]
    ((path, headers, body),) = server.asked
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {SECRET}"
    assert [m["role"] for m in body["messages"]] == ["system", "user"]
    assert body["messages"][1]["content"] == "I\nQ"
    assert body["temperature"] == 0
    assert "not to be sent" not in json.dumps(body)
    assert (one.tokens_read, one.tokens_written) == (7, 3)


def test_answers_come_in_the_order_of_the_records(server):
    server.replies = [(200, said(str(k))) for k in range(6)]
    one = writer(server, batch=1)
    assert one.write([RECORD] * 6) == list("012345")


@pytest.mark.parametrize(
    "reply",
    [
        *(b"", b"no JSON", b"[" * 100_000, {}, [], "x"),
        *({"choices": []}, {"choices": [{"message": {"content": None}}]}, {"choices": 1}),
    ],
)
def test_a_reply_without_text_is_an_empty_answer(server, reply):
    server.replies = [(200, reply)]
    assert writer(server).write([RECORD]) == [""]


def test_what_no_file_can_hold_and_counts_that_are_none_stop_nothing(server, tmp_path):
    server.replies = [(200, {**said("half \ud800"), "usage": "none"})]
    one = writer(server)
    assert write_texts([RECORD], one, "asked", tmp_path).texts == ["half ?"]
    assert (one.tokens_read, one.tokens_written) == (0, 0)


def test_this_machine_is_not_asked_through_a_proxy(server, monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # where nobody listens
    assert writer(server).write([RECORD]) == ["fine"]


@pytest.mark.parametrize("code", [500, 503, 429, 0])
def test_a_busy_server_is_asked_again(server, code):
    server.replies = [(code, {}), (code, {})]
    assert writer(server).write([RECORD]) == ["fine"]
    assert len(server.asked) == 3


def test_a_server_that_never_answers_is_given_up(server):
    server.replies = [(500, {"error": SECRET})] * 9
    with pytest.raises(UserError, match=r"no answer after 3 tries.*status 500"):
        writer(server).write([RECORD])


@pytest.mark.parametrize(
    ("code", "says"),
    [(401, "OPENAI_API_KEY"), (403, "OPENAI_API_KEY"), (404, "'m'"), (400, "'m'"), (302, "302")],
)
def test_a_refusal_is_one_line_without_the_key(server, code, says):
    server.replies = [(code, f"your key {SECRET}\nis bad".encode())]
    with pytest.raises(UserError, match=says) as error:
        writer(server).write([RECORD])
    assert SECRET not in str(error.value)
    assert "\n" not in str(error.value)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "address", ["127.0.0.1/v1", "ftp://h/v1", "http://", "http://me:pw@h/v1", "http://h/v1?api_key=planted"]
)
def test_an_address_that_is_none_or_holds_a_key_is_refused(address):
    with pytest.raises(UserError, match="--base-url") as error:
        ServerWriter(address, "m")
    assert "planted" not in str(error.value)


def test_a_break_costs_no_answer_and_the_key_is_in_no_file(server, tmp_path):
    records = [{**RECORD, "input": f"Q{k}"} for k in range(5)]
    server.replies = [(200, said(str(k))) for k in range(2)] + [(401, {})]
    with pytest.raises(UserError):
        write_texts(records, writer(server, batch=1), "asked", tmp_path)
    server.replies = [(200, said(str(k))) for k in range(2, 5)]
    found = write_texts(records, writer(server, batch=1), "asked", tmp_path)
    assert found.texts == list("01234")
    assert len(server.asked) == 6  # the refused one twice, no other
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if SECRET in path.read_text()]


def test_recommendations_of_a_server_are_scored_whatever_it_says(server, tmp_path, monkeypatch):
    """The whole way: scripts/predict.py's work, the metrics and the report, over answers of every kind."""
    make_sample(tmp_path / "data", 40, 20, seed=2)
    liked = {"title": "?", "like": True, "explanation": "why not"}
    answers = ["", "No.", "[", '{"like": 1}', json.dumps([liked]), "é\ud800"]
    server.replies = [(200, said(text)) for text in answers] + [(200, b"<html>"), (500, {}), (429, {})]
    url = f"http://127.0.0.1:{server.server_port}/v1"
    monkeypatch.setattr("mindlab.llm.writing.CACHE", tmp_path / "written")
    request = ask(str(tmp_path / "data"), "dev", "json_list", "m", "", limit=10, base_url=url)
    run = request.run(tmp_path / "run")
    assert len(server.asked) >= 12  # ten impressions and two answers of a busy server
    body = server.asked[0][2]
    assert body["model"] == "m"
    assert "JSON list" in body["messages"][1]["content"]
    table = read_predictions(run / "predictions.parquet")
    assert set(table["score"].to_pylist()) == {UNANSWERED}
    cost = json.loads((run / "manifest.json").read_text())["texts_written"]["lists"]
    assert cost["usable"] == 0
    for fault in ("empty", "no JSON", "wrong form", "a title not asked about"):
        assert cost[fault] >= 1
    assert cost["answers"] == sum(v for k, v in cost.items() if k in FAULTS)
    row = leaderboard_row(run)
    assert row["auc"] == 0.5  # all tie
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    server.asked.clear()
    request.run(tmp_path / "again")
    assert server.asked == []  # what was answered is kept


def processes(base_url):
    """Return the children of this process that were started for that server; other tests may have left their own."""
    port = base_url.rsplit(":", 1)[1].removesuffix("/v1")
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has ended
            if process.environ().get("API_PORT") == port:
                found.append(process)
    return found


@pytest.fixture(scope="module")
def api(tiny_glm, tmp_path_factory):
    """LLaMA-Factory's api around the tiny GLM, started from an environment that would open it to everybody."""
    said = []
    overrides = {
        "model_name_or_path": str(tiny_glm),
        "adapter_name_or_path": None,
        "infer_dtype": "float32",
    }
    output = tmp_path_factory.mktemp("logs") / "api.txt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("API_HOST", "0.0.0.0")
        patch.setenv("API_KEY", SECRET)
        patch.setenv("http_proxy", "http://127.0.0.1:9")
        with serve_factory(YAML, overrides, said.append, ROOT, output) as server:
            started = processes(server.base_url)
            yield server
    assert len(said) == 1
    assert str(tiny_glm) in said[0]
    assert len(started) >= 2  # the keeper, the server
    assert not any(process.is_running() for process in started)
    assert server.key not in os.environ
    assert "Uvicorn running" in output.read_text()  # a file that was asked for stays


def test_llamafactorys_api_answers_the_writer_and_nobody_with_another_key(api, monkeypatch):
    one = ServerWriter(api.base_url, api.model, max_new_tokens=8, batch=2, key=api.key)
    answers = one.write([RECORD, RECORD])
    assert answers[0] == answers[1]
    assert 0 < one.tokens_written <= 16
    assert one.tokens_read > 0
    for another in (SECRET, ""):
        monkeypatch.setenv(api.key, another)
        with pytest.raises(UserError, match=f"401; put the server's key into {api.key}"):
            one.write([RECORD])


def test_llamafactorys_api_listens_on_this_machine_alone(api):
    found = [
        at.laddr
        for process in processes(api.base_url)
        for at in process.net_connections("inet")
        if at.status == psutil.CONN_LISTEN
    ]
    assert f"http://127.0.0.1:{found[0].port}/v1" == api.base_url
    assert [at.ip for at in found] == ["127.0.0.1"]


def test_the_key_of_llamafactorys_api_is_in_its_environment_alone(api):
    secret = os.environ[api.key]
    assert len(secret) > 40
    environments = [process.environ() for process in processes(api.base_url)]
    assert len(environments) >= 2
    assert all(values["API_KEY"] == secret for values in environments)
    assert secret not in repr(api)
    assert not any(secret in " ".join(p.cmdline()) for p in psutil.Process().children(recursive=True))
    files = [path for path in api.output.parent.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if secret in path.read_text()]


# What stands in for llamafactory-cli below, the helper being one of the processes that a server may start.
FAKE = """
import http.server, os, subprocess, sys, time
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("helper", helper.pid, "of", os.getpid(), "key", os.environ["API_KEY"], flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.headers["Authorization"] == "Bearer " + os.environ["API_KEY"] else 401)
        self.end_headers()
{}
http.server.HTTPServer((os.environ["API_HOST"], int(os.environ["API_PORT"])), Handler).serve_forever()
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Let `FAKE`, with a line of its own, stand in for llamafactory-cli; return serve_factory's first arguments."""

    def use(line=""):
        (tmp_path / "fake.py").write_text(FAKE.format(line))
        monkeypatch.setattr(factory, "command", lambda: [sys.executable, str(tmp_path / "fake.py")])
        (tmp_path / "model").mkdir(exist_ok=True)
        return YAML, {"model_name_or_path": str(tmp_path / "model"), "adapter_name_or_path": None}

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return use


def temporary(folder):
    return list(folder.glob("llamafactory_api_*"))


def started_by(output):
    """Return the helper and the server that `FAKE` names in a file."""
    words = output.read_text().split()
    return int(words[1]), int(words[3])


def assert_gone(pids):
    def is_alive(pid):
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    deadline = time.monotonic() + 5
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, pids))


def test_after_the_block_nothing_is_left(fake, tmp_path, capsys):
    with serve_factory(*fake()) as server:
        (output,) = temporary(tmp_path)
        assert output == server.output
        pids = started_by(output)
        assert all(map(psutil.pid_exists, pids))
    assert_gone(pids)
    assert server.key not in os.environ
    assert not output.exists()
    assert capsys.readouterr().out.startswith("starting LLaMA-Factory's api")


@pytest.mark.parametrize("raised", [ValueError, KeyboardInterrupt])
def test_an_error_in_the_block_ends_the_server_and_leaves_its_words_without_the_key(fake, tmp_path, raised):
    told = []

    def work():
        with serve_factory(*fake()) as server:
            told.extend([server, os.environ[server.key], server.output.read_text()])
            raise raised

    with pytest.raises(raised):
        work()
    server, secret, printed = told
    pids = started_by(server.output)
    assert secret in printed  # this server tells it
    assert_gone(pids)
    assert server.key not in os.environ
    assert "key [secret]" in server.output.read_text()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and secret in path.read_text()]


def test_a_killed_python_leaves_no_server(fake, tmp_path):
    fake()
    code = (
        "import time; from mindlab.finetune import factory; from mindlab.llm.server import serve_factory\n"
        f"factory.command = lambda: {factory.command()!r}\n"
        f"with serve_factory(*{('configs/news_inference.yaml', fake()[1])!r}, output={str(tmp_path / 'api.txt')!r}):\n"
        "    print('answers', flush=True)\n"
        "    time.sleep(60)"
    )
    script = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with script.stdout as lines:
        assert any(line == "answers\n" for line in lines)
        pids = started_by(tmp_path / "api.txt")
        assert all(map(psutil.pid_exists, pids))
        script.send_signal(signal.SIGKILL)
        script.wait()
    assert_gone(pids)


def test_a_server_that_ends_first_is_one_line_without_the_key(fake, tmp_path):
    line = "raise SystemExit('OSError: no weights for ' + os.environ['API_KEY'] + chr(10) + 'ask your admin')"
    with pytest.raises(UserError) as error, serve_factory(*fake(line)):
        pass
    (output,) = temporary(tmp_path)
    assert str(error.value) == (
        f"{YAML}: LLaMA-Factory's api ended with exit code 1: OSError: no weights for [secret]; "
        f"all it printed is in {output}"
    )
    assert_gone(started_by(output))


def test_a_server_that_never_answers_is_ended(fake, tmp_path):
    says = r"did not answer within 1 seconds; all it printed is in .*larger timeout"
    with pytest.raises(UserError, match=says), serve_factory(*fake("time.sleep(60)"), timeout=1):
        pass
    (output,) = temporary(tmp_path)
    assert_gone(started_by(output))


def test_another_server_on_the_port_is_not_sent_the_key(fake, server, monkeypatch):
    monkeypatch.setattr(module, "_free_port", lambda: server.server_port)
    with pytest.raises(UserError, match="Address already in use"), serve_factory(*fake()):
        pass
    assert server.asked == []


def test_what_is_no_model_or_another_models_adapter_is_told_before_anything_starts(
    tiny_glm, tmp_path, monkeypatch
):
    def never(*arguments):
        raise AssertionError("started")

    monkeypatch.setattr(factory, "kept", never)
    (tmp_path / "adapter").mkdir()
    config = {"base_model_name_or_path": "x/another"}
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    none, model = {"adapter_name_or_path": None}, {"model_name_or_path": str(tiny_glm)}
    for overrides, says in (
        ({**none, "model_name_or_path": "models/none"}, "models/none: no such model folder"),
        ({**none, "model_name_or_path": None}, "model_name_or_path: None"),
        ({**model, "adapter_name_or_path": "adapter"}, "an adapter of x/another, not of"),
        ({**model, "adapter_name_or_path": 3}, "adapter_name_or_path: 3"),
    ):
        (tmp_path / "models").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=says) as error, serve_factory(YAML, overrides, root=tmp_path):
            pass
        assert "\n" not in str(error.value)
