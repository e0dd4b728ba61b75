"""LACU: locality-aware continual unlearning.

The losses of expunge/methods/continual.py with both choices made by the model itself, in score distance
(expunge/locality.py): the mapping prompt of each forget prompt is the nearest of its candidates, and what is replayed are
the concept's nearest neighbours.

Source: "Distill, Forget, Repeat", arXiv 2512.02657, in its ECCV version "Locality-Aware Continual Unlearning".
"""

from __future__ import annotations

from pydantic import Field

from expunge.methods.continual import Continual, ContinualConfig
from expunge.methods.mapping import Count, MappingName, NeighboursBy
from expunge.methods.resteering import Time, Weight
from expunge.methods.retain import RetainName


class LacuConfig(ContinualConfig):
    """Locality-aware continual unlearning (docs/method.md). Defaults are the published ones for SD1.5.

    Source: train.sh of the reference code: lambda_unlearn 5 to 7 by concept, lambda_preserve 25, t_max 600, 10 candidates
    scored on 32 draws, the 10 nearest neighbours on 16 draws, 100 forget and 100 retain prompts.
    """

    lambda_unlearn: float = Field(5.0, gt=0)
    lambda_preserve: Weight = 25.0
    t_max: Time = 600
    mapping: MappingName = "score"
    mapping_candidates: Count = 10
    neighbours: NeighboursBy = "score"
    retain: RetainName = "local"
    retain_prompts: Count = 100


class Lacu(Continual):
    """See the module's docstring."""

    Config = LacuConfig
