"""The stopping rule at work: early where little is to be done, late where much is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge import backbones, iconworld
from expunge.backbones import Backbone
from expunge.engine import StepLog
from steps import log, run_step

STEPS = 60
RULE = {"check_every": 3, "patience": 2, "tolerance": 0.05, "target": 0.2, "batches": 2}
SETTINGS: dict[str, Any] = {"steps": STEPS, "learning_rate": 1e-3, "checkpoint_steps": 4}


@pytest.fixture
def fresh(sd_folder: Path) -> Callable[[], Backbone]:
    return lambda: backbones.load(sd_folder)


def _concept(name: str) -> dict[str, Any]:
    return {"concepts": (iconworld.vocabulary().concept(name),), "earlier": ()}


@pytest.mark.slow
def test_training_stops_early_on_an_easy_concept_late_on_a_hard_one_and_never_without_the_rule(tmp_path: Path) -> None:
    """The ground's colour is a single word to the built-in model; Santa has a face, a hat and a beard. At this learning
    rate it is the way that the weights must go which decides, on any processor."""
    folder = iconworld.model_folder("iconworld")
    assert folder is not None
    rule = {"check_every": 4, "patience": 2, "tolerance": 0.05, "target": 0.35, "batches": 3}
    last = {}
    for name, concept, stop in (("easy", "pink", rule), ("hard", "santa", rule), ("fixed", "pink", None)):
        run_step(
            backbones.load(folder),
            tmp_path / name,
            stop=stop,
            steps=60 if stop else 24,
            learning_rate=1.5e-4,
            batch_size=6,
            parameters="cross-attention",
            checkpoint_steps=60,
            served=_concept(concept),
            changes={"lambda_preserve": 5.0},
        )
        last[name] = log(tmp_path / name)[-1]
        print(name, last[name], [e["check"] for e in log(tmp_path / name) if e["check"]])
    assert last["easy"]["stopped"] == last["hard"]["stopped"] == "reached"
    assert last["easy"]["check"]["forget"] <= rule["target"]
    assert last["easy"]["step"] * 1.3 < last["hard"]["step"]
    assert (last["fixed"]["step"], last["fixed"]["stopped"], last["fixed"]["check"]) == (24, "steps", None)


def test_training_that_stands_still_above_its_target_ends_as_settled(
    fresh: Callable[[], Backbone], tmp_path: Path
) -> None:
    """With a learning rate of next to nothing, and with one that moves: there the same rule goes on to the last step."""
    rule = {**RULE, "tolerance": 0.01, "target": 0.0}
    ends = {}
    for rate in (1e-12, 1e-3):
        run_step(fresh(), tmp_path / str(rate), stop=rule, **{**SETTINGS, "steps": 12, "learning_rate": rate})
        ends[rate] = log(tmp_path / str(rate))[-1]
    assert (ends[1e-12]["stopped"], ends[1e-12]["step"]) == ("settled", 9)
    assert (ends[1e-3]["stopped"], ends[1e-3]["step"]) == ("steps", 12)


@pytest.mark.parametrize("parameters", ["full", "lora"])
def test_a_rule_that_was_interrupted_stops_at_the_same_step_with_the_same_bits(
    parameters: str, fresh: Callable[[], Backbone], tmp_path: Path
) -> None:
    rule = {**RULE, "tolerance": 1.0, "target": 0.99}
    whole = run_step(fresh(), tmp_path / "whole", stop=rule, parameters=parameters, **SETTINGS)
    end = log(tmp_path / "whole")[-1]["step"]
    assert 6 < end < STEPS

    def interrupt(entry: StepLog) -> None:
        if entry.step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_step(fresh(), tmp_path / "broken", stop=rule, parameters=parameters, on_step=interrupt, **SETTINGS)
    for _ in range(2):  # the second time all is done, and nothing is trained
        resumed = run_step(fresh(), tmp_path / "broken", stop=rule, parameters=parameters, **SETTINGS)
        assert log(tmp_path / "whole") == log(tmp_path / "broken")
        assert all(torch.equal(whole[n], resumed[n]) for n in whole)


def test_looking_changes_nothing(fresh: Callable[[], Backbone], tmp_path: Path) -> None:
    """A rule that never stops leaves the bits of a run without one."""
    rule = {**RULE, "patience": 50}
    watched, fixed = (run_step(fresh(), tmp_path / str(r is None), stop=r, steps=8) for r in (rule, None))
    assert all(torch.equal(watched[n], fixed[n]) for n in watched)


@pytest.mark.slow
def test_more_strength_forgets_more_and_keeps_less(tmp_path: Path) -> None:
    folder = iconworld.model_folder("iconworld")
    assert folder is not None
    rule = {"check_every": 12, "patience": 50, "batches": 3}
    ends = []
    for strength in (0.02, 5.0):
        run_step(
            backbones.load(folder),
            tmp_path / str(strength),
            stop=rule,
            steps=12,
            learning_rate=3e-4,
            batch_size=6,
            parameters="cross-attention",
            served=_concept("santa"),
            changes={"strength": strength},
        )
        ends.append(log(tmp_path / str(strength))[-1]["check"])
    weak, strong = ends
    print(weak, strong)
    assert strong["forget"] < 0.8 * weak["forget"]
    assert strong["retain"] > 1.2 * weak["retain"]
