"""L2 regularization towards the previous step or the base model.

    L_reg = lambda || theta - theta_anchor ||^2,   its gradient 2 lambda (theta - theta_anchor)

a sum, not a mean, over all trained parameters. The gradient is added analytically, which gives what autograd would give
and costs one pass over the parameters per optimizer step.

Source: arXiv 2512.02657 (the regularization term, towards the previous step, lambda 2e-4 in the ECCV version).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from expunge.constraints.base import Anchors, Constraint, ConstraintConfig


class L2Config(ConstraintConfig):
    """
    Attributes:
        weight: lambda.
        toward: "previous" (M(k-1), as published) or "base" (M(0), which bounds drift over a whole stream).
    """

    name: Literal["l2"] = "l2"
    weight: float = Field(2e-4, ge=0)
    toward: Literal["previous", "base"] = "previous"


def l2_distance(parameters: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> Tensor:
    """sum (theta - theta_anchor)^2 over all parameters, a scalar in float32."""
    return torch.stack([(p.float() - anchor[n].float()).square().sum() for n, p in parameters.items()]).sum()


class L2(Constraint):
    """See the module's docstring."""

    def __init__(self, config: L2Config) -> None:
        self.config = config

    @torch.no_grad()
    def regularize(self, parameters: Mapping[str, nn.Parameter], anchors: Anchors) -> Tensor:
        anchor = anchors.previous if self.config.toward == "previous" else anchors.base
        for name, parameter in parameters.items():
            assert parameter.grad is not None
            parameter.grad.add_(parameter - anchor[name], alpha=2 * self.config.weight)
        return self.config.weight * l2_distance(parameters, anchor)
