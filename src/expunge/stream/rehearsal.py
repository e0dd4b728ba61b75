"""What requests will cost, before any is served: counted in a rehearsal, and timed on this machine in samples.

In the rehearsal the method chooses, replays and draws its batches as ever, with a denoiser that predicts nothing and notes
how many latents each call had. Seconds are those of the rehearsal itself, plus those calls at what a real call of that size
takes here; of training, a few real optimizer steps are timed; of evaluation, one batch of pictures.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from expunge import backbones, seeds
from expunge.backbones import Backbone, Evaluations, Predictor
from expunge.concepts import Concept
from expunge.engine import StepLog, frozen_teacher, train
from expunge.errors import ExpungeError
from expunge.evaluation import Protocol, evaluate, protocol_rows
from expunge.hardware import processes
from expunge.memory import peak_memory, room_for
from expunge.methods import GradientMethod, Position, StepContext
from expunge.prompts import PromptSource
from expunge.schema import Strict
from expunge.stopping import StopConfig
from expunge.stream.config import RunConfig
from expunge.stream.named import (
    check_config,
    check_gate,
    check_requested,
    judge_called,
    model_folder,
    prompt_source,
    read_protocol,
)
from expunge.stream.summary import EvaluationCounts
from expunge.stream.training import earlier_steps

TIMED_STEPS = 3
TIMED_CALLS = 3


class RequestEstimate(Strict):
    """
    Attributes:
        evaluations: of the denoiser, in latents; those of evaluation pictures are not among them, as in `step.json`.
        prepare, train, evaluate: seconds; with a stopping rule the most that training may take, its checks included.
    """

    concepts: tuple[str, ...]
    evaluations: EvaluationCounts
    prepare: float
    train: float
    evaluate: float

    @property
    def seconds(self) -> float:
        return self.prepare + self.train + self.evaluate


class Estimate(Strict):
    """
    Attributes:
        base: seconds for the pictures of the base model, which are painted once.
        artifact: bytes of one step's weights file.
        memory: bytes that a step leaves in `RUN/memory`.
        peak: most bytes that were resident while samples of every phase ran, libraries included; on a GPU, allocated there.
    """

    requests: tuple[RequestEstimate, ...]
    base: float
    artifact: int
    memory: int
    peak: int

    @property
    def seconds(self) -> float:
        return self.base + sum(request.seconds for request in self.requests)


class Silent(nn.Module):
    """A denoiser that predicts nothing, and notes how many latents each call had."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(()))
        self.calls: Counter[int] = Counter()

    def forward(self, *told: Any, **named: Any) -> tuple[Tensor]:
        latents: Tensor = told[0] if told else named["hidden_states"]
        self.calls[len(latents)] += 1
        return (torch.zeros_like(latents) + self.nothing,)


def estimate(config: RunConfig, requests: Sequence[Sequence[str]]) -> Estimate:
    """What serving `requests`, each one or more concepts, would cost in a run with this configuration.

    Raises:
        ExpungeError: for what `Run.create` would refuse, or where memory runs out.
    """
    config = config.frozen("")
    if not requests:
        raise ExpungeError("There is no request to estimate. Name a concept at least.")
    source, protocol = prompt_source(config.prompts), read_protocol(config.evaluate.protocol)
    folder = model_folder(config.model.source)
    check_config(config, folder)
    concepts = check_requested(config, source, protocol, folder, requests)
    check_gate(config, source, protocol, concepts)
    known = [c for request in concepts for c in request]
    with room_for("the model"):
        backbone = backbones.load(folder).to(processes().device)
    stored = backbones.stored_denoiser(folder)
    with tempfile.TemporaryDirectory() as scratch:
        rehearsal = _Rehearsal(config, backbone, source, protocol, stored, Path(scratch))
        found = [rehearsal.request(request) for request in concepts]
        # As in a run, after training: on a CPU what training freed is not all given back, and the peak is higher for it.
        per_picture = rehearsal.seconds_per_picture()
        rows = protocol_rows(protocol, source, known)
        between = sum(row.level == "between" for row in rows)
        pictures = [between] * (len(found) - 1) + [len(rows)]
        return Estimate(
            requests=tuple(
                r.model_copy(update={"evaluate": n * per_picture}) for r, n in zip(found, pictures, strict=True)
            ),
            base=len(rows) * per_picture,
            artifact=sum(stored[name].nbytes for name in backbone.parameters_of(config.train.parameters)),
            memory=sum(path.stat().st_size for path in rehearsal.memory.glob("*")) // len(concepts),
            peak=peak_memory(),
        )


@dataclass
class _Rehearsal:
    """The requests of a stream in order, none of them served."""

    config: RunConfig
    backbone: Backbone
    source: PromptSource
    protocol: Protocol
    stored: Mapping[str, Tensor]
    scratch: Path
    told: dict[int, tuple[Sequence[Concept], Mapping[str, Any]]] = field(default_factory=dict)
    call_seconds: dict[int, float] = field(default_factory=dict)
    step_seconds: dict[tuple[str, ...], float] = field(default_factory=dict)

    @property
    def memory(self) -> Path:
        return self.scratch / "memory"

    @cached_property
    def method(self) -> GradientMethod[Any, Any]:
        return self.config.build_method()

    @cached_property
    def teacher(self) -> Predictor:
        """A real one, to take the time of."""
        with room_for("a teacher beside the model"):
            return frozen_teacher(self.backbone, self.config.train, Evaluations())

    def request(self, concepts: tuple[Concept, ...]) -> RequestEstimate:
        """Without its pictures."""
        config, train = self.config, self.config.train
        silent, counts = Silent().to(self.backbone.device), Evaluations()
        teacher = replace(self.teacher, denoiser=silent, evaluations=counts)
        context = StepContext(
            backbone=self.backbone,
            teacher=teacher,
            source=self.source,
            concepts=concepts,
            earlier=earlier_steps(config, self.told),
            held_out=self.protocol.held_out,
            replay=config.replay,
            seed=config.step_seed(len(self.told) + 1),
            batch_size=train.batch_size,
            memory=self.memory if self.method.teacher == "base" else None,
        )
        start = time.perf_counter()
        state, record = self.method.prepare(context)
        prepare = time.perf_counter() - start + self._calls(silent.calls)
        prepared, drawn = counts.forward, Counter[int]()
        for micro in range(train.accumulation):
            silent.calls.clear()
            batch = self.method.batch(state, Position(0, micro, train.accumulation), teacher)
            last_draw = silent.calls.copy()
            drawn += last_draw
            silent.calls.clear()
            self.method.losses(batch, teacher, teacher, state)
        checked = _checked(train.stop, train.steps, last_draw, silent.calls)
        trained, backward = (counts.forward - prepared) * train.steps, counts.backward * train.steps
        trained += sum(latents * calls for latents, calls in checked.items())
        seconds = (self._optimizer_step(state) + self._calls(drawn)) * train.steps + self._calls(checked)
        self.told[len(self.told) + 1] = (concepts, record.choices)
        return RequestEstimate(
            concepts=tuple(c.name for c in concepts),
            evaluations=EvaluationCounts(forward=prepared + trained, backward=backward),
            prepare=prepare,
            train=seconds,
            evaluate=0.0,
        )

    def _calls(self, calls: Mapping[int, int]) -> float:
        """Seconds of real calls of the teacher, `{latents of a call: how many}`."""
        return sum(count * self._call(latents) for latents, count in calls.items())

    def _call(self, latents: int) -> float:
        if latents not in self.call_seconds:
            shape = (latents, *self.backbone.latent_shape)
            noisy = torch.randn(shape, generator=seeds.generator(0, "estimate")).to(self.backbone.device)
            t = self.backbone.network_time(torch.full((latents,), 500)).to(self.backbone.device)
            told = self.backbone.encode([""])[torch.zeros(latents, dtype=torch.long)]
            with torch.no_grad(), room_for(f"a prediction for {latents} latents at once", "replay.batch_size"):
                self.call_seconds[latents] = _timed(lambda: self.teacher(noisy, t, told))
        return self.call_seconds[latents]

    def _optimizer_step(self, state: Any) -> float:
        """Seconds of a real optimizer step on the rehearsal's rows; they depend on which losses there are."""
        losses = tuple(getattr(state, "terms", ()))
        if losses not in self.step_seconds:
            entries: list[StepLog] = []
            folder = Path(tempfile.mkdtemp(dir=self.scratch))
            rows = self.config.train.batch_size
            with room_for(f"an optimizer step on {rows} rows of each role at once", "train.batch_size"):
                train(
                    self.backbone,
                    self.teacher,
                    self.method,
                    state,
                    self.config.build_constraints(),
                    self.stored,
                    self.config.train.model_copy(update={"steps": TIMED_STEPS, "warmup_steps": 0, "stop": None}),
                    seed=0,
                    checkpoint=folder,
                    log=folder / "train.jsonl",
                    evaluations=Evaluations(),
                    on_step=entries.append,
                )
            self.step_seconds[losses] = median(entry.seconds for entry in entries[1:])
        return self.step_seconds[losses]

    def seconds_per_picture(self) -> float:
        """Painted and judged, in a batch as large as the protocol's: the peak of memory may be there."""
        rows = protocol_rows(self.protocol, self.source, [])[: self.protocol.sampler.batch_size]
        judge, sampler = judge_called(self.protocol.judge), self.protocol.sampler
        precision = self.config.evaluate.precision
        with room_for(f"painting {len(rows)} pictures at once", "sampler.batch_size in the protocol"):
            seconds = _timed(lambda: evaluate(self.backbone, rows, sampler, judge, precision=precision), calls=1)
        return seconds / len(rows)


def _checked(stop: StopConfig | None, steps: int, draw: Mapping[int, int], losses: Mapping[int, int]) -> dict[int, int]:
    """{latents of a call: how many} of all checks of a stopping rule that never stops; of what a held-out micro-batch takes to
    draw, once, and to look at, in every check."""
    if stop is None:
        return {}
    checks = steps // stop.check_every + 1
    return {n: (draw.get(n, 0) + losses.get(n, 0) * checks) * stop.batches for n in {*draw, *losses}}


def _timed(work: Callable[[], Any], calls: int = TIMED_CALLS) -> float:
    """Seconds of one call, the median of some after one that warms up."""
    found = []
    for _ in range(calls + 1):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return median(found[1:])
