"""Adapters and the stopping rule through the command line: what a user finds in the run directory afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from expunge import Run, backbones, seeds
from expunge.backbones import Backbone, Evaluations, Predictor, stored_denoiser
from expunge.cli.shared import changes_of
from expunge.files import load_tensors, save_tensors
from expunge.locality import rank, scoring_draws
from expunge.stream import training
from runs import COLD, FAST, PROTOCOL, STAND_IN, expunge


def test_a_step_with_adapters_and_a_rule_leaves_plain_weights_and_says_why_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "run"
    rule = "{check_every = 2, patience = 1, tolerance = 10, batches = 1}"  # any second check is close enough
    settings = ("train.parameters=lora", f"train.stop={rule}", "train.warmup_steps=2", "replay.source=bank")
    expunge("run", path, "panda", *FAST, *COLD, *(part for setting in settings for part in ("--set", setting)))

    step = path / "steps" / "0001"
    log = [json.loads(line) for line in (step / "train.jsonl").read_text().splitlines()]
    assert [line["stopped"] for line in log] == [None, None, None, "settled"]  # of six; checks after 2 and 4 agree
    assert [line["step"] for line in log if line["check"]] == [2, 4]
    training = json.loads((step / "step.json").read_text())["training"]
    assert training == {"steps": 4, "stopped": "settled", **log[-1]["check"]}

    run = Run(path)
    assert run.config.train.stop is not None
    weights = load_tensors(step / "weights.safetensors")
    assert weights.keys() <= set(run.backbone().parameters_of("lora"))  # the stored dtype may round a small update away
    base = stored_denoiser(STAND_IN)
    moved = sum(float((weights[n].double() - base[n].double()).square().sum()) for n in weights)
    length = sum(float(w.double().square().sum()) for w in base.values())
    drift = run.records[0].metrics.weight_drift
    assert drift is not None
    assert drift.value == pytest.approx((moved / length) ** 0.5, rel=1e-4)  # of the weights, not of the factors
    expunge("export", path, tmp_path / "clean")
    stored = stored_denoiser(tmp_path / "clean")
    assert all(torch.equal(stored[name], value) for name, value in weights.items())


def test_with_the_base_model_as_teacher_a_later_step_chooses_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """The names' score distances of the second step are those of M(0), and not those of M(1)."""
    path = tmp_path / "run"
    settings = ("--set", "method.teacher=base", "--set", "train.learning_rate=0.003")
    expunge("run", path, "panda", "mosaic", *FAST, *settings)
    run = Run(path)
    kept = json.loads((path / "steps" / "0002" / "choices.json").read_text())["neighbours"]["mosaic"]

    model = backbones.load(STAND_IN)
    draws = scoring_draws(model, 1, seeds.generator(seeds.derive(run.config.seed, "step", 2), "rank", "mosaic"))

    def farthest_off() -> float:
        ranked = rank(Predictor(model, model.denoiser, Evaluations()), "mosaic", sorted(kept), draws, 64)
        return max(abs(distance / kept[name] - 1) for name, distance in ranked)

    assert farthest_off() < 1e-3
    first = {n: w.float() for n, w in load_tensors(path / "steps" / "0001" / "weights.safetensors").items()}
    model.denoiser.load_state_dict(first, strict=False)
    assert farthest_off() > 1e-2


def test_a_step_paints_no_more_than_is_enough(tmp_path: Path) -> None:
    protocol, path = tmp_path / "tiny.toml", tmp_path / "run"
    text = PROTOCOL.read_text().replace("batch_size = 8", "batch_size = 2")
    protocol.write_text(text.replace("requests =", "enough = 0.49\nrequests ="))
    expunge("run", path, "panda", *FAST, "--protocol", protocol, "--set", "train.steps=1")
    run = Run(path)
    base = pd.read_parquet(run.directory.base_judgements)
    after = pd.read_parquet(run.directory.step(1).judgements)
    assert len(base) == 4 + 6 + 4  # whole
    assert len(after) < len(base)
    difference = run.records[0].metrics.ira_difference
    assert difference is not None
    assert difference.n <= (after["role"] == "neighbour").sum() < 6


@pytest.mark.parametrize("teacher", ["previous", "base"])
def test_a_later_step_trains_the_model_before_it_beside_the_teacher_that_was_asked_for(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M(1) is written by hand, and no step is trained."""
    met: list[dict[str, Tensor]] = []

    def spied(student: Backbone, beside: Predictor, *rest: Any, **more: Any) -> None:
        met.extend({n: w.clone() for n, w in d.state_dict().items()} for d in (student.denoiser, beside.denoiser))
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", spied)
    changes = changes_of([*FAST[3::2], f"method.teacher={teacher}", f'evaluate.protocol="{PROTOCOL}"'])
    run = Run.create(tmp_path / "run", requests=["panda", "mosaic"], changes=changes)
    base = stored_denoiser(STAND_IN)
    moved = {name: w + 0.5 for name, w in base.items() if ".attn2." in name}
    models = {"base": base, "previous": {**base, **moved}}
    save_tensors(tmp_path / "first.safetensors", moved)
    for request, before in zip(run.requests, (None, tmp_path / "first.safetensors"), strict=True):
        with pytest.raises(KeyboardInterrupt):
            run.train(request, before)
    for found, expected in zip(met, (base, base, models["previous"], models[teacher]), strict=True):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name].cpu(), expected[name].float()) for name in found)
