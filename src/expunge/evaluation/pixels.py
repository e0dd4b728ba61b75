"""Pictures as numbers from 0 to 255, the ones that are judged, digested and kept."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def pixels(images: Tensor) -> np.ndarray:
    """`(b 3 h w)` in [0, 1] -> `(b h w 3)` uint8."""
    array: np.ndarray = (images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    return array
