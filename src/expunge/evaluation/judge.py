"""Who says whether a picture shows a concept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Question:
    """Does the picture show the concept `name` (a value of `slot`), and what else does `scene` ask for?"""

    name: str
    slot: str
    scene: Mapping[str, str]


@dataclass(frozen=True)
class Seen:
    """What a judge sees in one slot of a picture, and its confidence in [0, 1]."""

    value: str
    confidence: float


@dataclass(frozen=True)
class Answer:
    """One judgement.

    Attributes:
        shown: whether the concept is shown; None where the judge cannot tell.
        confidence: the judge's probability that it is shown, in [0, 1].
        recognisable: whether the judge is confident of some thing.
        context: whether everything else that was asked for and that the judge can see is there; None where there is
            nothing that it could check.
        seen: {slot: what was seen}.
    """

    shown: bool | None
    confidence: float | None
    recognisable: bool | None
    context: bool | None
    seen: Mapping[str, Seen]


class Judge(Protocol):
    name: str
    slots: tuple[str, ...]
    """Slots that this judge can answer for."""

    def judge(self, images: Tensor, questions: Sequence[Question]) -> list[Answer]:
        """One answer per picture `(b 3 h w)` in [0, 1]."""
