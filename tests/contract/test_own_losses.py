"""The two losses of our own, measured: what each holds moves less than without it, and the request is still served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.backbones import Backbone, Evaluations, Predictor, load
from expunge.methods import Earlier, Position, StepContext
from expunge.prompts import Vocabulary
from steps import built, context, run_step

# Words that the tiny tokenizers know whole: others are cut off before the prompt's end.
VOCABULARY = Vocabulary.model_validate(
    {
        "schema": 1,
        "templates": ["{thing}{place}", "a photo of {thing}{place}", "a drawing of {thing}{place}"],
        "evaluation_templates": ["an oil painting of {thing}{place}"],
        "slots": {
            "thing": {"phrase": "{a} {}", "kind": "object"},
            "place": {"phrase": " {}", "kind": "background", "optional": True},
        },
        "groups": [
            {
                "name": "things",
                "slot": "thing",
                "concepts": ["apple", "dog", "car", "table", "golf ball", "tennis ball"],
            },
            {"name": "places", "slot": "place", "concepts": ["in the snow", "by the sea", "on green grass"]},
        ],
    }
)
OWN = {"lambda_empty": 25.0, "lambda_again": 5.0}


@pytest.fixture(scope="module")
def without(sd_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, float], dict[str, float]]:
    return _served(sd_folder, tmp_path_factory.mktemp("without"))


@pytest.mark.parametrize(("loss", "other"), [("empty", "again"), ("again", "empty")])
def test_what_a_loss_of_our_own_holds_moves_less_with_it(
    loss: str, other: str, without: tuple[dict[str, float], dict[str, float]], sd_folder: Path, tmp_path: Path
) -> None:
    before, after = _served(sd_folder, tmp_path, **{f"lambda_{loss}": OWN[f"lambda_{loss}"]})
    assert after[loss] < 0.6 * without[1][loss]
    assert after[other] > 0.7 * without[1][other]  # it holds what it is for, and nothing else
    for first, last in (without, (before, after)):  # doing nothing would hold everything: the request was served
        assert last["unlearn"] < 0.5 * first["unlearn"]


def test_strength_scales_both_losses_that_forget_and_neither_of_those_that_hold() -> None:
    weights = {"lambda_unlearn": 3.0, "lambda_preserve": 5.0, "lambda_empty": 7.0, "lambda_again": 11.0}
    scaled = {"unlearn": 6.0, "preserve": 5.0, "empty": 7.0, "again": 22.0}
    assert built("dfr", strength=2.0, **weights).weights == scaled


def _served(model: Path, folder: Path, **changes: float) -> tuple[dict[str, float], dict[str, float]]:
    """A step that forgets a dog, then one that forgets an apple: the losses before and after the second one."""
    backbone = load(model)
    dog, apple = VOCABULARY.concept("dog"), VOCABULARY.concept("apple")
    train = {
        "steps": 40,
        "batch_size": 6,
        "learning_rate": 2e-3,
        "checkpoint_steps": 40,
        "parameters": "cross-attention",
    }
    told: dict[str, Any] = {"source": VOCABULARY, "held_out": frozenset()}
    run_step(backbone, folder / "dog", served={**told, "concepts": (dog,), "earlier": ()}, **train)
    told |= {"concepts": (apple,), "earlier": (Earlier(1, (dog,)),)}
    step = context(backbone, **told)
    before = _losses(backbone, step)
    run_step(backbone, folder / "apple", served=told, changes={"again_prompts": 4, **changes}, **train)
    return before, _losses(backbone, step)


@torch.no_grad()
def _losses(backbone: Backbone, step: StepContext) -> dict[str, float]:
    """Every loss of the present weights, the teacher of `step` being what it was, on rows that no step trained on."""
    method = built("lacu", **OWN, again_prompts=4)
    state, _ = method.prepare(step)
    student = Predictor(backbone, backbone.denoiser, Evaluations())
    found = [
        method.losses(method.batch(state, Position(i), student), student, step.teacher, state) for i in range(200, 216)
    ]
    return {name: float(torch.stack([losses[name] for losses in found]).mean()) for name in method.weights}
