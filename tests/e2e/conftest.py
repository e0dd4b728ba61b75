"""A run to look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from runs import make_run


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that served two requests. Tests read it."""
    path = tmp_path_factory.mktemp("runs") / "finished"
    make_run(path, ["panda", "mosaic"])
    return path
