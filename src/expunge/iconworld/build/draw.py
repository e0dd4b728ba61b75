"""Pictures: which drawing, in which style, on which ground, where, how large, how turned.

A batch of pictures is drawn by a few tensor operations, on the CPU or a GPU, from a `Plan` that depends on a seed and
on the number of the batch alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from expunge import seeds
from expunge.iconworld.build import icons
from expunge.iconworld.build.styles import SIDE, STYLES, Layers

CANVAS = 2 * SIDE
THINGS = tuple(icons.CHOICE)
STYLE_NAMES = tuple(STYLES)
BACKGROUNDS = {
    "white": (245, 245, 245),
    "black": (22, 22, 26),
    "gray": (138, 138, 138),
    "blue": (70, 120, 230),
    "green": (80, 185, 95),
    "yellow": (248, 220, 80),
    "pink": (248, 150, 190),
    "purple": (140, 85, 200),
}
"""{background: its colour in 8-bit sRGB}."""
PAIRS = 0.04
"""Share of pictures that show a second thing beside the first."""
PAIR_SIZE, PAIR_SHIFT = 0.55, 0.24
"""Size of each of two things, as a share of that of one alone, and how far each is moved, as a share of the width."""


@dataclass(frozen=True)
class Plan:
    """What a batch of pictures shows; every tensor has one row per picture.

    Attributes:
        drawing: number of the drawing; `beside` that of a second thing, or -1.
        thing, style, background: numbers in `THINGS`, `STYLE_NAMES` and `BACKGROUNDS`.
        size: width of the drawing as a share of the picture's.
        angle: radians, counter-clockwise. mirror: -1 or 1.
        shift: right and down, as shares of the picture's width `(b 2)`.
        tint: the ground's deviation from its colour, in [0, 1] units `(b 3)`.
        light, vivid: factors on the drawing's brightness and saturation.
        grain: seed of the noise that some styles use.
    """

    drawing: Tensor
    beside: Tensor
    thing: Tensor
    style: Tensor
    background: Tensor
    size: Tensor
    angle: Tensor
    mirror: Tensor
    shift: Tensor
    tint: Tensor
    light: Tensor
    vivid: Tensor
    grain: int

    def __len__(self) -> int:
        return len(self.thing)


def plan(seed: int, batch: int, count: int, *, pairs: float = PAIRS, plain: float = 0.25) -> Plan:
    """Draw lots for `count` pictures: things uniformly, "plain" with probability `plain`, the other styles evenly.

    Args:
        seed, batch: the draw depends on these alone.
        pairs: share of pictures with a second thing.
    """
    lots = seeds.generator(seed, "plan", batch)

    def between(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=lots) * (high - low) + low

    def one_of(n: int) -> Tensor:
        return torch.randint(n, (count,), generator=lots)

    members, sizes = _members()
    thing, other = one_of(len(THINGS)), one_of(len(THINGS))
    style = torch.where(between(0, 1) < plain, 0, 1 + one_of(len(STYLES) - 1))
    return Plan(
        drawing=members[thing, (between(0, 1) * sizes[thing]).long()],
        beside=torch.where(
            (between(0, 1) < pairs) & (other != thing), members[other, (between(0, 1) * sizes[other]).long()], -1
        ),
        thing=thing,
        style=style,
        background=one_of(len(BACKGROUNDS)),
        size=between(0.68, 0.86),
        angle=between(-0.22, 0.22),
        mirror=torch.where(between(0, 1) < 0.5, -1.0, 1.0),
        shift=between(-0.06, 0.06, 2),
        tint=between(-0.04, 0.04, 3),
        light=between(0.92, 1.06),
        vivid=between(0.9, 1.1),
        grain=seeds.derive(seed, "grain", batch),
    )


def one_each(thing: Tensor, style: Tensor, background: Tensor, seed: int) -> Plan:
    """A plan with the given things, styles and backgrounds; the rest is drawn by lot."""
    drawn = plan(seed, 0, len(thing), pairs=0.0)
    members, sizes = _members()
    drawing = members[
        thing, (seeds.generator(seed, "drawing").initial_seed() + torch.arange(len(thing))) % sizes[thing]
    ]
    return Plan(**{**vars(drawn), "thing": thing, "style": style, "background": background, "drawing": drawing})


def paint(plan: Plan, sprites: Tensor) -> Tensor:
    """The pictures of a plan `(b 3 64 64)` in [0, 1], on the device of the sprites.

    Args:
        sprites: `icons.sprites(CANVAS)`, uint8.
    """
    device = sprites.device
    placed = _place(plan, torch.arange(len(plan)), plan.drawing, sprites, 0.0)
    two = (plan.beside >= 0).nonzero()[:, 0]
    if len(two):
        left = _place(plan, two, plan.drawing, sprites, -PAIR_SHIFT)
        right = _place(plan, two, plan.beside, sprites, PAIR_SHIFT)
        placed[two.to(device)] = right + left * (1 - right[:, 3:])
    colour, alpha = placed[:, :3], placed[:, 3:]
    grey = colour.mean(1, keepdim=True)
    light, vivid = (v.to(device).view(-1, 1, 1, 1) for v in (plan.light, plan.vivid))
    colour = ((grey + (colour - grey) * vivid) * light).clamp(0, 1).minimum(alpha)
    colours = torch.tensor(list(BACKGROUNDS.values())) / 255
    ground = (colours[plan.background] + plan.tint).clamp(0, 1).to(device)[:, :, None, None]
    noise = (
        torch.randn(
            len(plan),
            4,
            CANVAS // 2,
            CANVAS // 2,
            generator=torch.Generator(device).manual_seed(plan.grain),
            device=device,
        )
        .repeat_interleave(2, 2)
        .repeat_interleave(2, 3)
    )
    pictures = torch.empty(len(plan), 3, SIDE, SIDE, device=device)
    for number, style in enumerate(STYLES.values()):
        rows = (plan.style == number).nonzero()[:, 0].to(device)
        if len(rows):
            pictures[rows] = style(Layers(colour[rows], alpha[rows], ground[rows], noise[rows]))
    return pictures


def _place(plan: Plan, rows: Tensor, drawing: Tensor, sprites: Tensor, aside: float) -> Tensor:
    """The sprites of some rows turned, scaled and moved onto the canvas `(rows 4 128 128)` in [0, 1].

    Args:
        aside: shares of the width to the right; anything but 0 draws at `PAIR_SIZE`.
    """
    shrink = PAIR_SIZE if aside else 1.0
    scale = 1 / (plan.size[rows] * shrink)
    mirror, angle, shift = plan.mirror[rows], plan.angle[rows], plan.shift[rows] * shrink
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    x, y = -2 * (shift[:, 0] + aside), -2 * shift[:, 1]
    across = torch.stack([cos, -sin, cos * x - sin * y], 1) * mirror[:, None]
    down = torch.stack([sin, cos, sin * x + cos * y], 1)
    theta = torch.stack([across, down], 1).to(sprites.device)
    grid = F.affine_grid(theta, [len(rows), 4, CANVAS, CANVAS], align_corners=False)
    chosen = sprites[drawing[rows].to(sprites.device)].float() / 255
    return F.grid_sample(chosen, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


@cache
def _members() -> tuple[Tensor, Tensor]:
    """Numbers of the drawings of each thing `(things most)`, padded, and how many there are `(things)`."""
    of_thing = [[i for i, d in enumerate(icons.drawings()) if d.thing == thing] for thing in THINGS]
    most = max(map(len, of_thing))
    return torch.tensor([m + [m[0]] * (most - len(m)) for m in of_thing]), torch.tensor([len(m) for m in of_thing])
