"""What a forget prompt is re-steered to.

    null        the empty prompt; the scene goes with the concept
    fixed       a given word in the concept's place
    superclass  the concept's kind in its place: "an animal" for a fox whose kind is animal
    contextual  a plausible replacement in the concept's place, dealt to the prompts in turn; the scene is kept
    score       that candidate whose predictions are nearest to the forget prompt's own (expunge/locality.py)

With `mapping_targets` above 1 a prompt has several targets, the next ones in turn or in nearness, and each row of a batch
draws one of them (`matching_loss` says why that is as good as their mean).

Source: arXiv 2512.02657; null, fixed and superclass are the anchors of the one-shot methods, fixed and contextual those of
its first version (a language model chose the replacement), score that of its ECCV version.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from expunge import seeds
from expunge.concepts import Concept, alike, check_name, mentions, words
from expunge.errors import ExpungeError
from expunge.locality import Choice, choose_mapping, rank, scoring_draws
from expunge.methods.base import MethodConfig, StepContext
from expunge.prompts import Candidate, ForgetPrompt

Count = Annotated[int, Field(ge=1, le=100_000)]
MappingName = Literal["null", "fixed", "superclass", "contextual", "score"]
NeighboursBy = Literal["score", "source"]
NEAREST = 10
"""Neighbours that are scored on all draws where the rest drops out before."""
Ranking = dict[str, float | None]
"""Names that may be shown instead of a concept or beside it, nearest first; their score distance where it ranked them."""


class MappingConfig(MethodConfig):
    """
    Attributes:
        mapping: how mapping prompts are chosen (docs/method.md).
        mapping_target: for "fixed", the word that takes the place of a concept of each kind: `{object = "dog"}`.
        mapping_targets: targets of each forget prompt, one of which is drawn for every row.
        mapping_candidates: replacements that compete for each forget prompt, or are dealt in turn.
        mapping_draws: noisy latents shared by all candidates of a choice by score distance.
        forget_prompts: forget prompts per concept.
        scoring: "all": every candidate is scored on all draws, as published; "halving": by successive halving, with a
            fraction of the evaluations (docs/method.md).
        neighbours: who says which concepts are near: the model ("score", by score distance) or the prompt source ("source").
        retain_draws: noisy latents shared in ranking them. The name is LACU's, whose neighbours are also what it retains.
    """

    mapping: MappingName
    mapping_target: dict[str, str] = {}
    mapping_targets: Count = 1
    mapping_candidates: Count
    mapping_draws: Count = 32
    scoring: Literal["all", "halving"] = "all"
    forget_prompts: Count = 100
    neighbours: NeighboursBy
    retain_draws: Count = 16

    @model_validator(mode="after")
    def _targets_exist(self) -> Self:
        if self.mapping_target and self.mapping != "fixed":
            raise ValueError(f'mapping_target is for the mapping "fixed", not for {self.mapping!r}')
        for target in self.mapping_target.values():
            check_name(target)
            if len(parts := words(target)) > 1 and parts[0] in ("a", "an", "the"):
                raise ValueError(
                    f"mapping_target is {target!r}; leave out the article, it is written where one belongs"
                )
        most = self.mapping_candidates if self.mapping in ("contextual", "score") else 1
        if self.mapping_targets > most:
            raise ValueError(
                f"mapping_targets is {self.mapping_targets}, but with the mapping {self.mapping!r} and "
                f"mapping_candidates {self.mapping_candidates} a prompt has {most}"
            )
        return self


def pairs(
    config: MappingConfig, context: StepContext, concepts: Sequence[Concept]
) -> tuple[dict[str, Ranking], list[Choice]]:
    """Neighbours of each of `concepts`, and forget prompts of each with their mapping prompts.

    Raises:
        ExpungeError: when no neighbour is left, a prompt has too few candidates, a forget prompt does not speak of its
            concept, or a mapping prompt speaks of one that is or was forgotten.
    """
    near = {concept.name: _neighbours(config, context, concept) for concept in concepts}
    choices: list[Choice] = []
    for concept in concepts:
        chosen = MAPPINGS[config.mapping](
            Unmapped(config, context, concept, list(near[concept.name]), config.forget_prompts)
        )
        for choice in chosen:
            if not mentions(choice.forget, concept):
                raise ExpungeError(
                    f"The forget prompt {choice.forget!r} (id {choice.id}) does not speak of {concept.name!r}."
                )
        choices += [replace(choice, concept=concept.name) for choice in chosen]
    check_leaks(context, "mapping", [m.prompt for c in choices for m in c.mapping])
    return near, choices


def single_target(config: MappingConfig, concept: Concept) -> str | None:
    """The word that takes the concept's place in every prompt; None with a mapping that has no such word.

    Raises:
        ExpungeError: when `mapping_target` names none for the concept's kind.
    """
    if config.mapping == "superclass":
        return concept.kind
    if config.mapping != "fixed":
        return None
    if concept.kind not in config.mapping_target:
        raise ExpungeError(f"mapping_target names nothing for {concept.kind!r}, the kind of {concept.name!r}.")
    return config.mapping_target[concept.kind]


def check_leaks(context: StepContext, kind: str, prompts: Sequence[str]) -> None:
    """Mapping and retain prompts must speak of nothing that is or was forgotten."""
    for prompt in prompts:
        if name := leak(context, prompt):
            raise ExpungeError(f"The {kind} prompt {prompt!r} speaks of {name!r}, which must be forgotten.")


def leak(context: StepContext, prompt: str) -> str | None:
    """The first name in `prompt` of what is or was forgotten."""
    gone = (*context.concepts, *context.forgotten)
    return next((name for concept in gone if (name := mentions(prompt, concept))), None)


def held_out(context: StepContext, name: str) -> bool:
    """Whether `name`, however it is written, is that of a neighbour that no training may see, or speaks of one."""
    return any(
        mentions(name, concept) or any(alike(name, own) for own in concept.names)
        for concept in context.held_out_concepts
    )


def may_be_shown(context: StepContext, name: str) -> bool:
    """Whether `name` speaks of nothing that is or was forgotten, and is not held out."""
    return leak(context, name) is None and not held_out(context, name)


def _neighbours(config: MappingConfig, context: StepContext, concept: Concept) -> Ranking:
    # Ranking every earlier concept anew would make each step cost more than the one before.
    earlier = next((step.near[concept.name] for step in context.earlier if concept.name in step.near), None)
    offered = earlier or context.source.related(concept)
    names = [n for n in offered if may_be_shown(context, n)]
    if not names:
        raise ExpungeError(f"No concept is left that could replace {concept.name!r} or be retained beside it.")
    if earlier or config.neighbours == "source":
        return dict.fromkeys(names)
    draws = scoring_draws(context.backbone, config.retain_draws, context.generator("rank", concept.name))
    halving = NEAREST if config.scoring == "halving" else None
    return dict(rank(context.teacher, concept.name, names, draws, context.replay.batch_size, halving))


@dataclass(frozen=True)
class Unmapped:
    """A concept that needs mapping prompts, its neighbours (nearest first), and how many forget prompts it gets."""

    config: MappingConfig
    context: StepContext
    concept: Concept
    near: Sequence[str]
    count: int

    def forget_prompts(self, replacements: Sequence[str]) -> list[ForgetPrompt]:
        context, name = self.context, self.concept.name
        seed = seeds.derive(context.seed, "forget", name)
        return context.source.forget_prompts(self.concept, replacements, self.count, seed, context.off_limits)


def _null(asked: Unmapped) -> list[Choice]:
    return [Choice(p.id, p.prompt, (Candidate("", None),)) for p in asked.forget_prompts(())]


def _replaced(asked: Unmapped) -> list[Choice]:
    """One word in the concept's place, in every prompt for which the source can write it."""
    concept = asked.concept
    target = single_target(asked.config, concept)
    assert target is not None, asked.config.mapping
    if held_out(asked.context, target):
        raise ExpungeError(f"{concept.name!r} cannot be mapped to {target!r}, which is held out.")
    count = asked.count
    while True:  # a source may have the word in a few of its prompts alone
        prompts = replace(asked, count=count).forget_prompts([target])
        choices = []
        for prompt in prompts:
            candidates = [c for c in prompt.candidates if c.replacement and words(c.replacement) == words(target)]
            if candidates:
                choices.append(Choice(prompt.id, prompt.prompt, (candidates[0],)))
        if len(choices) >= asked.count or len(prompts) < count:
            break
        count *= 2
    if not choices:
        raise ExpungeError(
            f"The prompt source can write {target!r} in the place of {concept.name!r} in none of its prompts that speak of "
            "nothing off limits."
        )
    return choices[: asked.count]


def _contextual(asked: Unmapped) -> list[Choice]:
    each = asked.config.mapping_targets
    choices = []
    for place, prompt in enumerate(_with_candidates(asked)):
        dealt = [prompt.candidates[(place * each + i) % len(prompt.candidates)] for i in range(each)]
        choices.append(Choice(prompt.id, prompt.prompt, tuple(dealt)))
    return choices


def _score(asked: Unmapped) -> list[Choice]:
    context, config = asked.context, asked.config
    draws = scoring_draws(context.backbone, config.mapping_draws, context.generator("map", asked.concept.name))
    prompts = _with_candidates(asked)
    size, halving = context.replay.batch_size, config.scoring == "halving"
    return choose_mapping(context.teacher, prompts, draws, size, config.mapping_targets, halving)


def _with_candidates(asked: Unmapped) -> list[ForgetPrompt]:
    config = asked.config
    prompts = asked.forget_prompts(asked.near[: config.mapping_candidates])
    for prompt in prompts:
        if len(prompt.candidates) < config.mapping_targets:
            raise ExpungeError(
                f"The forget prompt {prompt.prompt!r} (id {prompt.id}) has too few mapping candidates: "
                f"{len(prompt.candidates)}, and mapping_targets is {config.mapping_targets}."
            )
    return prompts


MAPPINGS: dict[MappingName, Callable[[Unmapped], list[Choice]]] = {
    "null": _null,
    "fixed": _replaced,
    "superclass": _replaced,
    "contextual": _contextual,
    "score": _score,
}
