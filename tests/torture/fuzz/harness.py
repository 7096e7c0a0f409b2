"""Run cases in worker processes: a crash, a hang or a full memory ends a worker and never the run.

A case is (target, seed, number). Its outcome is one of `OUTCOMES`; "parsed" and "refused" are the two good ones.
"""

import json
import os
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from typing import Any, TextIO

import numpy as np

from tests.conftest import ROOT

OUTCOMES = ("parsed", "refused", "traceback", "wrong", "hang", "memory", "crash")
BAD = OUTCOMES[2:]
SECONDS = 10  # a case
MOST_MB = 1000  # that a case may add to the worker's own
ADDRESS_SPACE = 12 << 30  # bytes: a case out of hand ends itself and not the machine
WORKER = ["-m", "tests.torture.fuzz", "--worker"]
CHUNK = 100  # cases handed out at a time


@dataclass
class Tally:
    """What a run found of one target."""

    counts: Counter = field(default_factory=Counter)
    seconds: float = 0.0  # the slowest case
    added_mb: float = 0.0  # the most that a case added to the worker's memory
    peak_mb: float = 0.0  # the most that a worker held, its libraries among it
    bad: list[dict[str, Any]] = field(default_factory=list)


def case_files(name: str, seed: int, number: int) -> dict[str, bytes]:
    """Return the files of a case; number 0 is the valid ones."""
    from tests.torture.fuzz.mutate import spoil
    from tests.torture.fuzz.targets import TARGETS

    target = TARGETS[name]
    files = dict(target.files())
    if number:
        rng = np.random.default_rng([seed, zlib.crc32(name.encode()), number])
        for chosen in rng.permutation(target.spoilt)[: 1 + int(rng.random() < 0.2)].tolist():
            files[chosen] = spoil(chosen, files[chosen], rng)
    return files


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Write the files of a case."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def outcome(read: Callable[[Path], None], folder: Path) -> tuple[str, str]:
    """Return how reading a folder ended, and the text that says more."""
    from mindlab.common.errors import UserError
    from tests.torture.fuzz.targets import WrongParse, check_line

    try:
        read(folder)
    except UserError as error:
        try:
            check_line(str(error))
        except WrongParse as wrong:
            return "wrong", str(wrong)
        return "refused", str(error)
    except WrongParse as error:
        return "wrong", str(error)
    except MemoryError:
        return "memory", traceback.format_exc(limit=-6)
    except BaseException:  # SystemExit too: a user that ends the process
        return "traceback", traceback.format_exc(limit=-8)
    return "parsed", ""


def serve(lines: TextIO, out: TextIO) -> None:
    """Answer, one JSON line each, the cases that come as JSON lines [target, seed, number]."""
    from mindlab.common.manifest import peak_memory_mb, reset_peak_memory
    from tests.torture.fuzz.targets import TARGETS

    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warm = set()
    for line in lines:
        name, seed, number = json.loads(line)
        with tempfile.TemporaryDirectory(prefix="fuzz-") as text:
            folder = Path(text)
            if name not in warm:  # imports count neither as time nor as memory of a case
                warm.add(name)
                write_files(folder, case_files(name, seed, 0))
                outcome(TARGETS[name].read, folder)
                shutil.rmtree(folder)
            write_files(folder, case_files(name, seed, number))
            out.write("start\n")
            out.flush()
            reset_peak_memory()
            before, begin = peak_memory_mb(), time.perf_counter()
            kind, said = outcome(TARGETS[name].read, folder)
            taken, peak = time.perf_counter() - begin, peak_memory_mb()
            if kind in ("parsed", "refused") and peak - before > MOST_MB:
                kind, said = "memory", f"{peak - before:.0f} MB; {said}"
        said = said.replace(text, "")[:6000]
        out.write(
            json.dumps({"kind": kind, "said": said, "seconds": taken, "added": peak - before, "peak": peak})
            + "\n"
        )
        out.flush()


class Worker:
    """A process that runs `serve`."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        env = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }
        self.buffer = b""
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        self.process = subprocess.Popen(
            [sys.executable, *WORKER], cwd=ROOT, env=env, bufsize=0,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
        )  # fmt: skip

    def ask(self, case: tuple[str, int, int]) -> dict[str, Any]:
        """Return the outcome of a case."""
        failed = {"said": "", "seconds": float(SECONDS), "added": 0.0, "peak": 0.0}
        try:
            self.process.stdin.write(json.dumps(case).encode() + b"\n")
            if not self._line(120):  # the first case of a target imports its libraries
                raise RuntimeError(f"the worker did not start on {case}: {self._said()}")
            reply = self._line(SECONDS + 1)
        except BrokenPipeError:
            reply = ""
        if reply is None:
            self.stop()
            self.start()
            return failed | {"kind": "hang"}
        if not reply:
            self.process.wait()
            found = failed | {"kind": "crash", "said": f"exit code {self.process.returncode}; {self._said()}"}
            self.start()
            return found
        found = json.loads(reply)
        return found | ({"kind": "hang"} if found["seconds"] > SECONDS else {})

    def _line(self, seconds: float) -> str | None:
        """Return the next line, "" at the end of the stream, None after `seconds`."""
        until = time.monotonic() + seconds
        while b"\n" not in self.buffer:  # a buffered user would hide lines from select
            if not select.select([self.process.stdout], [], [], max(0.0, until - time.monotonic()))[0]:
                return None
            data = os.read(self.process.stdout.fileno(), 1 << 16)
            if not data:
                return ""
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line.decode()

    def _said(self) -> str:
        self.errors.seek(0)
        return self.errors.read()[-2000:]

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def fuzz(
    n: int,
    seed: int,
    names: Iterable[str],
    jobs: int = 2,
    tick: Callable[[int], None] = lambda n: None,
    most_bad: int = 1_000_000,
) -> dict[str, Tally]:
    """Run about `n` cases, parted among the targets by their shares; return the tallies by target."""
    from tests.torture.fuzz.targets import TARGETS

    names = list(names)
    whole = sum(TARGETS[name].share for name in names)
    chunks: Queue[tuple[str, range]] = Queue()
    # Targets whose libraries take seconds to import come first.
    for name in sorted(names, key=lambda name: name != "config"):
        count = max(1, round(n * TARGETS[name].share / whole))
        for first in range(0, count, CHUNK):
            chunks.put((name, range(first, min(first + CHUNK, count))))
    tallies = {name: Tally() for name in names}
    lock, failures = threading.Lock(), []

    def work() -> None:
        worker = Worker()
        try:
            while not failures:
                try:
                    name, numbers = chunks.get_nowait()
                except Empty:
                    return
                for number in numbers:
                    found = worker.ask((name, seed, number))
                    with lock:
                        add(tallies[name], found, number)
                        tick(1)
                        if sum(len(tally.bad) for tally in tallies.values()) >= most_bad:
                            return
        except Exception as error:
            failures.append(error)
        finally:
            worker.stop()

    threads = [threading.Thread(target=work) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return tallies


def add(tally: Tally, found: dict[str, Any], number: int) -> None:
    """Count one outcome in."""
    tally.counts[found["kind"]] += 1
    tally.seconds = max(tally.seconds, found["seconds"])
    tally.added_mb = max(tally.added_mb, found["added"])
    tally.peak_mb = max(tally.peak_mb, found["peak"])
    if found["kind"] in BAD:
        tally.bad.append({"number": number, **found})


def table(tallies: dict[str, Tally]) -> str:
    """Return the tallies as Markdown."""
    lines = [
        f"| target | files | {' | '.join(OUTCOMES)} | slowest, s | added memory, MB |",
        "|---|" + "---:|" * (len(OUTCOMES) + 3),
    ]
    total = Counter()
    for name, tally in tallies.items():
        total += tally.counts
        cells = [f"{tally.counts[kind]:,}" for kind in OUTCOMES]
        lines.append(
            f"| {name} | {sum(tally.counts.values()):,} | {' | '.join(cells)} | {tally.seconds:.2f} | {tally.added_mb:.0f} |"
        )
    cells = [f"{total[kind]:,}" for kind in OUTCOMES]
    slowest = max(tally.seconds for tally in tallies.values())
    most = max(tally.added_mb for tally in tallies.values())
    lines.append(f"| all | {sum(total.values()):,} | {' | '.join(cells)} | {slowest:.2f} | {most:.0f} |")
    return "\n".join(lines)
