"""What every benchmark shares: a side in a process of its own, and results that docs/performance.md is made of."""

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindlab.common.files import write_json
from mindlab.common.manifest import provenance

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One comparison: how many times better than the other side, as the median of paired rounds."""

    what: str  # "build `seed`"
    size: str  # "156,965 impressions"
    other: str  # the other side, in words
    ratio: float
    low: float  # the smallest ratio of a round
    high: float
    rounds: int
    target: float | None  # the ratio asked for, None where none was
    ours: str  # our own figure with its unit, "3.1 s"
    theirs: str
    peak_mb: float | None = None  # ours, MiB
    other_peak_mb: float | None = None
    note: str = ""  # what was checked to be equal, or why a target is missed


def row(what: str, size: str, other: str, ratios: Sequence[float], target: float | None, **more: Any) -> Row:
    """Return the row of paired `ratios`, one a round."""
    low, middle, high = (float(f"{value:.3g}") for value in np.percentile(ratios, [0, 50, 100]))
    return Row(what, size, other, middle, low, high, len(ratios), target, **more)


def report(row: Row) -> str:
    """Return a row as one line to print."""
    target = "" if row.target is None else f", target {row.target:g}"
    return (
        f"{row.what}, {row.size}: {row.ratio:g} times ({row.low:g} to {row.high:g}{target}) against "
        f"{row.other}: {row.ours} against {row.theirs}" + f"; {row.note}" * bool(row.note)
    )


def write(name: str, rows: Sequence[Row], **details: Any) -> Path:
    """Print the rows and keep them in ``results/<name>.json``; `details` hold what plots and profiles show."""
    for one in rows:
        print(report(one))
    path = RESULTS / f"{name}.json"
    write_json(path, {"machine": machine(), "rows": [asdict(one) for one in rows], **details})
    print(path)
    return path


def machine() -> dict[str, Any]:
    """Return what the numbers were measured on."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", info.read_text(), re.M) if info.exists() else None
    return {
        "processor": found[1] if found else platform.processor(),
        "cores": cores,
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "measured": time.strftime("%Y-%m-%d", time.gmtime()),
        **{key: provenance()[key] for key in ("command", "python", "packages", "git_commit")},
    }


def in_process(module: str, *words: str | Path) -> dict[str, Any]:
    """Run a benchmark in a new process, so that memory is its own; return the JSON that it prints last."""
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *map(str, words)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"{' '.join(map(str, words))}: {found}", file=sys.stderr)
    return found
