"""Break one write of a process: the n-th open, write, fsync, rename, making or removing below a folder.

A `Points` is installed in a child process, counts what the process does to the files below one folder, and at the
chosen point lets it fail or ends the process. Parquet goes through Python's files here, so that Arrow's writes count
too. What compiled code writes on its own (a memory map, torch's files) has no points; kills at random moments meet it.
"""

import builtins
import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

FULL, BROKEN, DEAD_BEFORE, DEAD_AFTER = "disk full", "I/O error", "dead before", "dead after"
FAULTS = (FULL, BROKEN, DEAD_BEFORE, DEAD_AFTER)
DIED = 99  # the exit code of a process that a fault ended
NEEDS_SPACE = ("open", "write", "fsync", "mkdir")
REAL = {
    name: getattr(os, name)
    for name in ("open", "fsync", "replace", "rename", "unlink", "rmdir", "mkdir", "pwrite")
}
REAL_OPEN, REAL_WRITE_TABLE = io.open, pq.write_table


class Points:
    """Counts the points below `root`; breaks the one of number `at` (from 0) by `fault`, none if `at` is None.

    A disk that is full stays full: from that point on nothing can be made or written, though removed.
    """

    def __init__(self, root: Path, at: int | None = None, fault: str = BROKEN):
        self.root, self.at, self.fault = str(root.resolve()), at, fault
        self.seen: list[str] = []
        self.is_on = True

    def meet(
        self, kind: str, path: Any, act: Callable[[], Any], half: Callable[[], Any] | None = None
    ) -> Any:
        """Do `act`, which is one point if it concerns a path below the root; `half` does a part of it."""
        if not self.is_on or not self.is_below(path):
            return act()
        number = len(self.seen)
        self.seen.append(kind)
        is_it = number == self.at
        if (
            self.fault == FULL
            and self.at is not None
            and (is_it or (number > self.at and kind in NEEDS_SPACE))
        ):
            if half is not None and is_it:
                half()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.name(path))
        if not is_it:
            return act()
        if self.fault == BROKEN:
            raise OSError(errno.EIO, os.strerror(errno.EIO), self.name(path))
        try:
            if self.fault == DEAD_AFTER:
                (half or act)()
        finally:  # an act may fail on its own: the folder is there, the file is not
            os._exit(DIED)

    def name(self, path: Any) -> str:
        """Return the absolute path that a path, or a file descriptor, stands for."""
        if isinstance(path, int):
            return str(Path(f"/proc/self/fd/{path}").readlink())
        return os.path.abspath(os.fsdecode(path))  # noqa: PTH100 - a link's own name, not where it leads

    def is_below(self, path: Any) -> bool:
        """Return whether a path or a file descriptor lies in the folder, or is it."""
        name = self.name(path)
        return name == self.root or name.startswith(self.root + os.sep)

    def install(self) -> None:
        """Take the place of the functions that change files, for the rest of the process."""
        points = self

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                # Half of the data is there when the disk turns out to be full.
                data = bytes(data)
                real = super().write
                return points.meet(
                    "write", self.fileno(), lambda: real(data), lambda: real(data[: len(data) // 2])
                )

        def opened(
            file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None
        ):
            if not set(mode) & set("wax+") or not points.is_on or not points.is_below(file):
                return REAL_OPEN(file, mode, buffering, encoding, errors, newline, closefd, opener)
            raw_mode = mode.replace("b", "").replace("t", "")
            raw = points.meet("open", file, lambda: Raw(file, raw_mode, closefd, opener))
            buffered = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
            return (
                buffered if "b" in mode else io.TextIOWrapper(buffered, encoding or "utf-8", errors, newline)
            )

        def os_open(path, flags, mode=0o777, *, dir_fd=None):
            def act():
                return REAL["open"](path, flags, mode, dir_fd=dir_fd)

            is_change = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            return points.meet("open", path, act) if is_change and dir_fd is None else act()

        def renamed(name):
            def act(src, dst, **options):
                return points.meet("rename", dst, lambda: REAL[name](src, dst, **options))

            return act

        def on_one(name, kind):
            def act(path, *words, dir_fd=None):
                where = path if dir_fd is None else os.path.join(points.name(dir_fd), path)  # noqa: PTH118
                options = {} if dir_fd is None else {"dir_fd": dir_fd}
                return points.meet(kind, where, lambda: REAL[name](path, *words, **options))

            return act

        def pwrite(handle, data, offset):
            return points.meet(
                "write", handle, lambda: REAL["pwrite"](handle, data, offset),
                lambda: REAL["pwrite"](handle, data[: len(data) // 2], offset),
            )  # fmt: skip

        def write_table(table, where, **options):
            if hasattr(where, "write"):
                return REAL_WRITE_TABLE(table, where, **options)
            with opened(where, "wb") as file:
                return REAL_WRITE_TABLE(table, file, **options)

        io.open = builtins.open = opened
        os.open, os.pwrite = os_open, pwrite
        os.fsync = lambda handle: points.meet("fsync", handle, lambda: REAL["fsync"](handle))
        os.replace, os.rename = renamed("replace"), renamed("rename")
        os.unlink = os.remove = on_one("unlink", "remove")
        os.rmdir, os.mkdir = on_one("rmdir", "remove"), on_one("mkdir", "mkdir")
        pq.write_table = write_table
