"""How long an evaluation picture takes, beside the stock pipeline called at the same batch and in the same dtype.

    python benchmarks/speed/evaluation.py                       # both with the protocol's solver steps
    python benchmarks/speed/evaluation.py --stock-steps 20      # the stock pipeline as the reference sampler

paints and judges one batch of a protocol's rows with Diffusers' own pipeline (same prompts, initial noise, solver,
guidance), and with `expunge.evaluation`, in turn, several times; then compares pictures and answers. Run it alone: it takes
times. It writes benchmarks/speed/results/evaluation.json, or evaluation-STEPS.json.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from expunge import backbones, iconworld
from expunge.backbones import Backbone
from expunge.benchmark.machine import Machine, check_idle, load_average
from expunge.evaluation import SamplerConfig, evaluate, protocol_rows
from expunge.evaluation.pixels import pixels
from expunge.files import write_json
from expunge.hardware import Precision, compute_dtype
from expunge.stream.named import model_folder

PROTOCOL = "iconworld-dev-a"


def stock(
    pipeline: Any, backbone: Backbone, prompts: list[str], seeds: list[int], sampler: SamplerConfig, steps: int
) -> Tensor:
    """Pictures `(b 3 h w)` in [0, 1] from the pipeline's own `__call__`."""
    noise = backbone.noise([torch.Generator().manual_seed(seed) for seed in seeds])
    images: Tensor = pipeline(
        prompts,
        latents=noise.to(pipeline.dtype),
        num_inference_steps=steps,
        guidance_scale=sampler.guidance,
        output_type="pt",
    ).images
    return images.float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--stock-steps", type=int, help="solver steps of the stock pipeline; the protocol's by default")
    parser.add_argument("--force", action="store_true", help="beside other work too")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    load = load_average()
    check_idle(load, arguments.force)
    precision: Precision = arguments.precision
    folder = model_folder("iconworld")
    backbone, judge = backbones.load(folder), iconworld.judge()
    protocol, source = iconworld.protocol(PROTOCOL), iconworld.vocabulary()
    sampler = protocol.sampler
    steps: int = arguments.stock_steps or sampler.steps
    name = f"evaluation-{steps}.json" if arguments.stock_steps else "evaluation.json"
    out: Path = arguments.out or Path(__file__).parent / "results" / name
    rows = [r for r in protocol_rows(protocol, source, []) if r.role == "neighbour" and r.level == "between"]
    rows = rows[: sampler.batch_size]
    pipeline = backbones.diffusers_class(backbone.pipeline_name).from_pretrained(
        folder, torch_dtype=compute_dtype(precision)
    )
    pipeline.scheduler = backbone.scheduler(sampler.solver)
    pipeline.set_progress_bar_config(disable=True)

    seconds: dict[str, list[float]] = {"stock": [], "expunge": []}
    pictures: dict[str, Tensor] = {}
    shown: dict[str, list[bool | None]] = {}
    for number in range(arguments.rounds + 1):
        for name in ("stock", "expunge") if number % 2 else ("expunge", "stock"):
            start = time.perf_counter()
            if name == "stock":
                found = stock(pipeline, backbone, [r.prompt for r in rows], [r.seed for r in rows], sampler, steps)
                shown[name] = [answer.shown for answer in judge.judge(found, [r.question for r in rows])]
                pictures[name] = torch.from_numpy(pixels(found)).float()
            else:
                table, images = evaluate(backbone, rows, sampler, judge, precision=precision)
                shown[name] = [None if answer is pd.NA else bool(answer) for answer in table["shown"]]
                pictures[name] = torch.stack([torch.from_numpy(images[r.id]) for r in rows]).float()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    difference = (pictures["stock"] - pictures["expunge"]).abs() / 255
    ratios = [a / b for a, b in zip(seconds["stock"], seconds["expunge"], strict=True)]
    results = {
        "schema": 1,
        "machine": Machine.here().model_dump(),
        "load_average": load,
        "precision": precision,
        "pictures": len(rows),
        "sampler": sampler.model_dump(),
        "stock_steps": steps,
        "seconds": seconds,
        "ratio": {"value": median(ratios), "low": min(ratios), "high": max(ratios), "n": len(ratios)},
        "same_answers": sum(a == b for a, b in zip(shown["stock"], shown["expunge"], strict=True)),
        "pixel_difference": {"mean": float(difference.mean()), "greatest": float(difference.max())},
    }
    write_json(out, results)
    print(results["ratio"], results["same_answers"], results["pixel_difference"])


if __name__ == "__main__":
    main()
