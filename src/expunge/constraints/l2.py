"""L2 regularization towards the previous step, the base model, or both.

    L_reg = lambda sum_a w_a || theta - theta_a ||^2,   its gradient 2 lambda (theta - sum_a w_a theta_a)

over the anchors a = previous, base with weights w_a that sum to 1: both at once pull to the point between them. Norms are
sums, not means, over all trained parameters. The gradient is added analytically, which gives what autograd would give and
costs one pass over the parameters per optimizer step.

Source: arXiv 2512.02657 (the regularization term, towards the previous step, lambda 1e-4 in version 1 and 2e-4 in the ECCV
version). Towards the base model is L2-SP, Li et al. 2018, arXiv 1802.01483.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from expunge.constraints.base import Anchors, Constraint, ConstraintConfig

SHARES = {"previous": {"previous": 1.0}, "base": {"base": 1.0}, "both": {"previous": 0.5, "base": 0.5}}
"""{toward: {anchor: its share of lambda}}"""


class L2Config(ConstraintConfig):
    """L2 regularization (docs/method.md).

    Attributes:
        weight: lambda, the factor of the penalty.
        toward: "previous" (M(k-1), as published), "base" (M(0), which bounds drift over a whole stream) or "both", half of
            each. For other shares name the constraint twice.
    """

    name: Literal["l2"] = "l2"
    weight: float = Field(2e-4, ge=0)
    toward: Literal["previous", "base", "both"] = "previous"


def l2_distance(parameters: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> Tensor:
    """sum (theta - theta_anchor)^2 over all parameters, a scalar in float32."""
    return torch.stack([(p.float() - anchor[n].float()).square().sum() for n, p in parameters.items()]).sum()


class L2(Constraint):
    """See the module's docstring."""

    Config = L2Config
    config: L2Config

    @torch.no_grad()
    def regularize(self, parameters: Mapping[str, nn.Parameter], anchors: Anchors) -> Tensor:
        for name, parameter in parameters.items():
            assert parameter.grad is not None
            for share, anchor in self._held(anchors):
                parameter.grad.add_(parameter - anchor[name], alpha=2 * self.config.weight * share)
        return self.penalty(parameters, anchors)

    def penalty(self, weights: Mapping[str, Tensor], anchors: Anchors) -> Tensor:
        shares = [share * l2_distance(weights, anchor) for share, anchor in self._held(anchors)]
        return self.config.weight * torch.stack(shares).sum()

    def _held(self, anchors: Anchors) -> list[tuple[float, Mapping[str, Tensor]]]:
        return [(share, getattr(anchors, name)) for name, share in SHARES[self.config.toward].items()]
