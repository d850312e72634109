"""Freed memory stays in the process, where it is wished and where glibc manages it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource
from artok.allocator import keep_freed_memory
kept = keep_freed_memory()
import numpy
def faults():
    for _ in range(20):
        numpy.ones(1 << 23)  # 64 MiB, which glibc maps and gives back each time
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
faults()
print(int(kept), -faults() + faults())
"""


def run(**environment: str) -> tuple[bool, int]:
    """Whether memory was kept, and the page faults of 20 blocks, of at least 32 (huge) pages each."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=plain | environment)
    kept, faults = map(int, done.stdout.split())
    return bool(kept), faults


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc")
def test_blocks_are_used_again_without_page_faults() -> None:
    kept, faults = run()
    assert kept and faults < 100
    kept, switched_off = run(ARTOK_KEEP_MEMORY="0")
    assert not kept and switched_off > 500
    assert run(MALLOC_ARENA_MAX="2")[0] is False, "who sets malloc by hand keeps that"
