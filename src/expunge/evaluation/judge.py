"""Who says whether a picture shows a concept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from expunge.concepts import Concept

UNSURE = "unsure"
"""What a judge sees in a slot where nothing is likely enough, or where its answer cannot be read."""


@dataclass(frozen=True)
class Subject:
    """What a prompt asks for in one slot, and what could be there instead.

    Attributes:
        concept: its name, kind and aliases, and the confusables that must not count as it.
        alternatives: names of everything else that could fill the slot, the confusables among them; none is a name of
            the concept.
    """

    concept: Concept
    alternatives: tuple[str, ...] = ()


@dataclass(frozen=True)
class Question:
    """Does the picture show the concept `name` (a value of `slot`), and what else does `scene` ask for?

    Attributes:
        scene: {slot: name that the prompt asks for}, `slot` among them.
        subjects: {slot: what is asked for there}, for judges that know a concept by its words alone. A judge that was
            trained on fixed names needs none.
    """

    name: str
    slot: str
    scene: Mapping[str, str]
    subjects: Mapping[str, Subject] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """What a judge sees in one slot of a picture, and its confidence in [0, 1] (None: it has no measure of it)."""

    value: str
    confidence: float | None


@dataclass(frozen=True)
class Answer:
    """One judgement.

    Attributes:
        shown: whether the concept is shown; None where the judge cannot tell. Metrics never count a None in the model's
            favour: it is neither forgotten nor retained.
        confidence: the judge's probability that it is shown, in [0, 1]; None where it has none.
        recognisable: whether the judge is confident of some thing; None where it cannot tell.
        context: whether everything else that was asked for and that the judge can see is there (what it is unsure of
            is not); None where there is nothing that it could check.
        seen: {slot: what was seen}.
    """

    shown: bool | None
    confidence: float | None
    recognisable: bool | None
    context: bool | None
    seen: Mapping[str, Seen]


class Judge(Protocol):
    """Making a judge reads no weights, so that what it cannot do is known early; the first pictures load them."""

    @property
    def name(self) -> str:
        """What the judgement table calls it."""

    @property
    def digest(self) -> str:
        """Of all that its answers come from."""

    def check(self, questions: Sequence[Question], size: tuple[int, int]) -> None:
        """Whether the judge can answer `questions` about pictures of `size` (height, width).

        Raises:
            ExpungeError: for a concept or a slot that it does not know, or a size that it cannot see.
        """

    def judge(self, images: Tensor, questions: Sequence[Question]) -> list[Answer]:
        """One answer per picture `(b 3 h w)` in [0, 1]."""

    def features(self, images: Tensor) -> Tensor | None:
        """What the judge makes of pictures `(b 3 h w)` in [0, 1] before it answers, `(b d)`, by which sets of pictures are
        compared; None for a judge that has nothing of the kind."""
