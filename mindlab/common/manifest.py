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

from mindlab.common.errors import UserError
from mindlab.common.files import read_json, sha256

SECRET_NAMES = re.compile(r"(TOKEN|API_?KEY|SECRET|PASSWORD)S?$", re.I)  # of environment variables
# Tokens of Hugging Face, OpenAI and their like, and what follows an option or a header that takes one.
SECRETS = re.compile(
    r"(?P<head>Bearer |(?:token|api[_-]?key|secret|password)=|--[\w-]*(?:token|key|secret|password)[ =])?"
    r"(?(head)[A-Za-z0-9_][^\s\"']{15,}|\b(?:hf_|sk-|ms-)[A-Za-z0-9_-]{16,})",
    re.I,
)
HIDDEN = "[secret]"
REQUEST = "request.json"  # what was asked, in the run folder; see `is_started`
PACKAGES = ("torch", "transformers", "peft", "llamafactory", "numpy", "pandas", "scikit-learn")


def provenance() -> dict[str, Any]:
    """Return what a manifest says of every run: command, versions, commit, hardware."""
    return {
        "command": without_secrets(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]])),
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "git_commit": _git_commit(),
        "hardware": {"machine": platform.machine(), "cpus": os.cpu_count(), "accelerator": _accelerator()},
    }


def without_secrets(text: str) -> str:
    """Return `text` without tokens: the values of variables such as HF_TOKEN or API_KEY, and what looks like one.

    >>> without_secrets("predict.py --header hf_abcdefghijklmnopqrst --limit 3")
    'predict.py --header [secret] --limit 3'
    """
    known = [value for name, value in os.environ.items() if SECRET_NAMES.search(name) and len(value) >= 8]
    for value in sorted(known, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return SECRETS.sub(lambda found: (found["head"] or "") + HIDDEN, text)


def check_same_data(manifests: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise `UserError` if two runs (a manifest by name) were made from different contents of one data file.

    Files are told apart by folder and name, ``dev/behaviors.tsv``: so a row of the synthetic sample and one of
    MIND do not come into one table, wherever either lies. A run without hashes is compared with none.
    """
    seen: dict[str, tuple[str, str]] = {}
    for name, manifest in manifests.items():
        for path, found in (manifest.get("inputs_sha256") or {}).items():
            file = "/".join(Path(path).parts[-2:])
            if not re.search(r"\.(tsv|zip)(\.gz)?$", file):
                continue
            other, expected = seen.setdefault(file, (name, found))
            if found != expected:
                raise UserError(
                    f"{path}: {name} read other contents than {other}, and rows of different data do not go into one "
                    "table; make both runs with the same --data"
                )


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
    if read_json(path, f"choose another --out or delete {run}") != json.loads(json.dumps(asked)):
        raise UserError(f"{run} holds another run (its {REQUEST} differs); choose another --out or delete it")
    return True


def read_manifest(run: Path) -> dict[str, Any]:
    """Return the manifest of a run folder, {} if it has none; raise UserError if it is no JSON object."""
    path = run / "manifest.json"
    if not path.is_file():
        return {}
    manifest = read_json(path, "make the run again")
    hashes = manifest.get("inputs_sha256") or {}
    if not isinstance(hashes, dict) or not all(isinstance(value, str) for value in hashes.values()):
        raise UserError(f"{path}: inputs_sha256 is no object of hashes by file; make the run again")
    if not isinstance(manifest.get("request") or {}, dict):
        raise UserError(f"{path}: request is no object; make the run again")
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
