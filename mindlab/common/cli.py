"""What every script shares: one way to end, and a help text that shows its examples."""

import argparse
import errno
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NoReturn

from tqdm import tqdm

from mindlab.common.errors import UserError
from mindlab.common.machine import keep_freed_memory
from mindlab.common.manifest import without_secrets

# Of the disk and not of the program; each is told with the file's name.
DISK = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space, or ask for a larger quota",
    errno.EFBIG: "allow larger files (ulimit -f)",
    errno.EIO: "check the disk",
    errno.EROFS: "choose a folder that you may write to",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.ENOENT: "it was there a moment ago: leave the folder in place",
    errno.ENOTDIR: "choose another folder",
    errno.EEXIST: "a file is in the way: choose another folder",
}

Progress = Callable[[Iterable[int], int, int], Iterator[int]]  # (batches, done before, in all)


def parser(description: str) -> argparse.ArgumentParser:
    """Return an argument parser that prints `description` (a module docstring) as written."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run `main` and exit: 0 done, 1 a problem was found, 2 the user's mistake, 130 interrupted."""
    keep_freed_memory()
    # A closed terminal or a `kill` would end this process alone and leave the trainer it started running.
    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores it: keep that
            signal.signal(number, interrupt)
    try:
        code = main() or 0
    except UserError as error:
        close_bars(error)
        print(f"error: {without_secrets(str(error))}", file=sys.stderr)
        code = 2
    except OSError as error:
        if error.errno not in DISK:
            raise
        place = f"{error.filename2 or error.filename}: " if error.filename else ""
        what = f"{place}{error.strerror}; {DISK[error.errno]}, and run the same command again to go on"
        close_bars(error)
        print(f"error: {without_secrets(' '.join(what.split()))}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt as error:
        close_bars(error)
        print("interrupted: run the same command again to go on", file=sys.stderr)
        code = 130
    sys.exit(code)


def close_bars(error: BaseException | None) -> None:
    """Drop what the frames of an error hold: a bar that it left open would draw its last line below the error's."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def interrupt(number: int, frame: object) -> NoReturn:
    """Treat a signal as Ctrl-C."""
    raise KeyboardInterrupt


def say(line: str) -> None:
    """Print one line of progress."""
    print(f"      {line}", file=sys.stderr, flush=True)


def step(what: str, command: str) -> None:
    """Say what comes next and which command does it alone."""
    print(f"\n{what}", file=sys.stderr)
    say(f"$ {command}")


def records_bar(parts: Iterator[Any], name: str, n_impressions: int) -> Iterator[Any]:
    """Show how many records the written parts hold; how many there will be is known for one record an impression."""
    total = n_impressions if name in ("mind", "mind_test") else None
    with tqdm(total=total, desc=name, unit=" records", unit_scale=True) as shown:
        for part in parts:
            shown.update(part.records)
            yield part


def cases_bar(cases: Iterable[Any], done: int, total: int) -> Iterator[Any]:
    """Show progress over the cases of a scoring, starting where an interrupted run stopped."""
    return iter(tqdm(cases, initial=done, total=total, desc="score", unit=" impressions", smoothing=0.05))


def batches_bar(name: str) -> Progress:
    """Return a progress over batches, shown on a terminal alone."""
    return partial(_batches_bar, name)


def _batches_bar(name: str, batches: Iterable[int], done: int, total: int) -> Iterator[int]:
    return iter(tqdm(batches, initial=done, total=total, desc=name, unit=" batches", disable=None))
