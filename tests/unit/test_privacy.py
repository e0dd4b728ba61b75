"""A person's name is found however it is written."""

from __future__ import annotations

import pytest

from expunge.concepts import Concept, Request
from expunge.privacy import Names


def names(person: str) -> Names:
    concept = Concept(name=person, kind="person", aliases=())
    return Names([Request(id="0007", concepts=(concept,), received_at="")])


@pytest.mark.parametrize(
    "written", ["Zoë Löwe", "zoe lowe", "ZOË-LÖWE", "ZoeLowe", "Zoe\u0308 Lo\u0308we", "Zoë Löwe's"]
)
@pytest.mark.parametrize("person", ["Zoë Löwe", "Zoe Lowe"])
def test_with_accents_and_without(person: str, written: str) -> None:
    known = names(person)
    text = f"a portrait of {written} by the sea"
    assert known.speaks(text)
    assert "request 0007" in known.text(text)
    assert "owe" not in known.text(text).casefold()


def test_other_words_stay_as_they_are() -> None:
    known = names("Zoë Löwe")
    for text in ("a lower zoo", "die Löwen von Zürich", "Zoë alone", "café au lait, 한국"):
        assert not known.speaks(text)
        assert known.text(text) == text
