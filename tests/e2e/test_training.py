"""Adapters and the stopping rule through the command line: what a user finds in the run directory afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from expunge import Run, backbones, seeds
from expunge.backbones import Evaluations, Predictor, stored_denoiser
from expunge.files import load_tensors
from expunge.locality import rank, scoring_draws
from runs import COLD, FAST, STAND_IN, expunge


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
