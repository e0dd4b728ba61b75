"""The one training loop: any gradient method, any backbone, any constraints.

One optimizer step is `accumulation` micro-batches on each process, summed; then constraints, clipping, AdamW. What a
micro-batch holds depends on its position alone, so parameters, AdamW moments, the number of steps done and the checks of
the stopping rule are the whole state: training resumes from them to the same bits.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin, broadcast
from pydantic import Field
from torch import Tensor, nn

from expunge.backbones import Backbone, Evaluations, Predictor
from expunge.checkpoint import keep_log_until, restore_checkpoint, store_checkpoint
from expunge.constraints import Anchors, Constraint
from expunge.errors import ExpungeError, suggestion
from expunge.files import append_line
from expunge.hardware import Precision, compute_dtype, processes, quick_layout, settled, trained_attention
from expunge.methods import GradientMethod, Position
from expunge.reference import PREDICTORS, EngineName
from expunge.schema import Strict
from expunge.stopping import Check, Reason, StopConfig, relative, verdict
from expunge.trainable import LoraConfig, Trainable, trainable

Beta = Annotated[float, Field(ge=0, lt=1)]
_OVERFLOWS = 30
"""How often in a row a gradient may overflow in fp16, its scale halved each time, until it is not the scale's fault."""


class TrainConfig(Strict):
    """How a step is trained. Defaults are the published ones (arXiv 2512.02657, ECCV version) where it states one.

    Attributes:
        engine: "fast", or "reference": the published loop at its own cost, with the settings that this takes
            (docs/performance.md). Same losses; a baseline to measure against.
        parameters: what is trained: full, cross-attention, cross-attention-kv, or lora (adapters, merged at the end).
        lora: the adapters, where `parameters` is lora.
        precision: fp32, bf16 or fp16 arithmetic (parameters and optimizer stay in fp32; fp16 needs a GPU), or auto, which is
            settled when a run is made.
        steps: optimizer steps per request, or the most of them where there is a rule to stop. Source: 250 to 350 by concept.
        stop: when training may stop before that; left out, never.
        batch_size: rows of each role (forget, retain) per micro-batch and process. Source: 18 on each of 3 processes.
        accumulation: micro-batches per optimizer step. Source: 2.
        learning_rate: AdamW's, after warm-up. Source: 5e-5.
        schedule: constant after warm-up (as published), or a cosine that falls to 0 at `steps`.
        warmup_steps: optimizer steps over which the learning rate rises linearly. Source: 30 calls of a scheduler that is
            called once per process, 10 optimizer steps on 3 processes.
        betas: AdamW's decay rates of the mean gradient and of its square.
        epsilon: AdamW's, which is added to the root of the mean square.
        weight_decay: AdamW's, towards zero. Source: 1e-2, which works against the L2 term; 0 here.
        max_grad_norm: clipping threshold of the global gradient norm. Source: 1.0.
        checkpoint_steps: optimizer steps between checkpoints.
    """

    engine: EngineName = "fast"
    parameters: str = "full"
    lora: LoraConfig = LoraConfig()
    precision: Precision = "fp32"
    steps: int = Field(300, ge=1, le=1_000_000)
    stop: StopConfig | None = None
    batch_size: int = Field(18, ge=1, le=10_000)
    accumulation: int = Field(2, ge=1, le=10_000)
    learning_rate: float = Field(5e-5, gt=0, le=1)
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = Field(10, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    epsilon: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    checkpoint_steps: int = Field(25, ge=1)

    def at_most(self, rows: int) -> Self:
        """The same training with at most `rows` rows of each role at once: micro-batches are cut into equal parts, so that the
        gradients of an optimizer step are the same up to rounding."""
        size = next(n for n in range(min(rows, self.batch_size), 0, -1) if self.batch_size % n == 0)
        parts = self.batch_size // size
        stop = self.stop and self.stop.model_copy(update={"batches": self.stop.batches * parts})
        return self.model_copy(update={"batch_size": size, "accumulation": self.accumulation * parts, "stop": stop})


@dataclass(frozen=True)
class StepLog:
    """One optimizer step, as `train.jsonl` keeps it.

    Attributes:
        losses: unweighted means over the step's rows.
        check: forget and retain distance on the held-out rows after this step, relative to the forget distance before the
            first; None where the stopping rule did not look.
        stopped: why this was the last step; None where it was not.
    """

    step: int
    losses: Mapping[str, float]
    learning_rate: float
    gradient_norm: float
    seconds: float
    check: Mapping[str, float] | None
    stopped: Reason | None


@dataclass(frozen=True)
class Kept:
    """What training held beside the teacher.

    Attributes:
        student: its weights and buffers as they were held, some of them perhaps the teacher's.
        parameters: what had a gradient of its own size: weights of the student, or adapters.
        moments: the optimizer's state.
        anchors: what constraints held on to.
    """

    student: Sequence[Tensor]
    parameters: Mapping[str, Tensor]
    moments: Mapping[Any, Any]
    anchors: Anchors


def learning_rate(config: TrainConfig, step: int) -> float:
    """Of optimizer step `step` (0-based): a linear warm-up, times the schedule."""
    rate = config.learning_rate * min(1.0, (step + 1) / config.warmup_steps if config.warmup_steps else 1.0)
    return rate if config.schedule == "constant" else rate * (1 + math.cos(math.pi * step / config.steps)) / 2


def frozen_teacher(backbone: Backbone, config: TrainConfig, evaluations: Evaluations) -> Predictor:
    """The denoiser as it is now, as a teacher in the arithmetic of `config.precision`. The published loop holds a whole copy;
    here parameters that are not trained are one with the student's where both have the same dtype (else the student borrows
    them while it is trained), and both networks lie in memory as they are quick."""
    dtype = compute_dtype(config.precision)
    if config.engine == "reference":
        changing = None
        backbone.lay_out(torch.contiguous_format)
    else:
        changing = backbone.parameters_of(config.parameters)
        backbone.lay_out(quick_layout(backbone.device))
    copied = backbone.copy_denoiser(dtype, changing)
    return PREDICTORS[config.engine](backbone, copied, evaluations)


def borrowing(
    backbone: Backbone, teacher: Predictor, base: Mapping[str, Tensor], config: TrainConfig
) -> AbstractContextManager[None]:
    """In half precision the student has from the teacher what is not trained. In fp32 the two share it already, and the
    published loop shares nothing."""
    if config.engine == "reference" or settled(config.precision) == "fp32":
        return nullcontext()
    return backbone.borrowing(teacher.denoiser, backbone.parameters_of(config.parameters), base)


def _attention(backbone: Backbone, config: TrainConfig) -> AbstractContextManager[None]:
    if config.engine == "reference":
        return nullcontext()
    _, height, width = backbone.latent_shape
    return trained_attention(backbone.denoiser, height * width)


def train(
    backbone: Backbone,
    teacher: Predictor,
    method: GradientMethod[Any, Any],
    state: Any,
    constraints: Sequence[Constraint],
    base: Mapping[str, Tensor],
    config: TrainConfig,
    *,
    seed: int,
    checkpoint: Path,
    log: Path,
    evaluations: Evaluations,
    on_step: Callable[[StepLog], None] = lambda _: None,
) -> Kept:
    """Train the backbone's denoiser in place, from `checkpoint` where one lies there.

    Args:
        backbone: its denoiser holds M(k-1), which is also what constraints may hold on to.
        teacher: M(k-1), or M(0) where the method asks for it, in the arithmetic of `precision`. The student is evaluated as
            it is.
        base: values of M(0) by parameter name, in any dtype.
        seed: seed of this step; adapters begin with draws that derive from it.
        checkpoint: folder of the unfinished step's state.
        log: `train.jsonl`.
        evaluations: counts the student's evaluations.

    Raises:
        ExpungeError: when a loss or a gradient is not finite; nothing after the last checkpoint is kept.
    """
    # Accelerate keeps the precision in a process-wide singleton; one run's must not bind the next one's.
    AcceleratorState._reset_state()
    precision = settled(config.precision)
    processes()
    accelerator = Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        # Micro-batches are averaged here; a launcher's setting must not average them a second time.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
    )
    # The published loop encodes prompts all the time.
    waiting = nullcontext() if config.engine == "reference" else backbone.denoiser_alone()
    with (
        waiting,
        borrowing(backbone, teacher, base, config),
        _attention(backbone, config),
        trainable(backbone, config.parameters, config.lora, seed) as trained,
    ):
        parameters = trained.parameters
        optimizer = torch.optim.AdamW(
            parameters.values(), config.learning_rate, config.betas, config.epsilon, config.weight_decay
        )
        held = _previous(trained, teacher, method) if constraints else {}
        own = dict(backbone.denoiser.named_parameters())
        done, checks = restore_checkpoint(checkpoint, parameters, optimizer, accelerator.scaler)
        if accelerator.is_main_process:
            keep_log_until(log, done)
        denoiser, optimizer = accelerator.prepare(backbone.denoiser, optimizer)
        student = replace(teacher, denoiser=denoiser, evaluations=evaluations)
        anchors = Anchors(
            {n: w.to(accelerator.device) for n, w in held.items()}, {n: base[n].to(accelerator.device) for n in held}
        )
        loop = _Loop(
            accelerator, denoiser, optimizer, trained, method, state, student, teacher, constraints, anchors, config
        )
        held_out = _HeldOut(accelerator, method, state, teacher, config) if config.stop else None
        if held_out and not checks:
            checks.append(held_out.check(student, 0))
        if done == 0:
            method.start(trained.weights, base if method.teacher == "base" else own, state)
            # Processes may round a solution differently, and must train one model.
            with torch.no_grad():
                broadcast([*parameters.values()])
        stopped = _stopped(done, checks, config)
        while stopped is None:
            start = time.perf_counter()
            values, rate, norm = loop.step(done)
            done += 1
            if held_out and held_out.due(done):
                checks.append(held_out.check(student, done))
            stopped = _stopped(done, checks, config)
            entry = StepLog(
                done, values, rate, norm, time.perf_counter() - start, _check_of_step(done, checks), stopped
            )
            if accelerator.is_main_process:
                append_line(log, json.dumps(vars(entry)))
                on_step(entry)
                if done % config.checkpoint_steps == 0 or stopped:
                    store_checkpoint(checkpoint, done, parameters, optimizer.optimizer, accelerator.scaler, checks)
        accelerator.wait_for_everyone()
        accelerator.unwrap_model(denoiser, keep_fp32_wrapper=False).requires_grad_(False)
        held_student = [tensor.data for tensor in (*own.values(), *backbone.denoiser.buffers())]
        return Kept(held_student, parameters, optimizer.optimizer.state, anchors)


def _previous(trained: Trainable, teacher: Predictor, method: GradientMethod[Any, Any]) -> dict[str, Tensor]:
    """The weights that training begins with: the teacher's own where it holds the same in fp32, else a copy."""
    own = dict(teacher.denoiser.named_parameters())
    same = method.teacher == "previous" and all(own[n].dtype == torch.float32 for n in trained.weights)
    return {n: own[n] if same else w.detach().clone() for n, w in trained.weights.items()}


@dataclass(frozen=True)
class _Loop:
    """What every optimizer step works on."""

    accelerator: Accelerator
    denoiser: nn.Module
    optimizer: AcceleratedOptimizer
    trained: Trainable
    method: GradientMethod[Any, Any]
    state: Any
    student: Predictor
    teacher: Predictor
    constraints: Sequence[Constraint]
    anchors: Anchors
    config: TrainConfig

    def step(self, done: int) -> tuple[dict[str, float], float, float]:
        """The optimizer step after `done` others: the mean of each loss over its rows, learning rate, norm of the gradient.

        Where the gradient overflows in fp16 the same rows are taken again, at the smaller scale that the scaler goes on with.
        """
        rate, overflows = learning_rate(self.config, done), 0
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        while True:
            values = self._gradients(done)
            self.accelerator.unscale_gradients(self.optimizer)
            if self.constraints and self.config.engine == "fast":
                with self.trained.constrained() as weights:
                    values["regularize"] = sum(float(c.regularize(weights, self.anchors)) for c in self.constraints)
                _check_finite({"regularization": values["regularize"]}, done)
            norm = torch.nn.utils.clip_grad_norm_(self.trained.parameters.values(), self.config.max_grad_norm).item()
            if self.accelerator.scaler is None or overflows == _OVERFLOWS:
                _check_finite({"gradient": norm}, done)
            self.optimizer.step()
            self.optimizer.zero_grad()
            if not self.optimizer.step_was_skipped:
                return values, rate, norm
            overflows += 1

    def _gradients(self, step: int) -> dict[str, float]:
        """Gradients of one optimizer step, summed over its micro-batches; the mean of each loss over all its rows."""
        accelerator, config, sums = self.accelerator, self.config, dict[str, Tensor]()
        for micro in range(config.accumulation):
            position = Position(step, micro, config.accumulation, accelerator.process_index, accelerator.num_processes)
            last = micro == config.accumulation - 1
            with nullcontext() if last else accelerator.no_sync(self.denoiser):
                with accelerator.autocast():
                    losses, total = self._losses(position)
                accelerator.backward(total / config.accumulation)
            for name, loss in losses.items():
                sums[name] = sums.get(name, torch.zeros((), device=loss.device)) + loss.detach() / config.accumulation
        values = {name: accelerator.reduce(loss, "mean").item() for name, loss in sums.items()}
        _check_finite({f"loss {name}": value for name, value in values.items()}, step)
        return values

    def _losses(self, position: Position) -> tuple[dict[str, Tensor], Tensor]:
        """{loss: of a micro-batch, unweighted}, and their weighted sum."""
        batch = self.method.batch(self.state, position, self.student)
        losses = dict(self.method.losses(batch, self.student, self.teacher, self.state))
        _check_losses(self.method, losses)
        total = torch.stack([self.method.weights[name] * loss for name, loss in losses.items()]).sum()
        if (
            self.constraints and self.config.engine == "reference"
        ):  # as published, autograd takes it in every micro-batch
            weights = self.trained.effective()
            losses["regularize"] = torch.stack([c.penalty(weights, self.anchors) for c in self.constraints]).sum()
            total = total + losses["regularize"]
        return losses, total


# -- when to stop -----------------------------------------------------------------------------------------------------------


class _HeldOut:
    """Rows that no step trains on: those of the positions after the last one. They are drawn once, from M(k-1), so every
    check and every resumed process sees the same."""

    def __init__(
        self,
        accelerator: Accelerator,
        method: GradientMethod[Any, Any],
        state: Any,
        teacher: Predictor,
        config: TrainConfig,
    ) -> None:
        assert config.stop is not None
        self._accelerator, self._method, self._state, self._teacher = accelerator, method, state, teacher
        self._every, count = config.stop.check_every, config.stop.batches
        first, process, processes = (
            config.steps * config.accumulation,
            accelerator.process_index,
            accelerator.num_processes,
        )
        positions = [Position(first + i, process=process, processes=processes) for i in range(count)]
        self._batches = [method.batch(state, position, teacher) for position in positions]

    def due(self, done: int) -> bool:
        return done % self._every == 0

    @torch.no_grad()
    def check(self, student: Predictor, done: int) -> Check:
        distances = torch.zeros(2, device=self._accelerator.device)
        for batch in self._batches:
            with self._accelerator.autocast():
                losses = dict(self._method.losses(batch, student, self._teacher, self._state))
            if "unlearn" not in losses:
                raise ExpungeError(
                    f"train.stop looks at the loss that forgets, which is called 'unlearn', and the method "
                    f"{type(self._method).__name__} has none."
                )
            forget = losses.pop("unlearn")
            distances += torch.stack([forget, sum(losses.values(), torch.zeros_like(forget))]) / len(self._batches)
        forget, retain = self._accelerator.reduce(distances, "mean").tolist()
        _check_finite({"loss of the check": forget + retain}, done - 1)
        return Check(done, forget, retain)


def _stopped(done: int, checks: Sequence[Check], config: TrainConfig) -> Reason | None:
    """Why training ends after `done` steps, if it does."""
    if config.stop and checks[-1].step == done and (reason := verdict(checks, config.stop, config.warmup_steps)):
        return reason
    return "steps" if done == config.steps else None


def _check_of_step(done: int, checks: Sequence[Check]) -> dict[str, float] | None:
    if not checks or checks[-1].step != done:
        return None
    last = relative(checks)[-1]
    return {"forget": last.forget, "retain": last.retain}


def _check_losses(method: GradientMethod[Any, Any], losses: Mapping[str, Tensor]) -> None:
    name = type(method).__name__
    for loss, value in losses.items():
        if loss not in method.weights:
            raise ExpungeError(
                f"The method {name} has the loss {loss!r}, to which its `weights` give no weight. "
                f"{suggestion(loss, method.weights)}"
            )
        if value.ndim:
            raise ExpungeError(
                f"The loss {loss!r} of the method {name} is of shape {tuple(value.shape)}, and no scalar."
            )
    if not losses:
        raise ExpungeError(f"The method {name} has no loss in this step.")


def _check_finite(values: Mapping[str, float], step: int) -> None:
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise ExpungeError(
            f"The {' and the '.join(bad)} is not finite at optimizer step {step + 1}. The model was not changed. "
            "Lower learning_rate or strength, or use precision fp32, in a new run."
        )
