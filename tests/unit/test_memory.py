"""Bytes held, with known answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from expunge.memory import held_bytes, peak_memory


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
