"""The collapse detector: pictures of nothing made on the spot, and drawings that must not pass for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from expunge.evaluation.collapse import WHITE, _flatness, collapse

SHEET = Path(__file__).parents[2] / "docs" / "iconworld-1-renders.png"
SIDE = 64
Draw = Callable[[np.random.Generator], np.ndarray]


def pixels(x: np.ndarray) -> np.ndarray:
    """Values in [0, 1], broadcast to `(64 64 3)` uint8."""
    return (np.broadcast_to(x, (SIDE, SIDE, 3)).clip(0, 1) * 255).round().astype(np.uint8)


def grains(rng: np.random.Generator, size: int) -> np.ndarray:
    return rng.random((SIDE // size, SIDE // size, 3)).repeat(size, 0).repeat(size, 1)


def smooth(rng: np.random.Generator) -> np.ndarray:
    small = Image.fromarray((rng.random((32, 32, 3)) * 255).astype(np.uint8))
    return np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) / 255


COLLAPSED: dict[str, tuple[str, Draw]] = {
    "black": ("blank", lambda rng: np.zeros(3)),
    "white": ("blank", lambda rng: np.ones(3)),
    "nearly black": ("blank", lambda rng: 0.02 + rng.normal(0, 0.01, (SIDE, SIDE, 3))),
    "grey": ("constant", lambda rng: np.full(3, 0.5)),
    "red": ("constant", lambda rng: np.array([0.9, 0.1, 0.1])),
    "nearly red": ("constant", lambda rng: np.array([0.9, 0.1, 0.1]) + rng.normal(0, 0.01, (SIDE, SIDE, 3))),
    "uniform noise": ("noise", lambda rng: rng.random((SIDE, SIDE, 3))),
    "faint grey noise": ("noise", lambda rng: 0.5 + rng.normal(0, 0.06, (SIDE, SIDE, 1))),
    "salt and pepper": ("noise", lambda rng: rng.integers(0, 2, (SIDE, SIDE, 1))),
    "grains of two pixels": ("noise", lambda rng: grains(rng, 2)),
    "smooth grains": ("noise", smooth),
}
LINE = np.linspace(0, 1, SIDE)
DRAWN: dict[str, Draw] = {
    "gradient": lambda rng: LINE[:, None, None],
    "faint gradient": lambda rng: 0.5 + 0.1 * LINE[None, :, None],
    **{
        f"checkerboard of {n} pixels": lambda rng, n=n: (np.indices((SIDE, SIDE)) // n).sum(0)[..., None] % 2
        for n in (1, 2, 3, 8)
    },
    "stripes": lambda rng: (np.arange(SIDE) // 2 % 2)[None, :, None],
    "dot": lambda rng: (np.hypot(*(np.indices((SIDE, SIDE)) - 32)) < 10)[..., None] * np.array([1.0, 0.2, 0.1]),
    "a thing on a noisy ground": lambda rng: np.where(
        (np.hypot(*(np.indices((SIDE, SIDE)) - 32)) < 20)[..., None], 0.9, rng.normal(0.3, 0.1, (SIDE, SIDE, 1))
    ),
}


@pytest.mark.parametrize("name", COLLAPSED)
def test_a_picture_of_nothing_is_named(name: str) -> None:
    kind, draw = COLLAPSED[name]
    for seed in range(20):
        assert collapse(pixels(draw(np.random.default_rng(seed)))) == kind


@pytest.mark.parametrize("name", DRAWN)
def test_a_regular_picture_is_not_collapsed(name: str) -> None:
    assert collapse(pixels(DRAWN[name](np.random.default_rng(0)))) is None


def test_no_drawing_of_the_sheet_is_collapsed() -> None:
    """120 drawings in ten styles: icons, neon on black, halftone, mosaic, woodcut..."""
    sheet = np.asarray(Image.open(SHEET).convert("RGB"))
    rows, columns = sheet.shape[0] // SIDE, sheet.shape[1] // SIDE
    tiles = sheet.reshape(rows, SIDE, columns, SIDE, 3).swapaxes(1, 2).reshape(-1, SIDE, SIDE, 3)
    assert len(tiles) == 120
    assert [i for i, tile in enumerate(tiles) if collapse(tile)] == []
    # The control: the same pixels in another order are noise.
    rng = np.random.default_rng(0)
    textured = tiles[12 * 6]  # halftone
    assert collapse(rng.permutation(textured.reshape(-1, 3)).reshape(textured.shape)) == "noise"


def test_noise_is_found_at_the_grain_of_a_large_models_latents() -> None:
    rng = np.random.default_rng(0)
    latents = Image.fromarray((rng.random((64, 64, 3)) * 255).astype(np.uint8))
    assert collapse(np.asarray(latents.resize((512, 512), Image.Resampling.BICUBIC))) == "noise"


def test_spectral_flatness_of_white_noise_is_what_theory_says() -> None:
    """Its power spectrum is exponentially distributed: E log P = log E P - gamma."""
    flatness = _flatness(np.random.default_rng(0).normal(size=(512, 512, 1)))
    assert flatness == pytest.approx(np.exp(-np.euler_gamma), abs=0.005)
    assert flatness > WHITE
