"""Where training pictures come from: a stock drawn beforehand, or, where there is a GPU, drawn on the spot.

The stock is `pictures/<chunk>.safetensors`, uint8 pictures and what they show. Drawing goes on where it stopped.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from expunge import files, seeds
from expunge.errors import Interrupted
from expunge.iconworld.build import draw, icons
from expunge.iconworld.build.loop import Budget

CHUNK = 512
"""Pictures per file, and per batch of drawing."""


@dataclass(frozen=True)
class Labels:
    """What pictures show, one row per picture: numbers in `draw.THINGS`, `draw.STYLE_NAMES` and `draw.BACKGROUNDS`.

    `beside` is the second thing of a picture that shows two, else -1.
    """

    thing: Tensor
    beside: Tensor
    style: Tensor
    background: Tensor

    def __getitem__(self, rows: Tensor) -> Labels:
        return Labels(**{name: values[rows] for name, values in vars(self).items()})

    def __len__(self) -> int:
        return len(self.thing)


def labels(plan: draw.Plan) -> Labels:
    owners = torch.tensor([draw.THINGS.index(d.thing) for d in icons.drawings()])
    beside = torch.where(plan.beside >= 0, owners[plan.beside.clamp(min=0)], -1)
    return Labels(plan.thing, beside, plan.style, plan.background)


class Stock:
    """Pictures on disk, all of them in memory once read: `(n 3 64 64)` uint8."""

    def __init__(self, folder: Path, count: int) -> None:
        chunks = [files.load_tensors(_chunk(folder, i)) for i in range(count // CHUNK)]
        self.pictures = torch.cat([c["pictures"] for c in chunks])
        self.labels = Labels(**{k: torch.cat([c[k].long() for c in chunks]) for k in vars(labels(draw.plan(0, 0, 1)))})

    def batch(self, count: int, seed: int, number: int) -> tuple[Tensor, Labels]:
        """Pictures `(b 3 64 64)` in [-1, 1] and their labels; drawn by lot from (seed, number)."""
        rows = self.rows(count, seed, number)
        return to_unit(self.pictures[rows]), self.labels[rows]

    def rows(self, count: int, seed: int, number: int) -> Tensor:
        return torch.randint(len(self.pictures), (count,), generator=seeds.generator(seed, "rows", number))


class Fresh:
    """Pictures drawn when they are asked for, on the device of the sprites."""

    def __init__(self, device: torch.device) -> None:
        self._sprites = icons.sprites(draw.CANVAS).to(device)

    def batch(self, count: int, seed: int, number: int) -> tuple[Tensor, Labels]:
        plan = draw.plan(seed, number, count)
        return draw.paint(plan, self._sprites) * 2 - 1, labels(plan)


Source = Stock | Fresh


def source(folder: Path, count: int, device: torch.device) -> Source:
    return Fresh(device) if device.type == "cuda" else Stock(folder, count)


def fill(folder: Path, count: int, seed: int, budget: Budget) -> None:
    """Draw the chunks that are missing.

    Raises:
        Interrupted: when the budget is spent.
    """
    missing = [i for i in range(count // CHUNK) if not _chunk(folder, i).exists()]
    sprites = icons.sprites(draw.CANVAS) if missing else torch.empty(0)
    begun = time.monotonic()
    for done, number in enumerate(missing, 1):
        plan = draw.plan(seed, number, CHUNK)
        pictures = (draw.paint(plan, sprites) * 255).round().to(torch.uint8)
        shown = {name: values.to(torch.int16) for name, values in vars(labels(plan)).items()}
        files.save_tensors(_chunk(folder, number), {"pictures": pictures, **shown})
        elapsed = time.monotonic() - begun
        if done % 4 == 0 or done == len(missing):
            left = elapsed / done * (len(missing) - done)
            print(f"pictures {number * CHUNK + CHUNK}/{count}  {left / 60:.0f} min left", flush=True)
        if budget.minutes is not None and elapsed > 60 * budget.minutes and done < len(missing):
            raise Interrupted(f"{len(missing) - done} chunks of pictures are left; the same command goes on.")


def to_unit(pictures: Tensor) -> Tensor:
    """uint8 -> [-1, 1]."""
    return pictures.float() / 127.5 - 1


def _chunk(folder: Path, number: int) -> Path:
    return folder / "pictures" / f"{number:04}.safetensors"
