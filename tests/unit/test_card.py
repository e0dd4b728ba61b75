"""The model card of an export never names a person."""

from __future__ import annotations

from pathlib import Path

from expunge.concepts import Concept
from expunge.evaluation import Value
from expunge.privacy import Names
from expunge.stream import Run
from expunge.stream.card import _plain, model_card
from expunge.stream.summary import ModelSummary
from handmade import FOX, PERSON, add_step, begin, check


def test_a_name_is_printed_as_it_is() -> None:
    assert _plain("a|b <i>*c*</i> [d](e)") == "a\\|b \\<i\\>\\*c\\*\\</i\\> \\[d\\](e)"
    assert _plain("golf ball, größer") == "golf ball, größer"


def test_a_person_is_called_by_the_request(tmp_path: Path) -> None:
    directory, base = begin(tmp_path / "run", FOX, PERSON)
    names: list[Concept] = [FOX, PERSON]
    for i, request in enumerate(directory.requests(), 1):
        add_step(directory, request, base, [c.name for c in names[:i]], [check("ua of fox", 1.0, 0.8)], previous=i - 1)
    run = Run(directory.path)
    card = model_card(
        run.config,
        ModelSummary(source="models/zelda-quixote-free", name="zelda-quixote-free", digest="sha256:0"),
        "about Zelda Quixote",
        run.requests,
        run.records,
        {"fox": Value(value=1.0, low=0.72, high=1.0, n=10), PERSON.name: None},
        {"0001"},
        Names(run.requests),
        "sha256:1",
    )
    assert "zelda" not in card.casefold()
    assert "quixot" not in card.casefold()
    assert "- request 0001: fox (accepted by hand: the gate did not let it pass)\n- request 0002: a person\n" in card
    assert "nothing here says who it is" in card
    assert "| UA of fox | 1.000 | 0.720 | 1.000 | 10 |" in card
    assert "| UA of request 0002 | not measured | | | |" in card
