"""What a prompt source hands over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from expunge.concepts import Concept


@dataclass(frozen=True)
class Candidate:
    """A prompt that could replace a forget prompt; `replacement` is what stands where the concept stood (None: nothing)."""

    prompt: str
    replacement: str | None


@dataclass(frozen=True)
class ForgetPrompt:
    """A prompt that shows the concept, with its mapping candidates; forget and mapping prompt are paired by `id`."""

    id: str
    prompt: str
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class ScenePrompt:
    """A prompt with what it asks for, slot by slot: {"thing": "fox", "style": "neon"}. Absent slots are free."""

    prompt: str
    scene: Mapping[str, str]


class PromptSource(Protocol):
    """Where prompts come from. Every draw depends on `seed` alone."""

    @property
    def digest(self) -> str:
        """Digest of what the prompts are made from; each step's event in the run holds it."""

    @property
    def persons(self) -> list[Concept]:
        """The concepts of kind "person" that it knows."""

    def concept(self, name: str) -> Concept:
        """The concept that people call `name` (its name or an alias).

        Raises:
            ExpungeError: for a name that the source does not know; the nearest names are offered.
        """

    def related(self, concept: Concept) -> list[str]:
        """Names of other concepts that could stand in its place, those of its own group first.

        Raises:
            ExpungeError: for a concept that the source can measure but has no prompts to forget it with.
        """

    def alternatives(self, concept: Concept) -> list[str]:
        """Names that a picture of the concept could be taken for; empty where the source knows none."""

    def unrelated(self, concept: Concept) -> list[str]:
        """Names of concepts outside its group."""

    def check_replacement(self, concept: Concept, replacement: str) -> None:
        """Whether a forget prompt of the concept can have `replacement` in its place.

        Raises:
            ExpungeError: when none can.
        """

    def forget_prompts(
        self, concept: Concept, replacements: Sequence[str], count: int, seed: int, avoid: frozenset[str]
    ) -> list[ForgetPrompt]:
        """Up to `count` prompts that show the concept and never a name in `avoid`.

        A source that writes candidates makes them from `replacements`; one that was handed candidates keeps those.
        """

    def retain_prompts(self, names: Sequence[str], count: int, seed: int, avoid: frozenset[str]) -> list[str]:
        """`count` prompts that show the concepts `names` in turn and never one in `avoid`."""

    def evaluation_prompts(
        self, concept: Concept, count: int, seed: int, avoid: frozenset[str], scenes: Mapping[str, Sequence[str]]
    ) -> list[ScenePrompt]:
        """`count` prompts in words that no training prompt has; other slots are filled from `scenes`, never from `avoid`."""
