"""`python -m expunge.iconworld.build.measure`: how well the built-in model paints and its judge sees.

Pictures: every thing in every style, on backgrounds in turn, in the sentences kept for evaluation, with 25 DDIM steps and
the model's default guidance. Renders for the judge: seeds that nothing was trained on. Speed: the stock pipeline.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import typer
from diffusers import StableDiffusionPipeline
from PIL import Image

from expunge import backbones, files, iconworld, seeds
from expunge.backbones import Backbone
from expunge.evaluation import Judge, Row, SamplerConfig, evaluate, forget_rows, metrics, retention_rows
from expunge.iconworld.build import draw, icons
from expunge.iconworld.build import judge as judging

SAMPLER = SamplerConfig(solver="ddim", steps=25, guidance=3.0, batch_size=60)
"""25 DDIM steps at the model's default guidance."""
SEED = 64
SHOWN = [
    "fox", "cat", "banana", "strawberry", "santa", "ghost", "bus", "rocket", "guitar", "hamburger", "penguin", "rose",
]  # fmt: skip
"""Things on the sample grids."""


def rows(each: int) -> list[Row]:
    """Every thing in every style, `each` times."""
    words, backgrounds = iconworld.vocabulary(), list(draw.BACKGROUNDS)
    made = []
    for number, (thing, style) in enumerate((t, s) for t in draw.THINGS for s in draw.STYLE_NAMES for _ in range(each)):
        scene = {"thing": thing, "style": style, "background": backgrounds[number % len(backgrounds)]}
        shown = {slot: v for slot, v in scene.items() if v != words.slots[slot].plain}
        template = words.evaluation_templates[number % len(words.evaluation_templates)]
        made.append(
            Row(
                id=str(number),
                role="other",
                concept=thing,
                slot="thing",
                replayed=False,
                level="final",
                prompt=words.write(template, shown),
                scene=scene,
                seed=seeds.derive(SEED, number) % 2**32,
            )
        )
    return made


def painted(backbone: Backbone, judge: Judge, each: int) -> dict[str, Any]:
    """Shares of pictures whose thing, style and background the judge sees as asked, overall and one by one."""
    asked = rows(each)
    table, _ = evaluate(backbone, asked, SAMPLER, judge, _progress("paint"))
    for slot in ("thing", "style", "background"):
        table[slot] = [row.scene[slot] for row in asked]
        table[f"{slot}_right"] = table[f"seen_{slot}"] == table[slot]
    things = _shares(table, "thing", "thing_right")
    worst = min(things, key=lambda name: things[name]["value"])
    return {
        "things": _share(table["thing_right"]),
        "styles": _share(table["style_right"]),
        "backgrounds": _share(table["background_right"]),
        "worst_thing": {"name": worst, **things[worst]},
        "per_thing": things,
        "things_per_style": _shares(table, "style", "thing_right"),
        "per_style": _shares(table, "style", "style_right"),
        "per_background": _shares(table, "background", "background_right"),
    }


def drawn_right(backbone: Backbone, judge: Judge, name: str) -> dict[str, Any]:
    """{concept: share drawn right by the base model over the protocol's own rows}, for all that the protocol counts."""
    protocol, words = iconworld.protocol(name), iconworld.vocabulary()
    asked = [n for request in protocol.requests for n in request]
    every = retention_rows(protocol, words) + [r for n in asked for r in forget_rows(protocol, words, words.concept(n))]
    table, _ = evaluate(backbone, every, protocol.sampler, judge, _progress(name))
    return _shares(table, "concept", "shown")


def seconds(folder: Path, pictures: int = 64, runs: int = 3) -> dict[str, Any]:
    """Seconds that the stock pipeline takes for `pictures` pictures in one batch."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    prompts = [row.prompt for row in rows(1)[:pictures]]
    taken = []
    for _ in range(runs + 1):
        begun = time.perf_counter()
        pipeline(prompts, num_inference_steps=SAMPLER.steps, guidance_scale=SAMPLER.guidance)
        taken.append(time.perf_counter() - begun)
    timed = taken[1:]  # the first run also warms up
    return {"value": statistics.median(timed), "low": min(timed), "high": max(timed), "n": runs}


def fingerprints(folder: Path) -> dict[str, list[int]]:
    """{prompt: eight by eight mean colours, 0 to 255} of eight pictures that the stock pipeline paints."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    every = rows(1)
    chosen = every[:: len(every) // 8][:8]
    pictures = pipeline(
        [row.prompt for row in chosen],
        num_inference_steps=SAMPLER.steps,
        guidance_scale=SAMPLER.guidance,
        generator=[torch.Generator().manual_seed(row.seed) for row in chosen],
        output_type="pt",
    ).images
    colours = (F.adaptive_avg_pool2d(pictures, 8) * 255).round().int().flatten(1).tolist()
    return dict(zip((row.prompt for row in chosen), colours, strict=True))


def grid(backbone: Backbone, things: Sequence[str], path: Path) -> None:
    """Sample pictures, one style a row and one thing a column, on backgrounds in turn."""
    chosen = sorted((r for r in rows(1) if r.concept in things), key=lambda r: draw.STYLE_NAMES.index(r.scene["style"]))
    _, images = evaluate(backbone, chosen, SAMPLER, iconworld.judge())
    lines = [np.concatenate([images[r.id] for r in chosen if r.scene["style"] == s], 1) for s in draw.STYLE_NAMES]
    Image.fromarray(np.concatenate(lines)).save(path)


def renders(things: Sequence[str], path: Path) -> None:
    """Drawings that the networks learn from, arranged like `grid`."""
    thing = torch.tensor([draw.THINGS.index(name) for _ in draw.STYLE_NAMES for name in things])
    style = torch.arange(len(draw.STYLE_NAMES)).repeat_interleave(len(things))
    plan = draw.one_each(thing, style, torch.arange(len(thing)) % len(draw.BACKGROUNDS), SEED)
    pictures = (draw.paint(plan, icons.sprites(draw.CANVAS)) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    lines = [np.concatenate(list(line), 1) for line in np.split(pictures, len(draw.STYLE_NAMES))]
    Image.fromarray(np.concatenate(lines)).save(path)


def measure(
    out: Annotated[Path, typer.Option(help="The results file.")] = Path(
        "benchmarks/iconworld/results/iconworld-1.json"
    ),
    each: Annotated[int, typer.Option(help="Pictures of each thing in each style.")] = 2,
    pictures: Annotated[Path | None, typer.Option(help="Folder for sample grids and the reliability diagram.")] = None,
) -> None:
    """Measure the built-in model and its judge."""
    torch.set_flush_denormal(True)
    folder = iconworld.model_folder(iconworld.DEFAULT)
    assert folder is not None
    backbone, judge = backbones.load(folder), iconworld.judge()
    seen = judging.measure(iconworld.HERE / "models" / f"{iconworld.DEFAULT}-judge.safetensors")
    result = {
        "schema": 1,
        "model": {"name": iconworld.DEFAULT, "digest": backbones.model_digest(folder)},
        "sampler": SAMPLER.model_dump(),
        "seconds_64_images": seconds(folder),
        "fingerprints": fingerprints(folder),
        "bytes": sum(path.stat().st_size for path in folder.rglob("*.safetensors")),
        **painted(backbone, judge, each),
        **{f"judge_{slot}s": seen["clean"][slot]["accuracy"] for slot in judging.VALUES},
        "judge": seen,
        "protocols": {name: drawn_right(backbone, judge, name) for name in iconworld.PROTOCOLS},
    }
    files.write_json(out, result)
    if pictures is not None:
        grid(backbone, SHOWN, pictures / f"{iconworld.DEFAULT}-samples.png")
        renders(SHOWN, pictures / f"{iconworld.DEFAULT}-renders.png")
        judging.plot(seen, pictures / f"{iconworld.DEFAULT}-reliability.png")


def _share(right: pd.Series) -> dict[str, Any]:
    """Share with its 95 % Wilson interval."""
    value = metrics.wilson(int(right.fillna(False).sum()), len(right))
    assert value is not None
    return value.model_dump()


def _shares(table: pd.DataFrame, by: str, right: str) -> dict[str, dict[str, Any]]:
    """`_share` of the column `right` for each value of the column `by`."""
    return {str(name): _share(part[right]) for name, part in table.groupby(by)}


def _progress(what: str) -> Any:
    return lambda done, of: print(f"\r{what} {done}/{of}", end="" if done < of else "\n", flush=True)


if __name__ == "__main__":
    typer.run(measure)
