"""Backbones over the tiny pipelines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from expunge import backbones
from expunge.backbones import Backbone
from expunge.hardware import best_device


@pytest.fixture(autouse=True, scope="module")
def tiny_models_everywhere(prompts_may_be_cut: None) -> None: ...


@pytest.fixture(scope="module")
def backbone(model_folder: Path) -> Backbone:
    """Each backbone in turn, loaded once; tests do not change it."""
    return backbones.load(model_folder).to(best_device())


@pytest.fixture
def fresh_backbone(model_folder: Path) -> Callable[[], Backbone]:
    """Loads the backbone anew on every call."""
    return lambda: backbones.load(model_folder).to(best_device())
