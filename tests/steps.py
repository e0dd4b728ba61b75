"""One step of training on a tiny pipeline, without a run around it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from expunge import iconworld
from expunge.backbones import Backbone, Evaluations
from expunge.constraints import L2, Constraint, L2Config
from expunge.engine import TrainConfig, train
from expunge.hardware import best_device
from expunge.methods import METHODS, Earlier, StepContext
from expunge.reference import PREDICTORS, EngineName
from expunge.replay import ReplayConfig

in_fixed_order = pytest.mark.skipif(
    torch.cuda.is_available(), reason="on a GPU sums are taken in no fixed order, or in TF32"
)
_MAPPING: dict[str, Any] = {"forget_prompts": 4, "mapping_candidates": 2, "mapping_draws": 2, "retain_draws": 2}
_RETAIN: dict[str, Any] = {"retain": "mixed", "retain_concepts": 3, "retain_prompts": 6}
SMALL: dict[str, dict[str, Any]] = {
    "lacu": {**_MAPPING, **_RETAIN},
    "dfr": {**_MAPPING, **_RETAIN, "mapping_targets": 2, "lambda_empty": 5.0, "lambda_again": 1.0, "again_prompts": 2},
    "naive": _MAPPING,
}
"""{method: a configuration that runs in a second}; every registered method has one."""


def earlier(*names: str, seed: int = 1, **told: Any) -> Earlier:
    """A step that forgot the concepts `names` of the built-in vocabulary."""
    vocabulary = iconworld.vocabulary()
    return Earlier(seed, tuple(vocabulary.concept(name) for name in names), **told)


def context(
    backbone: Backbone, *, seed: int = 0, batch_size: int = 4, engine: EngineName = "fast", **changes: Any
) -> StepContext:
    """A step that must forget "fox", with "cat" held out."""
    vocabulary = iconworld.vocabulary()
    backbone.to(best_device())
    fields: dict[str, Any] = {
        "backbone": backbone,
        "teacher": PREDICTORS[engine](backbone, backbone.copy_denoiser(torch.float32), Evaluations()),
        "source": vocabulary,
        "concepts": (vocabulary.concept("fox"),),
        "earlier": (earlier("neon"),),
        "held_out": frozenset({"cat"}),
        "replay": ReplayConfig(steps=2, forget_latents=2, retain_latents=1, batch_size=32),
        "seed": seed,
        "batch_size": batch_size,
    }
    return StepContext(**{**fields, **changes})


def built(name: str, **changes: Any) -> Any:
    """The method `name` with `changes` laid over its small configuration."""
    cls = METHODS[name]
    return cls(cls.Config(**{**SMALL[name], **changes}))


def log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a step's train.jsonl, without what depends on the machine."""
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def run_step(
    backbone: Backbone,
    folder: Path,
    *,
    method: str = "lacu",
    seed: int = 0,
    changes: dict[str, Any] | None = None,
    served: dict[str, Any] | None = None,
    constraints: Sequence[Constraint] = (L2(L2Config(weight=1e-3)),),
    on_step: Any = lambda _: None,
    **train_changes: Any,
) -> dict[str, Tensor]:
    """Train `backbone` from its present weights; the trained weights. `folder` keeps state between calls.

    `changes` are laid over the method's small configuration, `served` over what the step must forget (see `context`).
    """
    config = TrainConfig.model_validate(
        {
            "steps": 4,
            "batch_size": 4,
            "accumulation": 1,
            "learning_rate": 1e-3,
            "warmup_steps": 2,
            "checkpoint_steps": 2,
        }
        | train_changes
    )
    using = built(method, **(changes or {}))
    step = context(backbone, seed=seed, batch_size=config.batch_size, engine=config.engine, **(served or {}))
    state, _ = using.prepare(step)
    base = {n: p.detach().clone() for n, p in step.teacher.denoiser.named_parameters()}
    train(
        backbone,
        step.teacher,
        using,
        state,
        constraints,
        base,
        config,
        seed=step.seed,
        checkpoint=folder,
        log=folder / "train.jsonl",
        evaluations=Evaluations(),
        on_step=on_step,
    )
    return {n: p.detach().cpu().clone() for n, p in backbone.denoiser.named_parameters()}


@torch.no_grad()
def example_prediction(backbone: Backbone) -> Tensor:
    """The denoiser's prediction `(2 c h w)` for two prompts on fixed noise."""
    latents = torch.randn((2, *backbone.latent_shape), generator=torch.Generator().manual_seed(0)).to(backbone.device)
    t = backbone.network_time(torch.tensor([200, 700])).to(backbone.device)
    return backbone.predict(backbone.denoiser, latents, t, backbone.encode(["a fox", "a blue car by the sea"]))
