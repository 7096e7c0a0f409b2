"""What every script shares: one way to end, and a help text that shows its examples."""

import argparse
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

from tqdm import tqdm

from mindlab.errors import UserError
from mindlab.machine import keep_freed_memory


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
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on", file=sys.stderr)
        code = 130
    sys.exit(code)


def interrupt(number: int, frame: object) -> NoReturn:
    """Treat a signal as Ctrl-C."""
    raise KeyboardInterrupt


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
