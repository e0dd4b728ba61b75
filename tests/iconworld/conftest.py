"""The recipe's drawings, rasterised once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from expunge.iconworld.build import draw, icons


@pytest.fixture(scope="session")
def sprites() -> Tensor:
    torch.set_flush_denormal(True)
    return icons.sprites(draw.CANVAS)
