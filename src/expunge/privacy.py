"""How concepts are called on the page. A person is called by the request's id, and nothing that names a person is printed."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from expunge.concepts import Concept, Request, plain_words
from expunge.evaluation import Protocol
from expunge.prompts import PromptSource

PERSON = "person"


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
        if not self._patterns:
            return text
        text = unicodedata.normalize("NFD", text)
        for pattern, label in self._patterns:
            text = pattern.sub(label, text)
        return unicodedata.normalize("NFC", text)

    def speaks(self, text: str) -> bool:
        """Whether `text` names a person."""
        text = unicodedata.normalize("NFD", text)
        return any(pattern.search(text) for pattern, _ in self._patterns)


def prompted(protocol: Protocol, source: PromptSource) -> list[Concept]:
    """All concepts that the protocol's prompts are written about."""
    groups = protocol.neighbours
    names = {*groups, *protocol.others, *(n for g in groups.values() for n in g.names)}
    return [source.concept(name) for name in sorted(names)]


def _pattern(name: str) -> re.Pattern[str]:
    """Matches the name in a text (NFD) in any case, with accents or without, its words apart or joined ("Jane Doe",
    "jane-doe", "JaneDoe"), also "Jane Doe's"."""
    inner = r"[\W_]*".join("".join(re.escape(c) + "[\u0300-\u036f]*" for c in word) for word in plain_words(name))
    return re.compile(rf"(?<![^\W_]){inner}(?:es|s)?(?![^\W_])", re.IGNORECASE)
