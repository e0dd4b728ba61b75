"""What the machine can do: its device, and the precision in which it is fast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is computed in hardware. Most CPUs emulate it, some twenty times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    processor = Path("/proc/cpuinfo")
    flags = set(processor.read_text().split()) if processor.exists() else set[str]()
    return bool(flags & {"avx512_bf16", "amx_bf16"})


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 where it is computed in hardware, else float32."""
    return torch.autocast(device.type, torch.bfloat16) if has_bfloat16(device) else nullcontext()


@contextmanager
def fast_attention(device: torch.device) -> Iterator[None]:
    """On a CPU the backward pass of fused attention costs a quarter of a training step, plain products next to nothing."""
    with sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext():
        yield
