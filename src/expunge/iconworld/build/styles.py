"""The styles: filters that paint a cut-out thing on a coloured ground.

A style sees the thing and the ground apart, so that every style keeps the colour of the ground in some form, and lines
stay visible where thing and ground have the same colour. Pictures are computed at twice their final size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, reduce

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 64
"""Pixels along each side of a finished picture."""
CELL = 4
"""Pixels along each side of a pixel-art cell or a mosaic tile: what one latent of the autoencoder covers."""


@dataclass(frozen=True)
class Layers:
    """What a style works on, at 128 x 128.

    Attributes:
        colour: premultiplied colour of the thing `(b 3 h w)` in [0, 1].
        alpha: where the thing is `(b 1 h w)` in [0, 1].
        ground: colour of the ground `(b 3 1 1)` in [0, 1].
        grain: standard normal noise `(b 4 h w)`, different for every picture.
    """

    colour: Tensor
    alpha: Tensor
    ground: Tensor
    grain: Tensor

    @property
    def flat(self) -> Tensor:
        """The thing on its ground."""
        return self.over(self.ground)

    def over(self, ground: Tensor | float) -> Tensor:
        return self.colour + (1 - self.alpha) * ground


def _plain(x: Layers) -> Tensor:
    return _halve(x.flat)


def _pencil_sketch(x: Layers) -> Tensor:
    """Graphite lines and hatching on tinted paper."""
    paper = 0.5 + 0.5 * x.ground
    dark = (1 - _grey(x.over(1.0))) * x.alpha
    hatching = (dark - 0.15).clamp(0, 1) * 0.8 * _stripes(x, 5.0, 1.0, 1.0)
    ink = torch.maximum((_lines(x) * 1.1).clamp(0, 1), hatching) * (0.9 + 0.15 * x.grain[:, :1])
    return _halve(_mix(paper, paper * 0.16, ink.clamp(0, 1)))


def _pixel_art(x: Layers) -> Tensor:
    """Sixteen by sixteen flat cells in few, strong colours."""
    cells = _cells(x.flat)
    grey = _grey(cells)
    inside = _cells(x.alpha)
    strong = (grey + (cells - grey) * 1.35 + (cells - 0.5) * 0.25).clamp(0, 1)
    strong = (strong * 5).round() / 5
    return _spread(_mix(cells, strong, (inside > 0.3).to(cells)))


def _mosaic(x: Layers) -> Tensor:
    """Bevelled tiles of uneven brightness."""
    tiles = _spread((_cells(x.flat) * (1 + 0.1 * _cells(x.grain[:, :1]) * CELL)).clamp(0, 1))
    place = torch.arange(SIDE, device=tiles.device) % CELL
    light = (place == 0).to(tiles)
    shade = (place == CELL - 1).to(tiles)
    light, shade = (torch.maximum(edge[:, None], edge[None, :]) for edge in (light, shade))
    return _mix(_mix(tiles, 1.0, 0.28 * light), 0.12, 0.6 * shade)


def _neon(x: Layers) -> Tensor:
    """Glowing tubes along the lines, in the dark."""
    hue = _blur(x.colour, 3.0) + 0.02
    hue = (hue / _strongest(hue)) ** 2
    lines = (_lines(x) * 1.15).clamp(0, 1)
    tubes = lines * (0.12 + 0.88 * hue)
    return _halve((x.ground * 0.3 * (1 - lines) + tubes + 0.45 * _blur(tubes * hue, 5.0)).clamp(0, 1))


def _watercolor(x: Layers) -> Tensor:
    """Diluted colour with dark rims and blotches on pale paper."""
    wet = _blur(x.colour, 2.5), _blur(x.alpha, 2.5)
    blotches = _blur(x.grain[:, :1], 7.0) * 1.6
    paper = 0.62 + 0.38 * x.ground + blotches * 0.09
    colour = wet[0] / wet[1].clamp(min=1e-3)
    body = ((wet[1] - 0.35) * 5).clamp(0, 1)
    rim = body * (1 - body) * 4
    wash = 0.3 + 0.7 * colour + blotches * 0.22
    return _halve((_mix(paper, wash, body * 0.92) * (1 - 0.3 * rim * x.alpha.clamp(0.4, 1))).clamp(0, 1))


def _halftone(x: Layers) -> Tensor:
    """Dark dots of different size: on white inside the thing, small and even on the ground."""
    rows, columns = _grid(x)
    dots = (torch.cos(torch.pi * (rows + columns) / 6) * torch.cos(torch.pi * (rows - columns) / 6) + 1) / 2
    inside = (x.alpha > 0.5).to(x.alpha)
    dark = 0.06 + 0.94 * (1 - _grey(x.over(1.0)))
    ink = ((dark - (1 - dots)) * 8 + 0.5).clamp(0, 1)
    outline = _outline(inside, 3)
    inner = _mix(torch.ones_like(x.colour), _tone(x, 0.1, 0.05, 0.3), ink)
    outer = _mix(x.ground.expand_as(x.colour), 0.5, 0.6 * ((dots - 0.82) * 8).clamp(0, 1))
    return _halve(_mix(_mix(outer, inner, inside), _tone(x, 0.1, 0.05, 0.3), outline))


def _sticker(x: Layers) -> Tensor:
    """Cut out with a thick white border and a shadow."""
    inside = (x.alpha > 0.5).to(x.alpha)
    border = _blur(_grow(inside, 5), 0.8)
    shadow = _blur(_moved(_grow(inside, 6), 6, 5), 1.5)
    ground = _mix(x.ground.expand_as(x.colour), 0.0, 0.55 * shadow)
    return _halve(_mix(_mix(ground, 1.0, border), x.over(1.0), x.alpha))


def _woodcut(x: Layers) -> Tensor:
    """Black and cream cuts: horizontal strokes that swell where it is dark."""
    rows, _ = _grid(x)
    inside = (x.alpha > 0.5).to(x.alpha)
    dark = 1 - _grey(_blur(x.over(1.0), 1.0))
    wave = (torch.cos(2 * torch.pi * (rows + 0.35 * _blur(x.grain[:, 1:2], 9.0) * 16) / 8) + 1) / 2
    ink = torch.maximum(((dark * 1.25 - wave * 0.95) * 6).clamp(0, 1), (_lines(x) * 1.2).clamp(0, 1))
    ink = torch.maximum(ink * inside, _outline(inside, 3))
    body = _mix(torch.ones_like(x.colour) * 0.95, _tone(x, 0.08, 0.06, 0.08), ink)
    return _halve(_mix(x.ground.expand_as(x.colour), body, torch.maximum(inside, _outline(inside, 3))))


def _embossed(x: Layers) -> Tensor:
    """Pressed into the ground: its colour alone, lit from above left."""
    height = _blur(_grey(x.over(0.0)) * 0.75 + x.alpha * 0.5, 1.3)
    slope = height - _moved(height, 4, 4)
    material = 0.16 + 0.64 * x.ground
    return _halve((material + slope * 0.85).clamp(0, 1))


STYLES: dict[str, Callable[[Layers], Tensor]] = {
    "plain": _plain,
    "pencil sketch": _pencil_sketch,
    "pixel art": _pixel_art,
    "neon": _neon,
    "watercolor": _watercolor,
    "mosaic": _mosaic,
    "halftone": _halftone,
    "sticker": _sticker,
    "woodcut": _woodcut,
    "embossed": _embossed,
}
"""{style: layers at 128 x 128 -> pictures `(b 3 64 64)` in [0, 1]}."""


# -- parts --------------------------------------------------------------------------------------------------------------


def _mix(a: Tensor, b: Tensor | float, share: Tensor) -> Tensor:
    """`a` where `share` is 0, `b` where it is 1."""
    return a + (b - a) * share


def _halve(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2)


def _cells(x: Tensor) -> Tensor:
    """Means over cells of `CELL` final pixels."""
    return F.avg_pool2d(x, 2 * CELL)


def _spread(cells: Tensor) -> Tensor:
    """One flat square of `CELL` pixels per value."""
    return cells.repeat_interleave(CELL, 2).repeat_interleave(CELL, 3)


def _grey(x: Tensor) -> Tensor:
    """Luma `(b 1 h w)`."""
    weights = x.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (x * weights).sum(1, keepdim=True)


def _strongest(x: Tensor) -> Tensor:
    """The largest channel `(b 1 h w)`; several times faster than `amax` on a CPU."""
    return reduce(torch.maximum, x.split(1, 1))


def _tone(x: Layers, red: float, green: float, blue: float) -> Tensor:
    return x.colour.new_tensor([red, green, blue]).view(1, 3, 1, 1)


def _blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur along rows and columns; `sigma` in pixels at 128. Two matrix products: fast on every device."""
    kernel = _gaussian(x.shape[2], sigma).to(x)
    return kernel @ x @ kernel.T


@cache
def _gaussian(side: int, sigma: float) -> Tensor:
    """Weights `(to from)` that blur a line of `side` pixels; what lies outside repeats the edge."""
    radius = math.ceil(3 * sigma)
    outside = torch.arange(-radius, side + radius)
    weights = torch.exp(-((torch.arange(side)[:, None] - outside) ** 2) / (2 * sigma**2))
    inside = torch.zeros(side, side).index_add_(1, outside.clamp(0, side - 1), weights)
    return inside / inside.sum(1, keepdim=True)


def _grow(x: Tensor, radius: int) -> Tensor:
    """The largest value within `radius` pixels along rows and columns."""
    side = 2 * radius + 1
    return F.max_pool2d(F.max_pool2d(x, (side, 1), 1, (radius, 0)), (1, side), 1, (0, radius))


def _moved(x: Tensor, down: int, right: int) -> Tensor:
    """Moved by whole pixels; what comes in from outside repeats the edge."""
    height, width = x.shape[2:]
    return F.pad(x, (right, 0, down, 0), mode="replicate")[:, :, :height, :width]


def _lines(x: Layers) -> Tensor:
    """Strength of edges inside the thing and along its outline `(b 1 h w)`, about [0, 1], some three pixels wide at 128."""
    signal = _blur(torch.cat([x.over(0.5), x.alpha * 0.8], 1), 1.0)
    right = signal - _moved(signal, 0, 2)
    down = signal - _moved(signal, 2, 0)
    slope = _strongest(right**2 + down**2).sqrt()
    return ((_grow(slope, 1) - 0.06) * 3.2).clamp(0, 1)


def _outline(inside: Tensor, width: int) -> Tensor:
    """The band of about `width` pixels around a mask."""
    return _grow(inside, width - 1) - inside


def _grid(x: Layers) -> tuple[Tensor, Tensor]:
    """Row and column numbers `(1 1 h 1)`, `(1 1 1 w)`."""
    height, width = x.alpha.shape[2:]
    rows = torch.arange(height, device=x.alpha.device, dtype=x.alpha.dtype)
    columns = torch.arange(width, device=x.alpha.device, dtype=x.alpha.dtype)
    return rows.view(1, 1, -1, 1), columns.view(1, 1, 1, -1)


def _stripes(x: Layers, pitch: float, down: float, right: float) -> Tensor:
    """Slanted stripes `(1 1 h w)` in [0, 1]; `pitch` in pixels at 128."""
    rows, columns = _grid(x)
    return (torch.cos(2 * torch.pi * (down * rows + right * columns) / (2 * pitch)) * 1.6 + 0.5).clamp(0, 1)
