"""What the machine can do: its device, and the precision in which it is fast."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, cast

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

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
    flags = set(processor.read_text("utf-8").split()) if processor.exists() else set[str]()
    return bool(flags & {"avx512_bf16", "amx_bf16"})


def processes() -> PartialState:
    """The processes of this launch, and this one's place and device among them; without `accelerate launch` it is alone.

    They wait for each other as long as it takes the first one to measure a step.
    """
    if "LOCAL_RANK" not in os.environ:
        return PartialState()
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=7))


PLAIN_ATTENTION_POSITIONS = 1024
"""Latents of no more positions than this are trained with plain attention on a CPU."""


@contextmanager
def trained_attention(denoiser: nn.Module, positions: int) -> Iterator[None]:
    """Inside the block the denoiser's attention is what is quick to train, for latents of `positions` positions each.

    On a CPU the backward pass of the fused kernel takes longer than that of plain products, which hold the matrix of all
    pairs of positions: that is little for small latents, and gigabytes for those of a full-size model. Those of Diffusers'
    first processor are the fewest; a network whose attention has more than that one could do gets torch's.
    """
    from diffusers.models import attention_processor as diffusers  # takes seconds, which commands without a model spare

    fused = getattr(denoiser, "attn_processors", {})
    if next(denoiser.parameters()).device.type != "cpu" or positions > PLAIN_ATTENTION_POSITIONS:
        yield
    elif fused and all(type(processor) is diffusers.AttnProcessor2_0 for processor in fused.values()):
        network = cast(Any, denoiser)
        network.set_attn_processor(diffusers.AttnProcessor())
        try:
            yield
        finally:
            network.set_attn_processor(fused)
    else:
        with sdpa_kernel(SDPBackend.MATH):
            yield


def quick_layout(device: torch.device) -> torch.memory_format:
    """The memory layout in which a denoiser's convolutions are quick: channels last on a CPU (docs/performance.md)."""
    return torch.channels_last if device.type == "cpu" else torch.contiguous_format


def normalized_quickly(norm: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
    """A hook before a group norm: channels last in bfloat16 on a CPU PyTorch takes many times longer for one than for a copy
    into the usual layout and the norm of that. The values are the same."""
    (x,) = inputs
    return (x.contiguous(),) if x.device.type == "cpu" and x.dtype == torch.bfloat16 else None


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[None]:
    """Network evaluations inside the block are computed in `precision`; raises as `compute_dtype` does."""
    dtype = compute_dtype(precision)
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


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
