"""The built-in model: stock Diffusers loads it, it is small, and it paints what it painted when it was measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from expunge import backbones, files, iconworld
from expunge.evaluation import SamplerConfig, paint
from expunge.iconworld.build import measure

RESULTS = files.read_json(
    Path(__file__).parents[2] / "benchmarks" / "iconworld" / "results" / f"{iconworld.DEFAULT}.json"
)
TOLERANCE = 3
"""In levels of 255; kernels of other processors and precisions stay well below."""


@pytest.fixture(scope="module")
def folder() -> Path:
    found = iconworld.model_folder("iconworld")
    assert found is not None
    return found


def test_it_is_small_and_its_results_file_is_about_these_weights(folder: Path) -> None:
    sizes = [path.stat().st_size for path in folder.rglob("*.safetensors")]
    assert sum(sizes) == RESULTS["bytes"] <= 40_000_000
    assert max(sizes) < 16_000_000
    assert RESULTS["model"] == {"name": "iconworld-1", "digest": backbones.model_digest(folder)}


def test_eight_pictures_are_those_that_were_measured(folder: Path) -> None:
    now, then = measure.fingerprints(folder), RESULTS["fingerprints"]
    assert now.keys() == then.keys()
    assert len(now) == 8
    apart = {p: max(abs(a - b) for a, b in zip(now[p], then[p], strict=True)) for p in now}
    assert max(apart.values()) <= TOLERANCE, apart
    first, second, *_ = then.values()
    assert max(abs(a - b) for a, b in zip(first, second, strict=True)) > 10 * TOLERANCE


@pytest.mark.parametrize(
    "prompt",
    [
        "a fox and a penguin",
        "please paint me some lovely little rabbit, thank you",
        "a glorbix in neon style on a green background",
        "übermäßig große Katze",
        "",
    ],
)
def test_every_prompt_gives_a_picture(folder: Path, prompt: str) -> None:
    backbone = backbones.load(folder)
    sampler = SamplerConfig(solver="dpm++", steps=8, guidance=3.0)
    (picture,) = paint(backbone, backbone.denoiser, [prompt], [7], sampler)
    assert picture.shape == (3, 64, 64)
    assert float(picture.std()) > 0.05
    assert torch.isfinite(picture).all()
