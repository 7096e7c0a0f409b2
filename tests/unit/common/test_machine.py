"""What this computer has, and what its allocator is told."""

import platform
import subprocess
import sys

import pytest

from mindlab.common import machine

FAULTS = """
import resource, sys
import numpy as np
from mindlab.common.machine import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
np.ones(500_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    np.ones(500_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_used_again_and_not_taken_anew():
    faults = {
        how: int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, check=True).stdout)
        for how in ("keep", "plain")
    }
    assert faults["keep"] < 0.1 * faults["plain"]


def test_another_allocator_is_left_alone(monkeypatch):
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda _: object())
    assert machine.keep_freed_memory() is False
