"""Training in the arithmetic that the machine is fast in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from expunge.hardware import has_bfloat16


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 where it is computed in hardware, else float32."""
    return torch.autocast(device.type, torch.bfloat16) if has_bfloat16(device) else nullcontext()


@contextmanager
def fast_attention(device: torch.device) -> Iterator[None]:
    """On a CPU the backward pass of fused attention costs a quarter of a training step, plain products next to nothing."""
    with sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext():
        yield
