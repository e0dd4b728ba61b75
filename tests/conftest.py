"""Tiny pipelines on disk, built once per session. Tests that change a folder change a copy."""

from __future__ import annotations

import os

# Threads that spin while they wait make tiny models twenty times slower as soon as something else runs, and a second thread
# has nothing to do on them.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A console that finds this when it is made keeps to it, whatever a test says later; pytest-xdist sets it.
os.environ.pop("COLUMNS", None)

import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import diffusers
import pytest
import transformers

import tiny
from expunge.backbones import Backbone

for library in (diffusers, transformers):
    library.utils.logging.disable_progress_bar()
    library.utils.logging.set_verbosity_error()

# All processes of pytest-xdist work with one stand-in for the built-in model: the first one makes it.
if "STAND_IN" not in os.environ:
    place = tempfile.TemporaryDirectory(prefix="stand-in-")
    os.environ["STAND_IN"] = str(tiny.save("stand-in", Path(place.name) / "iconworld-1"))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny_folder(name)`: the folder of a pipeline of `tiny.PIPELINES`, written when it is first asked for."""
    return cache(lambda name: tiny.save(name, tmp_path_factory.mktemp("pipelines") / name))


@pytest.fixture(scope="module")
def prompts_may_be_cut() -> Iterator[None]:
    """Tiny tokenizers spell most words letter by letter, and read 16 tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Backbone, "check_read", lambda *_: None)
        yield


@pytest.fixture(scope="session", params=list(tiny.PIPELINES))
def model_folder(request: pytest.FixtureRequest, tiny_folder: Callable[[str], Path]) -> Path:
    """The folder of each tiny pipeline in turn."""
    return tiny_folder(request.param)


@pytest.fixture(scope="session")
def sd_folder(tiny_folder: Callable[[str], Path]) -> Path:
    return tiny_folder("sd-epsilon")


@pytest.fixture(scope="session")
def sd_v_folder(tiny_folder: Callable[[str], Path]) -> Path:
    return tiny_folder("sd-v")


@pytest.fixture(scope="session")
def sd3_folder(tiny_folder: Callable[[str], Path]) -> Path:
    return tiny_folder("sd3")
