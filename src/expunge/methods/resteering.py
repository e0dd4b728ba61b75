"""Re-steering and its relatives: the student learns to predict for some prompts what the teacher predicts for others.

With a frozen teacher theta* (M(k-1), or M(0) where asked for) and a student theta, which starts at M(k-1), every loss of this
family is

    L = E || eps(x_t, t, p; theta) - eps(x_t, t, q; theta*) ||^2,     x_t = q(x_t | x_0),  t ~ U{t_min..t_max}

a mean over elements, where x_0 is replayed: sampled by the teacher for some prompt, without guidance. It re-steers where p
and q differ, and distils where they are the same. Where a prompt has several targets q, each row draws one of them.
A method states its losses as `Aim`s in a `Plan`; encoding, replaying, drawing and evaluating are the same for all and
stand here.

Source: "Distill, Forget, Repeat", arXiv 2512.02657, the unlearning and the preservation term.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor

from expunge import seeds
from expunge.backbones import Conditioning, Predictor, Prompts
from expunge.files import canonical_json, digest_bytes
from expunge.locality import Choice
from expunge.methods.base import GradientMethod, Position, Record, StepContext, TeacherName
from expunge.methods.mapping import MappingConfig, Neighbours
from expunge.methods.warm_start import WarmStart
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
class Scenes:
    """The x_t of a loss, in words: what the teacher paints x_0 for, and how far it is noised.

    Attributes:
        role: a name; losses with the same role see the same x_t.
        prompts: what x_0 is painted for.
        latents: latents of each prompt in a bank.
        seed: of the noise that painting starts from.
        times: least and greatest training index, both inclusive.
        picked: places of the prompts whose x_t are used; None for all.
        lasting: whether later steps will ask for the same scenes.
    """

    role: str
    prompts: Sequence[str]
    latents: int
    seed: int
    times: tuple[int, int] = (0, 999)
    picked: Sequence[int] | None = None
    lasting: bool = False


@dataclass(frozen=True)
class Aim:
    """A loss in words: on x_t that was painted for its scenes' prompt i, the student is told prompt i, and the teacher one of
    targets i. Aims of one loss are added up: its rows are drawn from the scenes of all.

    Attributes:
        loss: its name.
        targets: equally many for each prompt.
    """

    loss: str
    scenes: Scenes
    prompts: Sequence[str]
    targets: Sequence[Sequence[str]]

    @property
    def distils(self) -> bool:
        """Whether student and teacher are told the same."""
        return [[prompt] for prompt in self.prompts] == [list(targets) for targets in self.targets]

    def narrowed(self) -> Aim:
        """The same of the picked prompts alone."""
        if self.scenes.picked is None:
            return self
        picked = self.scenes.picked
        painted = replace(self.scenes, prompts=[self.scenes.prompts[i] for i in picked], picked=None)
        return Aim(self.loss, painted, [self.prompts[i] for i in picked], [self.targets[i] for i in picked])

    @staticmethod
    def together(aims: Sequence[Aim], seed: int) -> Aim:
        """Aims of one loss as one, whose scenes are painted from `seed`."""
        painted = [prompt for aim in aims for prompt in aim.scenes.prompts]
        prompts = [prompt for aim in aims for prompt in aim.prompts]
        targets = [each for aim in aims for each in aim.targets]
        return Aim(aims[0].loss, replace(aims[0].scenes, prompts=painted, seed=seed), prompts, targets)


@dataclass(frozen=True)
class Term:
    """An `Aim` made ready: what student and teacher are told, `(n ...)` and `(n * targets_each ...)`."""

    role: str
    prompts: Prompts
    targets: Prompts
    targets_each: int

    @staticmethod
    def of(aim: Aim, encode: Callable[[Sequence[str]], Prompts]) -> Term:
        prompts = encode(aim.prompts)
        targets = prompts if aim.distils else encode([target for targets in aim.targets for target in targets])
        return Term(aim.scenes.role, prompts, targets, len(aim.targets[0]))

    def told(self, rows: Rows) -> Conditioning:
        return self.prompts[rows.prompts]

    def aimed(self, rows: Rows) -> Conditioning:
        return self.targets[rows.prompts * self.targets_each + (rows.lots * self.targets_each).long()]

    def both(self, rows: Rows) -> tuple[Conditioning, Conditioning]:
        """What student and teacher are told."""
        told = self.told(rows)
        return told, told if self.targets is self.prompts else self.aimed(rows)


@dataclass(frozen=True)
class Rows:
    """Noisy latents `(b c h w)`, network times `(b,)`, the index of each row's prompt `(b,)`, and its lot `(b,)`.

    A lot is uniform in [0, 1) and decides which of a prompt's targets the row draws. `places` say where the rows lie among
    recorded ones `(b,)`; None where they are made as they are needed.
    """

    latents: Tensor
    t: Tensor
    prompts: Tensor
    lots: Tensor
    places: Tensor | None = None


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
                replays, targets = _recorded(context, aims if context.memory else used)
            else:
                replays, targets = {role: _replay(context, s) for role, s in scenes.items()}, {}
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


def replay_seed(step_seed: int, role: str) -> int:
    """The seed of what is painted in a role of a step."""
    return seeds.derive(step_seed, "replay", role)


def record_of(
    choices: Sequence[Choice],
    near: Mapping[str, Neighbours],
    retain: Sequence[str] = (),
    kept: Sequence[str] = (),
    again: Sequence[Choice] = (),
    renewed: Mapping[str, Sequence[Choice]] = {},
) -> Record:
    """What a step was trained on.

    Args:
        retain: prompts that were replayed.
        kept: prompts that a warm start kept.
        again: the choices that were used for concepts that earlier steps forgot.
        renewed: {such a concept: all its choices}, where those of its own step could not stay.
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
        },
    )


def _replay(context: StepContext, scenes: Scenes) -> Replay:
    config = context.replay
    sampler = _sampler(context, scenes)
    if config.source == "fresh":
        return FreshReplay(sampler, scenes.seed)
    progress = _progress(context, scenes)
    kept = context.file(f"replay-{scenes.role}-{_recipe(scenes)}")
    return kept_bank(
        kept, lambda: fill_bank(sampler, scenes.latents, config.batch_size, scenes.seed, progress), scenes.seed
    )


def _recorded(context: StepContext, aims: Sequence[Aim]) -> tuple[dict[str, Trajectories], dict[str, Tensor]]:
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
    painted = [[prompt] for prompt in aim.scenes.prompts]
    asked = torch.tensor([list(t) != p for t, p in zip(aim.targets, painted, strict=True)])
    places = torch.nonzero(asked[points.prompts]).flatten()
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
