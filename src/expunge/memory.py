"""What memory work takes: counted tensor by tensor, and as the system saw it."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from expunge.errors import OutOfMemory


@contextmanager
def at_once(rows: int, work: str) -> Iterator[None]:
    """Do `work` on `rows` rows at once; where memory runs out, say so, and with how many rows to go on.

    Raises:
        OutOfMemory: when it does.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _ran_out(error):
            raise
        if rows == 1:
            way = "One row at once is the least. `expunge resume RUN` goes on where there is more memory."
        else:
            way = f"`expunge resume RUN --batch {rows // 2}` goes on with half of that, to the same result up to rounding."
        raise OutOfMemory(f"Memory ran out in {work}, with {rows} at once. Nothing is lost. {way}") from error


def _ran_out(error: MemoryError | RuntimeError) -> bool:
    """Whether an allocation failed. On a CPU torch says so in words alone."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def held_bytes(groups: Mapping[str, Any]) -> dict[str, int]:
    """Bytes of the tensors that each of `groups` holds. Memory that several share is counted for the first alone."""
    seen: set[tuple[torch.device, int]] = set()
    counted = {}
    for name, thing in groups.items():
        counted[name] = 0
        for tensor in tensors_in(thing):
            storage = tensor.untyped_storage()
            place = (storage.device, storage.data_ptr())
            if place not in seen:
                seen.add(place)
                counted[name] += storage.nbytes()
    return counted


def tensors_in(thing: Any) -> Iterator[Tensor]:
    """Every tensor in `thing`: a tensor, a module, or mappings, sequences and dataclasses of these."""
    match thing:
        case Tensor():
            yield thing
        case nn.Module():
            yield from chain(thing.parameters(), thing.buffers())
        case Mapping():
            yield from chain.from_iterable(tensors_in(value) for value in thing.values())
        case list() | tuple():
            yield from chain.from_iterable(tensors_in(value) for value in thing)
        case _ if is_dataclass(thing):
            yield from chain.from_iterable(tensors_in(getattr(thing, field.name)) for field in fields(thing))


def peak_memory() -> int:
    """Most bytes that were resident at once: on the GPU where there is one, else of this process since it started."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says there starts with the size of the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
