"""DFR: "Distill, Forget, Repeat", the first published version of the framework.

The losses of expunge/methods/continual.py with both choices made outside the model, by whoever writes the prompts: a
plausible replacement in the concept's place, the scene kept (`contextual`), and retain prompts for related concepts with
some for unrelated ones among them (`mixed`).

Source: arXiv 2512.02657, version 1.
"""

from __future__ import annotations

from pydantic import Field

from expunge.methods.continual import Continual, ContinualConfig
from expunge.methods.mapping import Count, MappingName, NeighboursBy
from expunge.methods.resteering import Time, Weight
from expunge.methods.retain import RetainName, Share


class DfrConfig(ContinualConfig):
    """The first version of the same, "Distill, Forget, Repeat". Defaults are the published ones for SD1.5.

    Source: train.sh of the reference code's first version: lambda_unlearn 1, lambda_preserve 10, t_max 700, 100 forget
    prompts with at least 5 different replacements, 10 prompts for each of 10 related concepts and 50 unrelated ones.
    """

    lambda_unlearn: float = Field(1.0, gt=0)
    lambda_preserve: Weight = 10.0
    t_max: Time = 700
    mapping: MappingName = "contextual"
    mapping_candidates: Count = 5
    neighbours: NeighboursBy = "source"
    retain: RetainName = "mixed"
    local_share: Share = 2 / 3
    retain_prompts: Count = 150


class Dfr(Continual):
    """See the module's docstring."""

    Config = DfrConfig
