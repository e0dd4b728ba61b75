"""How concepts are called on the page. A person is called by the request's id, and nothing that names a person is printed."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from expunge.concepts import PERSON, Concept, Request, plain_words
from expunge.evaluation import Protocol
from expunge.prompts import PromptSource


class Names:
    """What may be said of the concepts of a run.

    Args:
        requests: the run's requests. A concept of kind "person" is labelled by the last request that names it.
        others: concepts that nobody asked to forget but that prompts may speak of; the persons among them are "a person".
        labels: {person: label}, where the request's id would not say enough.
    """

    def __init__(
        self, requests: Sequence[Request], others: Iterable[Concept] = (), labels: Mapping[str, str] = {}
    ) -> None:
        self._labels: dict[str, str] = {}
        patterns: list[tuple[str, str]] = []
        for concept in others:
            if concept.kind == PERSON:
                self._labels[concept.name] = "a person"
                patterns += [(name, concept.name) for name in concept.names]
        for request in requests:
            persons = [c for c in request.concepts if c.kind == PERSON]
            for place, concept in enumerate(persons, 1):
                which = f", person {place}" if len(persons) > 1 else ""
                self._labels[concept.name] = labels.get(concept.name, f"request {request.id}{which}")
                patterns += [(name, concept.name) for name in concept.names]
        # Longest first, so that "jane doe smith" is not left as "request 0001 smith".
        patterns.sort(key=lambda pair: -len(pair[0]))
        self._patterns = [(_pattern(name), self._labels[concept]) for name, concept in patterns]

    def private(self, concept: str) -> bool:
        return concept in self._labels

    def label(self, concept: str) -> str:
        """What the concept is called on the page."""
        return self._labels.get(concept) or self.text(concept)

    def text(self, text: str) -> str:
        """`text` with every name of a person replaced."""
        for pattern, label in self._patterns:
            text = _replaced(text, pattern, label)
        return text

    def speaks(self, text: str) -> bool:
        """Whether `text` names a person."""
        return any(pattern.search(_letters(text)[0]) for pattern, _ in self._patterns)


def prompted(protocol: Protocol, source: PromptSource) -> list[Concept]:
    """All concepts that the protocol's prompts are written about, and the persons whom they may show beside them."""
    names = {*protocol.neighbours, *protocol.measured}
    return [*(source.concept(name) for name in sorted(names)), *source.persons]


def _pattern(name: str) -> re.Pattern[str]:
    """Matches the name in the letters of a text, its words apart or joined ("Jane Doe", "jane-doe", "JaneDoe"), also "Jane
    Doe's". Scripts without capitals may be without spaces too: there a name may stand inside a word."""
    said = plain_words(name)
    before, after = ("" if unicodedata.category(c) == "Lo" else r"[^\W_]" for c in (said[0][0], said[-1][-1]))
    inner = r"[\W_]*".join(re.escape(word) for word in said)
    return re.compile((f"(?<!{before})" if before else "") + f"{inner}(?:es|s)?" + (f"(?!{after})" if after else ""))


def _replaced(text: str, pattern: re.Pattern[str], label: str) -> str:
    letters, places = _letters(text)
    for found in reversed([*pattern.finditer(letters)]):
        start, end = places[found.start()], places[found.end() - 1] + 1
        while end < len(text) and _is_accent(text[end]):
            end += 1
        text = text[:start] + label + text[end:]
    return text


@lru_cache(maxsize=1 << 12)
def _letters(text: str) -> tuple[str, list[int]]:
    """A text in the letters in which names are compared, in one case and without accents, and where each stands in it."""
    found = [
        (letter, place)
        for place, character in enumerate(text)
        for letter in unicodedata.normalize("NFD", unicodedata.normalize("NFKC", character).casefold())
        if not _is_accent(letter)
    ]
    return "".join(letter for letter, _ in found), [place for _, place in found]


def _is_accent(character: str) -> bool:
    return "\u0300" <= character <= "\u036f"
