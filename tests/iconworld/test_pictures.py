"""The art: every thing can be drawn in every style, and says where it comes from."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from expunge import iconworld
from expunge.iconworld.build import draw, icons, stock

SETS = {source.name: source for source in icons.SETS}


def test_every_thing_has_three_drawings_or_more_each_with_its_licence() -> None:
    counts = Counter(drawing.thing for drawing in icons.drawings())
    assert set(counts) == set(draw.THINGS)
    assert min(counts.values()) >= 3
    for drawing in icons.drawings():
        assert (drawing.licence, drawing.author) == (SETS[drawing.set].licence, SETS[drawing.set].author)
        assert drawing.svg.startswith("<svg ")


def test_every_set_is_named_in_the_notice() -> None:
    notice = (Path(__file__).parents[2] / "NOTICE").read_text()
    assert all(f"{s.name} {s.version}" in notice for s in icons.SETS)


def test_the_vocabulary_names_what_is_drawn() -> None:
    words = iconworld.vocabulary()
    assert set(words.names("thing")) == set(draw.THINGS)
    assert words.names("style") == list(draw.STYLE_NAMES)
    assert words.names("background") == list(draw.BACKGROUNDS)
    assert len(draw.THINGS) >= 64
    assert len(draw.STYLE_NAMES) >= 8


@pytest.mark.parametrize("style", draw.STYLE_NAMES)
def test_every_thing_is_seen_in_every_style(style: str, sprites: Tensor) -> None:
    number = draw.STYLE_NAMES.index(style)
    things = torch.arange(len(draw.THINGS))
    plan = draw.one_each(things, torch.full_like(things, number), (things + number) % len(draw.BACKGROUNDS), seed=3)
    shown, empty = draw.paint(plan, sprites), draw.paint(plan, torch.zeros_like(sprites))
    assert shown.shape == (len(things), 3, 64, 64)
    assert 0 <= float(shown.min()) <= float(shown.max()) <= 1
    differences = (shown - empty).abs().amax(1).flatten(1).mean(1)
    assert float(differences.min()) > 0.02, draw.THINGS[int(differences.argmin())]


@pytest.mark.parametrize("style", draw.STYLE_NAMES)
def test_every_style_keeps_the_backgrounds_apart(style: str, sprites: Tensor) -> None:
    backgrounds = torch.arange(len(draw.BACKGROUNDS)).repeat(4)
    styles = torch.full_like(backgrounds, draw.STYLE_NAMES.index(style))
    corner = draw.paint(draw.one_each(backgrounds, styles, backgrounds, seed=4), torch.zeros_like(sprites))
    means = corner.mean((2, 3))
    apart = torch.cdist(means, means)[backgrounds[:, None] != backgrounds[None, :]]
    assert float(apart.min()) > 0.05


def test_a_plan_depends_on_seed_and_batch_alone(sprites: Tensor) -> None:
    first, again, other = (draw.paint(draw.plan(5, batch, 8), sprites) for batch in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_picture_of_two_things_knows_both() -> None:
    plan = draw.plan(5, 0, 64, pairs=0.5)
    shown = stock.labels(plan)
    both = shown.beside >= 0
    assert both.any()
    assert bool((shown.beside[both] != shown.thing[both]).all())


def test_styles_tell_themselves_apart(sprites: Tensor) -> None:
    """One and the same plan in two styles never gives nearly the same picture."""
    n = len(draw.STYLE_NAMES)
    same = torch.zeros(n, dtype=torch.long)
    plan = draw.one_each(same + draw.THINGS.index("fox"), torch.arange(n), same, seed=3)
    for field in ("drawing", "size", "angle", "mirror", "shift", "tint", "light", "vivid"):
        value = getattr(plan, field)
        value[:] = value[:1].clone()
    pictures = draw.paint(plan, sprites).flatten(1)
    distances = torch.cdist(pictures, pictures) / pictures.shape[1] ** 0.5
    assert distances[~torch.eye(n, dtype=torch.bool)].min() > 0.08
