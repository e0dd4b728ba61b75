"""Prompts from a vocabulary file: groups of concepts, slots that they fill, templates. No key, no network.

A prompt is a template with a scene. Each slot (thing, style, background...) has a phrase that is written where the
template names the slot, and nothing is written for a slot that the scene leaves open:

    {thing}{style}{background}  +  thing=fox, style=neon  ->  a fox in neon style

The format is described in docs/prompts.md; `expunge/iconworld/vocabulary.toml` is a full example.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from expunge.concepts import PERSON, Concept, article, mentions, words
from expunge.errors import ExpungeError, quoted, suggestion
from expunge.files import canonical_json, digest_bytes
from expunge.prompts.base import Candidate, ForgetPrompt, ScenePrompt
from expunge.prompts.deck import Deck
from expunge.schema import Strict, from_anywhere, read_toml

_SLOT = re.compile(r"\{(\w+)\}")


class VocabularyConfig(Strict):
    """Prompts from templates and a vocabulary.

    Attributes:
        vocabulary: a vocabulary file, or "iconworld" for the built-in one.
    """

    source: Literal["vocabulary"] = "vocabulary"
    vocabulary: str = "iconworld"

    @field_validator("vocabulary")
    @classmethod
    def _file(cls, name: str) -> str:
        return name if name == "iconworld" else from_anywhere(name)


def _writable(phrase: str) -> str:
    try:
        written = phrase.format("value", a="a")
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"{phrase!r} cannot be written: {{}} is the value, {{a}} its article, and nothing else"
        ) from error
    if "value" not in written:
        raise ValueError(f"{phrase!r} does not say where the value stands: write {{}} there")
    return phrase


Phrase = Annotated[str, AfterValidator(_writable)]
"""How a value is written; `{}` is the value, `{a}` its indefinite article."""


class Slot(Strict):
    """A place in a prompt.

    Attributes:
        phrase: how a value is written; `{}` is the value, `{a}` its indefinite article.
        optional: whether a prompt may leave the slot open. A required slot is in every prompt.
        kind: the kind of concept that fills it.
        plain: the value that is the same as leaving the slot open ("plain" style), if there is one.
    """

    phrase: Phrase
    kind: str
    optional: bool = False
    plain: str | None = None


class Group(Strict):
    """Concepts that are near neighbours of each other, all of one slot.

    Attributes:
        kind, phrase: in place of the slot's.
    """

    name: str
    slot: str
    concepts: tuple[str, ...] = Field(min_length=1)
    kind: str | None = None
    phrase: Phrase | None = None


class Vocabulary(Strict):
    """A vocabulary file; a `PromptSource`."""

    schema_: Literal[1] = Field(alias="schema")
    templates: tuple[str, ...] = Field(min_length=1)
    evaluation_templates: tuple[str, ...] = Field(min_length=1)
    slots: dict[str, Slot]
    groups: tuple[Group, ...]
    aliases: dict[str, tuple[str, ...]] = {}
    confusables: dict[str, tuple[str, ...]] = {}

    @classmethod
    def read(cls, path: Path) -> Self:
        return read_toml(cls, path, f"The vocabulary file {path}")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for template in (*self.templates, *self.evaluation_templates):
            named = set(_SLOT.findall(template))
            if named != set(self.slots):
                raise ValueError(f"the template {template!r} names the slots {sorted(named)}, not {sorted(self.slots)}")
        names = [name for group in self.groups for name in group.concepts]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"these concepts stand in two groups: {twice}")
        if unknown := sorted({g.slot for g in self.groups} - set(self.slots)):
            raise ValueError(f"groups name slots that do not exist: {unknown}")
        for field, given in (("aliases", self.aliases), ("confusables", self.confusables)):
            if unknown := sorted(set(given) - set(names)):
                raise ValueError(f"{field} are given for concepts that do not exist: {unknown}")
        meant: dict[tuple[str, ...], str] = {}
        for group in self.groups:
            for name in group.concepts:
                concept = self._concept(group, name)  # a name that cannot be one, or a confusable that is an alias too
                for own in concept.names:
                    if (other := meant.setdefault(tuple(words(own)), name)) != name:
                        raise ValueError(f"{own!r} means both {other!r} and {name!r}")
        self._check_templates()
        return self

    def _check_templates(self) -> None:
        """No evaluation prompt may have the words of a training prompt, whichever slots are left open."""
        optional = [slot for slot, description in self.slots.items() if description.optional]
        for count in range(len(optional) + 1):
            for open_slots in combinations(optional, count):
                filled = {slot: f"<{slot}>" for slot in self.slots if slot not in open_slots}
                training, evaluation = (
                    {tuple(words(self.write(template, filled))): template for template in templates}
                    for templates in (self.templates, self.evaluation_templates)
                )
                for same in training.keys() & evaluation.keys():
                    without = f" without {' and '.join(open_slots)}" if open_slots else ""
                    raise ValueError(
                        f"the evaluation template {evaluation[same]!r} makes the prompts of the training template "
                        f"{training[same]!r}{without}"
                    )

    # -- PromptSource ---------------------------------------------------------------------------------------------

    @property
    def digest(self) -> str:
        return digest_bytes(canonical_json(self.model_dump(mode="json", by_alias=True)).encode())

    @property
    def persons(self) -> list[Concept]:
        every = (self._concept(group, name) for group in self.groups for name in group.concepts)
        return [concept for concept in every if concept.kind == PERSON]

    def concept(self, name: str) -> Concept:
        wanted = words(name)
        for group in self.groups:
            for known in group.concepts:
                concept = self._concept(group, known)
                if wanted in [words(n) for n in concept.names]:
                    if known == self.slots[group.slot].plain:
                        raise ExpungeError(
                            f"{known!r} is what a prompt shows that names no {group.slot}, so it cannot be asked to go."
                        )
                    return concept
        raise ExpungeError(f"The vocabulary has no concept {quoted(name)}. {suggestion(name, self.names())}")

    def related(self, concept: Concept) -> list[str]:
        if found := self.alternatives(concept):
            return found
        raise ExpungeError(
            f"No other {self.slot_of(concept.name)} in the vocabulary could stand in the place of {concept.name!r}: add one, "
            "or name those that speak of it and must not count as it in [confusables]."
        )

    def alternatives(self, concept: Concept) -> list[str]:
        own = self.group(concept.name)
        groups = [own, *(g for g in self.groups if g.slot == own.slot and g is not own)]
        return self._apart(groups, concept)

    def unrelated(self, concept: Concept) -> list[str]:
        own = self.group(concept.name)
        return self._apart([g for g in self.groups if g is not own], concept)

    def check_replacement(self, concept: Concept, replacement: str) -> None:
        """Anything can be written."""

    def forget_prompts(
        self, concept: Concept, replacements: Sequence[str], count: int, seed: int, avoid: frozenset[str]
    ) -> list[ForgetPrompt]:
        slot, avoid = self.slot_of(concept.name), self._with_what_speaks_of(avoid | {concept.name})
        prompts: list[ForgetPrompt] = []
        for template, scene in self._draw(self.templates, concept.name, count, seed, avoid):
            candidates = [Candidate(self.write(template, {**scene, slot: r}), r) for r in replacements]
            if self.slots[slot].plain is not None:  # elsewhere an open slot may show anything, the concept included
                without = {s: v for s, v in scene.items() if s != slot}
                candidates.append(Candidate(self.write(template, without), None))
            prompts.append(ForgetPrompt(str(len(prompts) + 1), self.write(template, scene), tuple(candidates)))
        return prompts

    def retain_prompts(self, names: Sequence[str], count: int, seed: int, avoid: frozenset[str]) -> list[str]:
        avoid = self._with_what_speaks_of(avoid)
        allowed = [n for n in names if n not in avoid]
        if not allowed:
            raise ExpungeError("No concept is left to retain: every name is forgotten or held out.")
        shares = [len(range(i, count, len(allowed))) for i in range(len(allowed))]
        return [
            self.write(template, scene)
            for name, share in zip(allowed, shares, strict=True)
            for template, scene in self._draw(self.templates, name, share, seed, avoid)
        ]

    def evaluation_prompts(
        self, concept: Concept, count: int, seed: int, avoid: frozenset[str], scenes: Mapping[str, Sequence[str]]
    ) -> list[ScenePrompt]:
        drawn = self._draw(self.evaluation_templates, concept.name, count, seed, avoid | {concept.name}, scenes)
        return [ScenePrompt(self.write(template, scene), scene) for template, scene in drawn]

    # -- parts ----------------------------------------------------------------------------------------------------

    def names(self, slot: str | None = None) -> list[str]:
        return [n for g in self.groups if slot in (None, g.slot) for n in g.concepts]

    def group(self, name: str) -> Group:
        return next(g for g in self.groups if name in g.concepts)

    def slot_of(self, name: str) -> str:
        return self.group(name).slot

    def write(self, template: str, scene: Mapping[str, str]) -> str:
        """The prompt that `template` makes of `scene`."""

        def phrase(match: re.Match[str]) -> str:
            value = scene.get(match[1])
            if value is None:
                return ""
            own = next((group.phrase for group in self.groups if value in group.concepts), None)
            return (own or self.slots[match[1]].phrase).format(value, a=article(value))

        return _SLOT.sub(phrase, template).strip()

    def _concept(self, group: Group, name: str) -> Concept:
        return Concept(
            name=name,
            kind=group.kind or self.slots[group.slot].kind,
            aliases=self.aliases.get(name, ()),
            confusables=self.confusables.get(name, ()),
        )

    def _apart(self, groups: Sequence[Group], concept: Concept) -> list[str]:
        """The names in `groups` but those that speak of `concept` ("golf ball" of "ball"), and those that say nothing."""
        names = [n for g in groups for n in g.concepts if n != self.slots[g.slot].plain]
        return [n for n in names if not mentions(n, concept)]

    @cached_property
    def _speaking(self) -> dict[str, frozenset[str]]:
        """{name: the names that speak of it}, of those that were asked about."""
        return {}

    def _with_what_speaks_of(self, names: frozenset[str]) -> frozenset[str]:
        """`names`, and the names that speak of them: with "ball" also "golf ball"."""
        for name in names - self._speaking.keys():
            concept = self.concept(name)
            self._speaking[name] = frozenset(n for n in self.names() if mentions(n, concept))
        return names.union(*(self._speaking[name] for name in names))

    def _draw(
        self,
        templates: Sequence[str],
        name: str,
        count: int,
        seed: int,
        avoid: frozenset[str],
        scenes: Mapping[str, Sequence[str]] | None = None,
    ) -> list[tuple[str, dict[str, str]]]:
        """`count` templates with scenes around `name`: of every other slot each value that is not in `avoid` comes up about
        equally often."""
        rng = random.Random(f"{seed}/{name}")
        fixed = self.slot_of(name)
        drawn: list[tuple[str, dict[str, str]]] = []
        template_deck = Deck(templates, rng)
        decks: dict[str, Deck[str | None]] = {}
        for slot, description in self.slots.items():
            if slot == fixed:
                continue
            allowed = scenes[slot] if scenes is not None and slot in scenes else self.names(slot)
            values: list[str | None] = [v for v in allowed if v not in avoid]
            if description.optional:
                values = [None if v == description.plain else v for v in values]
                values += [None] * (None not in values)
            if not values:
                raise ExpungeError(
                    f"No value is left for the {slot} of a prompt: every one speaks of what is forgotten or held out."
                )
            decks[slot] = Deck(values, rng)
        for _ in range(count):
            filled = {slot: deck.draw() for slot, deck in decks.items()} | {fixed: name}
            drawn.append((template_deck.draw(), {s: v for s in self.slots if (v := filled[s]) is not None}))
        return drawn
