"""Painting ends where enough was seen: intervals are as narrow as was asked for, and every concept had its turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from expunge import iconworld
from expunge.evaluation import Answer, Question, forget_rows, metrics, protocol_rows, run
from expunge.evaluation.run import evaluate

PROTOCOL = iconworld.protocol("iconworld-demo")
VOCABULARY = iconworld.vocabulary()
FOX, BUS = VOCABULARY.concept("fox"), VOCABULARY.concept("bus")
ROWS = protocol_rows(PROTOCOL, VOCABULARY, [FOX, BUS])


class Told:
    """Sees a fox in every second picture of one, everything else that is not forgotten, and no bus."""

    name = "told"

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()

    def check(self, questions: Sequence[Question], size: tuple[int, int]) -> None: ...

    def judge(self, images: Tensor, questions: Sequence[Question]) -> list[Answer]:
        return [self._answer(question.name) for question in questions]

    def _answer(self, name: str) -> Answer:
        self.asked[name] += 1
        shown = self.asked[name] % 2 == 0 if name == "fox" else name != "bus"
        return Answer(shown, None, True, None, {})


@pytest.fixture(autouse=True)
def blank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "paint", lambda _, __, prompts, *___: torch.zeros(len(prompts), 3, 8, 8))


def seen(enough: float | None, told: Any = None) -> tuple[pd.DataFrame, list[tuple[int, int]]]:
    steps: list[tuple[int, int]] = []
    backbone: Any = type(
        "Backbone", (), {"denoiser": None, "device": torch.device("cpu"), "lay_out": lambda layout: None}
    )
    table, _ = evaluate(
        backbone, ROWS, PROTOCOL.sampler, told or Told(), lambda *done: steps.append(done), enough=enough
    )
    return table, steps


def test_without_it_every_row_is_painted() -> None:
    table, steps = seen(None)
    assert list(table["row"]) == [row.id for row in ROWS]
    assert steps[-1] == (len(ROWS), len(ROWS))


def test_painting_ends_where_the_interval_is_narrow_enough_and_goes_on_where_it_is_not() -> None:
    table, steps = seen(0.05)
    counts = table.groupby("role")["row"].count()
    everything = Counter(row.role for row in ROWS)
    assert counts["neighbour"] < everything["neighbour"]
    assert counts["other"] < everything["other"]
    ira = metrics.mean(table[table["role"] == "neighbour"], "shown", missing=False)
    assert ira is not None
    assert ira.high - ira.low <= 2 * 0.05
    of = table[table["role"] == "forget"].groupby("concept")["row"].count()
    assert of["fox"] == len(forget_rows(PROTOCOL, VOCABULARY, FOX))  # a half is never known so narrowly
    assert steps[-1][0] == len(table)


def test_every_concept_has_had_its_turn_when_painting_ends() -> None:
    table, _ = seen(0.05)
    for role in ("neighbour", "other"):
        of = table[table["role"] == role].groupby("concept")["row"].count()
        names = {row.concept for row in ROWS if row.role == role}
        assert set(of.index) == names
        assert of.max() - of.min() <= 2


def test_answers_that_nobody_could_give_are_not_known() -> None:
    class Blind(Told):
        def _answer(self, name: str) -> Answer:
            return Answer(None, None, None, None, {})

    table, _ = seen(0.3, Blind())
    assert len(table) == len(ROWS)
