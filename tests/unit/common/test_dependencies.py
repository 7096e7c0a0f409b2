"""The lock holds what requirements.txt asks for, each file by its hash, and every licence is told."""

import hashlib
import re
import subprocess
import sys
import zipfile
from email.message import Message

import pytest
from packaging.utils import canonicalize_name

from mindlab.common.dependencies import (
    NOT_STATED,
    differences,
    installed_licences,
    installed_versions,
    licence_of,
    licences_text,
    lock_text,
    read_lock,
)
from mindlab.common.errors import UserError
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def lock():
    return read_lock((ROOT / "requirements.lock").read_text(encoding="utf-8"))


def test_what_requirements_ask_for_is_locked_in_the_same_version(lock):
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    asked = re.findall(r"^([\w-]+)==(\S+)", text, re.MULTILINE)
    assert len(asked) > 25
    assert {name: lock[canonicalize_name(name)][0] for name, _ in asked} == dict(asked)
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    assert len(lock) == sum(not line.startswith("#") for line in lines) > 150  # each line is read


def test_this_environment_is_the_locked_one(lock):
    assert differences({"numpy": ("0.1", "")}, installed_versions()) == [
        f"numpy: 0.1 is locked, {lock['numpy'][0]} is installed"
    ]
    of_project = {
        name: lock[name] for name in ("torch", "transformers", "llamafactory", "peft", "numpy", "pyarrow")
    }
    assert differences(of_project, installed_versions()) == []


def test_every_installed_package_has_a_row_with_its_licence(lock):
    few = {name: lock[name] for name in ("numpy", "torch")}
    rows = licences_text(few, installed_licences()).splitlines()[-2:]
    assert [row.split(" | ")[:2] for row in rows] == [
        [f"| {name}", version] for name, (version, _) in few.items()
    ]
    assert not any(NOT_STATED in row for row in rows)


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ([("License-Expression", "MIT"), ("License", "x")], "MIT"),
        (
            [("Classifier", "License :: OSI Approved :: BSD License"), ("Classifier", "Topic :: X")],
            "BSD License",
        ),
        ([("License", "Apache 2.0\nmore")], "Apache 2.0"),
        ([("License", "Permission is hereby granted, " * 9)], NOT_STATED),
        ([], NOT_STATED),
    ],
)
def test_where_a_licence_is_stated(fields, licence):
    metadata = Message()
    for key, value in fields:
        metadata[key] = value
    assert licence_of(metadata) == licence


def test_a_file_without_a_hash_is_not_locked():
    entry = {
        "metadata": {"name": "A_b", "version": "1"},
        "download_info": {"archive_info": {"hashes": {"sha256": "0" * 64}}},
    }
    assert read_lock(lock_text([entry])) == {"a-b": ("1", "0" * 64)}
    with pytest.raises(UserError, match="a-b 1: its index gives no SHA-256"):
        lock_text([entry | {"download_info": {}}])


def test_pip_takes_the_locks_form_and_refuses_another_file(tmp_path):
    wheel = tmp_path / "mindlab_probe-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        info = "mindlab_probe-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: mindlab-probe\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    codes = []
    for found in (digest, "0" * 64):
        entry = {
            "metadata": {"name": "mindlab_probe", "version": "1.0"},
            "download_info": {"archive_info": {"hashes": {"sha256": found}}},
        }
        (tmp_path / "lock").write_text(lock_text([entry]))
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--dry-run",
            "--no-index",
            "--find-links",
            str(tmp_path),
        ]
        done = subprocess.run(
            [*command, "--require-hashes", "-r", str(tmp_path / "lock")], capture_output=True, text=True
        )
        codes.append((done.returncode, "DO NOT MATCH THE HASHES" in done.stderr))
    assert codes == [(0, False), (1, True)]
