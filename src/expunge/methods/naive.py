"""Naive repetition: a one-shot erasure, again for every request. The control of every continual method.

    L = lambda_unlearn E || eps(x_t, t, f; theta) - eps(x_t, t, g; theta*) ||^2

Re-steering as in expunge/methods/continual.py and nothing else: nothing is replayed that must stay, and a preset for it
names no constraint. It has no `strength`: of a single loss Adam takes the scale away.

Source: the unlearning term of arXiv 2512.02657 alone.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from expunge.methods.base import StepContext
from expunge.methods.mapping import Count, MappingName, NeighboursBy, pairs
from expunge.methods.resteering import Plan, Resteering, ResteeringConfig, Time, record_of, resteer


class NaiveConfig(ResteeringConfig):
    """A one-shot erasure, again for every request: the control. Defaults are those of LACU, so that a comparison with it
    shows what replay and regularization do."""

    lambda_unlearn: float = Field(5.0, gt=0)
    t_max: Time = 600
    mapping: MappingName = "score"
    mapping_candidates: Count = 10
    neighbours: NeighboursBy = "score"


class Naive(Resteering):
    """See the module's docstring."""

    Config = NaiveConfig
    config: NaiveConfig

    @property
    def weights(self) -> Mapping[str, float]:
        return {"unlearn": self.config.lambda_unlearn}

    def plan(self, context: StepContext) -> Plan:
        config = self.config
        near, choices = pairs(config, context, context.concepts)
        return Plan([resteer(config, context, choices)], record_of(choices, near))
