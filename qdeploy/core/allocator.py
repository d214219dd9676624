"""Memory that is freed stays with the process, for work that takes and frees the same large blocks in every step.

glibc gives a large block back to the system when it is freed, and the system hands out and clears new pages when the
next step asks for as much again. benchmarks/training_memory.py measures what that costs.
"""

from __future__ import annotations

import ctypes
import platform

# Parameters of mallopt (malloc.h), and what they are set to, C ints: -1 becomes the largest size there is.
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
NEVER, LARGEST = -1, 2**31 - 1
SPARE = 64 << 20  # bytes by which the heap grows beyond what was asked for


def keep_freed_memory() -> bool:
    """Tell the C library of this process to keep what it frees, blocks of 2 GiB and more excepted.

    False, and nothing is changed, where that is not possible: other libraries than glibc, and older ones, which return
    every block above 32 MiB. Child processes are not told: what they measure is what everybody's process would do.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(MMAP_THRESHOLD, LARGEST) and mallopt(TRIM_THRESHOLD, NEVER) and mallopt(TOP_PAD, SPARE))
