"""Methods and constraints of one's own: the page that shows how to write them, and what is said of what they hand back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.backbones import load
from expunge.constraints import L2
from expunge.errors import ExpungeError
from expunge.methods import METHODS
from expunge.stream import preset
from steps import SMALL, context, log, run_step


def test_the_page_about_ones_own_method_is_true(
    sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "own.md").read_text()
    (tmp_path / "gentle.py").write_text(page.split("```python\n")[1].split("```")[0])
    (tmp_path / "my-preset.toml").write_text(page.split("```toml\n")[1].split("```")[0])
    monkeypatch.chdir(tmp_path)
    config = preset("my-preset.toml")
    (own,) = config.build_constraints()
    cls = type(config.build_method())
    monkeypatch.setitem(METHODS, "gentle", cls)
    monkeypatch.setitem(SMALL, "gentle", {**SMALL["naive"], "lambda_keep": 1.0})
    run_step(load(sd_folder), tmp_path, method="gentle", constraints=[own])
    losses = log(tmp_path)[-1]["losses"]
    assert losses.keys() == {"unlearn", "keep", "regularize"}
    assert losses["regularize"] > 0


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda losses: {"unlaern": losses["unlearn"]}, "has the loss 'unlaern', .* Did you mean unlearn"),
        (lambda losses: {"unlearn": losses["unlearn"].expand(2)}, r"'unlearn' of the method Naive is of shape \(2,\)"),
        (lambda losses: {}, "The method Naive has no loss in this step"),
    ],
)
def test_what_a_method_hands_back_is_looked_at(
    spoil: Callable[[Any], Any], sentence: str, sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = METHODS["naive"].losses
    monkeypatch.setattr(METHODS["naive"], "losses", lambda *told: spoil(right(*told)))
    with pytest.raises(ExpungeError, match=sentence):
        run_step(load(sd_folder), tmp_path, method="naive")


def test_time_counts_as_one_of_a_steps_phases(sd_folder: Path) -> None:
    step = context(load(sd_folder))
    with pytest.raises(ValueError, match="counts as one of choose, replay, not as 'mask'"), step.phase("mask"):  # type: ignore[arg-type]
        pass
    assert step.seconds == {}


def test_a_constraint_that_is_not_finite_stops_with_a_sentence(
    sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(L2, "regularize", lambda *_: torch.tensor(torch.nan))
    with pytest.raises(ExpungeError, match="The regularization is not finite at optimizer step 1"):
        run_step(load(sd_folder), tmp_path, method="lacu")
