"""The stopping rule at work on a tiny pipeline: early where little is to be done, late where much is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge import backbones
from expunge.backbones import Backbone
from expunge.engine import StepLog
from steps import run_step

STEPS = 60
RULE = {"check_every": 3, "patience": 2, "tolerance": 0.05, "target": 0.2, "batches": 2}
SETTINGS: dict[str, Any] = {"steps": STEPS, "learning_rate": 1e-3, "checkpoint_steps": 4}


@pytest.fixture
def fresh(sd_folder: Path) -> Callable[[], Backbone]:
    return lambda: backbones.load(sd_folder)


def _log(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def _louder(backbone: Backbone, factor: float) -> Backbone:
    """The same model with text that moves its predictions `factor` times as far: all concepts lie that much further from
    what replaces them."""
    with torch.no_grad():
        for name in backbone.parameters_of("cross-attention"):
            if ".to_out." in name:
                backbone.denoiser.get_parameter(name).mul_(factor)
    return backbone


def test_training_stops_early_on_an_easy_concept_late_on_a_hard_one_and_never_without_the_rule(
    fresh: Callable[[], Backbone], tmp_path: Path
) -> None:
    last = {}
    for name, factor, rule in (("easy", 1.0, RULE), ("hard", 4.0, RULE), ("fixed", 1.0, None)):
        run_step(_louder(fresh(), factor), tmp_path / name, stop=rule, **SETTINGS)
        last[name] = _log(tmp_path / name)[-1]
        print(name, last[name], [e["check"] for e in _log(tmp_path / name) if e["check"]])
    assert last["easy"]["stopped"] == "reached"
    assert last["easy"]["check"]["forget"] <= RULE["target"]
    assert last["easy"]["step"] * 1.5 < last["hard"]["step"]
    assert (last["fixed"]["step"], last["fixed"]["stopped"], last["fixed"]["check"]) == (STEPS, "steps", None)


@pytest.mark.parametrize("parameters", ["full", "lora"])
def test_a_rule_that_was_interrupted_stops_at_the_same_step_with_the_same_bits(
    parameters: str, fresh: Callable[[], Backbone], tmp_path: Path
) -> None:
    rule = {**RULE, "tolerance": 1.0, "target": 0.99}
    whole = run_step(fresh(), tmp_path / "whole", stop=rule, parameters=parameters, **SETTINGS)
    end = _log(tmp_path / "whole")[-1]["step"]
    assert 6 < end < STEPS

    def interrupt(entry: StepLog) -> None:
        if entry.step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_step(fresh(), tmp_path / "broken", stop=rule, parameters=parameters, on_step=interrupt, **SETTINGS)
    for _ in range(2):  # the second time all is done, and nothing is trained
        resumed = run_step(fresh(), tmp_path / "broken", stop=rule, parameters=parameters, **SETTINGS)
        assert _log(tmp_path / "whole") == _log(tmp_path / "broken")
        assert all(torch.equal(whole[n], resumed[n]) for n in whole)


def test_looking_changes_nothing(fresh: Callable[[], Backbone], tmp_path: Path) -> None:
    """A rule that never stops leaves the bits of a run without one."""
    rule = {**RULE, "patience": 50}
    watched, fixed = (run_step(fresh(), tmp_path / str(r is None), stop=r, steps=8) for r in (rule, None))
    assert all(torch.equal(watched[n], fixed[n]) for n in watched)


def test_more_strength_forgets_more(fresh: Callable[[], Backbone], tmp_path: Path) -> None:
    rule = {**RULE, "patience": 50, "batches": 4}
    ends = []
    for strength in (0.05, 0.2, 1.0, 5.0):
        folder = tmp_path / str(strength)
        run_step(fresh(), folder, stop=rule, steps=15, changes={"strength": strength})
        ends.append(_log(folder)[-1]["check"])
    forget, retain = ([end[role] for end in ends] for role in ("forget", "retain"))
    print(forget, retain)
    assert forget == sorted(forget, reverse=True)
    assert forget[0] > 1.2 * forget[-1]
    assert retain[0] < retain[-1]
