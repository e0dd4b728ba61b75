"""A person's name is found however it is written."""

from __future__ import annotations

import pytest

from expunge import iconworld
from expunge.concepts import Concept, Request
from expunge.privacy import Names, prompted
from expunge.prompts import Vocabulary


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


@pytest.mark.parametrize(
    ("person", "written"),
    [
        ("Franz Strauß", "Franz Strauß"),
        ("Franz Strauss", "FRANZ STRAUẞ"),
        ("Franz Strauß", "franz strauss"),
        ("王力宏", "一张王力宏的照片"),
        ("김연아", "김연아의 사진"),
        ("Jane Doe", "ﬂowers for \uff2aane Doe"),
    ],
)
def test_however_the_script_writes_it(person: str, written: str) -> None:
    known = names(person)
    assert known.speaks(written)
    assert not known.speaks(known.text(written))
    assert known.text(written) == known.text(known.text(written))
    assert len(known.text("ﬂowers, " + written + ", é")) >= len("ﬂowers, request 0007, é")
    assert known.text("ﬂowers, " + written + ", é").endswith(", é")


def test_a_person_whom_prompts_may_show_beside_something_else_is_not_named() -> None:
    """Nobody asked for her to go; evaluation prompts fill their slots from the whole vocabulary."""
    groups = [
        {"name": "animals", "slot": "thing", "concepts": ["fox", "owl"]},
        {"name": "people", "slot": "thing", "kind": "person", "concepts": ["Ada Lovelace"]},
        {"name": "styles", "slot": "style", "concepts": ["plain"]},
    ]
    words = {**iconworld.vocabulary().model_dump(mode="json", by_alias=True), "aliases": {}, "confusables": {}}
    source = Vocabulary.model_validate({**words, "groups": groups})
    protocol = iconworld.protocol("iconworld-demo").model_copy(update={"neighbours": {}, "others": ("owl",)})
    known = Names([], prompted(protocol, source))
    assert known.text("an image of Ada Lovelace in watercolor") == "an image of a person in watercolor"
    assert known.private("Ada Lovelace")
    assert not known.private("owl")


def test_other_words_stay_as_they_are() -> None:
    known = names("Zoë Löwe")
    for text in ("a lower zoo", "die Löwen von Zürich", "Zoë alone", "café au lait, 한국"):
        assert not known.speaks(text)
        assert known.text(text) == text
