"""Break every write of every stage, kill every stage at random moments, run again, and compare.

A fault is a full disk, an I/O error, or the end of the process before or after one open, write, fsync, rename, making
or removing of a file (tests/torture/chaos/faults.py). After each the stage runs again, unbroken, in the same folder; what is
then there must be what one unbroken run leaves: the same bytes, for predictions the same rows, no file more, times
excepted. A fault that the process survives must end in one line and exit code 2. The table says what was tried.

Examples:
  python -m tests.torture.chaos --update docs/reliability.md
                                              (all faults at all points, 50 kills a stage: 20 to 45 minutes)
  python -m tests.torture.chaos --quick               (what the tests run: a fourth of the points, and no training)
  python -m tests.torture.chaos --stages score,report --kills 200
"""

import json
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mindlab.common import cli
from mindlab.common.errors import UserError
from mindlab.common.files import write_json
from mindlab.runs import kept
from tests.torture.chaos import stages
from tests.torture.chaos.faults import DEAD_AFTER, DEAD_BEFORE, DIED, FAULTS, Points
from tests.torture.chaos.stages import STAGES, UNREADABLE, Stage

LONGEST = 120  # seconds a run may take
INFO = "dataset_info.json"
EVERY = 4  # points, of which a quick run takes one
MARK = Path("chaos")  # of the table in docs/reliability.md
QUICK = ("build", "score", "caches", "report", "compare")


@dataclass
class Tally:
    """What was tried on a stage, and what went wrong."""

    stage: str
    points: Counter = field(default_factory=Counter)  # by kind
    faults: Counter = field(default_factory=Counter)  # by fault
    kills: int = 0
    differences: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Harness:
    """Runs one stage, broken and unbroken, in children forked from this process, in folders below `place`."""

    def __init__(self, stage: Stage, inputs: Path, place: Path):
        """Run the stage once unbroken: `whole` is what must come out, `seconds` what it takes, `points` what it writes."""
        self.stage, self.inputs, self.out = stage, inputs, place / "out"
        self.log, self.seen = place / "log", place / "told.json"
        self.tally = Tally(stage.name)
        begin = time.monotonic()
        if (code := self.run(Points(self.out), is_told=True)) != 0:
            raise UserError(f"{stage.name}: an unbroken run ended with {code}: {self.words()}")
        self.seconds = time.monotonic() - begin
        told = json.loads(self.seen.read_text())
        self.whole, self.points = told["after"], told["points"]
        self.tally.points.update(self.points)

    def start(self, points: Points | None, is_told: bool = False) -> int:
        """Fork a child that runs the stage, broken by `points`; return its process id."""
        pid = os.fork()
        if pid == 0:
            os.setsid()
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for target in (1, 2):
                os.dup2(log, target)
            sys.stdout = sys.stderr = os.fdopen(2, "w", closefd=False)  # whatever a test runner put there

            def work() -> None:
                # Looked at in the child: Arrow starts threads, and the process that forks must have none.
                before = self.stage.result(self.out) if is_told and not self.stage.kept else {}
                if points is not None:
                    stages.POINTS.append(points)
                    points.install()
                self.stage.run(self.inputs, self.out)
                if is_told:
                    told = {"before": before, "points": points.seen if points is not None else []}
                    if points is not None:
                        points.is_on = False
                    self.seen.write_text(json.dumps({**told, "after": self.stage.result(self.out)}))

            code = 1
            try:
                cli.run(work)
            except SystemExit as end:
                code = int(end.code or 0)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        return pid

    def run(self, points: Points | None = None, is_told: bool = False) -> int:
        """Run the stage to its end; return the exit code."""
        pid = self.start(points, is_told)
        return self.end(pid, time.monotonic() + LONGEST)

    def end(self, pid: int, deadline: float) -> int:
        """Wait for a child, kill it at the deadline; return the exit code, negative for a signal."""
        while time.monotonic() < deadline:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def words(self) -> str:
        """Return the end of what the last child printed."""
        return self.log.read_text(errors="replace").strip()[-2000:]

    def begin(self) -> None:
        """Take away what the last trial left."""
        shutil.rmtree(self.out, ignore_errors=True)

    def check(self, what: str) -> None:
        """Run again, unbroken; note how what is there then differs from an unbroken run's."""
        if (code := self.run(is_told=True)) != 0:
            self.note(what, f"the next run ended with {code}: {self.words()}")
            return
        told = json.loads(self.seen.read_text())
        found = told["after"]
        for name, digest in told["before"].items():
            # A name of the result holds the result or is not there; dataset_info.json grows by whole steps.
            grows = Path(name).name == INFO and digest != UNREADABLE
            if name in self.whole and digest != self.whole[name] and not grows:
                self.note(what, f"{name} was half-written")
        wrong = sorted(name for name in {*found, *self.whole} if found.get(name) != self.whole.get(name))
        if wrong:
            self.note(what, f"differs in {', '.join(wrong)}")

    def note(self, what: str, fault: str) -> None:
        """Keep a difference, and say so."""
        self.tally.differences.append(f"{self.stage.name}, {what}: {fault}")
        tqdm.write(self.tally.differences[-1], file=sys.stderr)

    def fault(self, number: int, fault: str) -> None:
        """Break one point, and check."""
        self.begin()
        what = f"{fault} at point {number} ({self.points[number]})"
        code = self.run(Points(self.out, number, fault))
        self.tally.faults[fault] += 1
        words = self.words()
        if fault in (DEAD_BEFORE, DEAD_AFTER):
            if code != DIED:
                self.note(what, f"ended with {code}, was to die: {words}")
        elif code == 0:
            pass  # it did without
        elif code != 2 or "Traceback" in words or not re.search(r"^error: .*\Z", words, re.M):
            self.note(what, f"ended with {code} and without one clear line: {words}")
        self.check(what)

    def kill(self, rng: np.random.Generator) -> None:
        """Kill the stage at a random moment, one to three times in the same folder, and check."""
        self.begin()
        moments = []
        for _ in range(int(rng.integers(1, 4))):
            moment = float(rng.uniform(0, self.seconds))
            pid = self.start(None)
            code = self.end(pid, time.monotonic() + moment)
            if code == -signal.SIGKILL:
                self.tally.kills += 1
                moments.append(f"{moment:.3f} s")
            elif code != 0:
                self.note(f"after kills at {', '.join(moments)}", f"ended with {code}: {self.words()}")
        self.check(f"killed at {', '.join(moments)}")


def break_stage(stage: Stage, inputs: Path, place: Path, kills: int, is_quick: bool, seed: int) -> Tally:
    """Try every point of a stage and so many kills; with `is_quick` one in `EVERY`, with one fault, in turn."""
    begin = time.monotonic()
    harness = Harness(stage, inputs, place)
    rng = np.random.default_rng(seed)
    trials: list[Callable[[], Any]] = []
    for number in range(seed % EVERY, len(harness.points), EVERY) if is_quick else range(len(harness.points)):
        chosen = [FAULTS[number // EVERY % len(FAULTS)]] if is_quick else FAULTS
        trials += [lambda n=number, f=fault: harness.fault(n, f) for fault in chosen]
    with tqdm(total=len(trials) + kills, desc=stage.name, file=sys.stderr, disable=None) as bar:
        for trial in trials:
            trial()
            bar.update()
        while harness.tally.kills < kills:
            before = harness.tally.kills
            harness.kill(rng)
            bar.update(harness.tally.kills - before)
    harness.tally.seconds = time.monotonic() - begin
    return harness.tally


def table(tallies: list[Tally]) -> str:
    """Return the tallies as a Markdown table."""
    head = ["stage", "write points", *FAULTS, "SIGKILLs", "differences", "seconds"]
    rows = [
        [
            tally.stage,
            f"{sum(tally.points.values())} ({', '.join(f'{n} {kind}' for kind, n in sorted(tally.points.items()))})",
            *(str(tally.faults[fault]) for fault in FAULTS),
            str(tally.kills),
            str(len(tally.differences)),
            f"{tally.seconds:.0f}",
        ]
        for tally in tallies
    ]
    rule = ["---", "---", *["---:"] * (len(head) - 2)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows])


def main() -> int:
    """Try all, print the table; 1 if anything differed."""
    parser = cli.parser(__doc__)
    parser.add_argument("--stages", default="", help=f"of {','.join(STAGES)} (default: all)")
    parser.add_argument("--kills", type=int, help="of each stage (default 50, quick 4)")
    parser.add_argument(
        "--quick", action="store_true", help="one point in four, with one fault each, and no training"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--json", type=Path, help="also write what was tried, and every difference, to this file"
    )
    parser.add_argument("--update", type=Path, metavar="FILE", help="also put the table between FILE's marks")
    args = parser.parse_args()
    if args.update:
        kept.around(args.update, MARK)
    names = args.stages.split(",") if args.stages else QUICK if args.quick else tuple(STAGES)
    if unknown := set(names) - set(STAGES):
        raise UserError(f"no stage {', '.join(sorted(unknown))}; expected some of {', '.join(STAGES)}")
    kills = args.kills if args.kills is not None else 4 if args.quick else 50
    os.environ.update(
        OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="", TOKENIZERS_PARALLELISM="false"
    )
    stages.warm_up()
    # No thread in the process that forks, and no lock shared with children that are killed while they hold it.
    tqdm.monitor_interval = 0
    tqdm.set_lock(threading.RLock())
    tallies = []
    with tempfile.TemporaryDirectory(prefix="mindlab-chaos-") as temporary:
        place = Path(temporary)
        os.environ["HF_DATASETS_CACHE"] = str(place / "datasets")
        if (pid := os.fork()) == 0:  # in a child: this process must not start threads
            code = 1
            try:
                stages.make_inputs(place / "inputs")
                code = 0
            finally:
                os._exit(code)
        if os.waitpid(pid, 0)[1] != 0:
            raise UserError("the inputs of the stages could not be made")
        for name in names:
            folder = place / name
            folder.mkdir()
            tallies.append(break_stage(STAGES[name], place / "inputs", folder, kills, args.quick, args.seed))
            if args.json:
                write_json(args.json, [vars(tally) for tally in tallies])
    print(table(tallies))
    if args.update:
        kept.put(args.update, MARK, table(tallies))
    return int(any(tally.differences for tally in tallies))


if __name__ == "__main__":
    cli.run(main)
