"""What the C library does with memory that is freed."""

from __future__ import annotations

import ctypes
import os
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of mallopt(3)."""
LARGE = (2**30, 2**25)
"""Bytes from which on a block is taken from the system for itself. An older glibc takes no more than the second."""
NEVER = -1
SETTINGS = ("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


def keep_freed_memory() -> None:
    """Let this process keep what it freed for the next pass of a network, instead of returning it to the system, which clears
    every page again before it hands it out (docs/performance.md). This is about main memory, not a GPU's.

    Does nothing where the environment sets one of `SETTINGS`, and where there is no glibc.
    """
    if sys.platform != "linux" or any(name in os.environ for name in SETTINGS):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # Setting M_TRIM_THRESHOLD alone would fix the other at 128 KiB, and the system would be asked for every larger block.
    if mallopt and any(mallopt(MMAP_THRESHOLD, size) for size in LARGE):
        mallopt(TRIM_THRESHOLD, NEVER)
