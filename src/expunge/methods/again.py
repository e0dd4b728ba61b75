"""What earlier steps forgot, re-steered again.

Each earlier concept keeps the pairs of forget and mapping prompts that its own step chose, and every later step draws some of
them. A pair whose mapping prompt speaks of something that has been forgotten since is left out; a concept that has none
left is given new ones.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from expunge import seeds
from expunge.concepts import Concept
from expunge.locality import Choice
from expunge.methods.aims import Aim
from expunge.methods.base import Earlier, StepContext
from expunge.methods.mapping import leak, pairs
from expunge.methods.resteering import ResteeringConfig, resteer


@dataclass(frozen=True)
class Again:
    """
    Attributes:
        aims: one for each earlier step that has its turn.
        used: the choices that they use.
        renewed: {concept: all its choices}, where they were chosen anew.
    """

    aims: Sequence[Aim]
    used: Sequence[Choice]
    renewed: Mapping[str, Sequence[Choice]]


def steer_again(config: ResteeringConfig, context: StepContext, prompts: int) -> Again:
    """`prompts` forget prompts of all earlier concepts together, equally many for each."""
    draw = random.Random(seeds.derive(context.seed, "again"))
    turn = draw.sample(context.forgotten, min(prompts, len(context.forgotten)))
    each = prompts // max(1, len(turn))
    aims: list[Aim] = []
    used: list[Choice] = []
    renewed: dict[str, list[Choice]] = {}
    for step in context.earlier:
        if not any(concept in turn for concept in step.concepts):
            continue
        choices, new = _choices(config, context, step)
        renewed |= new
        picked: list[int] = []
        for concept in (c for c in step.concepts if c in turn):
            usable = _usable(choices, concept, context)
            picked += sorted(draw.sample(usable, min(each, len(usable))))
        if picked:
            aims.append(resteer(config, context, choices, loss="again", role="again", seed=step.seed, picked=picked))
            used += [choices[place] for place in picked]
    return Again(aims, used, renewed)


def _choices(
    config: ResteeringConfig, context: StepContext, step: Earlier
) -> tuple[list[Choice], dict[str, list[Choice]]]:
    """All choices of an earlier step, and of them those of concepts for which they were made now."""
    choices: list[Choice] = []
    renewed: dict[str, list[Choice]] = {}
    for concept in step.concepts:
        own = [c for c in step.choices if c.concept == concept.name]
        if not _usable(own, concept, context):
            own = renewed[concept.name] = pairs(config, context, [concept])[1]
        choices += own
    return choices, renewed


def _usable(choices: Sequence[Choice], concept: Concept, context: StepContext) -> list[int]:
    """Places of the concept's choices whose mapping prompts speak of nothing that is or was forgotten."""
    return [
        place
        for place, choice in enumerate(choices)
        if choice.concept == concept.name and not any(leak(context, m.prompt) for m in choice.mapping)
    ]
