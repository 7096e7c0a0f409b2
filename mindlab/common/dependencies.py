"""What the project stands on: every package with its version, the hash of its file, and its licence."""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from email.message import Message
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from mindlab.common.errors import UserError

REQUIREMENTS, LOCK, LICENCES = Path("requirements.txt"), Path("requirements.lock"), Path("docs/licences.md")
LONGEST = 60  # characters of a licence's name: what is longer is its text
NOT_STATED = "not stated"
HEAD = """\
# requirements.txt with all it draws in, each file by its SHA-256. Made by: python scripts/lock.py
# For Python 3.11 on Linux x86_64, whose wheels these are. Install: pip install --require-hashes -r requirements.lock
"""
LICENCES_HEAD = """\
# Licences of all dependencies

What the packages of requirements.lock say of themselves in their metadata, made by `python scripts/lock.py`. None of
them is part of this repository, which is under the MIT licence.

"""


def pip_report(requirements: Path, installed: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return what pip would install for a requirements file in an empty environment, in the versions of `installed`.

    The entries are those of pip's installation report: ``metadata`` and ``download_info``. Nothing is installed.
    Raises UserError if pip cannot, with its last words.
    """
    with tempfile.TemporaryDirectory() as temporary:
        constraints, report = Path(temporary) / "constraints.txt", Path(temporary) / "report.json"
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in sorted(installed.items())))
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        command += ["--report", str(report), "-r", str(requirements), "-c", str(constraints)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"{requirements}: pip cannot resolve it in the installed versions: {last}")
        return json.loads(report.read_text(encoding="utf-8"))["install"]


def installed_versions() -> dict[str, str]:
    """Return the version of every installed package but this one, by its canonical name."""
    found = {canonicalize_name(one.metadata["Name"]): one.version for one in distributions()}
    return {name: version for name, version in found.items() if name != "mindlab"}


def lock_text(report: Iterable[Mapping[str, Any]]) -> str:
    """Return the hash-locked requirements of an installation report; raise UserError for a file without a hash."""
    lines = []
    for entry in report:
        name, version = canonicalize_name(entry["metadata"]["name"]), entry["metadata"]["version"]
        digest = entry["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256")
        if not digest:
            raise UserError(f"{name} {version}: its index gives no SHA-256; take it from another index")
        lines.append(f"{name}=={version} --hash=sha256:{digest}\n")
    return HEAD + "".join(sorted(lines))


def read_lock(text: str) -> dict[str, tuple[str, str]]:
    """Return version and SHA-256 by package of a lock's text.

    >>> read_lock("# why\\nnumpy==2.4.6 --hash=sha256:" + "0" * 64)["numpy"][0]
    '2.4.6'
    """
    line = re.compile(r"^([a-z0-9-]+)==(\S+) --hash=sha256:([0-9a-f]{64})$", re.MULTILINE)
    return {name: (version, digest) for name, version, digest in line.findall(text)}


def licence_of(metadata: Message) -> str:
    """Return the licence that a package's metadata names, by its expression, else its classifiers, else its field."""
    classifiers = [text for text in metadata.get_all("Classifier", []) if text.startswith("License :: ")]
    named = sorted({text.rsplit(" :: ", 1)[1] for text in classifiers} - {"OSI Approved"})
    lines = (metadata.get("License") or "").strip().splitlines()
    first = lines[0].strip() if lines and len(lines[0].strip()) <= LONGEST else ""
    return metadata.get("License-Expression") or ", ".join(named) or first or NOT_STATED


def licences_text(lock: Mapping[str, tuple[str, str]], licences: Mapping[str, str]) -> str:
    """Return the licences of the packages of a lock as a Markdown document."""
    table = ["| package | version | licence |", "|---|---|---|"]
    table += [
        f"| {name} | {version} | {licences.get(name, NOT_STATED).replace('|', '/')} |"
        for name, (version, _) in sorted(lock.items())
    ]
    return LICENCES_HEAD + "\n".join(table) + "\n"


def installed_licences() -> dict[str, str]:
    """Return the licence of every installed package, by its canonical name."""
    return {canonicalize_name(one.metadata["Name"]): licence_of(one.metadata) for one in distributions()}


def differences(lock: Mapping[str, tuple[str, str]], installed: Mapping[str, str]) -> list[str]:
    """Return the packages of a lock that are installed in another version or not at all."""
    return [
        f"{name}: {version} is locked, {installed.get(name, 'none')} is installed"
        for name, (version, _) in lock.items()
        if installed.get(name) != version
    ]
