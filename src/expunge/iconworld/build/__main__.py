"""`python -m expunge.iconworld.build SHEET.png`: a sheet of what the next built-in model is to be taught, one style a row."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image

from expunge.files import replacing
from expunge.iconworld.build import draw, icons

COLUMNS = 26


def sheet() -> Image.Image:
    """Every style in a row of its own, with every third thing, on all backgrounds in turn."""
    rows, columns = torch.meshgrid(torch.arange(len(draw.STYLE_NAMES)), torch.arange(COLUMNS), indexing="ij")
    things = (3 * columns) % len(draw.THINGS)
    plan = draw.one_each(things.flatten(), rows.flatten(), ((columns + 3 * rows) % len(draw.BACKGROUNDS)).flatten(), 5)
    pictures = (draw.paint(plan, icons.sprites()) * 255).round().byte().permute(0, 2, 3, 1)
    grid = pictures.unflatten(0, (len(draw.STYLE_NAMES), COLUMNS)).transpose(1, 2).flatten(0, 1).flatten(1, 2)
    return Image.fromarray(grid.numpy())


if __name__ == "__main__":
    with replacing(Path(sys.argv[1])) as temporary:
        sheet().save(temporary, format="PNG")
