"""Re-steering and its relatives: the student learns to predict for some prompts what the teacher predicts for others.

With a frozen teacher theta* (M(k-1), or M(0) where asked for) and a student theta, which starts at M(k-1), every loss of this
family is

    L = E || eps(x_t, t, p; theta) - eps(x_t, t, q; theta*) ||^2,     x_t = q(x_t | x_0),  t ~ U{t_min..t_max}

a mean over elements, where x_0 is replayed: sampled by the teacher for some prompt, without guidance. It re-steers where p
and q differ, and distils where they are the same. Where a prompt has several targets q, each row draws one of them.
A method states its losses as `Aim`s in a `Plan` (aims.py); painting (painted.py), drawing and evaluating are the same for all.

Source: "Distill, Forget, Repeat", arXiv 2512.02657, the unlearning and the preservation term.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor

from expunge import seeds
from expunge.backbones import Predictor
from expunge.locality import Choice
from expunge.methods.aims import Aim, Rows, Scenes, Term, replay_seed
from expunge.methods.base import GradientMethod, Position, Record, StepContext, TeacherName
from expunge.methods.mapping import MappingConfig, Ranking
from expunge.methods.painted import recorded, replayed
from expunge.methods.warm_start import WarmStart
from expunge.replay import Replay, Trajectories

Weight = Annotated[float, Field(ge=0)]
Time = Annotated[int, Field(ge=0, lt=1000)]


def matching_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """mean || eps(x_t, t, p; theta) - eps(x_t, t, q; theta*) ||^2 of predictions `(b c h w)` on the same x_t and t.

    With one of several q drawn for every row its gradient is, in expectation, that of the mean prediction of all q, since
    E_q || s - q ||^2 = || s - E q ||^2 + Var q: drawing costs one evaluation of the teacher, averaging one for each.
    """
    return (student - teacher).square().mean()


class ResteeringConfig(MappingConfig):
    """
    Attributes:
        teacher: "previous", M(k-1), as published; or "base", M(0): what is distilled and replayed is then the base model's
            own work in every step, and the errors of earlier steps are not copied into later ones.
        lambda_unlearn: weight of the re-steering loss.
        along: whose pictures re-steering sees: "forget", latents painted for the forget prompts, as published; or "both", as
            many painted for their mapping prompts beside them: the way that a student takes which has learned its lesson.
        t_min: least training index (0 the cleanest, 999 the noisiest) at which re-steering acts.
        t_max: greatest such index.
    """

    teacher: TeacherName = "previous"
    lambda_unlearn: float = Field(gt=0)
    along: Literal["forget", "both"] = "forget"
    t_min: Time = 0
    t_max: Time

    @model_validator(mode="after")
    def _times_in_order(self) -> Self:
        if self.t_min > self.t_max:
            raise ValueError(f"t_min ({self.t_min}) must not be above t_max ({self.t_max})")
        return self


@dataclass(frozen=True)
class State:
    """What training needs: terms by loss; replayed latents and training indices by role; and where whole trajectories are
    replayed, the teacher's predictions `(n c h w)` at their points by loss, so that training does without the teacher."""

    teacher: Predictor
    terms: Mapping[str, Term]
    replays: Mapping[str, Replay | Trajectories]
    targets: Mapping[str, Tensor]
    times: Mapping[str, tuple[int, int]]
    batch_size: int
    seed: int
    start: WarmStart | None = None


@dataclass(frozen=True)
class Plan:
    """A step in words.

    Attributes:
        aims: its losses.
        record: what people should know of their choice.
        start: where training begins; None for M(k-1).
    """

    aims: Sequence[Aim]
    record: Record
    start: WarmStart | None = None


class Resteering(GradientMethod[State, Mapping[str, Rows]]):
    """A method whose losses are all matching losses. Subclasses name their configuration, weights and aims."""

    config: Any

    @property
    def teacher(self) -> TeacherName:
        return cast(ResteeringConfig, self.config).teacher

    @abstractmethod
    def plan(self, context: StepContext) -> Plan:
        """A step in words."""

    def prepare(self, context: StepContext) -> tuple[State, Record]:
        with context.phase("choose"):
            plan = self.plan(context)
            aims = plan.aims
            roles = {aim.loss: aim.scenes.role for aim in aims}
            used = [
                Aim.together([a.narrowed() for a in aims if a.loss == loss], replay_seed(context.seed, role))
                for loss, role in roles.items()
            ]
            terms = {aim.loss: Term.of(aim, context.teacher.encode) for aim in used}
        scenes = {aim.scenes.role: aim.scenes for aim in used}
        with context.phase("replay"):
            replays: Mapping[str, Replay | Trajectories]
            if context.replay.source == "trajectory":
                # With a memory what is used is a part of what an earlier step painted; without, nothing else is painted.
                replays, targets = recorded(context, aims if context.memory else used)
            else:
                replays, targets = {role: replayed(context, s) for role, s in scenes.items()}, {}
        times = {role: s.times for role, s in scenes.items()}
        state = State(context.teacher, terms, replays, targets, times, context.batch_size, context.seed, plan.start)
        return state, plan.record

    @torch.no_grad()
    def start(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], state: State) -> None:
        if state.start:
            for name, value in state.start.solve(teacher, student).items():
                student[name].copy_(value)

    def batch(self, state: State, position: Position, student: Predictor) -> Mapping[str, Rows]:
        """{role: its rows}."""
        first = position.first_row(state.batch_size)
        return {role: _rows(state, role, first) for role in state.replays}

    def losses(
        self, batch: Mapping[str, Rows], student: Predictor, teacher: Predictor, state: State
    ) -> Mapping[str, Tensor]:
        rows = [batch[term.role] for term in state.terms.values()]
        conditioning = [term.both(r) for term, r in zip(state.terms.values(), rows, strict=True)]
        if state.targets:
            device = teacher.backbone.device
            targets = [state.targets[n][r.places].to(device) for n, r in zip(state.terms, rows, strict=True)]
        else:
            with torch.no_grad():
                targets = teacher.each(
                    [(r.latents, r.t, aimed) for r, (_, aimed) in zip(rows, conditioning, strict=True)]
                )
        predictions = student.each([(r.latents, r.t, told) for r, (told, _) in zip(rows, conditioning, strict=True)])
        pairs = zip(state.terms, predictions, targets, strict=True)
        return {name: matching_loss(ours, theirs) for name, ours, theirs in pairs}


def resteer(
    config: ResteeringConfig,
    context: StepContext,
    choices: Sequence[Choice],
    *,
    loss: str = "unlearn",
    role: str = "forget",
    seed: int | None = None,
    picked: Sequence[int] | None = None,
) -> Aim:
    """Forget prompts to their mapping prompts, on latents of the forget prompts, or of both.

    Args:
        seed: of the step that chose them; None for this one.
        picked: places of the choices that are used; None for all.
    """
    forget = [c.forget for c in choices]
    targets = [[m.prompt for m in c.mapping] for c in choices]
    painted = list(forget)
    if config.along == "both":
        painted += [first for first, *_ in targets]
        forget, targets = forget * 2, targets * 2
        picked = picked and [*picked, *(place + len(choices) for place in picked)]
    seed = replay_seed(context.seed if seed is None else seed, "forget")
    times = (config.t_min, config.t_max)
    scenes = Scenes(role, painted, context.replay.forget_latents, seed, times, picked, lasting=True)
    return Aim(loss, scenes, forget, targets)


def record_of(
    choices: Sequence[Choice],
    near: Mapping[str, Ranking],
    retain: Sequence[str] = (),
    kept: Sequence[str] = (),
    again: Sequence[Choice] = (),
    renewed: Mapping[str, Sequence[Choice]] = {},
    remaining: Mapping[str, float] = {},
) -> Record:
    """What a step was trained on.

    Args:
        retain: prompts that were replayed.
        kept: prompts that a warm start kept.
        again: the choices that were used for concepts that earlier steps forgot.
        renewed: {such a concept: all its choices}, where those of its own step could not stay.
        remaining: {concept: what a warm start was to leave of its way}.
    """
    return Record(
        prompts={
            "forget": [{"id": f"{c.concept}/{c.id}", "prompt": c.forget} for c in choices for _ in c.mapping],
            "mapping": [{"id": f"{c.concept}/{c.id}", "prompt": m.prompt} for c in choices for m in c.mapping],
            "retain": list(retain),
            **({"kept": list(kept)} if kept else {}),
        },
        choices={
            "neighbours": near,
            "mapping": [asdict(c) for c in choices],
            "again": [asdict(c) for c in again],
            "renewed": {concept: [asdict(c) for c in chosen] for concept, chosen in renewed.items()},
            **({"remaining": dict(remaining)} if remaining else {}),
        },
    )


def _rows(state: State, role: str, first: int) -> Rows:
    """A micro-batch of recorded points, or of replayed latents carried to uniform training indices."""
    replay, device = state.replays[role], state.teacher.backbone.device
    if isinstance(replay, Trajectories):
        places = replay.draw(first, state.batch_size)
        latents, t, prompts = (x[places].to(device) for x in (replay.latents, replay.t, replay.prompts))
        return Rows(latents, t, prompts, torch.zeros_like(t), places)
    clean, prompts = replay.draw(first, state.batch_size)
    # One generator per row: how rows are split over micro-batches and processes changes no draw.
    generators = [seeds.generator(state.seed, "noise", role, first + i) for i in range(len(clean))]
    least, greatest = state.times[role]
    indices = torch.cat([torch.randint(least, greatest + 1, (1,), generator=g) for g in generators])
    backbone = state.teacher.backbone
    noise = backbone.noise(generators)
    lots = torch.cat([torch.rand(1, generator=g) for g in generators])
    t = backbone.network_time(indices).to(device)
    latents = backbone.add_noise(clean.to(device), noise.to(device), t)
    return Rows(latents, t, prompts.to(device), lots.to(device))
