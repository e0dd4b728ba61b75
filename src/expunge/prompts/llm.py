"""Prompts that a language model writes: offline once they are cached.

Three questions, each in small parts that a local model can answer:

    names       neighbours of a concept, and things that have nothing to do with it
    prompts     that show a name; the first part is kept for evaluation, the others are for training
    mappings    of training prompts: each written again with another name in the concept's place

What is off limits at a step is not told to the server (it may be a person who asked to be forgotten): prompts that speak of it
are left out here.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from expunge.concepts import Concept, check_name, mentions, words
from expunge.errors import ExpungeError, quoted
from expunge.prompts.asking import Asking, LlmConfig, Unusable
from expunge.prompts.base import Candidate, ForgetPrompt, ScenePrompt
from expunge.prompts.deck import Deck
from expunge.prompts.known import KnownConcepts, slot_of

__all__ = ["LlmConfig", "LlmPrompts"]

_NAMES = 20
"""Neighbours that are asked for, and as many things that are unrelated."""
_PART = 10
"""Prompts in one answer, evaluation aside."""
_LONGEST = 40
"""Words of a text. Prompts are asked for in 4 to 12; text encoders read some 70 tokens."""


class LlmPrompts:
    """A `PromptSource`."""

    def __init__(self, config: LlmConfig, known: KnownConcepts | None = None) -> None:
        self._config, self._known = config, known or KnownConcepts()
        self._asking = Asking(config)
        self._evaluated: set[tuple[str, ...]] = set()

    @property
    def digest(self) -> str:
        """Digest of the cached answers."""
        return self._asking.digest

    @property
    def persons(self) -> list[Concept]:
        return self._known.persons

    def concept(self, name: str) -> Concept:
        return self._known.concept(name)

    def related(self, concept: Concept) -> list[str]:
        return self._names(concept)["related"]

    def alternatives(self, concept: Concept) -> list[str]:
        return self.related(concept)

    def unrelated(self, concept: Concept) -> list[str]:
        return self._names(concept)["unrelated"]

    def check_replacement(self, concept: Concept, replacement: str) -> None:
        """Anything can be written."""

    def forget_prompts(
        self, concept: Concept, replacements: Sequence[str], count: int, seed: int, avoid: frozenset[str]
    ) -> list[ForgetPrompt]:
        prompts: list[ForgetPrompt] = []
        for part in self._training(concept, count):
            allowed = self._unseen(self._known.free_of(part, avoid, concept.names))
            asks = replacements and allowed
            mappings = self._mappings(concept, allowed, replacements) if asks else {p: {} for p in allowed}
            for prompt in allowed:
                left = self._unseen(self._known.free_of(mappings[prompt].values(), avoid))
                candidates = tuple(Candidate(p, r) for r, p in mappings[prompt].items() if p in left)
                if candidates or not replacements:
                    prompts.append(ForgetPrompt(str(len(prompts) + 1), prompt, candidates))
            if len(prompts) >= count:
                return prompts[:count]
        if not prompts:
            raise ExpungeError(f"Every prompt for {concept.name!r} speaks of a concept that is off limits.")
        return prompts

    def retain_prompts(self, names: Sequence[str], count: int, seed: int, avoid: frozenset[str]) -> list[str]:
        rng = random.Random(f"{seed}/retain")
        used = [n for n in names if n not in avoid][:count]
        decks = []
        for name in used:
            concept = self.concept(name)
            share = -(-count // len(used))
            written = [p for part in self._training(concept, min(share, _PART)) for p in part]
            if allowed := self._unseen(self._known.free_of(written, avoid, concept.names)):
                decks.append(Deck(allowed, rng))
        if not decks:
            raise ExpungeError("No retain prompt is left: every name or prompt is forgotten or held out.")
        return [decks[i % len(decks)].draw() for i in range(count)]

    def evaluation_prompts(
        self, concept: Concept, count: int, seed: int, avoid: frozenset[str], scenes: Mapping[str, Sequence[str]]
    ) -> list[ScenePrompt]:
        evaluated = self._prompts(concept, [])
        self._evaluated |= {tuple(words(prompt)) for prompt in evaluated}
        allowed = self._known.free_of(evaluated, avoid, concept.names)
        if len(allowed) < count:
            raise ExpungeError(
                f"There are {len(allowed)} evaluation prompts for {concept.name!r}, not {count}. Raise "
                "prompts.evaluation_prompts, or lower the protocol's counts."
            )
        return [ScenePrompt(prompt, {slot_of(concept): concept.name}) for prompt in allowed[:count]]

    def _unseen(self, prompts: Sequence[str]) -> list[str]:
        """Those that are no evaluation prompt of any concept that evaluation prompts were asked for: of another one than the
        concept whom they are written about, too."""
        return [prompt for prompt in prompts if tuple(words(prompt)) not in self._evaluated]

    # -- questions ------------------------------------------------------------------------------------------------

    def _names(self, concept: Concept) -> dict[str, list[str]]:
        def check(answer: Any) -> dict[str, list[str]]:
            found = {key: _texts(answer, key, _NAMES) for key in ("related", "unrelated")}
            _distinct([*found["related"], *found["unrelated"]])
            for name in (n for names in found.values() for n in names):
                try:
                    check_name(name)
                except ValueError as error:
                    raise Unusable(f"{quoted(name)} cannot be a name: {error}") from error
                if leak := mentions(name, concept):
                    raise Unusable(f"{name!r} speaks of {leak!r}")
            return found

        return self._asking.ask(
            f"The concept is {_described(concept)}. Name {_NAMES} others of its kind that could stand in its place in a "
            f"picture, the most alike first, and {_NAMES} things that have nothing to do with it. No name may hold the "
            'concept\'s own. Answer {"related": [names], "unrelated": [names]}.',
            check,
        )

    def _training(self, concept: Concept, count: int) -> Iterator[list[str]]:
        """Training prompts in parts, half as many again as `count` at most, in case some are off limits."""
        written = self._prompts(concept, [])
        for _ in range(-(-3 * count // (2 * _PART))):
            part = self._prompts(concept, written)
            written = [*written, *part]
            yield part

    def _prompts(self, concept: Concept, written: Sequence[str]) -> list[str]:
        """Prompts that show the concept and are none of those `written`; the first ones are for evaluation."""
        count = _PART if written else self._config.evaluation_prompts

        def check(answer: Any) -> list[str]:
            prompts = _texts(answer, "prompts", count)
            _distinct([*written, *prompts])
            for prompt in prompts:
                if mentions(prompt, concept) is None:
                    raise Unusable(f"{prompt!r} does not name {concept.name!r}")
            return prompts

        others = f" None may be one of these: {json.dumps(written, ensure_ascii=False)}." if written else ""
        return self._asking.ask(
            f"Write {count} prompts that show {_described(concept)}, each in another scene, in 4 to 12 words. Each names it "
            f'as {" or ".join(json.dumps(n, ensure_ascii=False) for n in concept.names)}.{others} Answer {{"prompts": '
            "[prompts]}.",
            check,
        )

    def _mappings(
        self, concept: Concept, prompts: Sequence[str], replacements: Sequence[str]
    ) -> dict[str, dict[str, str]]:
        """{prompt: {replacement: the prompt with it in the concept's place}}."""
        by_id = {str(i): prompt for i, prompt in enumerate(prompts, 1)}

        def check(answer: Any) -> dict[str, dict[str, str]]:
            pairs = answer.get("mappings")
            if not isinstance(pairs, dict) or set(pairs) != set(by_id):
                raise Unusable(f'"mappings" must have exactly the ids {", ".join(by_id)}')
            for id, mapping in pairs.items():
                if not isinstance(mapping, dict) or set(mapping) != set(replacements):
                    raise Unusable(f"the mappings of id {id} must be for exactly: {', '.join(replacements)}")
                for replacement, prompt in mapping.items():
                    if not isinstance(prompt, str) or mentions(prompt, Concept(name=replacement)) is None:
                        raise Unusable(f"the mapping {prompt!r} of id {id} does not name {replacement!r}")
                    _short(prompt)
                    if leak := mentions(prompt, concept):
                        raise Unusable(f"the mapping {prompt!r} of id {id} speaks of {leak!r}")
            return {by_id[id]: {r: pairs[id][r].strip() for r in replacements} for id in by_id}

        return self._asking.ask(
            f"The concept is {_described(concept)}. Write each of these prompts again with each of these replacements in the "
            "concept's place, and keep the scene. No trace of the concept may be left.\n"
            f"Prompts by id: {json.dumps(by_id, ensure_ascii=False)}\n"
            f"Replacements: {json.dumps(list(replacements), ensure_ascii=False)}\n"
            'Answer {"mappings": {id: {replacement: prompt}}}.',
            check,
        )


def _described(concept: Concept) -> str:
    also = f", also called {' or '.join(concept.aliases)}" if concept.aliases else ""
    never = f", not to be confused with {' or '.join(concept.confusables)}" if concept.confusables else ""
    return f'"{concept.name}" ({concept.kind}{also}{never})'


def _texts(answer: Any, key: str, count: int) -> list[str]:
    """The `count` texts that stand under `key`."""
    texts = answer.get(key)
    if not isinstance(texts, list) or not all(isinstance(t, str) and words(t) for t in texts):
        raise Unusable(f'"{key}" must be a list of texts')
    if len(texts) != count:
        raise Unusable(f'"{key}" must hold {count} texts, not {len(texts)}')
    for text in texts:
        _short(text)
    return [" ".join(t.split()) for t in texts]


def _short(text: str) -> None:
    if (length := len(words(text))) > _LONGEST:
        raise Unusable(f"a text may have at most {_LONGEST} words, and {quoted(text)} has {length}")


def _distinct(texts: Sequence[str]) -> None:
    seen = set()
    for text in texts:
        key = tuple(words(text))
        if key in seen:
            raise Unusable(f"{text!r} stands there twice")
        seen.add(key)
