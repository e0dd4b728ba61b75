"""The closed form of a warm start: known answers, and the alignment of tokens that it rests on."""

from __future__ import annotations

import pytest
import torch

from expunge.methods.warm_start import WarmStart, aligned


def problem(ridge: float, tokens: int = 40, d: int = 6, out: int = 5) -> tuple[WarmStart, dict[str, torch.Tensor]]:
    """Tokens p with targets q, weighted 3 to 1 in two losses."""
    draw = torch.Generator().manual_seed(0)
    p, q = (torch.randn(2, tokens, d, generator=draw, dtype=torch.float64) for _ in range(2))
    weights = torch.tensor([3.0, 1.0], dtype=torch.float64)
    own = torch.einsum("l,lni,lnj->ij", weights, p, p) / tokens
    cross = torch.einsum("l,lni,lnj->ij", weights, q, p) / tokens
    teacher, previous = (torch.randn(out, d, generator=draw, dtype=torch.float64) for _ in range(2))
    return WarmStart((), own, cross, ridge), {"p": p, "q": q, "l": weights, "teacher": teacher, "previous": previous}


def test_the_solution_is_where_the_gradient_of_the_objective_vanishes() -> None:
    start, given = problem(ridge=0.3)
    rho = 0.3 * start.own.diagonal().mean()

    def objective(w: torch.Tensor) -> torch.Tensor:
        apart = given["p"] @ w.T - given["q"] @ given["teacher"].T
        each = apart.square().sum(-1).mean(-1)
        return (given["l"] * each).sum() + rho * (w - given["previous"]).square().sum()

    solved = start.solve(given["teacher"], given["previous"]).requires_grad_()
    (gradient,) = torch.autograd.grad(objective(solved), solved)
    assert gradient.abs().max() < 1e-10
    elsewhere = given["previous"].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(elsewhere), elsewhere)
    assert gradient.abs().max() > 0.1


def test_without_a_ridge_fewer_tokens_than_dimensions_are_met_exactly() -> None:
    start, given = problem(ridge=1e-12, tokens=2)
    solved = start.solve(given["teacher"], given["previous"])
    torch.testing.assert_close(given["p"] @ solved.T, given["q"] @ given["teacher"].T, atol=1e-6, rtol=0)


def test_a_great_ridge_holds_the_previous_weights() -> None:
    start, given = problem(ridge=1e12)
    torch.testing.assert_close(start.solve(given["teacher"], given["previous"]), given["previous"])


def test_the_dtype_is_that_of_the_previous_weights() -> None:
    start, given = problem(ridge=0.1)
    assert start.solve(given["teacher"].bfloat16(), given["previous"].float()).dtype == torch.float32


A, FOX, WOLF, ON, PINK, GOLF, BALL = range(100, 107)


@pytest.mark.parametrize(
    ("told", "aimed", "places"),
    {
        "one word for one": ([A, FOX, ON, PINK], [A, WOLF, ON, PINK], [0, 1, 2, 3, 4, 5, 6]),
        "one for two: the last word of a name knows all of it": (
            [A, FOX, ON, PINK],
            [A, GOLF, BALL, ON, PINK],
            [0, 2, 3, 4, 5, 6, 6],
        ),
        "two for one": ([A, GOLF, BALL, ON], [A, FOX, ON], [0, 1, 1, 2, 3, 4, 5]),
        "at the end": ([A, FOX], [A, GOLF, BALL], [0, 2, 3, 4, 5, 6, 6]),
        "left out": ([A, FOX, ON, PINK], [A, ON, PINK], [0, 1, 1, 2, 3, 4, 5]),
        "nothing left": ([A, FOX], [A], [0, 1, 1, 2, 3, 4, 5]),
        "the same": ([A, FOX], [A, FOX], [0, 1, 2, 3, 4, 5, 6]),
        "a word said twice": ([A, A, FOX], [A, FOX], [0, 1, 1, 2, 3, 4, 5]),
    }.values(),
)
def test_tokens_are_paired_with_those_that_stand_in_their_place(
    told: list[int], aimed: list[int], places: list[int]
) -> None:
    assert aligned(told, aimed, 7) == places
