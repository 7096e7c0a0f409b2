"""Fetch MIND's zips: `scripts/download_mind.py --size small --out data/raw/MINDsmall`.

MIND may not be redistributed, so the way to it is its owner's page, which asks each user to log in and to
accept the licence. This module takes it from there with the user's own token, goes on after a break, and
checks what came.
"""

import re
import time
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import requests

from mindlab.common.errors import UserError
from mindlab.common.files import check_zip, sha256

LICENCE = "https://github.com/msnews/MIND/blob/master/MSR%20License_Data.pdf"
PAGE = (
    "https://huggingface.co/datasets/yjw1029/MIND"  # linked from https://msnews.github.io/ since 2025-10-17
)
PATH = "/datasets/yjw1029/MIND/resolve/main/"
# The address in recommenders' `mind.py`; a user reports in its issue 2277 that it no longer resolves.
# It is the only known place of MINDdemo.
RECOMMENDERS = "https://recodatasets.z20.web.core.windows.net/newsrec/"

FILES = {
    "demo": ("MINDdemo_train.zip", "MINDdemo_dev.zip"),
    "small": ("MINDsmall_train.zip", "MINDsmall_dev.zip"),
    "large": ("MINDlarge_train.zip", "MINDlarge_dev.zip", "MINDlarge_test.zip"),
}
# https://github.com/recommenders-team/recommenders/blob/main/tests/data_validation/recommenders/datasets/test_mind.py
BYTES = {
    "MINDdemo_train.zip": 17_372_879,
    "MINDdemo_dev.zip": 10_080_022,
    "MINDsmall_train.zip": 52_994_575,
    "MINDsmall_dev.zip": 30_948_560,
    "MINDlarge_train.zip": 531_360_717,
    "MINDlarge_dev.zip": 103_592_887,
}

CHUNK = 1 << 14  # bytes at a time; what a break finds in between is lost
TIMEOUT = 60  # seconds without a byte
WAITS = (1, 4, 15, 30)  # seconds before each further try that brings no byte


class Bar(Protocol):
    """What a progress bar must do; tqdm's does."""

    total: int | None
    n: int

    def update(self, n: int) -> Any: ...
    def refresh(self) -> Any: ...


Bars = Callable[[str], AbstractContextManager[Bar | None]]


@dataclass(frozen=True)
class Route:
    """Where the files are, and with whose token; `base` ends with a slash."""

    base: str
    token: str | None = None
    is_gated: bool = False
    kind: str = "zip"  # what each file is
    start: bytes = b"PK"  # and how it begins
    page: str = PAGE  # where a browser finds them
    then: str = "check it with --check"  # what to do with one that came by a browser


def official() -> Route:
    """Return the owner's page, with the token of `hf auth login` or of HF_TOKEN, if there is one.

    Honours HF_ENDPOINT, as huggingface_hub does.
    """
    from huggingface_hub import constants, get_token

    return Route(constants.ENDPOINT.rstrip("/") + PATH, get_token(), is_gated=True)


def fetch(
    name: str,
    out: Path,
    route: Route,
    log: Callable[[str], None] = lambda line: None,
    bars: Bars = lambda name: nullcontext(None),
) -> Path:
    """Download one zip of `FILES` into the folder `out`, unless it is there; return its path.

    The bytes go to ``<name>.part``, which the next call goes on with; the file gets its name once it is a
    whole zip and, where the server tells its SHA-256, has that. A broken connection is tried again as long
    as it brings something, and four times where not. Raises `UserError`, one line, for everything else: no token, no access, a page instead of a file,
    no network, a damaged file.
    """
    path = out / name
    if path.exists():
        log(f"{path}: already here")
        return path
    part, expected = transfer(name, out, route, log, bars)
    if expected and (found := sha256(part)) != expected:
        part.unlink()
        raise UserError(f"{path}: SHA-256 is {found}, the server says {expected}; run again to fetch it anew")
    try:
        with zipfile.ZipFile(part) as archive:
            check_zip(archive, part)
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        damaged = str(error)
    if damaged:
        part.unlink()
        raise UserError(f"{path}: what came is damaged ({damaged}); run again to fetch it anew")
    size = part.stat().st_size
    if size != BYTES.get(name, size):
        log(
            f"{name}: a whole zip, of {size:,} bytes; recommenders' tests list {BYTES[name]:,}: another packing?"
        )
    part.replace(path)
    return path


def transfer(
    name: str,
    out: Path,
    route: Route,
    log: Callable[[str], None] = lambda line: None,
    bars: Bars = lambda name: nullcontext(None),
) -> tuple[Path, str | None]:
    """Fill ``<name>.part`` in the folder `out`, from where it ends; return it and the SHA-256 that the server tells.

    Raises `UserError` as `fetch` does; what came is looked at no further.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be made a folder ({error.strerror}); give another") from None
    part = out / f"{name}.part"
    with bars(name) as bar:
        return part, _transfer(route, name, part, log, bar)


def _transfer(route: Route, name: str, part: Path, log: Callable[[str], None], bar: Bar | None) -> str | None:
    """Fill `part`; return the SHA-256 that the server tells, if it does."""
    tries = 0
    while True:
        have = _size(part)
        try:
            return _request(route, name, part, have, bar)
        except (
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
        ) as error:
            now = _size(part)
            tries = 1 if now > have else tries + 1  # what moves on may break as often as it likes
            kept = f"{now:,} bytes are kept in {part}" if now else "nothing came"
            if tries > len(WAITS) or _is_unknown_host(error):
                raise UserError(
                    f"{route.base}{name}: {_reason(error)}; {kept}. Check the network and run again to go on, "
                    f"or {_by_hand(route, part)}"
                ) from error
            log(f"{name}: {_reason(error)}; {kept}; going on in {WAITS[tries - 1]} s")
            time.sleep(WAITS[tries - 1])


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _request(route: Route, name: str, part: Path, have: int, bar: Bar | None) -> str | None:
    """Make one request for what is missing after byte `have`, and append it to `part`."""
    # requests drops the Authorization header when a redirect leads to another host, as the hub's do.
    headers = {"Accept-Encoding": "identity"}
    if route.token:
        headers["Authorization"] = f"Bearer {route.token}"
    if have:
        headers["Range"] = f"bytes={have}-"
    with requests.get(route.base + name, headers=headers, stream=True, timeout=TIMEOUT) as response:
        expected = _told_hash([*response.history, response])
        if response.status_code == 416:  # nothing after `have`: the part is whole, or not of this file
            total = response.headers.get("Content-Range", "").rpartition("/")[2]
            if total == str(have):
                return expected
            part.unlink()
            return _request(route, name, part, 0, bar)
        _check_answer(response, route, name)
        if response.status_code != 206:  # the server sends it from the start
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        if bar is not None:
            bar.total, bar.n = total, have
            bar.refresh()
        with part.open("ab" if have else "wb") as file:
            for chunk in response.iter_content(CHUNK):
                if not file.tell() and not chunk.startswith(route.start):
                    raise UserError(
                        f"{response.url.split('?')[0]}: sent something else than a {route.kind} "
                        f"(it begins {chunk[:20]!r}); {_by_hand(route, part)}"
                    )
                file.write(chunk)
                if bar is not None:
                    bar.update(len(chunk))
            got = file.tell()
        if total is not None and got < total:
            raise requests.ConnectionError(f"the connection broke off after {got:,} of {total:,} bytes")
    return expected


def _check_answer(response: requests.Response, route: Route, name: str) -> None:
    """Raise `UserError` for an answer that is no file; `requests.ConnectionError` where a later try may help."""
    code, where = response.status_code, response.url.split("?")[0]
    if code in (200, 206):
        kind = response.headers.get("Content-Type", "")
        if kind.startswith("text/html"):
            raise UserError(
                f"{where}: sent a web page (a login or error page), not a {route.kind}; {_by_hand(route, None)}"
            )
        return
    if code in (401, 403) and route.is_gated:
        login = (
            "you are not logged in, or the token is not valid: run `hf auth login`, or set HF_TOKEN"
            if code == 401
            else "this account may not read it yet (a fine-grained token needs access to public gated repositories)"
        )
        raise UserError(
            f"{name}: {login}. Accept the licence on {PAGE} in a browser, with the same account; then run again"
        )
    if code == 409:
        raise UserError(
            f"{where}: 409, the storage has been closed to the public (in July 2024, for MIND's first address); "
            f"use the official page: leave --from out"
        )
    if code == 404:
        raise UserError(f"{where}: 404, no such file there; {_by_hand(route, None)}")
    if code == 429 or code >= 500:
        raise requests.ConnectionError(f"the server answers {code} {response.reason}")
    raise UserError(f"{where}: the server answers {code} {response.reason}; {_by_hand(route, None)}")


def _by_hand(route: Route, part: Path | None) -> str:
    folder = f" into {part.parent}" if part else ""
    return f"download it in a browser from {route.page}{folder}, then {route.then}"


def _told_hash(responses: list[requests.Response]) -> str | None:
    """Return the SHA-256 in the hub's X-Linked-ETag, which the answer before the redirect carries."""
    for response in responses:
        told = response.headers.get("X-Linked-ETag", "").strip('W/"')
        if re.fullmatch("[0-9a-f]{64}", told):
            return told
    return None


def _is_unknown_host(error: Exception) -> bool:
    return "NameResolution" in str(error) or "getaddrinfo" in str(error)


def _reason(error: Exception) -> str:
    """Return what went wrong with a connection, without the layers of urllib3."""
    text = str(error)
    if _is_unknown_host(error):
        return "no such host, or no network"
    if isinstance(error, requests.Timeout):
        return f"no answer in {TIMEOUT} s"
    if "refused" in text:
        return "connection refused"
    if isinstance(error, requests.exceptions.ChunkedEncodingError) or "IncompleteRead" in text:
        return "the connection broke off"
    return text if len(text) < 100 else type(error).__name__
