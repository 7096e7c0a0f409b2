"""Files out of all proportion, given to the real scripts: one line of 500 MB, a history of ten million news.

Each is written, read by a process of its own, measured, and removed again: 500 MB of disk at a time.
"""

import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mindlab.evaluation import predictions
from tests.torture.fuzz.harness import ROOT, write_files
from tests.torture.fuzz.targets import (
    adapter_files,
    alpaca_files,
    build_files,
    config_files,
    mind_files,
    run_files,
)

MOST_MB = 1000  # of the whole process, its libraries among it
SECONDS = 120
LINE = 500_000_000  # bytes
IDS = 10_000_000
BLOCK = 1 << 20


@dataclass(frozen=True)
class Huge:
    """One case: `make(folder, scale)` writes it, `command` reads it ({} is the folder)."""

    name: str
    make: Callable[[Path, float], None]
    command: tuple[str, ...]
    is_accepted: bool = False  # it is only large, and read like any other


@dataclass(frozen=True)
class Measured:
    """What a process did with a huge file."""

    name: str
    code: int
    seconds: float
    peak_mb: float
    said: str
    is_good: bool


def grow(path: Path, head: bytes, piece: bytes, tail: bytes, size: float, is_packed: bool = False) -> None:
    """Write `piece` again and again, to about `size` bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    block = piece * (BLOCK // len(piece) or 1)
    with gzip.open(path, "wb", 1) if is_packed else path.open("wb") as file:
        file.write(head)
        for _ in range(int(size / len(block)) + 1):
            file.write(block)
        file.write(tail)


def mind_with(name: str, head: bytes, piece: bytes, tail: bytes, size: int) -> Callable[[Path, float], None]:
    def make(folder: Path, scale: float) -> None:
        write_files(folder, mind_files())
        plain = folder / name.removesuffix(".gz")
        plain.unlink()
        grow(folder / name, head, piece, tail, size * scale, name.endswith(".gz"))

    return make


def files_with(
    files: Callable[[], dict[str, bytes]], name: str, head: bytes, piece: bytes, tail: bytes, size: int
) -> Callable[[Path, float], None]:
    def make(folder: Path, scale: float) -> None:
        write_files(folder, files())
        grow(folder / name, head, piece, tail, size * scale)

    return make


def many_rows(folder: Path, scale: float) -> None:
    """A hundred million equal rows in some kilobytes."""
    write_files(folder, run_files())
    path = folder / "tfidf" / "predictions.parquet"
    row = pq.ParquetFile(path).read().slice(0, 1)
    table = row.take(pa.array([0] * 1_000_000, pa.int32()))
    with pq.ParquetWriter(path, predictions.SCHEMA, compression="zstd") as writer:
        for _ in range(int(100 * scale) + 1):
            writer.write_table(table)


def many_records(folder: Path, scale: float) -> None:
    """500 MB of records, no two alike, in one line."""
    write_files(folder, alpaca_files())
    with (folder / "my_train.json").open("w") as file:
        for i in range(int(LINE * scale / 700)):
            words = f"{i * 7919 % 10**9:09d} of some words that stand in it"
            file.write(
                f'{", " if i else "["}{{"system": "You recommend news.", "instruction": "Say whether the reader clicks.", '
                f'"input": "Clicked: \\"One {words}\\", \\"Two {words}\\", \\"Three {words}\\", \\"Four {words}\\", '
                f'\\"Five {words}\\", \\"Six {words}\\"\\nLikes: \\"Seven {words}\\"\\nDislikes: {"x" * 100}\\nQuestion: '
                f'\\"Eight {words}\\"?", "output": "{"Yes." if i % 5 else "No."}"}}'
            )
        file.write("]")


def one_answer(folder: Path, scale: float) -> None:
    """One generated text of 500 MB, packed small."""
    write_files(folder, run_files())
    path = folder / "tfidf" / "predictions.parquet"
    table = pq.ParquetFile(path).read()
    answers = pa.array(["x" * int(LINE * scale), *["No."] * (len(table) - 1)], pa.string())
    at = table.schema.get_field_index("answer")
    pq.write_table(table.set_column(at, table.schema.field(at), answers), path, compression="zstd")


IMPRESSION = b"1\tU1\t11/10/2019 2:01:00 PM\t"
# Between this process and the measured one stands a small one: a child's peak begins at the size of its parent.
LAUNCH = """
import json, os, subprocess, sys, time
with open(os.environ["OUT"], "wb") as out:
    process = subprocess.Popen(sys.argv[2:], stdout=out, stderr=out)
until = time.monotonic() + float(sys.argv[1])
while not (found := os.wait4(process.pid, os.WNOHANG))[0]:
    if time.monotonic() > until:
        process.kill()
    time.sleep(0.02)
print(json.dumps([os.waitstatus_to_exitcode(found[1]), found[2].ru_maxrss / 1024]))
"""
AUDIT, EVALUATE = ("scripts/audit.py", "{}"), ("scripts/evaluate.py", "{}/tfidf")
LOAD = "import sys; from mindlab.common import cli; from mindlab.finetune import factory; cli.run(lambda: factory.{}(sys.argv[1]) and 0)"

CASES = (
    Huge("news.tsv, one line of 500 MB", mind_with("train/news.tsv", b"", b"x" * 1000, b"", LINE), AUDIT),
    Huge("news.tsv, one line of 500 MB of columns", mind_with("train/news.tsv", b"", b"N1\tnews\t", b"\n", LINE), AUDIT),
    Huge("news.tsv.gz, one line of 500 MB", mind_with("train/news.tsv.gz", b"", b"x" * 1000, b"\n", LINE), AUDIT),
    Huge("behaviors.tsv, a history of 10 million ids", mind_with("train/behaviors.tsv", IMPRESSION, b"N1 N23 ", b"\tN1-0 N2-1\n", IDS // 2 * 7), AUDIT),
    Huge("behaviors.tsv, 10 million candidates", mind_with("train/behaviors.tsv", IMPRESSION + b"N1\t", b"N1-0 N2-1 ", b"N3-0\n", IDS // 2 * 10), AUDIT),
    Huge("behaviors.tsv, 500 MB of NUL", mind_with("train/behaviors.tsv", b"", bytes(1000), b"", LINE), AUDIT),
    Huge("Alpaca JSON, one text of 500 MB", files_with(alpaca_files, "my_train.json", b'[{"instruction": "a", "output": "b", "input": "', b"x" * 1000, b'"}]', LINE), AUDIT),
    Huge("Alpaca JSON, 500 MB of [", files_with(alpaca_files, "my_train.json", b"", b"[" * 1000, b"", LINE), AUDIT),
    Huge("Alpaca JSON, one number of 500 MB", files_with(alpaca_files, "my_train.json", b"[", b"1" * 1000, b"]", LINE), AUDIT),
    Huge("Alpaca JSON lines, one line of 500 MB", files_with(alpaca_files, "other.jsonl", b"{", b"x" * 1000, b"", LINE), AUDIT),
    Huge("Alpaca JSON, 500 MB of records in one line", many_records, AUDIT, True),
    Huge("dataset_info.json, 500 MB", files_with(build_files, "out/dataset_info.json", b'{"a": "', b"x" * 1000, b'"}', LINE), ("scripts/build_dataset.py", "--data", "{}/mind", "--protocol", "seed", "--format", "likes_dislikes", "--out", "{}/out")),
    Huge("manifest.json, 500 MB", files_with(run_files, "tfidf/manifest.json", b'{"a": "', b"x" * 1000, b'"}', LINE), EVALUATE),
    Huge("predictions, 100 million equal rows", many_rows, EVALUATE),
    Huge("predictions, one answer of 500 MB", one_answer, EVALUATE),
    Huge("predictions, 500 MB of another file", files_with(run_files, "tfidf/predictions.parquet", b"PAR1", b"\x15" * 1000, b"PAR1", LINE), EVALUATE),
    Huge("headlines, one line of 500 MB", files_with(mind_files, "history.txt", b"", b"x" * 1000, b"", LINE), ("scripts/rank.py", "--history", "{}/history.txt", "--candidates", "{}/history.txt", "--model", "none")),
    Huge("a YAML of 500 MB", files_with(config_files, "train.yaml", b"a: ", b"x" * 1000, b"\n", LINE), ("-c", LOAD.format("load"), "{}/train.yaml")),
    Huge("trainer_log.jsonl, one line of 500 MB", files_with(adapter_files, "adapter/trainer_log.jsonl", b'{"a": "', b"x" * 1000, b'"}\n', LINE), ("-c", LOAD.format("read_loss"), "{}/adapter")),
    Huge("mindlab_run.json, 500 MB", files_with(adapter_files, "adapter/mindlab_run.json", b'{"a": "', b"x" * 1000, b'"}\n', LINE), ("-c", LOAD.format("settings_of"), "{}/adapter")),
)  # fmt: skip


def run_all(scale: float = 1.0) -> Iterator[Measured]:
    """Yield what becomes of each case, its sizes times `scale`."""
    for case in CASES:
        with tempfile.TemporaryDirectory(prefix="fuzz-huge-") as text:
            case.make(Path(text), scale)
            yield measure(case, Path(text))


def measure(case: Huge, folder: Path) -> Measured:
    """Run a case's command; its peak memory is what the system counted for the process."""
    words = [word.replace("{}", str(folder)) for word in case.command]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    with tempfile.NamedTemporaryFile() as out:
        begin = time.perf_counter()
        launch = [sys.executable, "-c", LAUNCH, str(SECONDS), sys.executable, *words]
        reply = subprocess.run(
            launch, cwd=ROOT, env=env | {"OUT": out.name}, capture_output=True, text=True, check=True
        )
        code, peak = json.loads(reply.stdout)
        seconds = time.perf_counter() - begin
        out.seek(0)
        said = out.read().decode("utf-8", "replace").replace(str(folder), "")
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    is_good = "Traceback" not in said and peak < MOST_MB
    is_good &= code in (0, 1) if case.is_accepted else code == 2 and len(errors) == 1
    return Measured(case.name, code, seconds, peak, errors[0] if errors else said[-1500:], is_good)


def table(found: list[Measured]) -> str:
    """Return the measurements as Markdown."""
    lines = ["| file | exit code | seconds | peak memory, MB |", "|---|---:|---:|---:|"]
    lines += [f"| {one.name} | {one.code} | {one.seconds:.1f} | {one.peak_mb:.0f} |" for one in found]
    return "\n".join(lines)
