"""`expunge estimate`: what it counts is what serving counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import expunge
from expunge.backbones.stable_diffusion import StableDiffusion
from expunge.cli.shared import changes_of
from expunge.stream import DEFAULT_PRESET, Estimate, preset
from expunge.stream.rehearsal import Silent
from runs import FAST, PROTOCOL
from runs import expunge as command

SETTINGS = [value for option, value in zip(FAST[::2], FAST[1::2], strict=True) if option == "--set"]


def changes_for(preset_name: str, *more: str) -> dict[str, Any]:
    """The small settings, as far as the preset's method has them."""
    changes = changes_of([*SETTINGS, *more])
    known = type(preset(preset_name).build_method().config).model_fields
    changes["method"] = {name: value for name, value in changes["method"].items() if name in known}
    return {**changes, "evaluate": {**changes["evaluate"], "protocol": str(PROTOCOL)}}


def rehearsed(*more: str, preset_name: str = DEFAULT_PRESET) -> Estimate:
    return expunge.estimate(preset(preset_name, changes_for(preset_name, *more)), [["panda"], ["mosaic"]])


@pytest.fixture(scope="module")
def estimated() -> Estimate:
    return rehearsed()


def test_evaluations_bytes_and_pictures_are_those_of_the_run(finished_run: Path, estimated: Estimate) -> None:
    run = expunge.Run(finished_run)
    for record, request in zip(run.records, estimated.requests, strict=True):
        assert request.evaluations == record.evaluations
        assert request.concepts == tuple(record.concepts)
        assert min(request.prepare, request.train, request.evaluate) > 0
    step = run.directory.step(1)
    header = step.weights.stat().st_size - estimated.artifact
    assert 0 < header < 20_000
    kept = sum(path.stat().st_size for path in run.directory.memory.glob("*"))
    assert estimated.memory == kept // 2
    assert estimated.peak > estimated.artifact
    assert estimated.seconds == pytest.approx(estimated.base + sum(r.seconds for r in estimated.requests))


def test_other_settings_cost_otherwise(estimated: Estimate) -> None:
    more = rehearsed("method.retain_prompts=10", "train.steps=7")
    for request, other in zip(estimated.requests, more.requests, strict=True):
        assert other.evaluations.forward > request.evaluations.forward
        assert other.evaluations.backward * 6 == request.evaluations.backward * 7


def test_with_a_stopping_rule_it_is_the_most_that_a_request_takes(tmp_path: Path) -> None:
    rule = [
        "train.stop={check_every = 2, batches = 3, target = 0.0, tolerance = 0.0}",
        *('replay.source="bank"', 'method.along="forget"', "method.warm_start=false"),
    ]
    run = expunge.Run.create(tmp_path / "run", requests=["panda", "mosaic"], changes=changes_for(DEFAULT_PRESET, *rule))
    told = run.train(run.requests[0], None)
    assert rehearsed(*rule).requests[0].evaluations == told.evaluations


def test_what_a_run_refuses_is_not_estimated() -> None:
    config = preset(DEFAULT_PRESET, changes_of(SETTINGS))
    with pytest.raises(expunge.ExpungeError, match="requested twice"):
        expunge.estimate(config, [["fox"], ["fox"]])
    with pytest.raises(expunge.ExpungeError, match="no request"):
        expunge.estimate(config, [])


@pytest.mark.parametrize("preset_name", ["lacu-iconworld", "dfr-iconworld", "naive-iconworld"])
@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_every_method_is_counted_as_it_is_served(engine: str, preset_name: str, tmp_path: Path) -> None:
    more = (f"train.engine={engine}", "train.steps=2")
    run = expunge.Run.create(
        tmp_path / "run",
        requests=["panda", "mosaic"],
        preset_name=preset_name,
        changes=changes_for(preset_name, *more),
    )
    told = run.train(run.requests[0], None)
    found = rehearsed(*more, preset_name=preset_name).requests[0].evaluations
    assert found == told.evaluations
    assert found.backward == 2 * 2 * (1 if preset_name == "naive-iconworld" else 2)


def test_the_published_loop_is_counted_too(estimated: Estimate) -> None:
    reference = rehearsed("train.engine=reference")
    rows = 2 * 6  # of each role: six steps of two
    assert reference.requests[0].evaluations.backward == 2 * rows
    assert reference.requests[0].evaluations.forward > rows * 2 * 22
    assert estimated.requests[0].evaluations.backward == 2 * rows


@pytest.mark.parametrize(
    ("rows", "trained", "work"),
    [
        (16, False, "a prediction for 64 latents at once. Lower replay.batch_size"),
        (2, True, "an optimizer step on 2 rows of each role at once. Lower train.batch_size"),
    ],
)
def test_what_does_not_fit_is_said_now(rows: int, trained: bool, work: str, monkeypatch: pytest.MonkeyPatch) -> None:
    predict = StableDiffusion.predict

    def limited(self: StableDiffusion, denoiser: nn.Module, latents: Tensor, *more: Any) -> Tensor:
        real = not isinstance(denoiser, Silent)
        if real and torch.is_grad_enabled() == trained and len(latents) > rows:
            torch.empty(10**15)
        return predict(self, denoiser, latents, *more)

    monkeypatch.setattr(StableDiffusion, "predict", limited)
    with pytest.raises(expunge.ExpungeError, match=f"no room here for {work}"):
        rehearsed()


@pytest.mark.parametrize(
    ("piece", "work"),
    [
        ("to", "no room here for the model. It needs a machine with more memory"),
        ("copy_denoiser", "no room here for a teacher beside the model. It needs"),
        ("decode", "no room here for painting 8 pictures at once. Lower sampler"),
    ],
)
def test_the_model_its_teacher_and_pictures_that_do_not_fit_are_named(
    piece: str, work: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StableDiffusion, piece, lambda *_: torch.empty(10**15))
    with pytest.raises(expunge.ExpungeError, match=work):
        rehearsed()


def test_the_command_prints_a_table_and_makes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = command("estimate", "panda", *FAST)
    assert all(words in said for words in ("panda", "base model", "MB a request"))
    assert "Did you mean panda" in command("estimate", "pandaa", *FAST, code=2)
    assert not list(tmp_path.iterdir())
