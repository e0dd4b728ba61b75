"""What must go, and whether a prompt speaks of it.

Matching is by whole words and phrases: "pineapple" does not speak of "apple", "golf balls" and "golfball" speak of "golf
ball", "tennis ball" does not. Accents do not count. Rather a prompt too many is left out than one that leaks.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Self

from pydantic import Field, field_validator, model_validator

from expunge.schema import Strict

PERSON = "person"
"""The kind of a concept of which nothing is printed that says who it is."""
JOINERS = "\u200c\u200d"
"""They print nothing, but some scripts and emoji are not written without them."""

_PLURALS = {
    "y": "ies",
    "f": "ves",
    "fe": "ves",
    "man": "men",
    "child": "children",
    "person": "people",
    "foot": "feet",
    "tooth": "teeth",
    "goose": "geese",
    "mouse": "mice",
    "louse": "lice",
    "ox": "oxen",
    "die": "dice",
    "iz": "izzes",
    "eau": "eaux",
}
"""{ending: ending of the plural}, beside -s and -es."""
_LATIN = {"us": "i", "um": "a", "is": "es", "ex": "ices", "ix": "ices", "a": "ae"}
"""The same, after three letters or more: "cactus", but not "bus"."""
_LONGER = 3
"""Letters that a plural has more than the singular at most: quizzes, children."""
_PART = 3
"""Letters of each word where a name is written apart: "spider man" is "spiderman", and "cab in" no "cabin"."""


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
    """One deletion request: the concepts that it names, when it came, and its id."""

    id: str
    concepts: tuple[Concept, ...] = Field(min_length=1)
    received_at: str

    @property
    def step(self) -> int:
        """The number of the step that serves it, which its id is."""
        return int(self.id)


def article(name: str) -> str:
    """ "an" before a vowel, else "a"."""
    return "an" if name[0].lower() in "aeiou" else "a"


def words(text: str) -> list[str]:
    """Lower-case words of a text, one spelling per letter (NFKC); hyphens and underscores separate words."""
    return list(_words(text))


@lru_cache(maxsize=1 << 16)  # the same prompts are asked about concept after concept
def _words(text: str) -> tuple[str, ...]:
    text = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(c if c.isalnum() or unicodedata.category(c).startswith("M") else " " for c in text)
    return tuple(kept.split())


@lru_cache(maxsize=1 << 16)
def plain_words(text: str) -> tuple[str, ...]:
    """The words of a text without accents. Signs of other scripts that make another word stay."""
    return tuple(
        "".join(c for c in unicodedata.normalize("NFD", word) if not "\u0300" <= c <= "\u036f") for word in _words(text)
    )


def alike(name: str, other: str) -> bool:
    """Whether two names differ in nothing but case, spaces, hyphens, accents and number."""
    return _same("".join(plain_words(name)), "".join(plain_words(other)))


def mentions(prompt: str, concept: Concept) -> str | None:
    """The name or alias under which `prompt` speaks of `concept`, or None. Words inside a confusable do not count."""
    prompt_words, plain = words(prompt), plain_words(prompt)
    taken = {i for name in concept.confusables for i in _inside(prompt_words, words(name))}
    for name in concept.names:
        if any(not taken.issuperset(range(start, end)) for start, end in _places(plain, plain_words(name))):
            return name
    return None


def _inside(prompt_words: list[str], phrase: list[str]) -> Iterator[int]:
    """The words of the prompt that are inside `phrase`: only as it is written, since what is inside may stay."""
    n = len(phrase)
    for i in range(len(prompt_words) - n + 1):
        if prompt_words[i : i + n - 1] == phrase[:-1] and prompt_words[i + n - 1] in _forms(phrase[-1]):
            yield from range(i, i + n)


def _places(prompt_words: Sequence[str], phrase: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Where `phrase` stands in the prompt, joined or apart, its last word in the singular or the plural."""
    name = "".join(phrase)
    for start, first in enumerate(prompt_words):
        if first[:1] != name[:1]:
            continue
        text = ""
        for end in range(start + 1, len(prompt_words) + 1):
            text += prompt_words[end - 1]
            if len(text) > len(name) + _LONGER:
                break
            parts = prompt_words[start:end]
            as_written = len(parts) == len(phrase) and parts[:-1] == phrase[:-1]
            if (as_written or len(parts) == 1 or min(map(len, parts)) >= _PART) and _same(text, name):
                yield start, end


def _same(a: str, b: str) -> bool:
    return a in _forms(b) or b in _forms(a)


@lru_cache(maxsize=1 << 16)
def _forms(word: str) -> frozenset[str]:
    """A word and what its English plurals could be."""
    endings = _PLURALS | {one: more for one, more in _LATIN.items() if len(word) >= len(one) + 3}
    irregular = (word.removesuffix(one) + more for one, more in endings.items() if word.endswith(one))
    return frozenset({word, word + "s", word + "es", *irregular})
