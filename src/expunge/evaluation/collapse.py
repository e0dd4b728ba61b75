"""Pictures of nothing: what a model paints that was damaged rather than edited.

A judge sees no concept in such pictures, so without this they would pass for forgetting.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

FLAT = 0.02
"""Standard deviation of each channel, as a share of the range, under which a picture is of one colour."""
END = 0.04
"""How near to black or white (share of the range) the mean of a one-colour picture is called blank."""
WHITE = 0.44
"""Spectral flatness from which a picture is noise. White noise has exp(-0.577) = 0.56 on average; no drawing of the
built-in model's page has more than 0.38 (tests/unit/test_collapse.py)."""
GRAINS = (1, 2, 4, 8)
"""Sizes of noise grains, in pixels, that are looked for: a decoder makes one grain of each latent pixel."""
FEWEST = 32
"""Grains a side from which a spectrum tells noise from a drawing; noise of fewer is not found."""

Collapse = Literal["blank", "constant", "noise"]


def collapse(picture: np.ndarray) -> Collapse | None:
    """How a picture `(h w 3)` uint8 is one of nothing: blank (black or white), constant (one other colour), or noise.

    None where it may show something.
    """
    x = picture.astype(float) / 255
    if x.std(axis=(0, 1)).max() < FLAT:
        return "blank" if min(x.mean(), 1 - x.mean()) < END else "constant"
    return "noise" if any(_flatness(grains) >= WHITE for grains in _shrunk(x)) else None


def _shrunk(x: np.ndarray) -> list[np.ndarray]:
    """The picture with grains of each size in `GRAINS` averaged into one pixel, as long as enough are left."""
    sizes = [n for n in GRAINS if min(x.shape[:2]) // n >= FEWEST]
    return [
        x[: x.shape[0] // n * n, : x.shape[1] // n * n]
        .reshape(x.shape[0] // n, n, x.shape[1] // n, n, x.shape[2])
        .mean(axis=(1, 3))
        for n in sizes
    ]


def _flatness(x: np.ndarray) -> float:
    """Spectral flatness of the luminance `(h w)` of a picture: geometric over arithmetic mean of its power spectrum.

    Drawings and photographs hold most of their power in few coarse waves (near 0); noise holds it everywhere alike.
    The picture's mean, which says nothing about structure, is left out. Source: Gray and Markel (1974), IEEE Trans.
    ASSP 22:207-217.
    """
    light = x.mean(axis=2)
    if light.std() < FLAT:  # a fine pattern that averaging wiped out leaves rounding errors, which are white
        return 0.0
    power = np.abs(np.fft.fft2(light - light.mean())).ravel()[1:] ** 2 + 1e-12
    return float(np.exp(np.log(power).mean()) / power.mean())
