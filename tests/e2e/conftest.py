"""A run to look at."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from filelock import FileLock

from runs import FAST, process


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that served two requests in a process of its own. Tests read it; all workers of pytest-xdist read the same."""
    base = tmp_path_factory.getbasetemp()
    path = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished"
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            process("run", path, "panda", "mosaic", *FAST)
    return path


@pytest.fixture(scope="session", autouse=True)
def interrupts_are_heard() -> None:
    """Shells start what runs in the background with SIGINT ignored, and everything that it starts inherits that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
