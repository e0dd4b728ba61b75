"""A run to look at."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from runs import FAST, process


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that served two requests in a process of its own. Tests read it."""
    path = tmp_path_factory.mktemp("runs") / "finished"
    process("run", path, "panda", "mosaic", *FAST)
    return path


@pytest.fixture(scope="session", autouse=True)
def interrupts_are_heard() -> None:
    """Shells start what runs in the background with SIGINT ignored, and everything that it starts inherits that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
