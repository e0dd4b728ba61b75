"""What a method is, and what it is given.

A gradient method turns a request into a state (prompts, embeddings, replayed latents), draws batches from it, and states
its losses; the engine does the rest. docs/architecture.md shows how every known method family fits.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar, get_args

import torch
from torch import Tensor

from expunge import seeds
from expunge.backbones import Backbone, Predictor
from expunge.concepts import Concept
from expunge.locality import Choice
from expunge.prompts import PromptSource
from expunge.replay import ReplayConfig
from expunge.schema import Strict

StateT = TypeVar("StateT")
BatchT = TypeVar("BatchT")
TeacherName = Literal["previous", "base"]
Phase = Literal["choose", "replay"]
"""What a method does before training, as a step's record counts its time."""


class MethodConfig(Strict):
    """Hyperparameters of a method, fixed for a whole sequence. Unknown fields are errors."""


@dataclass(frozen=True)
class Position:
    """Where training stands: which optimizer step, which micro-batch of it, on which process of how many."""

    step: int
    micro: int = 0
    accumulation: int = 1
    process: int = 0
    processes: int = 1

    def first_row(self, batch_size: int) -> int:
        """Index of the first row of this micro-batch among all rows drawn so far by all processes."""
        return ((self.step * self.accumulation + self.micro) * self.processes + self.process) * batch_size


@dataclass(frozen=True)
class Earlier:
    """An accepted step before this one.

    Attributes:
        seed: its seed.
        concepts: what it forgot.
        near: {concept: the names near it, nearest first, as its own step ranked them}.
        choices: its forget prompts with their mapping prompts, as they were last chosen.
    """

    seed: int
    concepts: tuple[Concept, ...]
    near: Mapping[str, Sequence[str]] = field(default_factory=dict)
    choices: Sequence[Choice] = ()


@dataclass(frozen=True)
class StepContext:
    """All that a method may see of a step.

    Attributes:
        teacher: M(k-1) or M(0), as the method asks for, frozen.
        concepts: what this step must forget.
        earlier: the steps that led to M(k-1), in order.
        held_out: names that must never be trained on (evaluation neighbours).
        seed: seed of this step; every draw derives from it and a label.
        batch_size: rows of each role per micro-batch.
        folder: where work worth keeping over a crash may be stored; None for nowhere.
        memory: where what M(0) painted may be stored for later steps, which ask it the same again; None for nowhere.
        emphasis: {concept: what a method's strength is multiplied by for it, where it can tell concepts apart}; 1 for others.
        seconds: {phase: seconds}, filled by `phase`.
        progress: told (what, done, of how many) during long preparations.
    """

    backbone: Backbone
    teacher: Predictor
    source: PromptSource
    concepts: tuple[Concept, ...]
    earlier: tuple[Earlier, ...]
    held_out: frozenset[str]
    replay: ReplayConfig
    seed: int
    batch_size: int
    folder: Path | None = None
    memory: Path | None = None
    emphasis: Mapping[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    progress: Callable[[str, int, int], None] = lambda what, done, of: None

    @property
    def forgotten(self) -> tuple[Concept, ...]:
        """What earlier steps forgot."""
        return tuple(c for step in self.earlier for c in step.concepts)

    @cached_property
    def held_out_concepts(self) -> tuple[Concept, ...]:
        return tuple(self.source.concept(name) for name in sorted(self.held_out))

    @property
    def off_limits(self) -> frozenset[str]:
        """Names that no mapping and no retain prompt may show."""
        return self.held_out | {c.name for c in (*self.concepts, *self.forgotten)}

    def file(self, name: str) -> Path | None:
        """Where tensors called `name` are kept over a crash; None for nowhere."""
        return self.folder / f"{name}.safetensors" if self.folder else None

    def generator(self, *labels: str | int) -> torch.Generator:
        return seeds.generator(self.seed, *labels)

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Count what is done inside as time of one of a step's phases.

        Raises:
            ValueError: for another name, which a step's record has no place for.
        """
        if name not in get_args(Phase):
            raise ValueError(f"A method's work counts as one of {', '.join(get_args(Phase))}, not as {name!r}.")
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class Record:
    """What a method trained on, for people and audits: `prompts.json` and `choices.json` of the step."""

    prompts: Mapping[str, Any]
    choices: Mapping[str, Any]


class GradientMethod(ABC, Generic[StateT, BatchT]):
    """A method that is trained by gradient descent. One file per method; mathematics as pure functions beside the class."""

    Config: ClassVar[type[MethodConfig]]

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    def teacher(self) -> TeacherName:
        """Which model is the frozen teacher of a step: M(k-1), or M(0) for the whole stream."""
        return "previous"

    @property
    @abstractmethod
    def weights(self) -> Mapping[str, float]:
        """{loss: its weight in the total}, for every loss that a step may have. The loss that forgets is called `unlearn`."""

    @abstractmethod
    def prepare(self, context: StepContext) -> tuple[StateT, Record]:
        """Choose prompts, encode them, replay latents."""

    def start(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], state: StateT) -> None:
        """Move the student's trained weights in place, from M(k-1) to where training shall begin. A function of its arguments
        alone, called before the first optimizer step, and again where training begins again because nothing of it was kept.

        Args:
            student: {name: weight of the denoiser}, of those that are trained.
            teacher: the same of all.
        """

    @abstractmethod
    def batch(self, state: StateT, position: Position, student: Predictor) -> BatchT:
        """The rows of one micro-batch: a function of `position`, and of the student where a method samples with it."""

    @abstractmethod
    def losses(self, batch: BatchT, student: Predictor, teacher: Predictor, state: StateT) -> Mapping[str, Tensor]:
        """{loss: scalar}, unweighted; those that this step has."""
