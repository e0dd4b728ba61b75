"""What an optimizer step costs at the size of Stable Diffusion 1.5, and whether `expunge estimate` said so.

    python benchmarks/speed/full_size.py --out FILE

builds a pipeline of that size with random weights, and for each engine and batch first estimates one request and then trains
it: seconds of an optimizer step and peak memory, said and measured. An optimizer step is one micro-batch here; published are
six of 18 rows of each role. `fast` works in bf16 with a bank, `reference` as it does. The request has few prompts and few
steps, so its other numbers are no request's. Checkpoints (10 GB) are not written. It is for a GPU; run it alone.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import tomli_w
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from expunge import ExpungeError, Run, engine, estimate, iconworld
from expunge.benchmark.machine import Machine, Session, load_average
from expunge.files import read_json, write_json
from expunge.hardware import best_device
from expunge.memory import peak_memory
from expunge.stream import preset

CONCEPT = "panda"
TEXT: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
}
DENOISER: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
AUTOENCODER: dict[str, Any] = {
    "sample_size": 512,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}
"""Configurations of Stable Diffusion 1.5, as far as they are not the classes' own defaults."""
TRAINED: dict[str, Any] = {"accumulation": 1, "warmup_steps": 0}
CHOSEN: dict[str, Any] = {
    "mapping_candidates": 2,
    "mapping_draws": 2,
    "forget_prompts": 8,
    "retain_prompts": 8,
    "retain_concepts": 2,
    "retain_draws": 1,
}
FAST: dict[str, Any] = {
    "train": {**TRAINED, "precision": "bf16", "steps": 8},
    "replay": {"source": "bank", "steps": 10, "solver": "dpm++", "batch_size": 32},
}
CASES: dict[str, dict[str, Any]] = {
    "fast, 18 rows": {**FAST, "train": {**FAST["train"], "batch_size": 18}},
    "fast, 4 rows": {**FAST, "train": {**FAST["train"], "batch_size": 4}},
    "fast, 4 rows, cross-attention": {
        **FAST,
        "train": {**FAST["train"], "batch_size": 4, "parameters": "cross-attention"},
    },
    "reference, 4 rows": {"train": {**TRAINED, "engine": "reference", "steps": 4, "batch_size": 4}},
    "reference, 18 rows": {"train": {**TRAINED, "engine": "reference", "steps": 2, "batch_size": 18}},
}


def build(folder: Path) -> Path:
    """The folder of the pipeline, in fp16."""
    tokenizer = _tokenizer()
    with torch.device(best_device()):
        torch.manual_seed(0)
        unet, vae = UNet2DConditionModel(**DENOISER), AutoencoderKL(**AUTOENCODER)
        text_encoder = CLIPTextModel(CLIPTextConfig(**TEXT, **_ids(tokenizer)))
    # The built-in model's noise schedule is Stable Diffusion's.
    scheduler = DDIMScheduler.from_pretrained(_built_in() / "scheduler", prediction_type="epsilon")
    StableDiffusionPipeline(
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(torch.float16).save_pretrained(folder)
    return folder


def judge(folder: Path) -> Path:
    """The folder of a CLIP model of random weights: estimates time the pictures too."""
    tokenizer = _tokenizer()
    CLIPModel(CLIPConfig(text_config=_ids(tokenizer))).save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def protocol(path: Path, model: Path, judge: Path) -> Path:
    """The requests of iconworld-dev-a, for this model: twenty solver steps, eight pictures at once."""
    told = iconworld.protocol("iconworld-dev-a").model_dump(mode="json", by_alias=True, exclude_none=True)
    sampler = {"solver": "dpm++", "steps": 20, "guidance": 7.5, "batch_size": 8}
    told |= {"name": "full-size", "model": model.name, "judge": f"clip:{judge}", "sampler": sampler}
    path.write_text(tomli_w.dumps(told))
    return path


def measured(case: Mapping[str, Any], model: Path, protocol: Path, work: Path) -> dict[str, Any]:
    """What was said of the case, and what it took; or why it could not be done."""
    changes = {
        **case,
        "model": {"source": str(model)},
        "method": CHOSEN,
        "evaluate": {"protocol": str(protocol), "precision": "bf16"},
    }
    found: dict[str, Any] = {"settings": case, "allocated_before": _afresh()}
    try:
        start = time.perf_counter()
        config = preset("lacu-sd15", changes)
        said = estimate(config, [[CONCEPT]])
        (request,) = said.requests
        found["estimated"] = {
            "step_seconds": request.train / config.train.steps,
            "prepare_seconds": request.prepare,
            "picture_seconds": request.evaluate / _pictures(protocol),
            "evaluations": request.evaluations.model_dump(),
            "peak": said.peak,
            "took": time.perf_counter() - start,
        }
        _afresh()
        run = Run.create(work / "run", requests=[CONCEPT], preset_name="lacu-sd15", changes=changes)
        cost = run.train(run.requests[0], None)
        lines = run.directory.step(1).log.read_text().splitlines()
        seconds = [json.loads(line)["seconds"] for line in lines]
        found["measured"] = {
            "step_seconds": median(seconds[1:]),
            "prepare_seconds": cost.seconds.choose + cost.seconds.replay,
            "evaluations": cost.evaluations.model_dump(),
            "peak": peak_memory(),
            "held": cost.held,
            "steps": seconds,
        }
    except ExpungeError as error:
        found["failed"] = str(error)
    return found


def _ids(tokenizer: Any) -> dict[str, int]:
    return {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}


def _tokenizer() -> Any:
    """The built-in model's, for as many tokens as Stable Diffusion reads."""
    return CLIPTokenizer.from_pretrained(_built_in() / "tokenizer", model_max_length=77)


def _built_in() -> Path:
    folder = iconworld.model_folder("iconworld")
    assert folder is not None
    return folder


def _pictures(path: Path) -> int:
    counts = tomllib.loads(path.read_text())["final"]
    return int(counts["forget"] + counts["neighbours"] + counts["others"])


def _afresh() -> int:
    """Forget the peak so far; bytes that are still allocated."""
    gc.collect()
    if not torch.cuda.is_available():
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--force", action="store_true", help="beside other work too")
    arguments = parser.parse_args()
    session = Session.begin(load_average(), arguments.force).model_dump()
    begun: dict[str, Any] = {"schema": 1, "machine": Machine.here().model_dump(), "cases": {}}
    results = read_json(arguments.out) if arguments.out.exists() else begun
    if results["machine"] != begun["machine"]:
        parser.error(f"{arguments.out} was measured on another machine. Give another file.")
    with tempfile.TemporaryDirectory() as scratch, patch.object(engine, "store_checkpoint", lambda *_: None):
        model, seer = build(Path(scratch) / "random-sd15"), judge(Path(scratch) / "random-clip")
        told = protocol(Path(scratch) / "protocol.toml", model, seer)
        for name, case in CASES.items():
            if name in results["cases"]:
                continue
            with tempfile.TemporaryDirectory(dir=scratch) as work:
                found = measured(case, model, told, Path(work))
            results["cases"][name] = {"session": session, **found}
            write_json(arguments.out, results)
            print(name, json.dumps({k: found.get(k) for k in ("estimated", "measured", "failed")}), flush=True)


if __name__ == "__main__":
    main()
