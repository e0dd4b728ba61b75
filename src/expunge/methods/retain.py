"""What is replayed so that it stays.

    local    prompts for the nearest neighbours of each concept
    global   prompts for everything else
    mixed    some of both, `local_share` of them local; all of them where nothing else is left

Source: local is LACU's; mixed with 100 neighbours' prompts and 50 others is that of "Distill, Forget, Repeat".
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from expunge import seeds
from expunge.concepts import Concept
from expunge.errors import ExpungeError
from expunge.methods.base import MethodConfig, StepContext
from expunge.methods.mapping import Count, check_leaks, may_be_shown

RetainName = Literal["local", "global", "mixed"]
Share = Annotated[float, Field(ge=0, le=1)]


class RetainConfig(MethodConfig):
    """
    Attributes:
        retain: "local", "global" or "mixed": neighbours, everything else, or some of both.
        local_share: share of the retain prompts that is local where `retain` is "mixed".
        retain_concepts: neighbours that are replayed.
        retain_prompts: retain prompts per concept.
    """

    retain: RetainName
    local_share: Share = 0.5
    retain_concepts: Count = 10
    retain_prompts: Count


def retain_prompts(config: RetainConfig, context: StepContext, concept: Concept, near: Sequence[str]) -> list[str]:
    """Retain prompts beside `concept`, whose neighbours are `near`, nearest first.

    Raises:
        ExpungeError: when one speaks of a concept that is or was forgotten, or all are to be far and nothing is.
    """
    source, avoid = context.source, context.off_limits
    close = list(near[: config.retain_concepts])
    others = {*source.related(concept), *source.unrelated(concept)} - {*close}
    far = sorted(name for name in others if may_be_shown(context, name))
    far = random.Random(seeds.derive(context.seed, "far", concept.name)).sample(far, len(far))
    if config.retain == "global" and not far:
        raise ExpungeError(
            f"Nothing is far from {concept.name!r}: all that may be retained is among its nearest (retain_concepts = "
            f'{config.retain_concepts}). Make the run with method.retain "local" or "mixed".'
        )
    share = {"local": 1.0, "global": 0.0, "mixed": config.local_share if far else 1.0}[config.retain]
    local = round(share * config.retain_prompts)
    prompts: list[str] = []
    for label, names, count in (("local", close, local), ("global", far, config.retain_prompts - local)):
        if count:
            seed = seeds.derive(context.seed, "retain", label, concept.name)
            prompts += source.retain_prompts(names, count, seed, avoid)
    check_leaks(context, "retain", prompts)
    return prompts
