"""Bad input ends in a correct parse or in one clear line: a bounded run, and what longer runs found.

The long run: ``python -m tests.torture.fuzz --n 20000 --seed 1``, or ``pytest -m fuzz``.
"""

import json
import subprocess
import sys

import pytest

from mindlab.common.errors import UserError
from tests.torture.fuzz import harness, huge
from tests.torture.fuzz.found import FOUND
from tests.torture.fuzz.targets import TARGETS, WrongParse, check_line

SEED = 20191115


def judged(tallies):
    return [
        f"{bad['kind']}: --show {name} {SEED} {bad['number']}\n{bad['said']}"
        for name, t in tallies.items()
        for bad in t.bad
    ]


def test_some_hundred_files_end_in_a_parse_or_in_one_line():
    tallies = harness.fuzz(400, SEED, TARGETS)
    assert judged(tallies) == []
    counts = {name: tally.counts for name, tally in tallies.items()}
    assert sum(sum(count.values()) for count in counts.values()) == pytest.approx(400, abs=10)
    # A check of a folder names faults and refuses nothing.
    assert all(
        count["parsed"] and (count["refused"] or name == "mind-check") for name, count in counts.items()
    ), counts


@pytest.mark.fuzz
def test_twenty_thousand_files_end_in_a_parse_or_in_one_line():
    assert judged(harness.fuzz(20_000, SEED, TARGETS)) == []


@pytest.mark.fuzz
def test_huge_files_end_in_one_line_below_a_gigabyte():
    assert [one for one in huge.run_all() if not one.is_good] == []


@pytest.mark.parametrize("name", TARGETS)
def test_the_valid_files_are_read(name, tmp_path):
    harness.write_files(tmp_path, harness.case_files(name, SEED, 0))
    assert harness.outcome(TARGETS[name].read, tmp_path) == ("parsed", "")


@pytest.mark.parametrize("found", FOUND, ids=lambda found: f"{found.target}: {found.why}")
def test_what_was_found_stays_mended(found, tmp_path):
    harness.write_files(tmp_path, TARGETS[found.target].files() | found.files)
    kind, said = harness.outcome(TARGETS[found.target].read, tmp_path)
    assert (kind, found.says or "") == ("refused" if found.says else "parsed", found.says or ""), said
    assert (found.says or "") in said


def sample_of_scripts():
    """A few mutated inputs for every script, and one that it must refuse."""
    for name, target in TARGETS.items():
        if target.command:
            yield from ((name, number) for number in (0, 3))


@pytest.mark.parametrize(("name", "number"), sample_of_scripts())
def test_the_real_scripts_end_with_0_1_or_2_and_no_traceback(name, number, tmp_path):
    harness.write_files(tmp_path, harness.case_files(name, SEED, number))
    script, *words = (word.replace("{}", str(tmp_path)) for word in TARGETS[name].command)
    run = subprocess.run(
        [sys.executable, f"scripts/{script}", *words],
        cwd=harness.ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode in (0, 1, 2), run.stderr
    assert "Traceback" not in run.stderr
    errors = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == (run.returncode == 2), run.stderr
    if not number:
        assert run.returncode in (0, 1)


@pytest.fixture
def planted(monkeypatch):
    """A user that fails in each of the ways there are, told by its file; the harness must see every one."""

    def read(folder):
        word = (folder / "a.txt").read_text()
        if word == "traceback":
            raise KeyError("x")
        if word == "wrong":
            raise WrongParse("x")
        if word == "two lines":
            raise UserError("one", "two")
        if word == "memory":
            raise MemoryError
        if word == "exit":
            sys.exit(3)
        if word == "refused":
            raise UserError("one")

    return read


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("traceback", "traceback"), ("wrong", "wrong"), ("two lines", "wrong"), ("memory", "memory"), ("exit", "traceback"),
        ("refused", "refused"), ("", "parsed"),
    ],
)  # fmt: skip
def test_the_harness_tells_outcomes_apart(planted, word, kind, tmp_path):
    (tmp_path / "a.txt").write_text(word)
    assert harness.outcome(planted, tmp_path)[0] == kind


CULPRIT = """
import os, sys, time, signal
from tests.torture.fuzz import harness, targets
def read(folder):
    number = int((folder / "number").read_text())
    if number == 1: os.kill(os.getpid(), signal.SIGSEGV)
    if number == 2: time.sleep(60)
    if number == 3: bytearray(1_200_000_000)[::4096] = b"x" * 292969
targets.TARGETS = {"culprit": targets.Target("culprit", dict, (), read, 1)}
harness.case_files = lambda name, seed, number: {"number": str(number).encode()}
harness.serve(sys.stdin, sys.stdout)
"""


def test_a_crash_a_hang_and_a_full_memory_are_seen(monkeypatch):
    monkeypatch.setattr(harness, "SECONDS", 10)  # a worker starts within it, on a busy machine too
    monkeypatch.setattr(harness, "WORKER", ["-c", CULPRIT])
    worker = harness.Worker()
    try:
        found = [worker.ask(("culprit", 0, number)) for number in (0, 1, 2, 3, 4)]
    finally:
        worker.stop()
    assert [one["kind"] for one in found] == ["parsed", "crash", "hang", "memory", "parsed"]
    assert "exit code -11" in found[1]["said"]


def test_a_misreading_of_mind_is_told_by_the_naive_reader(tmp_path, monkeypatch):
    from mindlab.data import mind
    from tests.torture.fuzz import targets

    harness.write_files(tmp_path, harness.case_files("mind", SEED, 0))

    def spoilt(folder, missing):
        found = mind.read_mind(folder, missing=missing)
        found.splits["dev"].labels[0] ^= 1
        return found

    monkeypatch.setattr(targets, "read_mind", spoilt)
    assert harness.outcome(TARGETS["mind"].read, tmp_path)[0] == "wrong"


def test_a_case_is_a_function_of_its_seed_and_number():
    one, again, other = (harness.case_files("alpaca", seed, 5) for seed in (1, 1, 2))
    assert one == again != other


@pytest.mark.parametrize(
    "text", ["a\x1b[31mb", "a\nb", "a\rb", "a\u2028b", "a\ud800b", "a\0b", "a" * 100_000]
)
def test_an_error_is_one_line_that_a_terminal_can_show(text):
    check_line(str(UserError(text)))
    with pytest.raises(WrongParse):
        check_line(text)


def test_json_of_the_table_adds_up():
    tally = harness.Tally()
    for kind in ("parsed", "hang"):
        harness.add(tally, {"kind": kind, "seconds": 1.0, "added": 2.0, "peak": 3.0}, 7)
    text = harness.table({"x": tally})
    assert "| all | 2 | 1 | 0 | 0 | 0 | 1 |" in text
    assert json.loads(json.dumps(tally.bad))[0]["number"] == 7
