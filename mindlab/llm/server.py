"""Texts from a model behind an OpenAI-compatible server: LLaMA-Factory's `api`, vLLM, Ollama, or a hosted one.

The key is read from the environment and goes into the request's header alone, never into a file, a log or an error.
`serve_factory` starts LLaMA-Factory's `api` for the time of a block, on this machine alone:

    overrides = {"model_name_or_path": "models/smollm2-135m", "template": "smollm2", "adapter_name_or_path": None}
    with serve_factory("configs/news_inference.yaml", overrides) as server:
        writer = ServerWriter(server.base_url, server.model, key=server.key)
"""

import os
import re
import secrets
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from mindlab.common.errors import UserError
from mindlab.common.manifest import without_secrets
from mindlab.finetune import factory
from mindlab.prompts import Record
from mindlab.prompts.chat import check_model, record_prompt

KEY = "OPENAI_API_KEY"
TIMEOUT = 120  # seconds without a byte; a large model on a busy server thinks long
WAITS = (1, 4, 15, 30)  # seconds before each further try
BUSY = (408, 409, 429)  # and whatever is the server's own fault, 500 and above
LOCAL = "127.0.0.1"
START_TIMEOUT = 600  # seconds until a server must answer; a model of 9B is read from a slow disk in minutes


class ServerWriter:
    """A `mindlab.llm.writing.Writer` that asks ``POST base_url/chat/completions``, a batch's records side by side.

    Answers are asked for at temperature 0. Whether a server then gives the same text twice is its own affair, so what
    was written is kept by `write_texts` and not asked for again. An answer without text is "", a fault that the user of
    the answers counts.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        max_new_tokens: int = 512,
        batch: int = 4,
        timeout: float = TIMEOUT,
        key: str = KEY,
    ):
        """Take the address up to ``/v1`` and the model's name there; `key` names an environment variable.

        Raises UserError for an address that is none, or that holds a password.
        """
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(
                f"--base-url: expected http(s)://HOST[:PORT]/v1, not {without_secrets(base_url)!r}"
            )
        if parts.username or parts.password or parts.query:
            raise UserError(f"--base-url holds a password or a query; put the key into {key} instead")
        # A proxy of the environment is not for this machine: it would be sent the question and the key.
        self.is_local = parts.hostname in (LOCAL, "localhost", "::1")
        self.url, self.model, self.max_new_tokens = base_url.rstrip("/"), model, max_new_tokens
        self.batch, self.timeout, self.key = batch, timeout, key
        self.tokens_read = self.tokens_written = 0

    def about(self) -> dict[str, Any]:
        """Return the address, the model's name and how it is asked; what the server loads under it is not known."""
        return {
            "writer": "server, temperature 0",
            "base_url": self.url,
            "model": self.model,
            "max_new_tokens": self.max_new_tokens,
        }

    def write(self, records: Sequence[Record]) -> list[str]:
        """Return the answers, stripped; raise UserError where the server cannot be asked."""
        with ThreadPoolExecutor(self.batch) as pool:
            replies = list(pool.map(self._ask, records))
        for _, used in replies:
            self.tokens_read += used[0]
            self.tokens_written += used[1]
        return [text for text, _ in replies]

    def _ask(self, record: Record) -> tuple[str, tuple[int, int]]:
        system = [{"role": "system", "content": record["system"]}] if record["system"] else []
        question = {
            "model": self.model,
            "messages": [*system, {"role": "user", "content": record_prompt(record)}],
            "temperature": 0,
            "max_tokens": self.max_new_tokens,
        }
        secret = os.environ.get(self.key)
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        said = ""
        for wait in (0, *WAITS):
            time.sleep(wait)
            try:
                with requests.Session() as session:
                    session.trust_env = not self.is_local
                    # A redirect would carry the question, and on the same host the key, to who was not asked.
                    reply = session.post(
                        f"{self.url}/chat/completions",
                        json=question,
                        headers=headers,
                        timeout=self.timeout,
                        allow_redirects=False,
                    )
            except requests.RequestException as error:
                said = type(error).__name__
                continue
            if reply.status_code in BUSY or reply.status_code >= 500:
                said = f"status {reply.status_code}"
                continue
            return self._read(reply)
        raise UserError(
            f"{self.url}: no answer after {len(WAITS) + 1} tries ({said}); see that the server runs, then run the same "
            "command again: what was written is kept"
        )

    def _read(self, reply: requests.Response) -> tuple[str, tuple[int, int]]:
        """Return the text of a reply and the tokens read and written; "" where the reply holds no text."""
        if reply.status_code in (401, 403):
            raise UserError(f"{self.url}: status {reply.status_code}; put the server's key into {self.key}")
        if reply.status_code != 200:
            line = " ".join(without_secrets(reply.text[:300]).split())
            raise UserError(
                f"{self.url}: status {reply.status_code} ({line}); expected an OpenAI-compatible address up to /v1 and a "
                f"model that it serves, not {self.model!r}"
            )
        try:
            body = reply.json()
            text = body["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            return "", (0, 0)
        if not isinstance(text, str):
            text = ""
        used = body.get("usage")
        counts = [
            used.get(name) if isinstance(used, dict) else 0 for name in ("prompt_tokens", "completion_tokens")
        ]
        read, written = (count if isinstance(count, int) else 0 for count in counts)
        # Half a character, which JSON can hold and no file can, becomes a question mark.
        return text.encode("utf-8", "replace").decode("utf-8").strip(), (read, written)


@dataclass(frozen=True)
class FactoryServer:
    """A running `api` of LLaMA-Factory: what `ServerWriter` is given, and the file of all that the server prints.

    `key` is the name of an environment variable. `model` ends in random letters, so that no text which `write_texts`
    kept of another server, at the same address by chance, is taken for one of this.
    """

    base_url: str
    model: str
    key: str
    output: Path


@contextmanager
def serve_factory(
    path: str | Path,
    overrides: Mapping[str, Any] | None = None,
    log: Callable[[str], None] = print,
    root: str | Path = ".",
    output: str | Path | None = None,
    timeout: float = START_TIMEOUT,
) -> Iterator[FactoryServer]:
    """Run ``llamafactory-cli api path key=value...`` in `root` while the block lasts; it answers when the block begins.

    It listens on 127.0.0.1, on a free port, with a random key, which only the child's environment and a variable of
    this process's environment hold. `log` is told that it starts, for that takes as long as loading the model. What the
    server prints goes to the file `output`; if none is given, to a temporary one, removed unless an error ends the
    block. However the block is left, the server has ended; if this process is killed, that is so some seconds later.
    Raises `UserError` for an invalid YAML, a model folder that does not exist, an adapter of another model, and a
    server that ends or does not answer within `timeout` seconds.
    """
    path, root = Path(path), Path(root)
    settings = factory.load(path, overrides)
    model, adapters = settings.get("model_name_or_path"), settings.get("adapter_name_or_path") or ""
    for key, value in (("model_name_or_path", model), ("adapter_name_or_path", adapters)):
        if not isinstance(value, str):
            raise UserError(f"{path}: {key}: {value!r}: a server needs a text here")
    check_model(model, root)
    for adapter in filter(None, adapters.split(",")):
        factory.check_adapter(root / adapter, root / model, settings.get("template"))
    port, tag, secret = _free_port(), secrets.token_hex(4), secrets.token_urlsafe()
    if output is None:
        handle, name = tempfile.mkstemp(prefix="llamafactory_api_", suffix=".txt")
        os.close(handle)
    server = FactoryServer(
        base_url=f"http://{LOCAL}:{port}/v1",
        model=f"{Path(model).name}-{tag}",
        key=f"MINDLAB_{tag.upper()}_API_KEY",  # a name whose value `without_secrets` hides
        output=Path(name if output is None else output),
    )
    env = {
        **factory.environment(settings, root),
        "API_HOST": LOCAL,  # whatever the user's environment says
        "API_PORT": str(port),
        "API_KEY": secret,
        "API_MODEL_NAME": server.model,
    }
    run = [*factory.command(), "api", str(path.resolve()), *map(factory.argument, (overrides or {}).items())]
    log(f"starting LLaMA-Factory's api with {model}, until it answers ...")
    server.output.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        os.environ[server.key] = secret
        stack.callback(os.environ.pop, server.key, None)
        stack.callback(factory.hide_secrets, server.output)
        file = stack.enter_context(server.output.open("wb"))
        child = stack.enter_context(factory.kept(run, file, env, root))
        _wait(child, server, port, path, timeout)
        yield server
    if output is None:
        server.output.unlink(missing_ok=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOCAL, 0))
        return probe.getsockname()[1]


def _wait(child: subprocess.Popen, server: FactoryServer, port: int, path: Path, timeout: float) -> None:
    """Return when the server answers; raise `UserError` if it ends before, or `timeout` seconds have passed."""
    deadline = time.monotonic() + timeout
    printed = f"all it printed is in {server.output}"
    while not (_listens(child.pid, port) and _answers(server)):
        if time.monotonic() > deadline:
            raise UserError(
                f"{path}: LLaMA-Factory's api did not answer within {timeout:g} seconds; {printed}; give it a larger "
                "timeout or a smaller model"
            )
        try:
            code = child.wait(0.2)
        except subprocess.TimeoutExpired:
            continue
        reason = without_secrets(_last_error(server.output.read_text(encoding="utf-8", errors="replace")))
        raise UserError(f"{path}: LLaMA-Factory's api ended with exit code {code}: {reason}; {printed}")


def _listens(pid: int, port: int) -> bool:
    """Return whether `pid` or a process it started listens on the port; another's server would be sent the key."""
    import psutil

    try:
        keeper = psutil.Process(pid)
        return any(
            at.status == psutil.CONN_LISTEN and at.laddr.port == port
            for process in (keeper, *keeper.children(recursive=True))
            for at in process.net_connections("tcp")
        )
    except psutil.Error:  # one has just ended
        return False


def _answers(server: FactoryServer) -> bool:
    with requests.Session() as session:
        session.trust_env = False  # neither a proxy nor a .netrc
        try:
            return session.get(
                f"{server.base_url}/models",
                headers={"Authorization": f"Bearer {os.environ[server.key]}"},
                timeout=5,
                allow_redirects=False,
            ).ok
        except requests.RequestException:
            return False


def _last_error(printed: str) -> str:
    """Return the last line that names an error, else the last line.

    >>> _last_error("INFO: up\\nOSError: No space left.\\nsee the docs\\n")
    'OSError: No space left.'
    """
    lines = [" ".join(line.split()) for line in printed.splitlines() if line.strip()] or [
        "it printed nothing"
    ]
    return next(
        (line for line in reversed(lines) if re.match(r"[\w.]*(Error|Exception)\b", line, re.I)), lines[-1]
    )
