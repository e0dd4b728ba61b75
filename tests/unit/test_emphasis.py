"""What the gate said of a concept decides how hard it is held from then on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from expunge import Run, iconworld
from expunge.stream.emphasis import emphasis
from expunge.stream.gate import concerned
from expunge.stream.history import Retry
from expunge.stream.workshop import Workshop
from handmade import begin, check

SHOWS = check("ua of pink", 0.7, 0.8)
LOST = check("ira drop", 0.2, 0.15)
FINE = check("ua of fox", 1.0, 0.8)
NAMES = ["fox", "pink", "bus", "ghost"]
MORE, LESS = Retry(2, 1.5, ("pink",)), Retry(1, 1 / 1.5, ("pink",))


def of(before: list[Retry], now: Retry | None = None) -> dict[str, float]:
    return emphasis(before, now, NAMES, 1.0, 1.5)


def test_another_attempt_is_about_what_shows_or_about_what_was_asked_for_now() -> None:
    assert concerned([FINE, SHOWS], ["bus"]) == {"pink"}
    assert concerned([FINE, LOST], ["bus", "ghost"]) == {"bus", "ghost"}


def test_only_what_came_back_is_held_harder_in_another_attempt() -> None:
    assert of([], MORE) == pytest.approx({"fox": 1 / 1.5, "bus": 1 / 1.5, "ghost": 1 / 1.5})  # times 1.5: as before
    assert of([]) == {}


def test_what_took_too_much_is_asked_for_less_and_nothing_else_comes_back() -> None:
    assert of([], LESS) == pytest.approx({"fox": 1.5, "bus": 1.5, "ghost": 1.5})


def test_a_concept_keeps_what_the_retry_of_an_accepted_step_changed() -> None:
    assert of([MORE]) == {"pink": 1.5}
    assert of([LESS]) == {"pink": 1 / 1.5}
    assert of([LESS, MORE]) == {}
    assert of([MORE, MORE]) == {"pink": 1.5**2}
    others = {"fox": 1 / 1.5, "bus": 1 / 1.5, "ghost": 1 / 1.5}
    assert of([MORE], MORE) == pytest.approx({"pink": 1.5} | others)
    assert of([MORE], Retry(3, 1.5, ("bus",))) == pytest.approx({"fox": 1 / 1.5, "ghost": 1 / 1.5})


def test_the_events_of_a_run_decide_whom_an_attempt_is_about(tmp_path: Path) -> None:
    fox, pink = (iconworld.vocabulary().concept(name) for name in ("fox", "pink"))
    directory, _ = begin(tmp_path / "run", fox, pink)
    run = Run(directory.path)

    def set_up() -> tuple[float | None, dict[str, float]]:
        nothing = cast(Any, None)
        shop = Workshop(directory, run.config, *[nothing] * 7)
        ready, _ = run._set_up(shop)
        return ready.config.strength, dict(ready.emphasis)

    directory.add_event("started", step=1)
    assert set_up() == (1.0, {})
    directory.add_event("accepted", step=1, record="sha256:1")
    directory.add_event("started", step=2)
    directory.add_event("retried", step=2, strength=1.5, about=["fox"], record="sha256:2")
    assert set_up() == (1.5, {"pink": pytest.approx(1 / 1.5)})
    directory.add_event("started", step=2)
    assert set_up() == (1.5, {"pink": pytest.approx(1 / 1.5)})
    directory.add_event("accepted", step=2, record="sha256:3")
    assert set_up() == (1.0, {"fox": 1.5})
    directory.add_event("withdrawn", step=2, by="me", reason="")
    assert set_up() == (1.0, {})
