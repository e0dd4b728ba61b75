"""The training part of a step: choose and replay, train, save."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from expunge.backbones import Evaluations, Predictor
from expunge.checkpoint import forget_checkpoint
from expunge.concepts import Concept, Request
from expunge.engine import Kept, StepLog, borrowing, frozen_teacher, train
from expunge.errors import ExpungeError
from expunge.files import check_room, json_text, load_tensors, read_json, read_lines, save_tensors, write_json
from expunge.hardware import autocast
from expunge.locality import Choice
from expunge.memory import at_once, held_bytes, whole
from expunge.methods import Earlier, GradientMethod, Position, Record, StepContext
from expunge.stream.clock import Clock
from expunge.stream.config import RunConfig
from expunge.stream.directory import StepDirectory
from expunge.stream.summary import EvaluationCounts, Seconds, Training
from expunge.stream.workshop import Forgotten, Progress, Workshop


@dataclass(frozen=True)
class Cost:
    """What the training part of a step took.

    Attributes:
        held: bytes of the tensors that were held, by what they are (docs/performance.md).
        artifact: bytes of the weights file.
    """

    seconds: Seconds
    evaluations: EvaluationCounts
    held: Mapping[str, int]
    artifact: int


def train_alone(shop: Workshop, request: Request, previous: Path | None, forgotten: Forgotten) -> Cost:
    """The training part of `serve`, from choosing prompts to the weights file."""
    step = shop.directory.step(request.step)
    step.state.mkdir(parents=True, exist_ok=True)
    clock = Clock(step)
    held = train_step(shop, request, step, previous, forgotten, clock)
    step.forget_state()
    return Cost(clock.seconds(), clock.counts(), held, step.weights.stat().st_size)


def train_along(shop: Workshop, request: Request, previous: Path | None, forgotten: Forgotten) -> None:
    """What a process other than the first does for a step: the same training on other rows. It writes nothing."""
    _learn(_prepare(shop, request, previous, forgotten, Evaluations()))


@dataclass(frozen=True)
class _Lesson:
    """A step that is ready to be trained."""

    shop: Workshop
    step: StepDirectory
    context: StepContext
    method: GradientMethod[Any, Any]
    state: Any
    counts: Evaluations


def train_step(
    shop: Workshop,
    request: Request,
    step: StepDirectory,
    previous: Path | None,
    forgotten: Forgotten,
    clock: Clock,
) -> dict[str, int]:
    """Train and save; the bytes of the tensors that were held meanwhile."""
    _check_room(shop, step)
    counts = Evaluations()
    shop.team.tell(step.index)
    lesson = _prepare(shop, request, previous, forgotten, counts)
    clock.add(lesson.context.seconds, counts)
    with clock.measured("train", counts):
        kept = _learn(lesson)
    components = shop.backbone.pipeline.components
    held = held_bytes(
        {
            "adapters": kept.parameters if shop.config.train.parameters == "lora" else {},
            "student": kept.student,
            "teacher": lesson.context.teacher.denoiser,
            "moments": kept.moments,
            "base model as stored": shop.stored,
            "anchors": kept.anchors,
            "prompts and replay": lesson.state,
            "encoders": {n: c for n, c in components.items() if n != shop.backbone.denoiser_name},
        }
    )
    held["gradients"] = sum(p.nbytes for p in kept.parameters.values())
    del kept
    with clock.measured("save"):
        _save(shop, step, previous)
    return held


def _prepare(
    shop: Workshop, request: Request, previous: Path | None, forgotten: Forgotten, counts: Evaluations
) -> _Lesson:
    """Choose and replay; in the first process first, so that the others find what it kept."""
    config, backbone = shop.config, shop.backbone
    step = shop.directory.step(request.step)
    method = config.build_method()
    shop.put(None if method.teacher == "base" else previous)
    with whole("copying the teacher"):
        teacher = frozen_teacher(backbone, config.train, counts)
    if method.teacher == "base":
        shop.put(previous)
    context = StepContext(
        backbone=backbone,
        teacher=teacher,
        source=shop.source,
        concepts=request.concepts,
        earlier=_earlier(shop, forgotten),
        held_out=shop.protocol.held_out,
        replay=config.replay,
        seed=config.step_seed(step.index),
        batch_size=config.train.batch_size,
        folder=step.state,
        memory=shop.directory.memory if method.teacher == "base" else None,
        emphasis=shop.emphasis,
        progress=lambda what, done, of: shop.progress(Progress(step.index, what, done, of)),
    )
    shop.progress(Progress(step.index, "choose", 0, 1))
    rows, work = config.replay.batch_size, "choosing prompts and replaying latents"
    with shop.team.in_turn(), at_once(rows, work, lambda n: _predict(teacher, n)):
        state, record = method.prepare(context)
        if shop.team.first:
            _note(step, record)
        elif step.prompts.read_text("utf-8") != json_text(record.prompts):
            raise ExpungeError(
                f"Step {step.index}: two processes chose other prompts, so they would train two models. Use devices of one "
                "kind."
            )
    return _Lesson(shop, step, context, method, state, counts)


def _note(step: StepDirectory, record: Record) -> None:
    """Keep what was chosen. Where a step goes on and the source's words have changed, training begins anew on the new ones."""
    if step.prompts.exists() and step.prompts.read_text("utf-8") != json_text(record.prompts):
        forget_checkpoint(step.state)
    write_json(step.prompts, record.prompts)
    write_json(step.choices, record.choices)


def _learn(lesson: _Lesson) -> Kept:
    """Train; the evaluations of all processes are counted."""
    shop, step, counts = lesson.shop, lesson.step, lesson.counts

    def on_step(entry: StepLog) -> None:
        shop.progress(Progress(step.index, "train", entry.step, shop.config.train.steps, entry.losses))

    before = Evaluations(counts.forward, counts.backward)
    with shop.team.together(), at_once(shop.config.train.batch_size, "training", lambda n: _pass(lesson, n)):
        kept = train(
            shop.backbone,
            lesson.context.teacher,
            lesson.method,
            lesson.state,
            shop.config.build_constraints(),
            shop.stored,
            shop.config.train,
            seed=lesson.context.seed,
            checkpoint=step.state,
            log=step.log,
            evaluations=counts,
            on_step=on_step,
        )
    others = shop.team.size - 1
    counts.forward += others * (counts.forward - before.forward)
    counts.backward += others * (counts.backward - before.backward)
    return kept


def _predict(predictor: Predictor, rows: int) -> Tensor:
    """A prediction for the empty prompt, on latents that are as large as any."""
    backbone = predictor.backbone
    first = torch.zeros(rows, dtype=torch.long)
    latents = torch.zeros(rows, *backbone.latent_shape, device=backbone.device)
    t = backbone.network_time(first).to(backbone.device)
    return backbone.predict(predictor.denoiser, latents, t, backbone.encode([""])[first])


def _pass(lesson: _Lesson, rows: int) -> None:
    """The first pass of training, forth and back, with `rows` rows of each role."""
    method, train, backbone = lesson.method, lesson.shop.config.train, lesson.shop.backbone
    weights = [backbone.denoiser.get_parameter(name) for name in backbone.parameters_of(train.parameters)]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        teacher = lesson.context.teacher
        with borrowing(backbone, teacher, lesson.shop.stored, train), autocast(backbone.device, train.precision):
            student = replace(teacher, denoiser=backbone.denoiser)
            state, _ = method.prepare(replace(lesson.context, batch_size=rows))
            losses = method.losses(method.batch(state, Position(0), student), student, teacher, state)
        torch.stack(list(losses.values())).sum().backward()
    finally:
        for weight in weights:
            weight.requires_grad_(False).grad = None


def _check_room(shop: Workshop, step: StepDirectory) -> None:
    """Before hours of work: whether the weights fit on the disk, and two checkpoints of weights and moments in fp32. (Adapters
    are small.)"""
    train = shop.config.train
    trained = [shop.stored[name] for name in shop.backbone.parameters_of(train.parameters)]
    checkpoint = 0 if train.parameters == "lora" else 3 * 4 * sum(w.numel() for w in trained)
    there = sum(path.stat().st_size for path in step.path.rglob("*") if path.is_file())
    check_room(step.path, sum(w.nbytes for w in trained) + 2 * checkpoint - there)


def earlier_steps(
    config: RunConfig, told: Mapping[int, tuple[Sequence[Concept], Mapping[str, Any]]]
) -> tuple[Earlier, ...]:
    """What the steps that led here tell of themselves.

    Args:
        told: {step: its concepts and its choices, as `choices.json` holds them}, in order.
    """
    renewed = {name: choices for _, record in told.values() for name, choices in record.get("renewed", {}).items()}
    found = []
    for index, (concepts, record) in told.items():
        own = [c for c in record.get("mapping", []) if c["concept"] not in renewed]
        own += [c for concept in concepts for c in renewed.get(concept.name, [])]
        near = {concept: list(names) for concept, names in record.get("neighbours", {}).items()}
        found.append(Earlier(config.step_seed(index), tuple(concepts), near, [Choice.read(c) for c in own]))
    return tuple(found)


def _earlier(shop: Workshop, forgotten: Forgotten) -> tuple[Earlier, ...]:
    paths = {index: shop.directory.step(index).choices for index in forgotten}
    told = {i: (concepts, read_json(paths[i]) if paths[i].exists() else {}) for i, concepts in forgotten.items()}
    try:
        return earlier_steps(shop.config, told)
    except KeyError as error:  # the files are whole: they were compared with their digests
        raise ExpungeError(
            f"The choices of an earlier step in {shop.directory.path} lack {error}: another version of Expunge wrote them. "
            "Go on with that version, or begin a new run."
        ) from error


def how_it_ended(step: StepDirectory) -> Training:
    """How training ended, from the last line of its log."""
    last = json.loads(read_lines(step.log)[-1])
    check = last["check"] or {"forget": None, "retain": None}
    return Training(steps=last["step"], stopped=last["stopped"], **check)


def _save(shop: Workshop, step: StepDirectory, previous: Path | None) -> None:
    """Write every tensor that differs from M(0), in its stored dtype."""
    trained = {n: v.cpu().to(shop.stored[n].dtype) for n, v in shop.backbone.denoiser.state_dict().items()}
    if bad := [n for n, v in trained.items() if not v.isfinite().all()]:
        raise ExpungeError(
            f"{len(bad)} tensors, {bad[0]} first, do not fit the model's stored dtype {trained[bad[0]].dtype}. "
            "Nothing was replaced. Lower learning_rate or strength in a new run."
        )
    before = load_tensors(previous) if previous else {}
    if all(torch.equal(v, before.get(n, shop.stored[n])) for n, v in trained.items()):
        raise ExpungeError(
            f"Training left every stored weight as it was: {shop.config.train.steps} steps at learning rate "
            f"{shop.config.train.learning_rate} are lost in rounding. Raise one of the two in a new run."
        )
    changed = {n: v for n, v in trained.items() if not torch.equal(v, shop.stored[n])}
    save_tensors(step.weights, changed, ("base", shop.config.model.digest))
