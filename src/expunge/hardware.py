"""What the machine can do: its device, and the precision in which it is fast."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from expunge.errors import ExpungeError

Precision = Literal["auto", "fp32", "bf16", "fp16"]
"""Arithmetic of network evaluations; parameters and optimizer stay in fp32."""


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is computed in hardware. Most CPUs emulate it, some twenty times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    processor = Path("/proc/cpuinfo")
    flags = set(processor.read_text().split()) if processor.exists() else set[str]()
    return bool(flags & {"avx512_bf16", "amx_bf16"})


def settled(precision: Precision) -> Precision:
    """What "auto" means on this machine: bf16 where it is computed in hardware, else fp32. Others mean themselves."""
    if precision != "auto":
        return precision
    return "bf16" if has_bfloat16(best_device()) else "fp32"


def compute_dtype(precision: Precision) -> torch.dtype:
    """The dtype of network evaluations.

    Raises:
        ExpungeError: for fp16 without a GPU.
    """
    if precision == "fp16" and not torch.cuda.is_available():
        raise ExpungeError("precision fp16 needs a CUDA GPU, and none is here. Use fp32 or bf16.")
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[settled(precision)]
