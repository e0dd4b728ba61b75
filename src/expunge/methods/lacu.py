"""LACU: contextual trajectory re-steering with generative replay and distillation.

With teacher theta* = M(k-1) (frozen), student theta (starts at theta*), forget prompts f paired with mapping prompts g,
and retain prompts r, one optimizer step minimises

    L = lambda_unlearn  E || eps(x_t, t, f; theta) - eps(x_t, t, g; theta*) ||^2      re-steering,   t ~ U{t_min..t_max}
      + lambda_preserve E || eps(x_t, t, r; theta) - eps(x_t, t, r; theta*) ||^2      distillation,  t ~ U{0..999}
      + lambda_reg      || theta - theta* ||^2                                        regularization

where x_t = q(x_t | x_0) and x_0 is replayed: sampled by the teacher for f and r, without guidance. Norms are means over
elements, except the last, which is a sum over parameters; it is the constraint `l2` (expunge/constraints/l2.py). Mapping
prompts and neighbours are chosen by score distance (expunge/locality.py).

Source: "Distill, Forget, Repeat", arXiv 2512.02657, and its ECCV version "Locality-Aware Continual Unlearning".
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from expunge import seeds
from expunge.backbones import Conditioning, Predictor
from expunge.concepts import Concept, mentions
from expunge.errors import ExpungeError
from expunge.locality import Choice, choose_mapping, rank, scoring_draws
from expunge.methods.base import GradientMethod, MethodConfig, Position, Record, StepContext
from expunge.replay import FreshReplay, Replay, Sampler, fill_bank, kept_bank


class LacuConfig(MethodConfig):
    """Defaults are the published ones for SD1.5 (arXiv 2512.02657, ECCV version), where it states one.

    Attributes:
        strength: multiplies lambda_unlearn; the one knob most people touch.
        lambda_unlearn, lambda_preserve: loss weights. Source: 5 to 7 by concept, and 25.
        t_min, t_max: training indices between which re-steering acts, both inclusive. Source: 0 and 600.
        forget_prompts: forget prompts per concept. Source: 100.
        mapping_candidates: replacements that compete for each forget prompt, the nearest by score distance. Source: 10.
        mapping_draws: noisy latents shared by all candidates of the mapping choice. Source: 32.
        retain: "local" (neighbours nearest in score distance), "global" (everything else) or "mixed" (half each).
        retain_concepts: neighbours that are replayed. Source: 10.
        retain_prompts: retain prompts. Source: 100.
        retain_draws: noisy latents shared in ranking the neighbours. Source: 16.
    """

    strength: float = Field(1.0, gt=0)
    lambda_unlearn: float = Field(5.0, ge=0)
    lambda_preserve: float = Field(25.0, ge=0)
    t_min: int = Field(0, ge=0, lt=1000)
    t_max: int = Field(600, ge=0, lt=1000)
    forget_prompts: int = Field(100, ge=1)
    mapping_candidates: int = Field(10, ge=1)
    mapping_draws: int = Field(32, ge=1)
    retain: Literal["local", "global", "mixed"] = "local"
    retain_concepts: int = Field(10, ge=1)
    retain_prompts: int = Field(100, ge=1)
    retain_draws: int = Field(16, ge=1)

    @model_validator(mode="after")
    def _times_in_order(self) -> Self:
        if self.t_min > self.t_max:
            raise ValueError(f"t_min ({self.t_min}) must not be above t_max ({self.t_max})")
        return self


def resteering_loss(student_forget: Tensor, teacher_mapping: Tensor) -> Tensor:
    """mean || eps(x_t, t, f; theta) - eps(x_t, t, g; theta*) ||^2 of predictions `(b c h w)` on the same x_t and t.

    Source: arXiv 2512.02657, the unlearning term.
    """
    return (student_forget - teacher_mapping).square().mean()


def distillation_loss(student_retain: Tensor, teacher_retain: Tensor) -> Tensor:
    """mean || eps(x_t, t, r; theta) - eps(x_t, t, r; theta*) ||^2 of predictions `(b c h w)` on the same x_t and t.

    Source: arXiv 2512.02657, the preservation term in its mode "distillation".
    """
    return (student_retain - teacher_retain).square().mean()


@dataclass(frozen=True)
class Rows:
    """Noisy latents `(b c h w)`, network times `(b,)`, and the index of each row's prompt `(b,)`."""

    latents: Tensor
    t: Tensor
    prompts: Tensor


@dataclass(frozen=True)
class LacuBatch:
    forget: Rows
    retain: Rows


@dataclass(frozen=True)
class LacuState:
    """What training needs: prompts as conditioning, and their replayed latents."""

    teacher: Predictor
    forget: Conditioning
    mapping: Conditioning
    retain: Conditioning
    forget_replay: Replay
    retain_replay: Replay
    batch_size: int
    seed: int


class Lacu(GradientMethod[LacuState, LacuBatch]):
    """See the module's docstring."""

    Config = LacuConfig
    config: LacuConfig

    @property
    def weights(self) -> Mapping[str, float]:
        return {
            "unlearn": self.config.strength * self.config.lambda_unlearn,
            "preserve": self.config.lambda_preserve,
        }

    def prepare(self, context: StepContext) -> tuple[LacuState, Record]:
        with context.phase("choose"):
            choices, neighbours, retain = self._choose(context)
            forget = context.backbone.encode([c.forget for c in choices])
            mapping = context.backbone.encode([c.mapping for c in choices])
            kept = context.backbone.encode(retain)
        with context.phase("replay"):
            state = LacuState(
                teacher=context.teacher,
                forget=forget,
                mapping=mapping,
                retain=kept,
                forget_replay=_replay(context, "forget", forget, context.replay.forget_latents),
                retain_replay=_replay(context, "retain", kept, context.replay.retain_latents),
                batch_size=context.batch_size,
                seed=context.seed,
            )
        record = Record(
            prompts={
                "forget": [{"id": c.id, "prompt": c.forget} for c in choices],
                "mapping": [{"id": c.id, "prompt": c.mapping} for c in choices],
                "retain": retain,
            },
            choices={"neighbours": neighbours, "mapping": [asdict(c) for c in choices]},
        )
        return state, record

    def batch(self, state: LacuState, position: Position, student: Predictor) -> LacuBatch:
        first = position.first_row(state.batch_size)
        return LacuBatch(
            forget=_noisy(state, "forget", state.forget_replay, first, self.config.t_min, self.config.t_max),
            retain=_noisy(state, "retain", state.retain_replay, first, 0, 999),
        )

    def losses(
        self, batch: LacuBatch, student: Predictor, teacher: Predictor, state: LacuState
    ) -> Mapping[str, Tensor]:
        """Both terms from one pass of each network: rows do not see each other, so joining them changes no value."""
        forget, retain = batch.forget, batch.retain
        latents = torch.cat([forget.latents, retain.latents])
        t = torch.cat([forget.t, retain.t])
        kept = state.retain[retain.prompts]
        with torch.no_grad():
            target = teacher(latents, t, Conditioning.cat([state.mapping[forget.prompts], kept]))
        prediction = student(latents, t, Conditioning.cat([state.forget[forget.prompts], kept]))
        n = len(forget.latents)
        return {
            "unlearn": resteering_loss(prediction[:n], target[:n]),
            "preserve": distillation_loss(prediction[n:], target[n:]),
        }

    def _choose(self, context: StepContext) -> tuple[list[Choice], dict[str, dict[str, float]], list[str]]:
        """Mapping choices, {concept: {neighbour: score distance}}, and retain prompts."""
        config, source, avoid = self.config, context.source, context.off_limits
        choices: list[Choice] = []
        neighbours: dict[str, dict[str, float]] = {}
        retain: list[str] = []
        scoring = context.replay.batch_size
        for concept in context.concepts:
            related = [n for n in source.related(concept) if n not in avoid]
            if not related:
                raise ExpungeError(f"No concept is left that could replace {concept.name!r} or be retained beside it.")
            draws = scoring_draws(context.backbone, config.retain_draws, context.generator("rank", concept.name))
            ranked = rank(context.teacher, concept.name, related, draws, scoring)
            neighbours[concept.name] = dict(ranked)
            nearest = [name for name, _ in ranked]
            prompts = source.forget_prompts(
                concept,
                nearest[: config.mapping_candidates],
                config.forget_prompts,
                seeds.derive(context.seed, "forget", concept.name),
                avoid,
            )
            draws = scoring_draws(context.backbone, config.mapping_draws, context.generator("map", concept.name))
            chosen = choose_mapping(context.teacher, prompts, draws, scoring)
            choices += [replace(c, id=f"{concept.name}/{c.id}") for c in chosen]
            retain += self._retain_prompts(context, concept, nearest[: config.retain_concepts])
        _check_leaks(context.concepts, choices, retain)
        return choices, neighbours, retain

    def _retain_prompts(self, context: StepContext, concept: Concept, near: list[str]) -> list[str]:
        config, source, avoid = self.config, context.source, context.off_limits
        shares = {"local": (1.0, 0.0), "global": (0.0, 1.0), "mixed": (0.5, 0.5)}[config.retain]
        far = {*source.related(concept), *source.unrelated(concept)} - {*near, *avoid}
        shuffled = random.Random(seeds.derive(context.seed, "far", concept.name)).sample(sorted(far), len(far))
        prompts: list[str] = []
        for label, names, share in zip(("local", "global"), (near, shuffled), shares, strict=True):
            count = round(share * config.retain_prompts)
            if count:
                seed = seeds.derive(context.seed, "retain", label, concept.name)
                prompts += source.retain_prompts(names, count, seed, avoid)
        return prompts


def _replay(context: StepContext, role: str, prompts: Conditioning, each: int) -> Replay:
    config = context.replay
    solver = context.backbone.replay_solver if config.solver == "published" else config.solver
    sampler = Sampler(context.teacher, prompts, config.steps, solver)
    seed = seeds.derive(context.seed, "replay", role)
    if config.source == "fresh":
        return FreshReplay(sampler, seed)
    return kept_bank(
        context.folder / f"replay-{role}.safetensors" if context.folder else None,
        lambda: fill_bank(
            sampler, each, config.batch_size, seed, lambda done, of: context.progress(f"replay {role}", done, of)
        ),
        seed,
    )


def _noisy(state: LacuState, role: str, replay: Replay, first: int, t_min: int, t_max: int) -> Rows:
    """A micro-batch of replayed latents carried to uniform training indices in [t_min, t_max]."""
    clean, prompts = replay.draw(first, state.batch_size)
    # One generator per row: how rows are split over micro-batches and processes changes no draw.
    generators = [seeds.generator(state.seed, "noise", role, first + i) for i in range(len(clean))]
    indices = torch.cat([torch.randint(t_min, t_max + 1, (1,), generator=g) for g in generators])
    backbone = state.teacher.backbone
    noise = backbone.noise(generators)
    device = backbone.device
    t = backbone.network_time(indices).to(device)
    return Rows(backbone.add_noise(clean.to(device), noise.to(device), t), t, prompts.to(device))


def _check_leaks(concepts: tuple[Concept, ...], choices: list[Choice], retain: list[str]) -> None:
    """Forget prompts must speak of a concept; mapping and retain prompts must speak of none."""
    for choice in choices:
        if not any(mentions(choice.forget, c) for c in concepts):
            raise ExpungeError(f"The forget prompt {choice.forget!r} (id {choice.id}) speaks of no requested concept.")
    for kind, prompts in (("mapping", [c.mapping for c in choices]), ("retain", retain)):
        for prompt in prompts:
            for concept in concepts:
                if name := mentions(prompt, concept):
                    raise ExpungeError(f"The {kind} prompt {prompt!r} speaks of {name!r}, which must be forgotten.")
