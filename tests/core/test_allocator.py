"""Memory that is freed stays with the process that asked for it, and with no other."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from qdeploy.core.allocator import keep_freed_memory

STEPS, BLOCK = 10, 48 << 20

# What a training step does to the C library: large blocks are taken, written and freed, again and again.
SCRIPT = f"""
import ctypes, resource, subprocess, sys
from qdeploy.core.allocator import keep_freed_memory

def step():
    blocks = [(ctypes.c_char * {BLOCK})() for _ in range(2)]
    for block in blocks:
        ctypes.memset(block, 1, {BLOCK})

how, program = sys.argv[1:]
if how != "given back":
    assert keep_freed_memory()
if how == "in a child":
    raise SystemExit(subprocess.run([sys.executable, "-c", program, "given back", program]).returncode)
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({STEPS}):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """Pages that the system handed out during ten steps, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, how, SCRIPT], check=True, capture_output=True, text=True)
    return int(done.stdout)


def is_able() -> bool:
    """glibc 2.35 and later: before, blocks above 32 MiB were always given back."""
    name, version = platform.libc_ver()
    return name == "glibc" and tuple(map(int, version.split("."))) >= (2, 35)


@pytest.mark.skipif(not is_able(), reason="the C library is not glibc 2.35 or later")
def test_freed_blocks_are_used_again() -> None:
    pages = 2 * STEPS * BLOCK // (2 << 20)  # at least: of 2 MiB, where the system has such large ones at hand
    assert faults("given back") >= pages
    assert faults("kept") < pages / 10
    assert faults("in a child") >= pages


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
