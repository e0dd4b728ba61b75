"""Replay of whole trajectories: the rows, and the teacher's predictions kept beside them, on every family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from expunge import iconworld
from expunge.backbones import Backbone, Evaluations, Predictor
from expunge.engine import StepLog
from expunge.errors import ExpungeError
from expunge.methods import Position
from expunge.methods.resteering import Resteering, State
from expunge.prompts import Vocabulary
from expunge.replay import ReplayConfig, Sampler, Trajectories, trace
from expunge.stream import preset
from steps import built, context, run_step

REPLAY = ReplayConfig(source="trajectory", steps=4, forget_latents=2, retain_latents=1, batch_size=4)


def _prepared(backbone: Backbone, **changes: Any) -> tuple[Resteering, State, Predictor]:
    step = context(backbone, replay=changes.pop("replay", REPLAY))
    method = built("dfr", **changes)
    return method, method.prepare(step)[0], step.teacher


def test_recorded_targets_are_what_the_teacher_would_say(backbone: Backbone) -> None:
    method, state, teacher = _prepared(backbone)
    student = Predictor(backbone, backbone.denoiser, Evaluations())
    batch = method.batch(state, Position(1), student)
    asked = teacher.evaluations.forward
    recorded = method.losses(batch, student, teacher, state)
    assert teacher.evaluations.forward == asked  # nobody asks it in training
    differ = []
    for name, term in state.terms.items():
        rows = batch[term.role]
        assert rows.places is not None
        # Which of several targets a point drew is not in the batch: one of them must be it.
        among = [
            teacher(rows.latents, rows.t, term.targets[rows.prompts * term.targets_each + i])
            for i in range(term.targets_each)
        ]
        apart = torch.stack([(state.targets[name][rows.places] - t).abs().amax((1, 2, 3)) for t in among])
        scale = state.targets[name].abs().max()
        assert (apart.amin(0) < 1e-4 * scale).all(), name
        differ.append(bool((apart.amax(0) > 1e-3 * scale).any()))
    assert any(differ)  # some targets of one prompt do, so this could have failed
    assert float(recorded["preserve"]) < 1e-8 < float(recorded["unlearn"])  # the student is still the teacher


def test_points_lie_on_the_way_and_are_drawn_once_before_any_comes_again(backbone: Backbone) -> None:
    _, state, _ = _prepared(backbone, t_min=100, t_max=800)
    points = state.replays["forget"]
    assert isinstance(points, Trajectories)
    low, high = backbone.network_time(torch.tensor([100, 800])).tolist()
    assert ((points.t >= low) & (points.t <= high)).all()
    assert len(points.t.unique()) > REPLAY.steps  # of more than one grid
    everything = torch.cat([points.draw(i, 1) for i in range(len(points.t))])
    assert sorted(everything.tolist()) == list(range(len(points.t)))
    assert points.draw(0, 8).tolist() == everything[:8].tolist()
    assert everything.tolist() != points.draw(len(points.t), len(points.t)).tolist()
    with pytest.raises(ExpungeError, match="no step of a trajectory"):
        _prepared(backbone, t_min=3, t_max=4)


def test_a_prompt_that_no_point_is_of_is_not_left_out_silently(backbone: Backbone) -> None:
    """Two of six prompts have a grid, and some times are of one grid alone."""
    teacher = context(backbone).teacher
    sampler = Sampler(teacher, teacher.encode([f"a fox, number {i}" for i in range(6)]), 5, "default")
    times, met = trace(sampler, 1, (-1.0, 2000.0), 6, seed=3).t.unique(return_counts=True)
    own = float(times[met == 2][0])
    with pytest.raises(ExpungeError, match="Of 4 of 6 prompts no step of a trajectory of about 5 steps"):
        trace(sampler, 1, (own, own), 6, seed=3)


def test_times_do_not_go_with_what_a_prompt_shows(backbone: Backbone) -> None:
    """Sources deal their neighbours to prompts in turn; here nine of them, which a grid for every third prompt would sort."""
    teacher = context(backbone).teacher
    sampler = Sampler(teacher, teacher.encode(["a fox"] * 36), 4, "default")
    points = trace(sampler, 1, (-1.0, 2000.0), 64, seed=3)
    steps = torch.bincount(points.prompts)
    assert sorted(steps.tolist()) == [3] * 12 + [4] * 12 + [5] * 12
    assert all(len(set(steps[neighbour::9].tolist())) > 1 for neighbour in range(9))
    other = trace(sampler, 1, (-1.0, 2000.0), 64, seed=4)
    assert steps.tolist() != torch.bincount(other.prompts).tolist()


def test_ways_of_different_lengths_share_passes(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = context(backbone).teacher
    prompts = teacher.encode(["a fox", "a wolf", "a house", "a tree", "a boat", "a clock"])
    predict, passes = type(backbone).predict, []

    def counted(self: Backbone, denoiser: torch.nn.Module, latents: Tensor, *told: Any) -> Tensor:
        passes.append(len(latents))
        return predict(self, denoiser, latents, *told)

    monkeypatch.setattr(type(backbone), "predict", counted)

    def points(batch_size: int) -> Trajectories:
        passes.clear()
        found = trace(Sampler(teacher, prompts, 4, "published"), 1, (-1.0, 2000.0), batch_size, seed=3)
        return found.only(range(6))[0]

    before = teacher.evaluations.forward
    together = points(6)
    assert passes == [6, 6, 6, 4, 2]  # two ways each of three, four and five steps
    assert teacher.evaluations.forward - before == len(together.t) == 24
    alone = points(1)
    assert passes == [1] * 24
    assert torch.equal(alone.prompts, together.prompts)  # and so training draws the same rows
    assert torch.equal(alone.t, together.t)
    theirs, ours = alone.predictions, together.predictions
    assert (
        (theirs - ours).abs().max() < 1e-4 * theirs.abs().max() < (theirs - ours.roll(1, 0)).abs().amax((1, 2, 3)).min()
    )


def test_resteering_along_both_also_follows_the_mapping_prompts_own_way(backbone: Backbone) -> None:
    _, state, _ = _prepared(backbone, along="both", mapping_targets=1)
    points, term, targets = state.replays["forget"], state.terms["unlearn"], state.targets["unlearn"]
    assert isinstance(points, Trajectories)
    count = len(term.prompts) // 2
    theirs = points.prompts >= count
    assert 0 < theirs.sum() < len(theirs)
    scale = points.predictions.abs().max()
    apart = (targets - points.predictions).abs().amax((1, 2, 3)) / scale
    assert (apart[theirs] < 1e-4).all()  # painted for the mapping prompt: what was predicted on the way is the target
    assert (apart[~theirs] > 1e-3).any()
    forget, again = term.prompts[torch.arange(count)], term.prompts[torch.arange(count, 2 * count)]
    assert all(
        torch.equal(forget.tensors[name], again.tensors[name]) for name in forget.tensors
    )  # told the same in both


def test_an_interrupted_step_ends_with_the_same_bits_and_samples_nothing_twice(
    fresh_backbone: Callable[[], Backbone], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(folder: str, **changes: Any) -> dict[str, Tensor]:
        served = {"replay": REPLAY, "folder": tmp_path / folder}
        return run_step(
            fresh_backbone(), tmp_path / folder, served=served, steps=6, checkpoint_steps=2, method="dfr", **changes
        )

    def interrupt(entry: StepLog) -> None:
        if entry.step == 3:
            raise KeyboardInterrupt

    whole = step("whole")
    with pytest.raises(KeyboardInterrupt):
        step("broken", on_step=interrupt)
    monkeypatch.setattr(Backbone, "solving", None)  # nobody asks for it
    resumed = step("broken")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("source", ["bank", "trajectory"])
def test_what_was_painted_for_other_prompts_is_not_taken_up_again(
    backbone: Backbone, tmp_path: Path, source: str
) -> None:
    """A step was killed, and the file that its prompts come from edited: its templates stand in another order."""

    def replayed(folder: str, vocabulary: Vocabulary) -> tuple[Tensor, ...]:
        replay = REPLAY.model_copy(update={"source": source})
        state, _ = built("dfr").prepare(context(backbone, source=vocabulary, folder=tmp_path / folder, replay=replay))
        return *(state.replays[role].latents for role in ("forget", "retain")), *state.targets.values()

    vocabulary = iconworld.vocabulary()
    edited = vocabulary.model_copy(update={"templates": vocabulary.templates[::-1]})
    before, alone = replayed("step", vocabulary), replayed("alone", edited)
    after = replayed("step", edited)
    assert not any(torch.equal(x, y) for x, y in zip(before, alone, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(after, alone, strict=True))


def test_a_rule_to_stop_needs_rows_that_training_does_not_see() -> None:
    with pytest.raises(ExpungeError, match="keeps no rows that training does not see"):
        preset("anchored-iconworld", {"replay": {"source": "trajectory"}, "train": {"stop": {}}})
