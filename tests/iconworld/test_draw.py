"""The pictures that the next built-in model is to be taught: all of them there, all of them different, all attributed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from expunge import files, iconworld
from expunge.iconworld.build import draw, icons
from expunge.prompts import Vocabulary


@pytest.fixture(scope="module")
def sprites() -> Tensor:
    return icons.sprites()


def test_every_thing_has_at_least_three_drawings_each_with_author_and_licence() -> None:
    count = Counter(d.thing for d in icons.drawings())
    assert set(count) == set(draw.THINGS)
    assert min(count.values()) >= 3
    known = {s.name: (s.author, s.licence) for s in icons.SETS}
    assert all((d.author, d.licence) == known[d.set] for d in icons.drawings())
    notice = (Path(__file__).parents[2] / "NOTICE").read_text()
    assert all(f"{s.name} {s.version}" in notice for s in icons.SETS)


def test_the_vocabulary_names_what_can_be_drawn() -> None:
    words = Vocabulary.read(iconworld.HERE / "vocabulary-1.toml")
    assert words.names("thing") == list(draw.THINGS)
    assert words.names("style") == list(draw.STYLE_NAMES)
    assert set(words.names("background")) == set(draw.BACKGROUNDS)


def test_every_thing_can_be_seen_in_every_style_on_every_background(sprites: Tensor) -> None:
    """Against the same picture without its thing, something must have changed in every single one."""
    n = len(draw.THINGS)
    for style in range(len(draw.STYLE_NAMES)):
        background = (torch.arange(n) + style) % len(draw.BACKGROUNDS)
        plan = draw.one_each(torch.arange(n), torch.full((n,), style), background, seed=style)
        seen = (draw.paint(plan, sprites) - draw.paint(plan, torch.zeros_like(sprites))).abs().mean(dim=(1, 2, 3))
        assert seen.min() > 0.01, (draw.STYLE_NAMES[style], draw.THINGS[int(seen.argmin())])


def test_pictures_depend_on_the_seed_and_the_batch_alone(sprites: Tensor) -> None:
    first, again, later, other = (draw.paint(draw.plan(s, b, 24), sprites) for s, b in ((1, 0), (1, 0), (1, 1), (2, 0)))
    assert first.shape == (24, 3, 64, 64)
    assert 0 <= first.min() < first.max() <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert not torch.equal(first, other)


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


def test_the_kept_drawings_are_whole_files() -> None:
    for path in sorted(icons.ICONS.glob("*.json")):
        assert files.read_json(path)
