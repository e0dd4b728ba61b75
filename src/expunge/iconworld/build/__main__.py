"""`python -m expunge.iconworld.build --out DIR`: draw, tokenizer, autoencoder, denoiser, judge, one after another.

Every stage may be stopped at any moment (Ctrl-C, SIGTERM, a power cut); the same command goes on. What is done is not
done again. Exit codes: 0 done, 2 bad usage or input, 3 stopped before the end.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from expunge import files
from expunge.errors import ExpungeError
from expunge.hardware import best_device, has_bfloat16
from expunge.iconworld.build import autoencoder, denoiser, judge, loop, stock, tokenizer

LARGER = 8
"""Batches are this many times larger on a GPU."""


class Stage(StrEnum):
    draw = "draw"
    tokenizer = "tokenizer"
    autoencoder = "autoencoder"
    denoiser = "denoiser"
    judge = "judge"
    all = "all"


def build(
    out: Annotated[Path, typer.Option(help="Folder of everything that the recipe makes.")],
    stage: Annotated[Stage, typer.Option(help="One stage, or all of them in order.")] = Stage.all,
    minutes: Annotated[float | None, typer.Option(help="Stop each stage after this many minutes.")] = None,
    pictures: Annotated[int, typer.Option(help="Pictures to draw beforehand (CPU only).")] = 49_152,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps of the stage, instead of its own number.")] = None,
    batch: Annotated[int | None, typer.Option(help="Pictures per step, instead of the stage's own number.")] = None,
    seed: int = 0,
) -> None:
    """Draw the pictures of the built-in model and train its networks."""
    torch.set_flush_denormal(True)
    device, budget = best_device(), loop.Budget(minutes)
    print(f"{device.type}, {'bfloat16' if has_bfloat16(device) else 'float32'}, {torch.get_num_threads()} threads")
    larger = LARGER if device.type == "cuda" else 1

    def adapted(settings: Any) -> Any:
        """A stage's settings for this machine and these options."""
        return replace(settings, seed=seed, steps=steps or settings.steps, batch=batch or settings.batch * larger)

    def wanted(name: Stage) -> bool:
        return stage in (name, Stage.all)

    try:
        if wanted(Stage.draw) and device.type == "cpu":
            stock.fill(out, pictures, seed + 1, budget)
        if wanted(Stage.tokenizer) and not (out / "tokenizer").exists():
            tokenizer.save(out / "tokenizer")
        if stage in (Stage.draw, Stage.tokenizer):
            return
        source = stock.source(out, pictures, device)
        if wanted(Stage.autoencoder):
            painter = autoencoder.Training(adapted(autoencoder.Settings()), source, device)
            loop.train(painter, out, budget)
            painter.save(out / "vae")
        if wanted(Stage.denoiser):
            model = denoiser.Training(adapted(denoiser.Settings()), source, out, device)
            loop.train(model, out, budget)
            model.save(out / "pipeline")
        if wanted(Stage.judge):
            watcher = judge.Training(adapted(judge.Settings()), source, device)
            loop.train(watcher, out, budget)
            judge.finish(watcher.network, out)
            report = judge.measure(out / "judge.safetensors")
            judge.plot(report, out / "reliability.png")
            files.write_json(out / "judge.json", report)
            for slot in judge.VALUES:
                print(slot, report["clean"][slot]["accuracy"])
    except ExpungeError as error:
        print(error)
        raise typer.Exit(error.exit_code) from error


if __name__ == "__main__":
    typer.run(build)
