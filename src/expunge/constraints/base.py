"""Continual regularizers: orthogonal to methods, applied to whatever is being trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from expunge.errors import ExpungeError
from expunge.schema import Strict


class ConstraintConfig(Strict):
    """Hyperparameters of a constraint. `name` picks it from `CONSTRAINTS`; unknown fields are errors."""

    name: str


@dataclass(frozen=True)
class Anchors:
    """Values of the trained parameters that a constraint may hold on to: {name: tensor}, the base model's as stored."""

    previous: Mapping[str, Tensor]
    base: Mapping[str, Tensor]


class Constraint(ABC):
    """Acts on gradients once per optimizer step, after they are summed and unscaled and before they are clipped."""

    Config: ClassVar[type[ConstraintConfig]]

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def regularize(self, parameters: Mapping[str, nn.Parameter], anchors: Anchors) -> Tensor:
        """Change `.grad` of the parameters in place; return the value of the penalty (a scalar) for the log."""

    def penalty(self, weights: Mapping[str, Tensor], anchors: Anchors) -> Tensor:
        """The penalty as a term of the loss, which autograd follows to `weights`: how the engine `reference` has it.

        Raises:
            ExpungeError: for a constraint that is no term of a loss.
        """
        raise ExpungeError(f'{type(self).__name__} is no term of a loss. Use train.engine "fast", which needs none.')
