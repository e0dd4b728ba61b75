"""What people say about concepts beside their names: a file of kinds, aliases and confusables; and prompts free of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError

from expunge.concepts import PERSON, Concept, mentions, words
from expunge.errors import ExpungeError, quoted
from expunge.schema import Strict, read_toml, sentences


class KnownConcepts(Strict):
    """A concepts file, for sources whose own format does not say what kind a concept is or what else it is called."""

    schema_: Literal[1] = Field(1, alias="schema")
    concepts: tuple[Concept, ...] = ()

    @classmethod
    def read(cls, path: str) -> Self:
        """The file at `path`; nothing is known for ""."""
        if not path:
            return cls()
        return read_toml(cls, Path(path), f"The concepts file {path}")

    @property
    def persons(self) -> list[Concept]:
        return [concept for concept in self.concepts if concept.kind == PERSON]

    def concept(self, name: str) -> Concept:
        """What the file says of `name` (a name or an alias); a plain object of that name where it says nothing."""
        for concept in self.concepts:
            if words(name) in [words(n) for n in concept.names]:
                return concept
        try:
            return Concept(name=name)
        except ValidationError as error:
            raise ExpungeError(f"{quoted(name)} cannot be a concept's name: {sentences(error)}") from error

    def free_of(self, prompts: Iterable[str], avoid: Iterable[str], own: Sequence[str] = ()) -> list[str]:
        """The prompts that speak of no name in `avoid`. Words inside a name in `own` do not count: "race car" is no "car"."""
        own_words = [words(name) for name in own]
        avoided = []
        for concept in (self.concept(name) for name in avoid):
            names = [words(n) for n in concept.names]
            if not any(w in names for w in own_words):
                avoided.append(concept.model_copy(update={"confusables": (*concept.confusables, *own)}))
        return [prompt for prompt in prompts if not any(mentions(prompt, concept) for concept in avoided)]


def slot_of(concept: Concept) -> str:
    """The slot of a scene that a concept fills, where the source knows no other."""
    return "style" if concept.kind == "style" else "thing"
