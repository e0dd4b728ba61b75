"""What a timing was taken on, and whether anything else ran there."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Self

import psutil
import torch

from expunge.errors import ExpungeError
from expunge.hardware import best_device, has_bfloat16
from expunge.schema import Result
from expunge.stream.directory import now

IDLE = 0.5
"""Load average of the last minute up to which a machine counts as idle."""
BUSY = 0.1
"""Cores that others may take while something is timed."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Machine(Result):
    """
    Attributes:
        processor: its name, as the system gives it.
        cores: cores that this process may use.
        gpu: name of the GPU that is used; None for none.
        threads: threads that torch computes with.
        bfloat16: whether it computes bfloat16 in hardware, which processors of one name may differ in; None: not recorded.
    """

    processor: str
    cores: int
    gpu: str | None
    system: str
    python: str
    torch: str
    threads: int
    bfloat16: bool | None = None

    @classmethod
    def here(cls) -> Self:
        return cls(
            processor=_processor(),
            cores=cores(),
            gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            system=f"{platform.system()} {platform.machine()}",
            python=platform.python_version(),
            torch=torch.__version__,
            threads=torch.get_num_threads(),
            bfloat16=has_bfloat16(best_device()),
        )


def load_average() -> float:
    """Processes that ran or waited to run, on average over the last minute."""
    return os.getloadavg()[0]


def check_idle(load: float, force: bool) -> None:
    """Refuse to take times beside something else, unless `force` is given.

    Raises:
        ExpungeError: where the load average `load` of the last minute is above `IDLE`.
    """
    if load > IDLE and not force:
        raise ExpungeError(
            f"The load average of the last minute is {load:.2f}: something else is running, or was until just now. "
            f"Wait until it is at most {IDLE}, or time all the same with --force, which the results file will say."
        )


class Beside:
    """Inside the block: how much of the processor other processes take. Ours and those that we wait for are left out.

    Attributes:
        seconds: that the block took.
        cores: cores that others kept busy meanwhile, on average.
    """

    def __enter__(self) -> Self:
        self._started, self._taken = time.perf_counter(), self._others()
        return self

    def __exit__(self, *failed: object) -> None:
        self.seconds = time.perf_counter() - self._started
        self.cores = max(0.0, self._others() - self._taken) / self.seconds

    @staticmethod
    def _others() -> float:
        everyone, own = psutil.cpu_times(), os.times()
        busy = sum(everyone) - everyone.idle - getattr(everyone, "iowait", 0.0) - getattr(everyone, "guest", 0.0)
        return float(busy - (own.user + own.system + own.children_user + own.children_system))


class Session(Result):
    """A call that takes times: the load average that it began beside, and whether that was overridden."""

    started_at: str
    load_average: float
    forced: bool

    @classmethod
    def begin(cls, load: float, force: bool) -> Self:
        """Begin beside the load average `load`; raises as `check_idle` does."""
        check_idle(load, force)
        return cls(started_at=now(), load_average=load, forced=load > IDLE)


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text("utf-8").splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
