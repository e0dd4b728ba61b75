"""Bytes held, with known answers; and what is said when there are no more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from expunge.errors import OutOfMemory
from expunge.memory import at_once, held_bytes, peak_memory


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
@pytest.mark.parametrize(("rows", "way"), [(9, "--batch 4"), (2, "--batch 1"), (1, "where there is more memory")])
def test_memory_that_runs_out_is_said_with_a_smaller_batch(allocate: Any, rows: int, way: str) -> None:
    with (
        pytest.raises(OutOfMemory, match=f"in training, with {rows} at once.*{way}") as raised,
        at_once(rows, "training"),
    ):
        allocate()
    assert raised.value.exit_code == 3


def test_what_is_no_lack_of_memory_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="shapes"), at_once(2, "training"):
        raise RuntimeError("shapes do not fit")
