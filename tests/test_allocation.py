"""Memory that a process frees is there for its next tensors."""

import os
import platform
import subprocess
import sys

import pytest

from .conftest import ROOT

FAULTS = """
import resource
from common.allocation import keep_freed_memory
kept = keep_freed_memory()

def touch():
    block = bytearray(24 << 20)
    block[::4096] = bytes(len(block) // 4096)

touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    touch()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
"""Counts the pages that the system has to provide for blocks like one that has been freed."""
PAGES = 8 * (24 << 20) // 4096


def faults(**variables):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))} | variables
    ended = subprocess.run(
        [sys.executable, "-c", FAULTS], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    kept, count = ended.stdout.split()
    return kept == "True", int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_freed_memory_is_used_again_unless_the_user_has_chosen_otherwise():
    kept, count = faults()
    assert kept and count < PAGES / 10
    for variables in ({"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}):
        kept, _ = faults(**variables)
        assert not kept
