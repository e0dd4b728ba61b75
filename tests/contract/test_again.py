"""Earlier concepts re-steered again: which pairs of prompts come back, and what is not asked of the teacher twice."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.backbones import Backbone, load
from expunge.files import digest_file
from expunge.locality import Choice
from expunge.methods import Earlier, Record, StepContext
from expunge.methods.resteering import State
from expunge.prompts import Candidate
from expunge.replay import ReplayConfig, Trajectories
from steps import SMALL, built, context, earlier

AGAIN = {"teacher": "base", "lambda_again": 1.0, "again_prompts": 2, "along": "both"}
REPLAY = ReplayConfig(source="trajectory", steps=3, forget_latents=1, retain_latents=1, batch_size=4)


@pytest.fixture(scope="module")
def backbone(sd_folder: Any) -> Backbone:
    return load(sd_folder)


def test_what_the_base_model_painted_for_a_step_is_not_painted_again(backbone: Backbone, tmp_path: Path) -> None:
    apple = backbone_step(backbone, "apple", (), seed=1, memory=tmp_path)
    _, record = prepared(apple)
    before = Earlier(1, apple.concepts, {}, [Choice.read(c) for c in record.choices["mapping"]])
    kept = {path.name for path in tmp_path.iterdir()}

    costs = {}
    for name, memory, steps in (("alone", None, ()), ("after", tmp_path, (before,))):
        fox = backbone_step(backbone, "fox", steps, seed=2, memory=memory)
        state, told = prepared(fox)
        costs[name] = fox.teacher.evaluations.forward
    assert costs["after"] <= costs["alone"]  # the concept of the step before costs nothing
    assert len(told.choices["again"]) == AGAIN["again_prompts"]
    assert len(state.terms["again"].prompts) == 2 * AGAIN["again_prompts"]
    points = _points(state)
    assert points.t.shape == state.targets["again"].shape[:1]
    assert sorted(points.prompts.unique().tolist()) == [0, 1, 2, 3]

    digests = {path.name: digest_file(path) for path in tmp_path.iterdir()}
    for name in kept:
        (tmp_path / name).unlink()
    again, _ = prepared(backbone_step(backbone, "fox", (before,), seed=2, memory=tmp_path))
    assert {
        path.name: digest_file(path) for path in tmp_path.iterdir()
    } == digests  # lost, and painted to the same bits
    assert torch.equal(again.targets["again"], state.targets["again"])


def test_points_come_with_the_prompts_and_targets_that_they_were_painted_for(
    backbone: Backbone, tmp_path: Path
) -> None:
    steps = tuple(
        Earlier(seed, step.concepts, {}, [Choice.read(c) for c in prepared(step)[1].choices["mapping"]])
        for seed, name in ((1, "apple"), (2, "dog"))
        for step in [backbone_step(backbone, name, (), seed=seed)]
    )
    fox = backbone_step(backbone, "fox", steps, seed=3, memory=tmp_path)
    state, record = prepared(fox, again_prompts=4)
    points, term = _points(state), state.terms["again"]
    forget = [c["forget"] for c in record.choices["again"]]
    assert [c["concept"] for c in record.choices["again"]] == ["apple"] * 2 + ["dog"] * 2
    expected = backbone.encode([*forget[:2], *forget[:2], *forget[2:], *forget[2:]]).tensors["encoder_hidden_states"]
    told = term.prompts[torch.arange(len(term.prompts))].tensors["encoder_hidden_states"]
    torch.testing.assert_close(told, expected)
    rows = points.prompts
    with torch.no_grad():
        said = fox.teacher(points.latents, points.t, term.targets[rows])
    torch.testing.assert_close(state.targets["again"], said, atol=1e-4, rtol=1e-4)
    other = fox.teacher(points.latents, points.t, term.targets[(rows + 4) % 8])
    assert (state.targets["again"] - other).abs().max() > 1e-3  # another concept's target is not it


def test_a_pair_whose_replacement_was_forgotten_since_is_left_out(backbone: Backbone) -> None:
    choices = [_choice(i, "dog" if i < 3 else "car") for i in range(4)]
    step = Earlier(1, earlier("apple").concepts, {}, choices)
    used = prepared(backbone_step(backbone, "dog", (step,), seed=2), again_prompts=4)[1].choices
    assert [c["id"] for c in used["again"]] == ["3"]
    assert used["renewed"] == {}


def test_what_a_pair_is_called_says_nothing_about_its_concept(backbone: Backbone) -> None:
    """Prompt sources give ids as they like, and names may hold a stroke: neither makes one concept of two."""
    choices = [dataclasses.replace(_choice(i, "car"), id=f"dog/{i}") for i in range(2)]
    step = Earlier(1, earlier("apple").concepts, {}, choices)
    used = prepared(backbone_step(backbone, "fox", (step,), seed=2), again_prompts=2)[1].choices
    assert [(c["concept"], c["id"]) for c in used["again"]] == [("apple", "dog/0"), ("apple", "dog/1")]


def test_a_concept_without_any_pair_left_is_given_new_ones(backbone: Backbone) -> None:
    step = Earlier(1, earlier("apple").concepts, {}, [_choice(i, "dog") for i in range(4)])
    used = prepared(backbone_step(backbone, "dog", (step,), seed=2), again_prompts=2)[1].choices
    renewed = [Choice.read(c) for c in used["renewed"]["apple"]]
    assert len(renewed) == SMALL["lacu"]["forget_prompts"]
    assert [Choice.read(c) for c in used["again"]] == [c for c in renewed if c.id in {u["id"] for u in used["again"]}]
    assert not any("dog" in m.prompt for c in renewed for m in c.mapping)


def backbone_step(
    backbone: Backbone, name: str, steps: tuple[Earlier, ...], *, seed: int, memory: Path | None = None
) -> StepContext:
    step = context(backbone, seed=seed, earlier=steps, memory=memory, replay=REPLAY, held_out=frozenset())
    return dataclasses.replace(step, concepts=earlier(name).concepts)


def prepared(step: StepContext, **changes: Any) -> tuple[State, Record]:
    found: tuple[State, Record] = built("lacu", **{**AGAIN, **changes}).prepare(step)
    return found


def _points(state: State) -> Trajectories:
    points = state.replays["again"]
    assert isinstance(points, Trajectories)
    return points


def _choice(number: int, replacement: str) -> Choice:
    mapping = (Candidate(f"a photo of a {replacement}", replacement),)
    return Choice(str(number), "a photo of an apple", mapping, concept="apple")
