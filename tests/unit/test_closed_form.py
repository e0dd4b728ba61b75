"""The closed form of a warm start: known answers, and the order of tokens that it rests on."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor

from expunge.methods.warm_start import CLOSE, LIGHT, Moments, WarmStart, paired, remaining, solved

D, OUT = 16, 5


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stays() -> Tensor:
    """Tokens that fill half of the dimensions."""
    return drawn(30, D // 2, seed=0) @ drawn(D // 2, D, seed=100)


def pairs() -> dict[str, Moments]:
    """A concept whose tokens have little way to go, and one whose tokens have much."""
    p = drawn(2, 3, D, seed=1)
    near, far = p[0] + 0.2 * drawn(3, D, seed=2), p[1] + 3 * drawn(3, D, seed=3)
    return {"near": moments(p[0], near), "far": moments(p[1], far)}


def moments(p: Tensor, q: Tensor) -> Moments:
    return Moments(p.T @ p / len(p), q.T @ p / len(p), q.T @ q / len(p))


def start(concepts: dict[str, Moments], kept: Tensor, **settings: Any) -> WarmStart:
    return WarmStart(("k", "v"), [moments(kept, kept)], concepts, **{"remaining": 0.5, "ridge": 0.01, **settings})


def maps(seed: int) -> dict[str, Tensor]:
    return {"k": drawn(OUT, D, seed=seed), "v": drawn(OUT + 1, D, seed=seed + 1)}


def stacked(given: dict[str, Tensor]) -> Tensor:
    return torch.cat([given["k"], given["v"]])


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
    given = moments(p, q)
    found = solved(given.own, given.cross, teacher, drawn(OUT, D, seed=3), 1e-12)
    torch.testing.assert_close(p @ found.T, q @ teacher.T, atol=1e-6, rtol=0)


def test_of_every_concept_as_much_is_left_as_was_asked_for() -> None:
    base = maps(4)
    aim = stacked(base)
    for asked in (0.5, 0.3):
        warm = start(pairs(), stays(), remaining=asked)
        left = {n: remaining(stacked(warm.solve(base, base)), aim, m) for n, m in pairs().items()}
        assert left == pytest.approx({"near": asked, "far": asked}, abs=CLOSE)
    alike = solved(*warm._sums({"near": 0.1, "far": 0.1}, aim), aim, aim, warm.ridge)
    assert remaining(aim, aim, pairs()["near"]) == pytest.approx(1)
    assert abs(remaining(alike, aim, pairs()["near"]) - remaining(alike, aim, pairs()["far"])) > 0.05


def test_less_that_stays_is_lost_than_with_one_weight_for_all() -> None:
    base = maps(4)
    aim, warm = stacked(base), start(pairs(), stays())

    def lost(weights: Tensor) -> float:
        return float((stays() @ (weights - aim).T).square().sum())

    own, short = lost(stacked(warm.solve(base, base))), 0
    for weight in (1e-5 * 1.1**n for n in range(120)):
        found = solved(*warm._sums(dict.fromkeys(pairs(), weight), aim), aim, aim, warm.ridge)
        enough = all(remaining(found, aim, m) <= 0.5 + CLOSE for m in pairs().values())
        assert not enough or lost(found) > own
        short += lost(found) < own
    assert 0 < short < 120


def test_a_concept_that_is_kept_elsewhere_ends_the_search() -> None:
    """The same tokens shall stay and go: half of the way is left, and what can go still goes."""
    other = drawn(2, D, seed=2)
    concepts = {"both": moments(stays(), drawn(30, D, seed=1)), "other": moments(other, -other)}
    base = maps(3)
    aim, warm = stacked(base), start(concepts, stays(), remaining=0.2)
    assert warm.weights(aim, aim)["both"] == 1
    found = stacked(warm.solve(base, base))
    assert remaining(found, aim, concepts["both"]) > 0.25
    assert remaining(found, aim, concepts["other"]) == pytest.approx(0.2, abs=CLOSE)


def test_what_is_gone_already_is_not_pushed() -> None:
    """From W_(k-1) at the target, with a ridge that holds it there, hardly a weight is left."""
    kept = stays()
    concepts = {"gone": moments(drawn(2, D, seed=1), drawn(2, D, seed=2))}
    base = maps(3)
    gone = start(concepts, kept, remaining=0.01).solve(base, base)
    warm = start(concepts, kept, ridge=1e9)
    assert warm.weights(stacked(base), stacked(gone))["gone"] < LIGHT
    for name, value in warm.solve(base, gone).items():
        torch.testing.assert_close(value, gone[name])


def test_each_map_has_the_dtype_and_shape_of_the_previous_weights() -> None:
    warm = start({"fox": moments(drawn(3, D, seed=0), drawn(3, D, seed=1))}, drawn(30, D, seed=2))
    base = maps(3)
    found = warm.solve({n: w.bfloat16() for n, w in base.items()}, {n: w.float() for n, w in base.items()})
    assert {n: w.dtype for n, w in found.items()} == {"k": torch.float32, "v": torch.float32}
    assert {n: w.shape for n, w in found.items()} == {n: w.shape for n, w in base.items()}


def test_tokens_take_the_order_in_which_least_has_to_move() -> None:
    told, aimed, weights = drawn(5, D, seed=0), drawn(5, D, seed=1), drawn(OUT, D, seed=2)

    def moved(order: Any) -> float:
        return float(((told - aimed[list(order)]) @ weights.T).square().sum())

    found = paired(told, aimed, weights.T @ weights).tolist()
    assert moved(found) == pytest.approx(min(moved(order) for order in permutations(range(5))))
    assert moved(found) < moved(range(5))
    assert paired(told, told[[3, 0, 4, 1, 2]], weights.T @ weights).tolist() == [1, 3, 4, 0, 2]


def test_cross_attention_does_not_see_the_order() -> None:
    tokens, query, key, value = drawn(6, D, seed=0), drawn(3, OUT, seed=1), drawn(OUT, D, seed=2), drawn(OUT, D, seed=3)

    def attended(e: Tensor) -> Tensor:
        return torch.softmax(query @ (e @ key.T).T, dim=-1) @ (e @ value.T)

    torch.testing.assert_close(attended(tokens), attended(tokens[[4, 2, 0, 5, 1, 3]]))
