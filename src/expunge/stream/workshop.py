"""What every step of a run works with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from expunge.backbones import Backbone
from expunge.concepts import Concept
from expunge.evaluation import Judge, Protocol, Row, protocol_rows
from expunge.files import load_tensors
from expunge.prompts import PromptSource
from expunge.stream.config import RunConfig
from expunge.stream.directory import RunDirectory
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
    emphasis: Mapping[str, float] = field(default_factory=dict)
    """See `StepContext`."""
    retrying: bool = False
    """Whether this is another attempt at the step; its strength is in `config`."""

    def put(self, weights: Path | None) -> None:
        """Make the denoiser M(k): the base model's tensors, and over them those of `weights`."""
        tensors = {**self.stored, **(load_tensors(weights) if weights else {})}
        self.backbone.denoiser.load_state_dict({n: v.float() for n, v in tensors.items()})

    def rows(self, concepts: Sequence[Concept], level: str) -> list[Row]:
        rows = protocol_rows(self.protocol, self.source, concepts)
        return [r for r in rows if level == "final" or r.level == "between"]
