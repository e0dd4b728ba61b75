"""A warm start: training begins where the closed form says, on the same prompts, and bit for bit again after a crash."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from expunge import Run, iconworld
from expunge.backbones import Backbone, Conditioning, load
from expunge.engine import StepLog
from expunge.errors import ExpungeError
from expunge.methods.warm_start import Moments, WarmStart, left, paired
from expunge.stream import preset
from steps import built, context, earlier, run_step
from tiny import save

WARM = {"warm_start": {"retain_prompts": 12}}


@pytest.fixture(scope="module")
def folder(sd_folder: Path) -> Path:
    return sd_folder


def losses(folder: Path, out: Path, **settings: Any) -> list[dict[str, float]]:
    log: list[StepLog] = []
    run_step(load(folder), out, on_step=log.append, parameters="cross-attention", **settings)
    return [dict(entry.losses) for entry in log]


def start_of(backbone: Backbone, method: str, served: dict[str, Any] | None = None, **changes: Any) -> WarmStart:
    state, _ = built(method, **{**WARM, **changes}).prepare(context(backbone, **(served or {})))
    assert isinstance(state.start, WarmStart)
    return state.start


def weights(backbone: Backbone) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in backbone.denoiser.named_parameters()}


@torch.no_grad()
def test_the_denoiser_does_not_see_the_order_of_tokens(folder: Path) -> None:
    """A warm start pairs them in the order that asks least of the weights."""
    backbone = load(folder)
    told = backbone.encode(["a red fox by the sea"])
    turned = Conditioning({name: tokens.flip(1) for name, tokens in told.tensors.items()})
    other = backbone.encode(["a blue car"])
    latents = torch.randn((1, *backbone.latent_shape), generator=torch.Generator().manual_seed(0))
    t = backbone.network_time(torch.tensor([500]))
    said, same, different = (backbone.predict(backbone.denoiser, latents, t, c) for c in (told, turned, other))
    torch.testing.assert_close(said, same)
    assert (said - different).abs().max() > 1e-3


def of_ways(start: WarmStart, teacher: dict[str, Tensor], now: dict[str, Tensor]) -> dict[str, float]:
    """{concept: what is left of its way}"""
    aim, at = (torch.cat([given[n].double() for n in start.maps]) for given in (teacher, now))
    metric = aim.T @ aim
    return {name: left(aim.T @ at, metric, moments) for name, moments in start.moved(metric).items()}


FOX_AND_DOG = {"concepts": tuple(iconworld.vocabulary().concept(name) for name in ("fox", "dog"))}


@pytest.mark.parametrize(
    ("changes", "served", "concepts"),
    [
        ({"mapping": "null"}, {}, ["fox"]),
        ({"mapping_candidates": 3, "mapping_targets": 2}, {}, ["fox"]),
        ({"lambda_preserve": 0.0}, {}, ["fox"]),
        ({}, FOX_AND_DOG, ["fox", "dog"]),
        ({"teacher": "base", "lambda_again": 1.0, "again_prompts": 2}, {"earlier": (earlier("dog"),)}, ["fox", "dog"]),
    ],
    ids=["to the empty prompt", "several targets", "nothing replayed", "two concepts", "an earlier concept"],
)
def test_of_every_concept_half_the_way_is_left_whatever_it_is_re_steered_to(
    folder: Path, changes: dict[str, Any], served: dict[str, Any], concepts: list[str]
) -> None:
    backbone = load(folder)
    start, base = start_of(backbone, "lacu", served, **changes), weights(backbone)
    assert of_ways(start, base, base) == pytest.approx(dict.fromkeys(concepts, 1))
    found = of_ways(start, base, base | start.solve(base, base))
    assert found == pytest.approx(dict.fromkeys(concepts, 0.5), rel=0.02)


def test_the_previous_model_as_teacher_is_not_asked_for_earlier_concepts(folder: Path) -> None:
    """It has forgotten them: half of what is left would be asked for, and half of that in the next step."""
    again = {"lambda_again": 1.0, "again_prompts": 2}
    served = {"earlier": (earlier("dog"),)}
    assert [*start_of(load(folder), "lacu", served, **again).concepts] == ["fox"]


def test_with_the_base_model_as_teacher_its_keys_and_values_are_aimed_at(folder: Path, tmp_path: Path) -> None:
    """From weights that earlier steps have changed: half of the base model's way is left, and what it reads is kept."""
    first, backbone = load(folder), load(folder)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in backbone.denoiser.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=draw)
    base, previous = weights(first), weights(backbone)
    served = {"teacher": context(first).teacher, "earlier": (earlier("dog"),)}
    changes = {**WARM, "teacher": "base", "lambda_again": 1.0, "again_prompts": 2}
    trained = run_step(
        backbone,
        tmp_path,
        parameters="cross-attention",
        steps=1,
        learning_rate=1e-12,
        changes=changes,
        served=served,
    )
    start = start_of(first, "lacu", served, **changes)
    assert of_ways(start, base, trained) == pytest.approx({"fox": 0.5, "dog": 0.5}, rel=0.03)
    assert all(abs(found - 0.5) > 0.05 for found in of_ways(start, previous, trained).values())


def test_the_stopping_rule_counts_from_the_model_before(folder: Path, tmp_path: Path) -> None:
    """What the closed form forgets counts as forgotten: the unit is the distance before anything moved."""
    rule = {"check_every": 1, "patience": 9, "batches": 2}
    settings: dict[str, Any] = {"parameters": "cross-attention", "steps": 1, "learning_rate": 1e-12, "stop": rule}
    seen = {}
    for name, changes in (("cold", {}), ("warm", WARM)):
        log: list[StepLog] = []
        run_step(load(folder), tmp_path / name, on_step=log.append, changes=changes, **settings)
        assert log[-1].check is not None
        seen[name] = log[-1].check["forget"]
    assert seen["cold"] == pytest.approx(1, abs=1e-3)
    assert seen["warm"] < 0.7


@pytest.mark.parametrize("method", ["lacu", "dfr"])
def test_training_begins_where_much_is_forgotten_already(folder: Path, tmp_path: Path, method: str) -> None:
    cold = losses(folder, tmp_path / "cold", method=method, steps=1)[0]
    warm = losses(folder, tmp_path / "warm", method=method, steps=1, changes=WARM)[0]
    assert warm["unlearn"] < 0.7 * cold["unlearn"]
    assert cold["preserve"] < warm["preserve"] < 0.2 * cold["unlearn"]


def test_the_first_step_begins_at_the_closed_form(folder: Path, tmp_path: Path) -> None:
    """With a learning rate of next to nothing keys and values move alone: forget prompts read as mapping prompts do."""
    backbone, before = load(folder), load(folder)
    trained = run_step(backbone, tmp_path, parameters="cross-attention", steps=1, learning_rate=1e-12, changes=WARM)
    old = dict(before.denoiser.named_parameters())
    moved = {name for name, value in trained.items() if (value - old[name]).abs().max() > 1e-6}
    assert moved == set(before.text_maps())

    step = context(before)
    record = built("lacu", **WARM).prepare(step)[1]
    assert record.prompts["kept"]
    assert not any("fox" in p or "cat" in p for p in record.prompts["kept"])
    forget, mapping = ([pair["prompt"] for pair in record.prompts[kind]] for kind in ("forget", "mapping"))

    with torch.no_grad():
        aim, now = (torch.cat([w[n].double() for n in before.text_maps()]) for w in (old, trained))
        seen, meant, kept = (
            before.encode(prompts).tensors["encoder_hidden_states"].double()
            for prompts in (forget, mapping, record.prompts["kept"])
        )
        meant = torch.stack([q[paired(p, q, aim.T @ aim)] for p, q in zip(seen, meant, strict=True)])
        metric, moments = aim.T @ aim, Moments.of(seen.flatten(0, 1), meant.flatten(0, 1))
        assert left(metric, metric, moments) == pytest.approx(1)
        assert left(aim.T @ now, metric, moments) == pytest.approx(0.5, abs=0.02)
        away = ((seen - meant) @ aim.T).square().sum(-1).mean()
        assert (kept @ (now - aim).T).square().sum(-1).mean() < 0.2 * away


def test_more_strength_leaves_less_of_the_way(folder: Path) -> None:
    asked = {s: start_of(load(folder), "lacu", strength=s).remaining for s in (1.0, 2.0)}
    assert asked == {1.0: {"fox": 0.5}, 2.0: {"fox": 0.25}}


def test_what_the_gate_made_of_a_concept_moves_it_alone_further(folder: Path) -> None:
    backbone = load(folder)
    changes = {**WARM, "teacher": "base", "lambda_again": 1.0, "again_prompts": 2, "strength": 1.2}
    served = {"earlier": (earlier("dog"),), "emphasis": {"fox": 1 / 1.2}}
    start, base = start_of(backbone, "lacu", served, **changes), weights(backbone)
    found = of_ways(start, base, base | start.solve(base, base))
    assert found == pytest.approx({"fox": 0.5, "dog": 0.5 / 1.2}, rel=0.02)
    record = built("lacu", **changes).prepare(context(backbone, **served))[1]
    assert record.choices["remaining"] == pytest.approx({"fox": 0.5, "dog": 0.5 / 1.2})


def test_a_step_that_was_interrupted_ends_with_the_same_bits(folder: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"changes": WARM, "parameters": "cross-attention", "steps": 6, "checkpoint_steps": 2}
    whole = run_step(load(folder), tmp_path / "whole", **settings)

    def interrupt_at(step: int) -> Callable[[StepLog], None]:
        def on_step(entry: StepLog) -> None:
            if entry.step == step:
                raise KeyboardInterrupt

        return on_step

    for step in (1, 5):  # before the first checkpoint, and after one
        with pytest.raises(KeyboardInterrupt):
            run_step(load(folder), tmp_path / "broken", on_step=interrupt_at(step), **settings)
    resumed = run_step(load(folder), tmp_path / "broken", **settings)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_published_loop_has_none() -> None:
    warm = {"method": {"warm_start": {}}, "train": {"engine": "reference"}}
    assert preset("lacu-iconworld", warm).method["warm_start"] is False
    assert preset("lacu-iconworld", {"method": warm["method"]}).method["warm_start"] == {
        "remaining": 0.5,
        "ridge": 0.01,
        "retain_prompts": 512,
    }


def test_what_cannot_be_started_warm_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    lora = {"method": {"warm_start": {}}, "train": {"parameters": "lora"}}
    with pytest.raises(ExpungeError, match=r"train\.parameters is 'lora'. Choose one of full, cross-attention"):
        Run.create(tmp_path / "lora", requests=["fox"], preset_name="lacu-iconworld", changes=lora)


def test_a_family_without_such_maps_says_so(tmp_path: Path) -> None:
    backbone: Backbone = load(save("sd3", tmp_path / "sd3"))
    with pytest.raises(ExpungeError, match="StableDiffusion3 does not read prompts through linear maps"):
        backbone.text_maps()
