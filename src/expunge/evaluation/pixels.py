"""Pictures as numbers from 0 to 255, the ones that are judged, digested and kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def pixels(images: Tensor) -> np.ndarray:
    """`(b 3 h w)` in [0, 1] -> `(b h w 3)` uint8."""
    array: np.ndarray = (images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    return array


def pictures(images: Sequence[np.ndarray]) -> Tensor:
    """`(h w 3)` uint8 each -> `(b 3 h w)` in [0, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
