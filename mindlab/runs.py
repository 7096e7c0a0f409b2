"""Run folders: what was run, on what, with which result. A number without a manifest is not shown."""

import contextlib
import json
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mindlab.errors import UserError
from mindlab.files import sha256

REQUEST = "request.json"  # what was asked, in the run folder; see `is_started`
PACKAGES = ("torch", "transformers", "peft", "llamafactory", "numpy", "pandas", "scikit-learn")


def provenance() -> dict[str, Any]:
    """Return what a manifest says of every run: command, versions, commit, hardware."""
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "git_commit": _git_commit(),
        "hardware": {"machine": platform.machine(), "cpus": os.cpu_count(), "accelerator": _accelerator()},
    }


def data_hashes(data: str | Path, splits: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of a MIND folder's files, by path; of a zip, or MIND's own folder names, likewise."""
    data = Path(data)
    if data.is_file():
        return {data.as_posix(): sha256(data)}
    wanted = [
        path
        for pattern in ("*.tsv*", "*.zip", "*/*.tsv*")
        for path in data.glob(pattern)
        if any(split in path.relative_to(data).as_posix() for split in splits) or path.parent == data
    ]
    return {path.as_posix(): sha256(path) for path in sorted(wanted)}


def reset_peak_memory() -> None:
    """Let `peak_memory_mb` begin anew, where the system can (Linux), so that one run's peak is not the next one's."""
    with contextlib.suppress(OSError):  # then the peak is that of the process so far
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory_mb() -> float:
    """Return the largest resident memory of this process since `reset_peak_memory`, in MiB."""
    with contextlib.suppress(OSError):
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"), re.M)
        if found:
            return int(found[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def is_started(run: Path, asked: Mapping[str, Any]) -> bool:
    """Return whether the run folder was begun with the request `asked`; False if none was.

    Raises UserError if it was begun with another.
    """
    path = run / REQUEST
    if not path.exists():
        return False
    # Through JSON, so that it compares equal to what is read back.
    if json.loads(path.read_text(encoding="utf-8")) != json.loads(json.dumps(asked)):
        raise UserError(f"{run} holds another run (its {REQUEST} differs); choose another --out or delete it")
    return True


def read_manifest(run: Path) -> dict[str, Any]:
    """Return the manifest of a run folder, {} if it has none; raise UserError if it is no JSON object."""
    path = run / "manifest.json"
    if not path.is_file():
        return {}
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); make the run again") from None
    if not isinstance(manifest, dict):
        raise UserError(f"{path}: holds a JSON {type(manifest).__name__}, expected an object")
    return manifest


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _accelerator() -> str | None:
    torch = sys.modules.get("torch")  # importing it takes seconds; a run that used a GPU has done so
    return torch.cuda.get_device_name(0) if torch is not None and torch.cuda.is_available() else None
