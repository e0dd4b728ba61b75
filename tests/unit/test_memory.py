"""Bytes held, with known answers; and what is said when there are no more."""

from __future__ import annotations

import platform
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from expunge.errors import OutOfMemory
from expunge.memory import at_once, held_bytes, peak_memory, whole


@dataclass
class Holder:
    name: str
    things: Any


def test_shared_memory_counts_once_for_the_first_that_holds_it() -> None:
    layer = nn.Linear(3, 5)  # 15 + 5 values
    layer.register_buffer("table", torch.zeros(4, dtype=torch.float16))
    other = torch.zeros(10, dtype=torch.float64)
    found = held_bytes(
        {
            "layer": layer,
            "again": {"weight": layer.weight, "view": layer.weight.detach()[0]},
            "deep": Holder("x", [({"a": other}, "text", None), other[:2]]),
            "state": {layer.weight: {"moment": torch.zeros(3, 5)}},
        }
    )
    assert found == {"layer": 4 * 20 + 2 * 4, "again": 0, "deep": 80, "state": 60}


FREED_AGAIN_AND_AGAIN = """
import resource, sys, torch
from expunge.memory import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def passes(count):
    for _ in range(count):
        blocks = [torch.ones(2_000_000) for _ in range(8)]

if sys.argv[1] == "kept":
    keep_freed_memory()
passes(3)
before = faults()
passes(5)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators keep what they like")
def test_memory_that_is_kept_is_not_cleared_again() -> None:
    def faults(mode: str) -> int:
        call = [sys.executable, "-c", FREED_AGAIN_AND_AGAIN, mode]
        return int(subprocess.run(call, check=True, capture_output=True, text=True).stdout)

    assert faults("kept") < faults("given back") / 2


def test_the_peak_is_at_least_what_is_held() -> None:
    if not torch.cuda.is_available():
        block = torch.ones(2**26)  # 256 MiB, written to
        assert peak_memory() > block.nbytes


def _on_the_cpu() -> None:
    torch.empty(10**15)


def _on_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def _in_python() -> None:
    bytearray(10**15)


@pytest.mark.parametrize("allocate", [_on_the_cpu, _on_a_gpu, _in_python])
@pytest.mark.parametrize(
    ("rows", "room", "way"),
    [
        (9, 8, "4 fit: `expunge resume RUN --batch 4`"),
        (9, 2, "2 fit: `expunge resume RUN --batch 2`"),
        (9, 0, "Fewer do not fit either"),
        (2, 1, "--batch 1"),
        (1, 0, "where there is more memory"),
    ],
)
def test_memory_that_runs_out_is_said_with_the_batch_that_fits(allocate: Any, rows: int, room: int, way: str) -> None:
    def work(n: int) -> None:
        if n > room:
            allocate()

    with (
        pytest.raises(OutOfMemory, match=f"in training, with {rows} at once.*{way}") as raised,
        at_once(rows, "training", work),
    ):
        work(rows)
    assert raised.value.exit_code == 3


@pytest.mark.parametrize("tidying", [lambda: None, _on_a_gpu])
def test_what_could_be_tried_has_the_memory_that_the_failed_work_held(tidying: Callable[[], None]) -> None:
    """Also where memory runs out once more in what the work does at its end."""
    held: list[weakref.ref[Any]] = []

    def hold() -> None:
        block = torch.zeros(10)
        held.append(weakref.ref(block))
        try:
            _on_the_cpu()
        finally:
            tidying()
        del block

    with pytest.raises(OutOfMemory, match="1 fit"), at_once(2, "training", lambda n: _absent(held)):
        hold()


def _absent(held: list[weakref.ref[Any]]) -> None:
    assert [ref() for ref in held] == [None]


def test_work_that_cannot_be_cut_names_no_batch() -> None:
    with (
        pytest.raises(OutOfMemory, match=r"in loading the model\. Nothing is lost.*more memory") as raised,
        whole("loading the model"),
    ):
        _on_a_gpu()
    assert raised.value.exit_code == 3


@pytest.mark.parametrize("said", ["CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"])
def test_a_gpu_says_in_more_than_one_way_that_it_is_full(said: str) -> None:
    with pytest.raises(OutOfMemory, match="in loading the model"), whole("loading the model"):
        raise RuntimeError(said)


@pytest.mark.parametrize("context", [lambda: at_once(2, "training", lambda n: None), lambda: whole("loading")])
def test_what_is_no_lack_of_memory_stays_what_it_is(context: Any) -> None:
    with pytest.raises(RuntimeError, match="shapes"), context():
        raise RuntimeError("shapes do not fit")
