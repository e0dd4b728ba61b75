"""Memory that is freed stays with the process where nothing else is said."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from expunge.allocator import SETTINGS

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc")

FAULTS = """
import resource
import torch
from expunge.allocator import keep_freed_memory
if {keep}:
    keep_freed_memory()
torch.ones(2**24)  # 64 MiB, more than glibc keeps of itself
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: bool, **said: str) -> int:
    """How often the system handed out pages for eight blocks, each freed before the next."""
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS} | said
    script = FAULTS.format(keep=keep)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_freed_memory_is_not_asked_for_again() -> None:
    assert faults(keep=True) < faults(keep=False) / 5


@pytest.mark.parametrize(
    "said",
    [
        {"MALLOC_MMAP_THRESHOLD_": "65536"},
        {"MALLOC_TRIM_THRESHOLD_": "65536"},
        {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=65536"},
    ],
    ids=lambda said: next(iter(said)),
)
def test_what_the_environment_says_is_left(said: dict[str, str]) -> None:
    assert faults(keep=True, **said) == pytest.approx(faults(keep=False, **said), rel=0.1)
