"""What the teacher paints for the aims of a step, kept over a crash, and what M(0) painted, for later steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from expunge import seeds
from expunge.files import canonical_json, digest_bytes
from expunge.methods.aims import Aim, Rows, Scenes, Term, replay_seed
from expunge.methods.base import StepContext
from expunge.replay import (
    FreshReplay,
    Replay,
    Sampler,
    Trajectories,
    fill_bank,
    joined,
    kept_bank,
    kept_tensors,
    kept_trajectories,
    trace,
)


def replayed(context: StepContext, scenes: Scenes) -> Replay:
    """Clean latents for the prompts of `scenes`."""
    config = context.replay
    sampler = _sampler(context, scenes)
    if config.source == "fresh":
        return FreshReplay(sampler, scenes.seed)
    progress = _progress(context, scenes)
    kept = context.file(f"replay-{scenes.role}-{_recipe(scenes)}")
    return kept_bank(
        kept, lambda: fill_bank(sampler, scenes.latents, config.batch_size, scenes.seed, progress), scenes.seed
    )


def recorded(context: StepContext, aims: Sequence[Aim]) -> tuple[dict[str, Trajectories], dict[str, Tensor]]:
    """{role: the points of its scenes}, {loss: the teacher's predictions for the target at each of them}."""
    traced: list[tuple[Scenes, Trajectories, Tensor]] = []
    replays: dict[str, list[tuple[Trajectories, int]]] = {}
    targets: dict[str, list[Tensor]] = {}
    for aim in aims:
        scenes = aim.scenes
        if not any(known == scenes for known, _, _ in traced):
            picked = range(len(scenes.prompts)) if scenes.picked is None else scenes.picked
            points = _trace(context, scenes)
            used, places = points.only(picked)
            traced.append((scenes, points, places))
            replays.setdefault(scenes.role, []).append((used, len(picked)))
        points, places = next((points, places) for known, points, places in traced if known == scenes)
        targets.setdefault(aim.loss, []).append(_targets(context, aim, points)[places])
    return (
        {role: joined(parts, replay_seed(context.seed, role)) for role, parts in replays.items()},
        {loss: torch.cat(found) for loss, found in targets.items()},
    )


def _trace(context: StepContext, scenes: Scenes) -> Trajectories:
    low, high = context.backbone.network_time(torch.tensor(scenes.times)).tolist()
    progress, size = _progress(context, scenes), context.replay.batch_size
    return kept_trajectories(
        _file(context, scenes, f"replay-{scenes.role}"),
        lambda: trace(_sampler(context, scenes), scenes.latents, (low, high), size, scenes.seed, progress),
        scenes.seed,
    )


@torch.no_grad()
def _targets(context: StepContext, aim: Aim, points: Trajectories) -> Tensor:
    """What the teacher predicts for the target of each point `(n c h w)`: on the way already, or now."""
    places = torch.nonzero(_not_painted(aim)[points.prompts]).flatten()
    if not len(places):
        return points.predictions
    lots = torch.rand(len(points.t), generator=seeds.generator(aim.scenes.seed, "lots"))
    device = context.backbone.device

    def evaluate() -> dict[str, Tensor]:
        term = Term.of(aim, context.teacher.encode)
        found = points.predictions.clone()
        for some in places.split(context.replay.batch_size):
            rows = Rows(*(x[some].to(device) for x in (points.latents, points.t, points.prompts, lots)))
            found[some] = context.teacher(rows.latents, rows.t, term.aimed(rows)).cpu()
        return {"targets": found}

    return kept_tensors(_file(context, aim.scenes, f"targets-{aim.loss}", aim.targets), evaluate)["targets"]


def _not_painted(aim: Aim) -> Tensor:
    """Whose targets painting did not evaluate on the way `(n,)`: those of prompts that are not their own only target."""
    painted = [[prompt] for prompt in aim.scenes.prompts]
    return torch.tensor([list(t) != p for t, p in zip(aim.targets, painted, strict=True)])


def _file(context: StepContext, scenes: Scenes, name: str, *more: Any) -> Path | None:
    """Where the work on `scenes` is kept: among the step's own, or where later steps find it."""
    recipe = _recipe(scenes, *more)
    if scenes.lasting and context.memory:
        return context.memory / f"{recipe}.safetensors"
    return context.file(f"{name}-{recipe}")


def _recipe(scenes: Scenes, *more: Any) -> str:
    """What was asked for, as a name: a step that goes on chooses its prompts anew, and they may be others."""
    recipe = [*more, list(scenes.prompts), scenes.latents, scenes.seed, list(scenes.times)]
    return digest_bytes(canonical_json(recipe).encode()).removeprefix("sha256:")[:24]


def _sampler(context: StepContext, scenes: Scenes) -> Sampler:
    steps, solver = context.replay.steps, context.replay.solver
    return Sampler(context.teacher, context.teacher.encode(scenes.prompts), steps, solver)


def _progress(context: StepContext, scenes: Scenes) -> Callable[[int, int], None]:
    return lambda done, of: context.progress(f"replay {scenes.role}", done, of)
