"""The analytic L2 term is the one that autograd would give."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from expunge.constraints import L2, Anchors, L2Config, l2_distance


@pytest.mark.parametrize("toward", ["previous", "base", "both"])
def test_gradient_and_value_equal_autograd(toward: str) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    parameters = dict(layer.named_parameters())
    previous, base = ({n: torch.randn_like(p) for n, p in parameters.items()} for _ in range(2))
    for parameter in parameters.values():
        parameter.grad = torch.randn_like(parameter)
    before = {n: p.grad.clone() for n, p in parameters.items() if p.grad is not None}

    value = L2(L2Config.model_validate({"weight": 0.3, "toward": toward})).regularize(
        parameters, Anchors(previous, base)
    )

    held = {"previous": [previous], "base": [base], "both": [previous, base]}[toward]
    penalty = 0.3 * sum((p - a[n]).square().sum() / len(held) for n, p in parameters.items() for a in held)
    expected = torch.autograd.grad(penalty, list(parameters.values()))
    for (name, parameter), gradient in zip(parameters.items(), expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, before[name] + gradient)
    torch.testing.assert_close(value, penalty.detach())


def test_the_penalty_is_a_sum_and_zero_at_its_anchor() -> None:
    a = {"x": torch.zeros(4), "y": torch.zeros(2, 2)}
    assert l2_distance(a, a) == 0
    assert l2_distance({"x": torch.ones(4), "y": torch.full((2, 2), 2.0)}, a) == 4 + 16


def test_both_anchors_pull_to_the_point_between_them() -> None:
    """Its gradient vanishes there, and descent ends there from anywhere; towards one anchor alone it does not."""
    anchors = Anchors({"x": torch.tensor([1.0, 4.0])}, {"x": torch.tensor([3.0, 0.0])})
    ends = {toward: _descend(toward, anchors) for toward in ("previous", "base", "both")}
    torch.testing.assert_close(ends["both"], torch.tensor([2.0, 2.0]))
    torch.testing.assert_close(ends["previous"], anchors.previous["x"])
    torch.testing.assert_close(ends["base"], anchors.base["x"])


def test_named_twice_it_holds_with_other_shares() -> None:
    anchors = Anchors({"x": torch.tensor([1.0])}, {"x": torch.tensor([5.0])})
    parameter = nn.Parameter(torch.tensor([7.0]))
    parameter.grad = torch.zeros(1)
    for weight, toward in ((0.3, "previous"), (0.1, "base")):
        L2(L2Config.model_validate({"weight": weight, "toward": toward})).regularize({"x": parameter}, anchors)
    torch.testing.assert_close(parameter.grad, torch.tensor([2 * 0.4 * (7 - (0.3 * 1 + 0.1 * 5) / 0.4)]))


def _descend(toward: str, anchors: Anchors) -> torch.Tensor:
    constraint = L2(L2Config.model_validate({"weight": 0.5, "toward": toward}))
    parameter = nn.Parameter(torch.tensor([9.0, -9.0]))
    for _ in range(60):
        parameter.grad = torch.zeros(2)
        constraint.regularize({"x": parameter}, anchors)
        parameter.data -= 0.5 * parameter.grad
    return parameter.data
