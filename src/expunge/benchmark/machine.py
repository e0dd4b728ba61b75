"""What a timing was taken on, and whether anything else ran there."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Self

import torch
from pydantic import BaseModel, ConfigDict


class Machine(BaseModel):
    """
    Attributes:
        processor: its name, as the system gives it.
        cores: cores that this process may use.
        gpu: name of the GPU that is used; None for none.
        threads: threads that torch computes with.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    processor: str
    cores: int
    gpu: str | None
    system: str
    python: str
    torch: str
    threads: int

    @classmethod
    def here(cls) -> Self:
        return cls(
            processor=_processor(),
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            system=f"{platform.system()} {platform.machine()}",
            python=platform.python_version(),
            torch=torch.__version__,
            threads=torch.get_num_threads(),
        )


def load_average() -> float:
    """Processes that ran or waited to run, on average over the last minute."""
    return os.getloadavg()[0]


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
