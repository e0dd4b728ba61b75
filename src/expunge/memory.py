"""What memory work takes: counted tensor by tensor, and as the system saw it."""

from __future__ import annotations

import ctypes
import platform
import resource
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from expunge.errors import ExpungeError, OutOfMemory

_KEPT = 1 << 30
"""Free bytes at the end of the heap from which on they are given back after all. Gaps between used blocks always stay."""
_BLOCK = 32 << 20
"""Bytes; larger blocks still come from the system. The most that every glibc takes."""


def keep_freed_memory() -> None:
    """Let this process use again what its tensors free. Otherwise glibc gives it back to the system, which clears all its
    pages when the next pass of a network asks for them."""
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(trim_threshold, _KEPT)
        mallopt(mmap_threshold, _BLOCK)


@contextmanager
def at_once(rows: int, work: str, sample: Callable[[int], object]) -> Iterator[None]:
    """Do `work` on `rows` rows at once; where memory runs out, say so, and with how many rows to go on.

    Args:
        sample: does a piece of the work that takes as much memory, on as many rows as it is told. It is tried with half of the
            rows, and half of that, until it fits.

    Raises:
        OutOfMemory: when memory runs out.
    """

    def sentence() -> str:
        fewer = next((n for n in _halves(rows) if _fits(partial(sample, n))), None)
        if fewer is None:
            way = "Fewer do not fit either. `expunge resume RUN` goes on where there is more memory."
        else:
            way = f"{fewer} fit: `expunge resume RUN --batch {fewer}` goes on, to the same result up to rounding."
        return f"Memory ran out in {work}, with {rows} at once. Nothing is lost. {way}"

    with _allocating(sentence):
        yield


@contextmanager
def whole(work: str) -> Iterator[None]:
    """Do `work` that cannot be cut into parts.

    Raises:
        OutOfMemory: when memory runs out.
    """
    way = "`expunge resume RUN` goes on where there is more memory."
    with _allocating(lambda: f"Memory ran out in {work}. Nothing is lost. {way}"):
        yield


@contextmanager
def room_for(work: str, setting: str = "") -> Iterator[None]:
    """Try a piece of `work` that is going to be done as often as it takes.

    Args:
        setting: what is to be lowered where there is no room, if anything helps.

    Raises:
        ExpungeError: when memory runs out.
    """
    way = f"Lower {setting}." if setting else "It needs a machine with more memory."
    with _allocating(lambda: f"There is no room here for {work}. {way}", ExpungeError):
        yield


@contextmanager
def _allocating(sentence: Callable[[], str], kind: type[ExpungeError] = OutOfMemory) -> Iterator[None]:
    """Make an allocation that fails an error of `kind` with `sentence`, which is asked when what did fit is free again."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _ran_out(error):
            raise
        _forget_frames(error)
        raise kind(sentence()) from error


def _forget_frames(error: BaseException | None) -> None:
    """Of the error and of those that it came upon: frames hold tensors."""
    while error:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def _halves(rows: int) -> Iterator[int]:
    while rows > 1:
        rows //= 2
        yield rows


def _fits(work: Callable[[], object]) -> bool:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        with _allocating(str):
            work()
    except OutOfMemory:
        return False
    return True


def _ran_out(error: MemoryError | RuntimeError) -> bool:
    """Whether an allocation failed. On a CPU, and of CUDA's own libraries, torch says so in words alone."""
    said = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(words in str(error) for words in said)


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
        line = next(line for line in status.read_text("utf-8").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
