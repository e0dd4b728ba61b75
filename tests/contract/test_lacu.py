"""LACU's mathematics: known answers, and a bank that stands for the published procedure."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from scipy.stats import ks_2samp

from expunge import iconworld, seeds
from expunge.backbones import Backbone, Conditioning, Evaluations, Predictor
from expunge.concepts import Concept, mentions
from expunge.locality import Draws, choose_mapping, distances_by_draw, rank, scoring_draws
from expunge.methods import Position
from expunge.methods.lacu import Lacu
from expunge.methods.resteering import State, matching_loss
from expunge.prompts import Candidate, ForgetPrompt
from expunge.replay import Bank, FreshReplay, ReplayConfig, Sampler, fill_bank
from steps import built, context, earlier


def test_the_loss_is_a_mean_of_squares() -> None:
    zeros, twos = torch.zeros(2, 4, 3, 3), torch.full((2, 4, 3, 3), 2.0)
    half = torch.cat([zeros[:1], twos[:1]])
    assert matching_loss(zeros, zeros) == 0
    assert matching_loss(zeros, twos) == matching_loss(twos, zeros) == 4
    assert matching_loss(half, zeros) == 2


def test_drawing_one_of_several_targets_has_the_gradient_of_their_mean() -> None:
    targets = torch.randn(5, 1, 4, 3, 3, generator=seeds.generator(0))
    student = torch.randn(1, 4, 3, 3, generator=seeds.generator(1)).requires_grad_()

    def gradient(target: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(matching_loss(student, target), student)[0]

    drawn = torch.stack([gradient(target) for target in targets])
    torch.testing.assert_close(drawn.mean(0), gradient(targets.mean(0)))
    assert not torch.allclose(drawn[0], gradient(targets.mean(0)), rtol=0.1)


def test_one_joined_pass_gives_what_separate_passes_give(backbone: Backbone) -> None:
    told = {"earlier": (earlier("apple"),)}
    method, state, teacher = _prepared(backbone, told, lambda_empty=1.0, lambda_again=1.0, mapping_targets=2)
    student = Predictor(backbone, backbone.denoiser, Evaluations())
    batch = method.batch(state, Position(0), student)
    forget, retain, former = (batch[role] for role in ("forget", "retain", "again"))
    unlearn, again = state.terms["unlearn"], state.terms["again"]
    empty = backbone.encode([""] * len(retain.t))
    with torch.no_grad():
        joined = method.losses(batch, student, teacher, state)
        by_hand = {
            "unlearn": matching_loss(
                student(forget.latents, forget.t, unlearn.told(forget)),
                teacher(forget.latents, forget.t, unlearn.aimed(forget)),
            ),
            "again": matching_loss(
                student(former.latents, former.t, again.told(former)),
                teacher(former.latents, former.t, again.aimed(former)),
            ),
            "empty": matching_loss(student(retain.latents, retain.t, empty), teacher(retain.latents, retain.t, empty)),
        }
    for name in ("unlearn", "again"):  # the student is still the teacher: what differs is the prompt
        torch.testing.assert_close(joined[name], by_hand[name])
        assert joined[name] > 0
    torch.testing.assert_close(joined["empty"], by_hand["empty"], atol=1e-9, rtol=1e-4)
    assert max(joined["preserve"], joined["empty"]) < 1e-9
    assert joined.keys() == {"unlearn", "preserve", "empty", "again"}


def test_a_row_draws_among_its_own_prompts_targets_evenly(backbone: Backbone) -> None:
    method, state, teacher = _prepared(backbone, mapping="contextual", mapping_targets=2)
    term = state.terms["unlearn"]
    tagged = dataclasses.replace(term, targets=Conditioning({"tag": torch.arange(len(term.targets))}))
    batches = [method.batch(state, Position(step), teacher)["forget"] for step in range(60)]
    drawn = torch.cat([tagged.aimed(rows).tensors["tag"] for rows in batches])
    asked = torch.cat([rows.prompts for rows in batches])
    assert torch.equal(drawn // 2, asked)
    assert 0.4 < (drawn % 2).float().mean() < 0.6
    assert len(set(drawn.tolist())) == 2 * len(term.prompts)


def test_a_loss_of_weight_0_costs_nothing_and_is_not_there(backbone: Backbone) -> None:
    method, state, teacher = _prepared(backbone, lambda_preserve=0.0)
    assert list(state.replays) == ["forget"]
    assert (
        method.weights.keys()
        == method.losses(method.batch(state, Position(0), teacher), teacher, teacher, state).keys()
    )
    assert _prepared(backbone)[2].evaluations.forward > teacher.evaluations.forward


def test_times_lie_where_the_configuration_says(backbone: Backbone) -> None:
    method, state, teacher = _prepared(backbone, t_min=100, t_max=300)
    batches = [method.batch(state, Position(step), teacher) for step in range(40)]
    forget, retain = (torch.cat([b[role].t for b in batches]) for role in ("forget", "retain"))
    low, high = backbone.network_time(torch.tensor([100, 300]))
    assert low <= forget.min() < forget.max() <= high
    low, high = backbone.network_time(torch.tensor([60, 940]))
    assert retain.min() < low < high < retain.max()


def test_processes_draw_different_rows_that_together_are_the_larger_batch(backbone: Backbone) -> None:
    method, state, teacher = _prepared(backbone)
    joined = method.batch(dataclasses.replace(state, batch_size=4), Position(3), teacher)
    halves = dataclasses.replace(state, batch_size=2)
    parts = [method.batch(halves, Position(3, process=i, processes=2), teacher) for i in range(2)]
    assert torch.equal(joined["forget"].latents, torch.cat([p["forget"].latents for p in parts]))
    assert torch.equal(joined["retain"].t, torch.cat([p["retain"].t for p in parts]))
    assert not torch.equal(parts[0]["forget"].latents, parts[1]["forget"].latents)


def test_global_replay_speaks_of_everything_that_must_stay_and_of_nothing_else(backbone: Backbone) -> None:
    step = context(backbone)
    off_limits = {"fox", "neon", "cat", "plain"}
    names = [n for n in iconworld.vocabulary().names() if n not in off_limits]
    changes = {"retain": "global", "retain_concepts": 1, "retain_prompts": len(names)}
    _, record = built("lacu", **changes).prepare(step)
    near = next(iter(record.choices["neighbours"]["fox"]))
    spoken = {n for n in [*names, *off_limits] for p in record.prompts["retain"] if mentions(p, Concept(name=n))}
    assert {*names} - {near} <= spoken
    assert not spoken & off_limits
    assert len(set(record.prompts["retain"])) > 0.9 * len(names)


def test_score_distance_is_the_mean_squared_difference_of_predictions(backbone: Backbone) -> None:
    predict = Predictor(backbone, backbone.denoiser, Evaluations())
    draws = scoring_draws(backbone, 3, seeds.generator(0))
    source, others = backbone.encode(["a fox"]), backbone.encode(["a fox", "a wolf", "a bus on a table"])
    found = distances_by_draw(predict, [(source, others)], draws, batch_size=5)[0].mean(0)
    with torch.no_grad():
        for i in range(3):
            by_hand = [
                (
                    backbone.predict(backbone.denoiser, draws.latents[k : k + 1], draws.t[k : k + 1], source)
                    - backbone.predict(
                        backbone.denoiser, draws.latents[k : k + 1], draws.t[k : k + 1], others[i : i + 1]
                    )
                )
                .square()
                .mean()
                for k in range(3)
            ]
            torch.testing.assert_close(found[i], torch.stack(by_hand).mean(), atol=1e-9, rtol=1e-3)
    assert found[0] < 1e-9 < found[1:].min()


def test_scoring_draws_are_noise_at_every_time_as_published(backbone: Backbone) -> None:
    draws = scoring_draws(backbone, 400, seeds.generator(1))
    again = scoring_draws(backbone, 400, seeds.generator(1))
    assert torch.equal(draws.latents, again.latents)
    if backbone.denoiser_name == "unet":  # variance preserving: noise stays N(0, I)
        assert draws.latents.var().item() == pytest.approx(1.0, abs=0.02)
    times = backbone.network_time(torch.arange(1000)).sort().values
    quarters = torch.bucketize(draws.t.cpu(), times[[250, 500, 750]])
    assert quarters.bincount(minlength=4).min() > 70  # of 100 each


def test_the_nearest_candidate_is_chosen_and_ties_go_to_the_first(backbone: Backbone) -> None:
    predict = Predictor(backbone, backbone.denoiser, Evaluations())
    draws = scoring_draws(backbone, 4, seeds.generator(2))
    candidates = tuple(Candidate(p, p) for p in ("a blue car", "a red apple", "a red apple"))
    (choice,) = choose_mapping(predict, [ForgetPrompt("7", "a red apple", candidates)], draws, 16)
    assert (choice.id, choice.mapping) == ("7", (candidates[1],))
    assert choice.distances.index(min(choice.distances)) in (1, 2)
    (choice,) = choose_mapping(predict, [ForgetPrompt("7", "a red apple", candidates)], draws, 16, targets=3)
    assert choice.mapping == (candidates[1], candidates[2], candidates[0])
    ranked = rank(predict, "a red apple", ["a blue car", "a red apple"], draws, 16)
    assert [name for name, _ in ranked] == ["a red apple", "a blue car"]


def test_a_bank_draws_everything_once_before_anything_twice() -> None:
    bank = Bank(torch.arange(10.0).view(10, 1, 1, 1), torch.arange(10), seed=3)
    epochs = [bank.draw(start, 10)[1].tolist() for start in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert bank.draw(7, 6)[1].tolist() == epochs[0][7:] + epochs[1][:3]


def test_a_bank_has_noise_of_its_own_in_every_row_whatever_the_batches(backbone: Backbone) -> None:
    predict = Predictor(backbone, backbone.denoiser, Evaluations())
    sampler = Sampler(predict, predict.encode(["a fox", "a bus"]), 2, backbone.replay_solver)
    small, large = (fill_bank(sampler, 4, batch_size, 12) for batch_size in (3, 64))
    torch.testing.assert_close(small.latents, large.latents, atol=1e-3, rtol=1e-3)
    for prompt in range(2):
        rows = small.latents[small.prompts == prompt].flatten(1)
        assert len(rows) == 4
        assert torch.pdist(rows).min() > 1


def test_a_bank_drawn_once_has_the_losses_of_fresh_replay(backbone: Backbone) -> None:
    """Per-row re-steering losses of both sources are samples of one distribution; a bank of another prompt's are not."""
    _, state, teacher = _prepared(backbone)
    n, solver = 240, backbone.replay_solver
    sampler = Sampler(teacher, state.terms["unlearn"].prompts, 4, solver)
    fresh = _row_losses(state, teacher, *FreshReplay(sampler, 11).draw(0, n))
    bank = _row_losses(state, teacher, *fill_bank(sampler, n // 4, 60, 12).draw(0, n))
    assert ks_2samp(fresh, bank).pvalue > 0.01

    latents, prompts = fill_bank(sampler, n // 4, 60, 12).draw(0, n)
    blank = torch.zeros_like(latents)
    assert ks_2samp(fresh, _row_losses(state, teacher, blank, prompts)).pvalue < 1e-6


def test_fresh_replay_is_sampled_anew_from_its_position(backbone: Backbone) -> None:
    _, state, _ = _prepared(backbone, {"replay": ReplayConfig(source="fresh", steps=2)})
    replay = state.replays["forget"]
    assert isinstance(replay, FreshReplay)
    first, again, later = (replay.draw(position, 3)[0] for position in (0, 0, 3))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)


def _prepared(backbone: Backbone, told: dict[str, Any] | None = None, **changes: Any) -> tuple[Lacu, State, Predictor]:
    method = built("lacu", **changes)
    step = context(backbone, **(told or {}))
    state, _ = method.prepare(step)
    return method, state, step.teacher


@torch.no_grad()
def _row_losses(state: State, teacher: Predictor, clean: torch.Tensor, prompts: torch.Tensor) -> list[float]:
    """Each row's squared difference between forget and mapping prediction at one fixed time and noise scale."""
    backbone = teacher.backbone
    noise = backbone.noise([seeds.generator(99, i) for i in range(len(clean))])
    t = backbone.network_time(torch.full((len(clean),), 200))
    draws = Draws(backbone.add_noise(clean, noise, t), t)

    def predict(prompt: Conditioning) -> torch.Tensor:
        return teacher(draws.latents, draws.t, prompt[prompts])

    term = state.terms["unlearn"]
    difference = predict(term.prompts) - predict(term.targets)
    return [float(v) for v in difference.square().mean(dim=(1, 2, 3))]
