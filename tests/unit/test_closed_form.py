"""The closed form of a warm start: known answers."""

from __future__ import annotations

import warnings
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor

from expunge.errors import Notice
from expunge.methods import warm_start
from expunge.methods.warm_start import CLOSE, LEAST, Moments, Problem, WarmStart, left, paired, solved, way

D, OUT = 16, 5


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stays() -> Tensor:
    """Tokens that fill half of the dimensions."""
    return drawn(30, D // 2, seed=0) @ drawn(D // 2, D, seed=100)


def pairs() -> dict[str, tuple[Tensor, Tensor]]:
    """Tokens of a concept that has little way to go, and of one that has much."""
    p = drawn(2, 3, D, seed=1)
    return {"near": (p[0], p[0] + 0.2 * drawn(3, D, seed=2)), "far": (p[1], p[1] + 3 * drawn(3, D, seed=3))}


def base() -> Tensor:
    return drawn(2 * OUT, D, seed=4)


def problem(concepts: dict[str, tuple[Tensor, Tensor]], ridge: float = 0.01) -> Problem:
    moved = {name: Moments.of(*tokens) for name, tokens in concepts.items()}
    return Problem(base().T @ base(), [stays().T @ stays() / 30], moved, ridge)


def of_way(weights: Tensor, tokens: tuple[Tensor, Tensor]) -> float:
    return left(base().T @ weights, base().T @ base(), Moments.of(*tokens))


def lost(weights: Tensor) -> float:
    return float((stays() @ (weights - base()).T).square().sum())


def moved(given: Problem, mu: dict[str, float], previous: Tensor | None = None) -> Tensor:
    return solved(*given.sums(mu), base(), base() if previous is None else previous, given.ridge)


def all_of(given: Problem, remaining: float) -> dict[str, float]:
    return dict.fromkeys(given.moved, remaining)


def least(given: Problem, of_the_way: float) -> Tensor:
    return moved(given, given.multipliers(given.metric, all_of(given, of_the_way)))


def test_what_is_left_of_the_way_is_what_the_definition_says() -> None:
    p, q, now = drawn(7, D, seed=0), drawn(7, D, seed=1), drawn(2 * OUT, D, seed=2)
    way = (p - q) @ base().T
    expected = ((p @ now.T - q @ base().T) * way).sum() / way.square().sum()
    assert of_way(now, (p, q)) == pytest.approx(float(expected))
    assert of_way(base(), (p, q)) == pytest.approx(1)


def test_the_solution_is_where_the_gradient_of_the_objective_vanishes() -> None:
    p, q, weights = drawn(2, 40, D, seed=0), drawn(2, 40, D, seed=1), torch.tensor([3.0, 1.0], dtype=torch.float64)
    teacher, previous = drawn(OUT, D, seed=2), drawn(OUT, D, seed=3)
    own, cross = (torch.einsum("l,lni,lnj->ij", weights, x, p) / 40 for x in (p, q))
    rho = 0.3 * own.diagonal().mean()

    def slope(at: Tensor) -> float:
        w = at.clone().requires_grad_()
        apart = (p @ w.T - q @ teacher.T).square().sum(-1).mean(-1)
        ((weights * apart).sum() + rho * (w - previous).square().sum()).backward()
        assert w.grad is not None
        return float(w.grad.abs().max())

    assert slope(solved(own, cross, teacher, previous, 0.3)) < 1e-10
    assert slope(previous) > 0.1


def test_without_a_ridge_fewer_tokens_than_dimensions_are_met_exactly() -> None:
    p, q, teacher = drawn(2, D, seed=0), drawn(2, D, seed=1), drawn(OUT, D, seed=2)
    given = Moments.of(p, q)
    found = solved(given.own, given.cross, teacher, drawn(OUT, D, seed=3), 1e-12)
    torch.testing.assert_close(p @ found.T, q @ teacher.T, atol=1e-6, rtol=0)


def test_of_every_concept_as_much_is_left_as_was_asked_for() -> None:
    given = problem(pairs())
    for asked in (0.5, 0.3):
        found = least(given, asked)
        assert {n: of_way(found, tokens) for n, tokens in pairs().items()} == pytest.approx(
            {"near": asked, "far": asked}, rel=CLOSE
        )
    apart = moved(given, given.multipliers(given.metric, {"near": 0.3, "far": 0.6}))
    assert of_way(apart, pairs()["near"]) == pytest.approx(0.3, rel=CLOSE)
    assert of_way(apart, pairs()["far"]) == pytest.approx(0.6, rel=CLOSE)
    alike = moved(given, {"near": 0.1, "far": 0.1})
    assert abs(of_way(alike, pairs()["near"]) - of_way(alike, pairs()["far"])) > 0.05


def test_less_that_stays_is_lost_than_with_one_multiplier_for_all() -> None:
    given = problem(pairs())
    own, short = lost(least(given, 0.5)), 0
    scale = {name: float(way(given.metric, moments)) for name, moments in given.moved.items()}
    for weight in (1e-5 * 1.1**n for n in range(120)):
        found = moved(given, {name: weight * scale[name] for name in scale})
        enough = all(of_way(found, tokens) <= 0.5 * (1 + CLOSE) for tokens in pairs().values())
        assert not enough or lost(found) > own
        short += lost(found) < own
    assert 0 < short < 120


def test_each_part_that_stays_is_as_heavy_as_the_other() -> None:
    metric, one, other = base().T @ base(), stays().T @ stays(), drawn(20, D, seed=7).T @ drawn(20, D, seed=7)
    found, scaled = (Problem(metric, [one, factor * other], {}, 0.01).stays for factor in (1, 100))
    torch.testing.assert_close(scaled, found)
    assert float((metric * found).sum()) == pytest.approx(2)


def test_a_concept_that_is_kept_elsewhere_ends_the_search() -> None:
    """The same tokens shall stay and go: half of the way is left, and what can go still goes."""
    other = drawn(2, D, seed=2)
    concepts = {"both": (stays(), drawn(30, D, seed=1)), "other": (other, -other)}
    given = problem(concepts)
    assert given.multipliers(given.metric, all_of(given, 0.2))["both"] == 1
    found = least(given, 0.2)
    assert of_way(found, concepts["both"]) > 0.25
    assert of_way(found, concepts["other"]) == pytest.approx(0.2, rel=CLOSE)


def test_what_is_gone_already_is_not_pushed() -> None:
    """With a ridge that holds everything where it was: at the target hardly a multiplier is left, elsewhere the greatest."""
    concepts = {"gone": (drawn(2, D, seed=1), drawn(2, D, seed=2))}
    gone = least(problem(concepts), 0.01)
    held = problem(concepts, ridge=1e9)
    assert held.multipliers(base().T @ gone, all_of(held, 0.5)) == {"gone": LEAST}
    assert held.multipliers(base().T @ base(), all_of(held, 0.5)) == {"gone": 1}


@pytest.mark.parametrize(("concepts", "asked"), [(2, 0.05), (10, 0.4), (10, 0.13), (30, 0.4)])
def test_the_search_settles_for_concepts_that_pull_at_each_other(concepts: int, asked: float) -> None:
    """Ways of 1 to 9 from tokens that are much alike. A search that turns by the square of what is missing does not settle
    for two of them."""
    wide, weights = 64, drawn(80, 64, seed=2)
    kept = drawn(40, wide // 2, seed=3) @ drawn(wide // 2, wide, seed=4)
    given = Problem(weights.T @ weights, [kept.T @ kept / 40], {}, 0.01)
    for n in range(concepts):
        told = 0.7 * drawn(6, wide, seed=5) + 0.3 * drawn(6, wide, seed=200 + 7 * n)
        given.moved[str(n)] = Moments.of(
            told, told + 0.06 * 9 ** (n / (concepts - 1)) * drawn(6, wide, seed=201 + 7 * n)
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mu = given.multipliers(given.metric, all_of(given, asked))
    mixed = solved(*given.sums(mu), given.metric, given.metric, given.ridge)
    found = {n: left(mixed, given.metric, moments) for n, moments in given.moved.items()}
    assert all(found[n] == pytest.approx(asked, rel=CLOSE) or (mu[n] == 1 and found[n] > asked) for n in mu)
    assert any(mu[n] < 1 for n in mu)


def test_a_search_that_did_not_settle_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_start, "ROUNDS", 1)
    with pytest.warns(Notice, match=r"did not settle in 1 rounds.*method\.warm_start\.remaining"):
        least(problem(pairs()), 0.3)


def start(concepts: dict[str, tuple[Tensor, Tensor]]) -> WarmStart:
    """Of two maps, each concept a prompt with one target."""
    embedded = {name: (told[None], aimed[None, None]) for name, (told, aimed) in concepts.items()}
    return WarmStart(("k", "v"), [stays().T @ stays() / 30], embedded, dict.fromkeys(embedded, 0.5), 0.01)


def test_all_maps_are_solved_together_whatever_the_order_of_the_tokens() -> None:
    aims = {"k": base()[:3], "v": base()[3:]}
    expected = least(problem({n: (p, q) for n, (p, q) in pairs().items()}), 0.5)
    for order in ([0, 1, 2], [2, 0, 1]):
        found = start({n: (p, q[order]) for n, (p, q) in pairs().items()}).solve(aims, aims)
        torch.testing.assert_close(torch.cat([found["k"], found["v"]]), expected)


def test_of_several_targets_the_mean_is_aimed_at_each_in_its_own_order() -> None:
    """With a single target that is the mean of both nothing differs; so all of the way can be gone, which one target of two
    drawn for each token would not allow."""
    aims = {"k": base()[:3], "v": base()[3:]}
    (told, near), far = pairs()["near"], pairs()["near"][0] + 0.4 * drawn(3, D, seed=8)
    several = WarmStart(
        ("k", "v"),
        [stays().T @ stays() / 30],
        {"c": (told[None], torch.stack([near, far[[1, 2, 0]]])[None])},
        {"c": 0.5},
        0.01,
    )
    found, expected = several.solve(aims, aims), start({"c": (told, (near + far) / 2)}).solve(aims, aims)
    torch.testing.assert_close(found, expected)
    one = start({"c": (told, near)}).solve(aims, aims)
    assert (one["k"] - expected["k"]).abs().max() > 1e-3


def test_the_teacher_is_aimed_at_and_the_previous_weights_are_where_it_starts() -> None:
    previous = base() + 0.3 * drawn(2 * OUT, D, seed=5)
    aims, starts = ({"k": w[:3], "v": w[3:]} for w in (base(), previous))
    given = problem(pairs())
    expected = moved(given, given.multipliers(base().T @ previous, all_of(given, 0.5)), previous=previous)
    found = start(pairs()).solve(aims, starts)
    torch.testing.assert_close(torch.cat([found["k"], found["v"]]), expected)
    swapped = start(pairs()).solve(starts, aims)
    assert (torch.cat([swapped["k"], swapped["v"]]) - expected).abs().max() > 0.1


def test_each_map_has_the_dtype_of_the_previous_weights() -> None:
    aims = {"k": base()[:3].bfloat16(), "v": base()[3:].bfloat16()}
    found = start(pairs()).solve(aims, {n: w.float() for n, w in aims.items()})
    assert {n: w.dtype for n, w in found.items()} == {"k": torch.float32, "v": torch.float32}


def test_a_concept_without_a_way_is_left_out() -> None:
    """Where the text encoder cuts two prompts off before they differ."""
    same = drawn(3, D, seed=9)
    nearly = same + 1e-7 * drawn(3, D, seed=10)
    aims = {"k": base()[:3], "v": base()[3:]}
    found, without = (
        start(given).solve(aims, aims)
        for given in (pairs() | {"same": (same, same), "nearly": (same, nearly)}, pairs())
    )
    torch.testing.assert_close(found["k"], without["k"])


def test_tokens_take_the_order_in_which_least_has_to_move() -> None:
    told, aimed, weights = drawn(5, D, seed=0), drawn(5, D, seed=1), drawn(OUT, D, seed=2)

    def distance(order: Any) -> float:
        return float(((told - aimed[list(order)]) @ weights.T).square().sum())

    found = paired(told, aimed, weights.T @ weights).tolist()
    assert distance(found) == pytest.approx(min(distance(order) for order in permutations(range(5))))
    assert distance(found) < distance(range(5))
    assert paired(told, told[[3, 0, 4, 1, 2]], weights.T @ weights).tolist() == [1, 3, 4, 0, 2]
