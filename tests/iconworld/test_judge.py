"""What the built-in judge answers, from logits that are given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from expunge.evaluation import UNSURE, Answer, Question
from expunge.iconworld import classifier

SLOTS = {"thing": ("fox", "owl", "key"), "style": ("plain", "neon", "mosaic"), "ground": ("red", "blue", "pink")}
BOTH = {"thing": "fox", "style": "neon"}


def answer(path: Path, scene: dict[str, str], temperature: float = 1.0, **logits: list[float]) -> Answer:
    """The judge's to the question whether a picture shows a fox; `temperature` is that of the styles."""
    heads = {slot: classifier.Head(values) for slot, values in SLOTS.items()}
    heads["style"] = classifier.Head(SLOTS["style"], temperature)
    network = classifier.Classifier({slot: len(values) for slot, values in SLOTS.items()})
    classifier.save(path / "judge.safetensors", network, heads)
    judge = classifier.CalibratedJudge(path / "judge.safetensors")
    judge._network = lambda pictures: {slot: torch.tensor([told], dtype=torch.float) for slot, told in logits.items()}
    (found,) = judge.judge(torch.rand(1, 3, 64, 64), [Question("fox", "thing", scene)])
    return found


@pytest.mark.parametrize(
    ("scene", "thing", "style", "shown", "context"),
    [
        (BOTH, [9, 0, 0], [0, 9, 0], True, True),
        (BOTH, [9, 0, 0], [9, 0, 0], True, False),
        (BOTH, [9, 0, 0], [0, 0, 0], True, False),  # what it is unsure of is not there
        (BOTH, [0, 9, 0], [0, 9, 0], False, True),
        (BOTH, [0, 0, 0], [0, 9, 0], None, True),
        ({**BOTH, "ground": "red"}, [9, 0, 0], [0, 9, 0], True, True),
        ({**BOTH, "ground": "blue"}, [9, 0, 0], [0, 9, 0], True, False),
        ({"thing": "fox"}, [9, 0, 0], [0, 9, 0], True, None),
        ({"thing": "fox", "weather": "rain"}, [9, 0, 0], [0, 9, 0], True, None),
    ],
)
def test_context_is_what_else_was_asked_for_and_can_be_seen(
    scene: dict[str, str],
    thing: list[float],
    style: list[float],
    shown: bool | None,
    context: bool | None,
    tmp_path: Path,
) -> None:
    found = answer(tmp_path, scene, thing=thing, style=style, ground=[9, 0, 0])
    assert (found.shown, found.context, found.recognisable) == (shown, context, shown is not None)


def test_it_is_as_sure_as_its_temperature_makes_it(tmp_path: Path) -> None:
    sure, unsure = (
        answer(tmp_path, BOTH, temperature, thing=[2, 0, 0], style=[0, 0.01, 0]) for temperature in (0.001, 1.0)
    )
    assert (sure.seen["style"].value, unsure.seen["style"].value) == ("neon", UNSURE)
    assert unsure.seen["style"].confidence == pytest.approx(1 / 3, rel=0.01)
    assert sure.confidence == unsure.confidence == pytest.approx(1 / (1 + 2 * torch.e**-2), rel=1e-4)
