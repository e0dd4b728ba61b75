"""The art: which icons show which thing, and the SVG files that are kept beside the recipe.

Every thing has up to five drawings, one from each of five open icon sets. `icons/<thing>.json` holds the SVG bodies,
`icons/manifest.json` says for each where it comes from, who drew it and under which licence.

To choose anew, unpack the sets (`npm pack @iconify-json/noto` ...) into one folder each and run
`python -m expunge.iconworld.build.icons FOLDER`.
"""

from __future__ import annotations

import io
import sys
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from expunge import files

ICONS = Path(__file__).parent / "icons"


@dataclass(frozen=True)
class IconSet:
    """One npm package of icons (`@iconify-json/<name>`)."""

    name: str
    version: str
    author: str
    licence: str
    url: str


SETS = (
    IconSet("noto", "1.2.9", "Google Inc.", "Apache-2.0", "https://github.com/googlefonts/noto-emoji"),
    IconSet(
        "twemoji", "1.2.5", "Twitter, Inc. and other contributors", "CC-BY-4.0", "https://github.com/jdecked/twemoji"
    ),
    IconSet("fluent-emoji", "1.2.7", "Microsoft Corporation", "MIT", "https://github.com/microsoft/fluentui-emoji"),
    IconSet(
        "fluent-emoji-flat", "1.2.6", "Microsoft Corporation", "MIT", "https://github.com/microsoft/fluentui-emoji"
    ),
    IconSet("emojione", "1.2.3", "Emoji One, EmojiTwo", "CC-BY-4.0", "https://github.com/EmojiTwo/emojitwo"),
)

CHOICE = {
    "apple": "red-apple",
    "pear": "pear",
    "orange": "tangerine",
    "banana": "banana",
    "lemon": "lemon",
    "pineapple": "pineapple",
    "strawberry": "strawberry",
    "cherry": "cherries",
    "watermelon": "watermelon",
    "tomato": "tomato",
    "cucumber": "cucumber",
    "carrot": "carrot",
    "eggplant": "eggplant",
    "broccoli": "broccoli",
    "mushroom": "mushroom",
    "avocado": "avocado",
    "soccer ball": "soccer-ball",
    "basketball": "basketball",
    "baseball": "baseball",
    "volleyball": "volleyball",
    "american football": "american-football",
    "billiard ball": "pool-8-ball",
    "cat": "cat-face",
    "dog": "dog-face",
    "fox": "fox",
    "wolf": "wolf",
    "bear": "bear",
    "panda": "panda",
    "koala": "koala",
    "lion": "lion",
    "tiger": "tiger-face",
    "rabbit": "rabbit-face",
    "frog": "frog",
    "pig": "pig-face",
    "penguin": "penguin",
    "owl": "owl",
    "duck": "duck",
    "fish": "tropical-fish",
    "whale": "spouting-whale",
    "octopus": "octopus",
    "crab": "crab",
    "turtle": "turtle",
    "alien": "alien",
    "ghost": "ghost",
    "clown": "clown-face",
    "ogre": "ogre",
    "skull": "skull",
    "snowman": "snowman",
    "santa": "santa-claus",
    "pumpkin": "jack-o-lantern",
    "robot": "robot",
    "car": "automobile",
    "taxi": "taxi",
    "bus": "bus",
    "tractor": "tractor",
    "bicycle": "bicycle",
    "sailboat": "sailboat",
    "helicopter": "helicopter",
    "rocket": "rocket",
    "cactus": "cactus",
    "sunflower": "sunflower",
    "rose": "rose",
    "tulip": "tulip",
    "palm tree": "palm-tree",
    "pine tree": "evergreen-tree",
    "pizza": "pizza",
    "hamburger": "hamburger",
    "doughnut": "doughnut",
    "ice cream": "soft-ice-cream",
    "cake": "birthday-cake",
    "french fries": "french-fries",
    "house": "house",
    "guitar": "guitar",
    "umbrella": "umbrella",
    "clock": "alarm-clock",
    "key": "key",
    "camera": "camera",
    "bell": "bell",
}
"""{thing: name of its icon in every set}."""


@dataclass(frozen=True)
class Drawing:
    """One icon: the thing it shows, where it comes from, and its SVG."""

    thing: str
    set: str
    icon: str
    licence: str
    author: str
    svg: str


@cache
def drawings() -> tuple[Drawing, ...]:
    """All drawings, in the order of the manifest."""
    manifest = files.read_json(ICONS / "manifest.json")
    return tuple(
        Drawing(**entry, svg=files.read_json(_path(entry["thing"]))[entry["set"]]) for entry in manifest["drawings"]
    )


def sprites(size: int = 128) -> Tensor:
    """Every drawing as a premultiplied RGBA picture `(drawings 4 size size)`, uint8."""
    return torch.stack([rasterise(drawing.svg, size) for drawing in drawings()])


def rasterise(svg: str, size: int) -> Tensor:
    """An SVG as premultiplied RGBA `(4 size size)`, uint8."""
    import resvg_py  # needed by the recipe alone (the extra "build")

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size))
    straight = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"), np.float32)
    straight[..., :3] *= straight[..., 3:] / 255
    return torch.from_numpy(straight.round().astype(np.uint8)).permute(2, 0, 1).contiguous()


def choose(packages: Path) -> int:
    """Copy the chosen icons out of the unpacked npm packages `packages/<set>`; returns how many there are."""
    sources = {source.name: files.read_json(packages / source.name / "icons.json") for source in SETS}
    entries = []
    for thing, icon in CHOICE.items():
        found = {source: svg for source, data in sources.items() if (svg := _svg(data, icon)) is not None}
        files.write_json(_path(thing), found)
        entries += [
            {"thing": thing, "set": s.name, "icon": icon, "licence": s.licence, "author": s.author}
            for s in SETS
            if s.name in found
        ]
    files.write_json(ICONS / "manifest.json", {"sets": [asdict(s) for s in SETS], "drawings": entries})
    return len(entries)


def _path(thing: str) -> Path:
    return ICONS / f"{thing.replace(' ', '-')}.json"


def _svg(data: dict[str, Any], icon: str) -> str | None:
    """The SVG of one icon of an Iconify package, made square, or None where the package lacks it."""
    name = data.get("aliases", {}).get(icon, {}).get("parent", icon)
    if name not in data["icons"]:
        return None
    entry = data["icons"][name]
    left, top = entry.get("left", 0), entry.get("top", 0)
    width, height = (entry.get(side, data.get(side, 16)) for side in ("width", "height"))
    side = max(width, height)
    box = f"{left - (side - width) / 2:g} {top - (side - height) / 2:g} {side:g} {side:g}"
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {names} viewBox="{box}">{entry["body"]}</svg>'


if __name__ == "__main__":
    print(f"{choose(Path(sys.argv[1]))} drawings of {len(CHOICE)} things")
