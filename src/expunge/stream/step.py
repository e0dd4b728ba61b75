"""Serving one request: M(k-1) in, M(k) out, each part finished on disk before the next begins.

    choose and replay -> train -> weights.safetensors -> judgements.parquet -> gate -> step.json -> event

What is on disk is not done again, so a step that was interrupted anywhere goes on where it stood.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from expunge.backbones import Backbone, Evaluations, Predictor
from expunge.concepts import Concept, Request
from expunge.engine import Kept, StepLog, frozen_teacher, train
from expunge.errors import ExpungeError
from expunge.evaluation import Images, Judge, Protocol, Row, SamplerConfig, evaluate, metrics, protocol_rows
from expunge.files import (
    check_room,
    digest_file,
    load_tensors,
    read_json,
    read_lines,
    save_tensors,
    write_json,
    write_text,
)
from expunge.hardware import compute_dtype
from expunge.locality import Choice
from expunge.memory import at_once, held_bytes, peak_memory, whole
from expunge.methods import Earlier, GradientMethod, Position, Record, StepContext
from expunge.prompts import PromptSource
from expunge.stream import gate
from expunge.stream.config import RunConfig
from expunge.stream.directory import (
    RunDirectory,
    StepDirectory,
    completed,
    digest_images,
    now,
    write_images,
    write_table,
)
from expunge.stream.drift import drifts, pictured, weight_drift
from expunge.stream.summary import Attempt, EvaluationCounts, Seconds, StepRecord, Training, measure, read_record
from expunge.stream.team import Team


@dataclass(frozen=True)
class Progress:
    """Where long work stands: `done` of `total` in `phase` of step `step` (0 for the base model)."""

    step: int
    phase: str
    done: int
    total: int
    losses: Mapping[str, float] | None = None


ProgressCallback = Callable[[Progress], None]
Forgotten = Mapping[int, Sequence[Concept]]
"""{accepted step: its concepts}"""


@dataclass(frozen=True)
class Workshop:
    """What every step of a run works with."""

    directory: RunDirectory
    config: RunConfig
    backbone: Backbone
    stored: Mapping[str, Tensor]
    source: PromptSource
    protocol: Protocol
    judge: Judge
    progress: ProgressCallback
    team: Team
    retrying: bool = False
    """Whether this is another attempt at the step; its strength is in `config`."""

    def put(self, weights: Path | None) -> None:
        """Make the denoiser M(k): the base model's tensors, and over them those of `weights`."""
        tensors = {**self.stored, **(load_tensors(weights) if weights else {})}
        self.backbone.denoiser.load_state_dict({n: v.float() for n, v in tensors.items()})

    def rows(self, concepts: Sequence[Concept], level: str) -> list[Row]:
        rows = protocol_rows(self.protocol, self.source, concepts)
        return [r for r in rows if level == "final" or r.level == "between"]


def serve(
    shop: Workshop,
    request: Request,
    previous: Path | None,
    forgotten: Forgotten,
    known: Sequence[Concept],
    level: str,
) -> StepRecord | None:
    """Serve `request` on top of the weights `previous` (None: the base model) and judge the outcome.

    Args:
        forgotten: {accepted step before this one: its concepts}.
        known: all concepts of the run's requests, open ones too; each gets its row in the UA matrix.
        level: "between" or "final": which counts of the protocol.

    Returns:
        The record of the step; None where the gate asks for another attempt. The event that is written last says which.
    """
    step = shop.directory.step(int(request.id))
    step.state.mkdir(parents=True, exist_ok=True)
    clock = _Clock(step)
    if not step.weights.exists():
        _train(shop, request, step, previous, forgotten, clock)
    base = base_judgements(shop, known, level)
    # While a step is at work requests may come and go: it may be the last one no more, or only now.
    judged = step.level.read_text() if step.judgements.exists() else None
    if judged is None or (judged, level) == ("between", "final"):
        with clock.measured("evaluate"):
            _evaluate(shop, step, known, level)
    after = pd.read_parquet(step.judgements)
    now_forgotten = [c.name for concepts in (*forgotten.values(), request.concepts) for c in concepts]
    requested = [c.name for c in known]
    drift = {
        "image_drift": metrics.mean(after[after["role"] != "forget"], "drift"),
        "weight_drift": weight_drift(load_tensors(step.weights), shop.stored),
    }
    result = measure(base, after, now_forgotten, requested, drift)
    forget, before = (metrics.of_roles(table, now_forgotten, requested)["forget"] for table in (after, base))
    checks = gate.checks(
        shop.config.gate,
        result,
        {c: metrics.unlearning_accuracy(after, c) for c in now_forgotten},
        metrics.difference(forget, before, "context"),
    )
    earlier = _earlier(shop, step)
    attempts = list(earlier.attempts) if earlier else []
    strength, stronger, then = shop.config.strength, None, "accepted"
    taken = gate.passed(shop.config.gate, checks)
    if not taken:
        stronger, why = gate.next_attempt(shop.config.gate, checks, strength, len(attempts) + 1)
        then = why if stronger is None else f"trained anew with strength {stronger:g}, because {why}"
    counts = clock.counts()
    record = StepRecord(
        index=step.index,
        request=request.id,
        concepts=[c.name for c in request.concepts],
        status="accepted" if taken else "rejected",
        seconds=clock.seconds().plus(earlier.seconds if earlier else Seconds()),
        peak_memory_bytes=peak_memory(),
        evaluations=EvaluationCounts(forward=counts.forward, backward=counts.backward).plus(
            earlier.evaluations if earlier else EvaluationCounts(forward=0, backward=0)
        ),
        metrics=result,
        level="final" if step.level.read_text() == "final" else "between",
        previous=digest_file(previous) if previous else shop.config.model.digest,
        training=_training(step),
        gate=checks,
        attempts=[*attempts, Attempt(strength=strength, gate=checks, then=then)],
        files=step.digests(),
        pictures=digest_images(step.images, after),
        finished_at=now(),
    )
    # The event is what makes it so: a process that is killed between the two writes the record again.
    path = step.record if stronger is None else step.attempt
    write_json(path, record.model_dump(mode="json", by_alias=True))
    details = {"step": step.index, "record": digest_file(path), "prompts": shop.source.digest}
    if painted := shop.directory.newly_remembered():
        details["memory"] = painted
    if stronger is None:
        shop.directory.add_event(record.status, **details)
    else:
        shop.directory.add_event("retried", strength=stronger, **details)
    step.forget_state()
    return record if stronger is None else None


def _earlier(shop: Workshop, step: StepDirectory) -> StepRecord | None:
    """The record of the attempt before this one, None in the first."""
    if not shop.retrying:
        return None
    return read_record(shop.directory.replaced(step.index)[-1].attempt)


def base_judgements(shop: Workshop, concepts: Sequence[Concept], level: str) -> pd.DataFrame:
    """Judgements of M(0) for all rows that are needed, painted once and kept."""
    directory = shop.directory

    def judge(missing: Sequence[Row]) -> pd.DataFrame:
        shop.put(None)
        table, images = _judge(shop, 0, missing)
        write_images(directory.base_images, images, table, list(images))
        return table

    def announce(digest: str, table: pd.DataFrame) -> None:
        pictures = digest_images(directory.base_images, table)
        directory.add_event("measured", judgements=digest, images=pictures)

    return completed(directory.base_judgements, shop.rows(concepts, level), judge, announce)


# -- training ---------------------------------------------------------------------------------------------------------------


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
    step = shop.directory.step(int(request.id))
    step.state.mkdir(parents=True, exist_ok=True)
    clock = _Clock(step)
    held = _train(shop, request, step, previous, forgotten, clock)
    step.forget_state()
    counts = clock.counts()
    evaluations = EvaluationCounts(forward=counts.forward, backward=counts.backward)
    return Cost(clock.seconds(), evaluations, held, step.weights.stat().st_size)


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
    record: Record
    counts: Evaluations


def _train(
    shop: Workshop,
    request: Request,
    step: StepDirectory,
    previous: Path | None,
    forgotten: Forgotten,
    clock: _Clock,
) -> dict[str, int]:
    """Train and save; the bytes of the tensors that were held meanwhile."""
    _check_room(shop, step)
    counts = Evaluations()
    shop.team.tell(step.index)
    lesson = _prepare(shop, request, previous, forgotten, counts)
    write_json(step.prompts, lesson.record.prompts)
    write_json(step.choices, lesson.record.choices)
    clock.add(lesson.context.seconds, counts)
    with clock.measured("train", counts):
        kept = _learn(lesson)
    held = held_bytes(
        {
            "student": shop.backbone.denoiser,
            "teacher": lesson.context.teacher.denoiser,
            "adapters": kept.parameters,
            "moments": kept.moments,
            "base model as stored": shop.stored,
            "anchors": kept.anchors,
            "prompts and replay": lesson.state,
            "encoders": shop.backbone.pipeline.components,
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
    step = shop.directory.step(int(request.id))
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
        earlier=earlier_steps(config, _told(shop, forgotten)),
        held_out=shop.protocol.held_out,
        replay=config.replay,
        seed=config.step_seed(step.index),
        batch_size=config.train.batch_size,
        folder=step.state,
        memory=shop.directory.memory if method.teacher == "base" else None,
        progress=lambda what, done, of: shop.progress(Progress(step.index, what, done, of)),
    )
    shop.progress(Progress(step.index, "choose", 0, 1))
    rows, work = config.replay.batch_size, "choosing prompts and replaying latents"
    with shop.team.in_turn(), at_once(rows, work, lambda n: _predict(teacher, n)):
        state, record = method.prepare(context)
    return _Lesson(shop, step, context, method, state, record, counts)


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
    dtype = compute_dtype(train.precision)
    try:
        for weight in weights:
            weight.requires_grad_(True)
        with torch.autocast(backbone.device.type, dtype, enabled=dtype != torch.float32):
            teacher = lesson.context.teacher
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
        own = [c for c in record.get("mapping", []) if not c["id"].startswith(tuple(f"{name}/" for name in renewed))]
        own += [c for concept in concepts for c in renewed.get(concept.name, [])]
        near = {concept: list(names) for concept, names in record.get("neighbours", {}).items()}
        found.append(Earlier(config.step_seed(index), tuple(concepts), near, [Choice.read(c) for c in own]))
    return tuple(found)


def _told(shop: Workshop, forgotten: Forgotten) -> dict[int, tuple[Sequence[Concept], dict[str, Any]]]:
    paths = {index: shop.directory.step(index).choices for index in forgotten}
    return {i: (concepts, read_json(paths[i]) if paths[i].exists() else {}) for i, concepts in forgotten.items()}


def _training(step: StepDirectory) -> Training:
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


# -- evaluation -------------------------------------------------------------------------------------------------------------


def _evaluate(shop: Workshop, step: StepDirectory, known: Sequence[Concept], level: str) -> None:
    shop.put(step.weights)
    table, images = _judge(shop, step.index, shop.rows(known, level), shop.protocol.enough)
    write_images(step.images, images, table, pictured(table))
    base = pd.read_parquet(shop.directory.base_judgements)
    table["drift"] = drifts(base, shop.directory.base_images, table, images)
    write_text(step.level, level)
    write_table(step.judgements, table)


def _judge(shop: Workshop, index: int, rows: Sequence[Row], enough: float | None = None) -> tuple[pd.DataFrame, Images]:
    phase = "evaluate" if index else "evaluate base"

    def judged(
        some: Sequence[Row], sampler: SamplerConfig, progress: Callable[[int, int], None] = lambda done, of: None
    ) -> tuple[pd.DataFrame, Images]:
        return evaluate(shop.backbone, some, sampler, shop.judge, progress, shop.config.evaluate.precision, enough)

    sampler = shop.protocol.sampler
    short = sampler.model_copy(update={"steps": 1})
    with at_once(sampler.batch_size, "painting pictures", lambda n: judged(rows[:n], short)):
        return judged(rows, sampler, lambda done, of: shop.progress(Progress(index, phase, done, of)))


# -- time and counts that outlive the process ---------------------------------------------------------------------------------


class _Clock:
    """Seconds by phase and denoiser evaluations of a step, kept in its state folder over interruptions."""

    def __init__(self, step: StepDirectory) -> None:
        self._path = step.timings
        kept = read_json(step.timings) if step.timings.exists() else {}
        self._seconds: dict[str, float] = kept.get("seconds", {})
        self._counts = Evaluations(**kept.get("evaluations", {}))

    @contextmanager
    def measured(self, phase: str, counts: Evaluations | None = None) -> Iterator[None]:
        start = time.perf_counter()
        before = Evaluations(counts.forward, counts.backward) if counts else Evaluations()
        try:
            yield
        finally:
            spent = counts or Evaluations()
            self.add(
                {phase: time.perf_counter() - start},
                Evaluations(spent.forward - before.forward, spent.backward - before.backward),
            )

    def add(self, seconds: Mapping[str, float], counts: Evaluations) -> None:
        for phase, value in seconds.items():
            self._seconds[phase] = self._seconds.get(phase, 0.0) + value
        self._counts.forward += counts.forward
        self._counts.backward += counts.backward
        write_json(self._path, {"seconds": self._seconds, "evaluations": vars(self._counts)})

    def seconds(self) -> Seconds:
        return Seconds(**self._seconds, total=sum(self._seconds.values()))

    def counts(self) -> Evaluations:
        return self._counts
