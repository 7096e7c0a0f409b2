"""Write files so that a final name never holds half a file and a folder has one writer; hash what was read."""

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from mindlab.common.errors import UserError

# MIND's texts shrink to a third; deflate reaches 1,032 with zeros.
ZIP_RATIO = 200
ZIP_SMALL = 10_000_000  # bytes: below, a high ratio does no harm
MOST_JSON = 50_000_000  # bytes of a manifest, a config, a record of what was run; none of ours comes near


LOCK = ".lock"  # in a folder that a process writes to; its text is the process id
# A trainer whose launcher was killed is ended within this time, see mindlab/finetune/factory.py.
PATIENCE = 30.0  # seconds


@contextmanager
def lock(folder: str | Path, name: str = LOCK) -> Iterator[int]:
    """Hold `folder` for this process alone, for the length of a ``with`` block; yield the lock's file descriptor.

    The folder is made if it is missing, and removed again if it is then left empty. With a `name` of its own the lock
    is one of several in a folder, such as that of one file in a cache. The operating system frees a lock when its
    process ends, however that ends; a process that inherits the descriptor holds it too. Temporary files that a killed
    process left in the folder, and in the folders in it, are removed.

    Raises:
        UserError: if another process holds the lock, with its process id. Not at once where that process has ended:
            what it started may hold the lock for some seconds more.
    """
    folder = Path(folder)
    path = folder / name
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    deadline = time.monotonic() + PATIENCE
    while (handle := _try_lock(path)) is None:
        holder = 0
        with contextlib.suppress(OSError, ValueError):  # it has just begun, or ended
            holder = int(path.read_text(encoding="ascii"))
        if (holder and is_running(holder)) or time.monotonic() > deadline:
            raise UserError(
                f"{folder}: process {holder or 'unknown'} is writing here; wait for it to end, or choose another folder"
            )
        time.sleep(0.05)
    try:
        os.truncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        remove_left(folder)
        yield handle
    finally:
        # Before it is free, so that nobody locks a file without a name; not that of a folder that was made anew.
        if _is_named(handle, path):
            path.unlink()
        os.close(handle)
        for place in made:
            with contextlib.suppress(OSError):  # it is not empty
                place.rmdir()


def _try_lock(path: Path) -> int | None:
    """Return the descriptor of a locked file, made if it is missing; None if another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except FileNotFoundError:  # the holder before has just removed the folder, which it had made
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The holder before may have removed the name since it was opened: then the lock is of nothing.
        if _is_named(handle, path):
            return handle
    except BlockingIOError:
        pass
    os.close(handle)
    return None


def _is_named(handle: int, path: Path) -> bool:
    """Return whether `path` still names the file that was opened as `handle`."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def is_running(pid: int) -> bool:
    """Return whether a process of this machine has not ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        return True
    return True


def remove_left(folder: Path) -> None:
    """Remove the temporary files of `atomic_path` in a folder, and in the folders in it, that no process is writing."""
    for path in [*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp")]:
        with contextlib.suppress(OSError):  # it has just got its final name
            handle = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(handle)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success fsync it and rename it to `path`.

    If the body raises, the temporary file is removed and `path` is left as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # it is being written, see `remove_left`
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        # mkstemp makes files private (0600); give the final file what open() would have given it.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder outlive a power cut, in the order in which they were given."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text with unix newlines, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON with a trailing newline, atomically."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def read_json(path: str | Path, advice: str, kind: type = dict, encoding: str = "utf-8-sig") -> Any:
    """Return what a small JSON file holds, an object unless `kind` says otherwise.

    Raises:
        UserError: one line, ending in `advice`, for a file that cannot be read, is no JSON text, is nested deeper
            than Python reads, is larger than `MOST_JSON`, holds half a character, or is of another kind.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MOST_JSON:
            raise UserError(f"{path}: larger than {MOST_JSON:,} bytes, expected a short JSON file; {advice}")
        text = path.read_text(encoding=encoding)
        value = json.loads(text)
        check_characters(text, value)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {advice}") from None
    except RecursionError:
        raise UserError(f"{path}: not JSON (nested too deeply); {advice}") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); {advice}") from None
    if not isinstance(value, kind):
        expected = {dict: "an object", list: "a list"}[kind]
        raise UserError(f"{path}: holds a JSON {type(value).__name__}, expected {expected}; {advice}")
    return value


def inside(info_path: Path, entry: Any) -> Path:
    """Return the file that an entry of dataset_info.json names; raise `UserError` if it leaves the data folder."""
    file_name = entry.get("file_name") if isinstance(entry, dict) else None
    if not isinstance(file_name, str) or not file_name or "\0" in file_name:
        raise UserError(
            f"{info_path}: file_name {file_name!r}: expected the name of a file within {info_path.parent}"
        )
    file = info_path.parent / file_name
    try:
        file.exists()  # a name that is too long, links that run in a circle
        is_within = file.resolve().is_relative_to(info_path.parent.resolve())
    except (OSError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{info_path}: {why}: file_name {file_name!r}") from None
    if not is_within:
        raise UserError(f"{info_path}: file_name {file_name!r}: expected a file within {info_path.parent}")
    return file


def check_characters(text: str, value: Any) -> None:
    """Raise `ValueError` if the JSON `value` of `text` holds half a character: nothing can print or write that."""
    if "\\u" in text:  # an escape is the only way for it into a text that was UTF-8
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"holds half a character, {error.object[error.start]!a}") from None


def is_number(value: Any) -> bool:
    """Return whether a value of a JSON file is a number that can be drawn, or is not there.

    JSON's whole numbers have no end, and `math.isfinite` takes none that a float cannot hold.
    """
    return value is None or (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    )


def sha256(path: str | Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_zip(archive: zipfile.ZipFile, source: str | Path) -> None:
    """Raise `UserError` for a zip with a name that leaves its folder, or with an entry that blows up when unpacked."""
    for entry in archive.infolist():
        name = entry.filename.replace("\\", "/")
        if name.startswith("/") or ":" in name.split("/")[0] or ".." in PurePosixPath(name).parts:
            raise UserError(
                f"{source}: holds {entry.filename!r}, expected names within its folder; get the zip from its owner"
            )
        if entry.file_size > max(ZIP_SMALL, ZIP_RATIO * entry.compress_size):
            raise UserError(
                f"{source}: {entry.filename!r} would grow from {entry.compress_size:,} to {entry.file_size:,} bytes, "
                f"expected at most {ZIP_RATIO} times as many; get the zip from its owner"
            )
