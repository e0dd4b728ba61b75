"""What the gate said of a concept decides how hard it is held from then on."""

from __future__ import annotations

import pytest

from expunge.stream.emphasis import emphasis
from expunge.stream.gate import concerned
from expunge.stream.summary import Attempt, Check, StepRecord
from handmade import check

SHOWS = check("ua of pink", 0.7, 0.8)
LOST = check("ira drop", 0.2, 0.15)
FINE = check("ua of fox", 1.0, 0.8)


def step(concept: str, *attempts: tuple[float, Check]) -> StepRecord:
    tried = [Attempt(strength=strength, gate=[FINE, said], then="") for strength, said in attempts]
    return StepRecord.model_construct(concepts=[concept], attempts=tried)


def test_another_attempt_is_about_what_shows_or_about_what_was_asked_for_now() -> None:
    assert concerned([FINE, SHOWS], ["bus"]) == {"pink"}
    assert concerned([FINE, LOST], ["bus", "ghost"]) == {"bus", "ghost"}


def test_only_what_came_back_is_held_harder_in_another_attempt() -> None:
    accepted = [step("fox", (1.0, FINE)), step("pink", (1.0, FINE))]
    found = emphasis(accepted, step("bus", (1.0, SHOWS)), 1.5)
    assert found == pytest.approx({"fox": 1 / 1.5, "bus": 1 / 1.5})  # times the method's 1.5: as before
    assert emphasis(accepted, None, 1.0) == {}


def test_what_took_too_much_is_asked_for_less_and_nothing_else_comes_back() -> None:
    found = emphasis([step("pink", (1.0, FINE))], step("bus", (1.0, LOST)), 1 / 1.5)
    assert found == pytest.approx({"pink": 1.5})


def test_a_concept_keeps_what_an_accepted_retry_changed() -> None:
    accepted = [
        step("pink", (1.0, LOST), (1 / 1.5, FINE)),
        step("bus", (1.0, SHOWS), (1.5, FINE)),
        step("ghost", (1.0, SHOWS), (1.5, FINE)),
    ]
    assert emphasis(accepted[:1], None, 1.0) == pytest.approx({"pink": 1 / 1.5})
    assert emphasis(accepted[:2], None, 1.0) == {}
    assert emphasis(accepted, None, 1.0) == pytest.approx({"pink": 1.5})
    again = emphasis(accepted, step("neon", (1.0, SHOWS)), 1.5)
    assert again == pytest.approx({"pink": 1.5, "bus": 1 / 1.5, "ghost": 1 / 1.5, "neon": 1 / 1.5})
