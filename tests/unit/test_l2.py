"""The analytic L2 term is the one that autograd would give."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from expunge.constraints import L2, Anchors, L2Config, l2_distance


@pytest.mark.parametrize("toward", ["previous", "base"])
def test_gradient_and_value_equal_autograd(toward: str) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    parameters = dict(layer.named_parameters())
    previous, base = ({n: torch.randn_like(p) for n, p in parameters.items()} for _ in range(2))
    for parameter in parameters.values():
        parameter.grad = torch.randn_like(parameter)
    before = {n: p.grad.clone() for n, p in parameters.items() if p.grad is not None}
    anchor = previous if toward == "previous" else base

    value = L2(L2Config.model_validate({"weight": 0.3, "toward": toward})).regularize(
        parameters, Anchors(previous, base)
    )

    penalty = 0.3 * sum((p - anchor[n]).square().sum() for n, p in parameters.items())
    expected = torch.autograd.grad(penalty, list(parameters.values()))
    for (name, parameter), gradient in zip(parameters.items(), expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, before[name] + gradient)
    torch.testing.assert_close(value, penalty.detach())


def test_the_penalty_is_a_sum_and_zero_at_its_anchor() -> None:
    a = {"x": torch.zeros(4), "y": torch.zeros(2, 2)}
    assert l2_distance(a, a) == 0
    assert l2_distance({"x": torch.ones(4), "y": torch.full((2, 2), 2.0)}, a) == 4 + 16
