"""What must go, and whether a prompt speaks of it.

Matching is by whole words and phrases: "pineapple" does not speak of "apple", "golf balls" speaks of "golf ball",
"tennis ball" does not.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import Self

from pydantic import Field, field_validator, model_validator

from expunge.schema import Strict

JOINERS = "\u200c\u200d"
"""They print nothing, but some scripts and emoji are not written without them."""


def check_name(name: str) -> str:
    """The name without stray spaces. Any script will do, and any sign, as long as there is a word.

    Raises:
        ValueError: when it cannot be the name of a concept.
    """
    name = " ".join(name.split())
    if len(name) > 200:
        raise ValueError(f"the name of a concept has at most 200 characters, not {len(name)}")
    if bad := next((c for c in name if not c.isprintable() and c not in JOINERS), None):
        raise ValueError(f"the character U+{ord(bad):04X} cannot be printed; leave it out")
    if not words(name):
        raise ValueError("a concept needs a name with at least one letter or digit")
    return name


class Concept(Strict):
    """A thing, style, person, character or brand that a request names.

    Attributes:
        name: how people call it, e.g. "golf ball".
        kind: "object", "style", "person", "character", "brand" or "background".
        aliases: other names that mean the same concept.
        confusables: names of neighbours that must not count as the concept, e.g. "tennis ball".
    """

    name: str
    kind: str = "object"
    aliases: tuple[str, ...] = ()
    confusables: tuple[str, ...] = ()

    _name = field_validator("name")(check_name)

    @field_validator("aliases", "confusables")
    @classmethod
    def _names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_name(name) for name in names)

    @model_validator(mode="after")
    def _no_alias_is_a_confusable(self) -> Self:
        own = {tuple(words(n)) for n in self.names}
        for other in self.confusables:
            if tuple(words(other)) in own:
                raise ValueError(
                    f"{other!r} is both a name of {self.name!r} and a confusable that must not count as it"
                )
        return self

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.aliases)


class Request(Strict):
    """One deletion request: the concepts that it names, when it came, and its id (the number of the step that serves it)."""

    id: str
    concepts: tuple[Concept, ...] = Field(min_length=1)
    received_at: str


def words(text: str) -> list[str]:
    """Lower-case words of a text, one spelling per letter (NFKC); hyphens and underscores separate words."""
    return list(_words(text))


@lru_cache(maxsize=1 << 16)  # the same prompts are asked about concept after concept
def _words(text: str) -> tuple[str, ...]:
    text = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(c if c.isalnum() or unicodedata.category(c).startswith("M") else " " for c in text)
    return tuple(kept.split())


def mentions(prompt: str, concept: Concept) -> str | None:
    """The name or alias under which `prompt` speaks of `concept`, or None. Words inside a confusable do not count."""
    prompt_words = words(prompt)
    taken = {
        i
        for name in concept.confusables
        for start, end in _places(prompt_words, words(name))
        for i in range(start, end)
    }
    for name in concept.names:
        if any(not taken.issuperset(range(start, end)) for start, end in _places(prompt_words, words(name))):
            return name
    return None


def _places(prompt_words: list[str], phrase: list[str]) -> list[tuple[int, int]]:
    """Where `phrase` stands in the prompt, its last word in the singular or the plural."""
    n = len(phrase)
    last = phrase[-1]
    return [
        (i, i + n)
        for i in range(len(prompt_words) - n + 1)
        if prompt_words[i : i + n - 1] == phrase[:-1] and _same(prompt_words[i + n - 1], last)
    ]


def _same(a: str, b: str) -> bool:
    return a in _forms(b) or b in _forms(a)


def _forms(word: str) -> set[str]:
    """A word and its regular English plurals."""
    forms = {word, word + "s", word + "es"}
    if word.endswith("y"):
        forms.add(word[:-1] + "ies")
    if word.endswith("f"):
        forms.add(word[:-1] + "ves")
    if word.endswith("fe"):
        forms.add(word[:-2] + "ves")
    return forms
