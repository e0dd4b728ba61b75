"""What is measured: which concepts, which prompts, which seeds, which sampler. Fixed before anything is tuned.

A protocol is one TOML file. Its rows (prompt, seed) are the same for the base model and for every step; the neighbours
and the others hold no concept that the protocol ever forgets, and half of each neighbour group is held out from training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from expunge import seeds
from expunge.concepts import Concept, words
from expunge.evaluation.judge import Question, Subject
from expunge.files import canonical_json, digest_bytes
from expunge.prompts import PromptSource
from expunge.schema import Strict, read_toml

Role = Literal["forget", "neighbour", "other"]
Level = Literal["between", "final"]
Pictures = Annotated[int, Field(ge=1, le=100_000)]


class SamplerConfig(Strict):
    """How evaluation pictures are sampled; `batch_size` fixes the batch boundaries, so that rows stay comparable."""

    solver: str
    steps: int = Field(ge=1, le=1000)
    guidance: float = Field(ge=1.0, le=100.0)
    batch_size: int = Field(48, ge=1, le=10_000)


class Counts(Strict):
    """Pictures per concept to forget, and in all for neighbours (IRA) and others (CRA). At the end each has one at least."""

    forget: Pictures
    neighbours: Pictures
    others: Pictures


class Neighbours(Strict):
    """Neighbours of a concept: those that training may replay, and those that it never sees."""

    replayed: tuple[str, ...]
    held_out: tuple[str, ...] = Field(min_length=1)

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.held_out, *self.replayed)


class Protocol(Strict):
    """A protocol file.

    Attributes:
        model: name of the model that it measures: a hub id, or the name of the pipeline's folder, also of a built-in one.
        judge: who judges its pictures: "iconworld", "clip:MODEL" or "vl:MODEL" (docs/judges.md).
        also: further judges of the same pictures, whose answers `expunge evaluate` sets beside those of `judge`.
        requests: the sequence of requests that the protocol is made for, each a list of concepts.
        neighbours: {concept of the requests: its neighbours}.
        others: concepts that measure the rest (CRA).
        scenes: {slot: values that evaluation prompts use}; values that are ever forgotten are left out by themselves.
        between, final: counts after every step, and after the last one.
        seeds_per_prompt: each prompt is painted with this many seeds.
        enough: half the width of a 95 % interval at which enough of a model's pictures were seen: no more are painted of a
            concept to forget (UA), of neighbours (IRA) or of others (CRA). None for all. The base model is painted whole.
    """

    schema_: Literal[1] = Field(alias="schema")
    name: str
    model: str
    judge: str
    also: tuple[str, ...] = ()
    seed: int
    requests: tuple[tuple[str, ...], ...]
    neighbours: dict[str, Neighbours]
    others: tuple[str, ...] = Field(min_length=1)
    scenes: dict[str, tuple[str, ...]] = {}
    seeds_per_prompt: int = Field(2, ge=1, le=1000)
    sampler: SamplerConfig
    between: Counts
    final: Counts
    enough: float | None = Field(None, gt=0, lt=0.5)

    @classmethod
    def read(cls, path: Path) -> Self:
        return read_toml(cls, path, f"The protocol file {path}")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        forgotten = {name for request in self.requests for name in request}
        if missing := sorted(forgotten - set(self.neighbours)):
            raise ValueError(f"no neighbours are given for {missing}")
        if both := sorted(forgotten & set(self.measured)):
            raise ValueError(f"{both} would be forgotten and retained")
        replayed = {n for group in self.neighbours.values() for n in group.replayed}
        if both := sorted(replayed & self.held_out):
            raise ValueError(f"{both} would be replayed and held out")
        neighbours = replayed | self.held_out
        if both := sorted(set(self.others) & neighbours):
            raise ValueError(f"{both} would count as neighbours and as others")
        if twice := sorted({name for name in self.others if self.others.count(name) > 1}):
            raise ValueError(f"{twice} are named twice among the others")
        if len({self.judge, *self.also}) <= len(self.also):
            raise ValueError("a judge is named twice (judge, also)")
        for counts in ("forget", "neighbours", "others"):
            if getattr(self.between, counts) > getattr(self.final, counts):
                raise ValueError(f"between.{counts} must not be above final.{counts}")
        for counts, named in (("neighbours", len(neighbours)), ("others", len(self.others))):
            if getattr(self.final, counts) < named:
                raise ValueError(f"final.{counts} must be at least {named}: a picture of each that is named")
        return self

    def at_most(self, pictures: int) -> Self:
        """The same with no more than `pictures` painted at once. A picture changes by rounding alone."""
        sampler = {"batch_size": min(pictures, self.sampler.batch_size)}
        return self.model_copy(update={"sampler": self.sampler.model_copy(update=sampler)})

    @property
    def measured(self) -> list[str]:
        """Names of the neighbours and of the others."""
        return [n for names in (*(group.names for group in self.neighbours.values()), self.others) for n in names]

    @property
    def digest(self) -> str:
        """Of what decides a run's pictures. What is not said counts as its default."""
        told = self.model_dump(mode="json", by_alias=True, exclude={"also"}, exclude_defaults=True)
        return digest_bytes(canonical_json(told).encode())

    @property
    def held_out(self) -> frozenset[str]:
        """Neighbours that are never trained on."""
        return frozenset(n for group in self.neighbours.values() for n in group.held_out)


@dataclass(frozen=True)
class Row:
    """One picture that is painted and judged: the same for every model."""

    id: str
    role: Role
    concept: str
    slot: str
    replayed: bool
    level: Level
    prompt: str
    scene: Mapping[str, str]
    seed: int
    subjects: Mapping[str, Subject] = field(default_factory=dict)

    @property
    def measures(self) -> tuple[str, str]:
        """What it is counted for: its role, and its concept if that is to be forgotten."""
        return self.role, self.concept if self.role == "forget" else ""

    @property
    def question(self) -> Question:
        """What the judge is asked about the row's picture."""
        return Question(self.concept, self.slot, self.scene, self.subjects)


def retention_rows(protocol: Protocol, source: PromptSource) -> list[Row]:
    """The rows of the neighbours, then of the others."""
    neighbours = list(dict.fromkeys(n for g in protocol.neighbours.values() for n in g.names))
    return [
        *_rows(protocol, source, "neighbour", neighbours, protocol.between.neighbours, protocol.final.neighbours),
        *_rows(protocol, source, "other", protocol.others, protocol.between.others, protocol.final.others),
    ]


def forget_rows(protocol: Protocol, source: PromptSource, concept: Concept) -> list[Row]:
    """The rows of one concept to forget; the same whether it was requested early, late, or never."""
    return _rows(protocol, source, "forget", [concept.name], protocol.between.forget, protocol.final.forget)


def protocol_rows(protocol: Protocol, source: PromptSource, concepts: Iterable[Concept]) -> list[Row]:
    """All rows of a model that was asked to forget `concepts`: each concept's own, then those of retention."""
    forget = [row for concept in concepts for row in forget_rows(protocol, source, concept)]
    return [*forget, *retention_rows(protocol, source)]


def batches(rows: Sequence[Row], size: int) -> Iterable[Sequence[Row]]:
    """Fixed batches: rows of one level that measure the same are painted together, some of every concept first."""
    seen: Counter[tuple[str, str, str]] = Counter()
    groups: dict[tuple[str, ...], list[tuple[int, Row]]] = {}
    for row in rows:
        of = (row.level, row.role, row.concept)
        groups.setdefault((*row.measures, row.level), []).append((seen[of], row))
        seen[of] += 1
    for group in groups.values():
        turns = [row for _, row in sorted(group, key=lambda turn: turn[0])]
        for start in range(0, len(turns), size):
            yield turns[start : start + size]


def _rows(
    protocol: Protocol, source: PromptSource, role: Role, names: Sequence[str], between: int, final: int
) -> list[Row]:
    """`final` rows in all, spread evenly over `names`; the first ones of each, `between` in all, are of level "between"."""
    avoid = frozenset(n for request in protocol.requests for n in request)
    subject = cache(lambda value: _subject(protocol, source, value))
    rows = []
    for place, name in enumerate(names):
        count, early = (len(range(place, n, len(names))) for n in (final, between))
        per = protocol.seeds_per_prompt
        concept = source.concept(name)
        prompts = source.evaluation_prompts(
            concept, -(-count // per), seeds.derive(protocol.seed, "prompts") % 2**32, avoid, protocol.scenes
        )
        slot = next(s for s, v in prompts[0].scene.items() if v == concept.name)
        for i in range(count):
            row = f"{role}/{concept.name}/{i}"
            scene = prompts[i // per]
            rows.append(
                Row(
                    id=row,
                    role=role,
                    concept=concept.name,
                    slot=slot,
                    replayed=role == "neighbour" and concept.name not in protocol.held_out,
                    level="between" if i < early else "final",
                    prompt=scene.prompt,
                    scene=scene.scene,
                    seed=seeds.derive(protocol.seed, row) % 2**32,
                    subjects={s: subject(value) for s, value in scene.scene.items()},
                )
            )
    return rows


def _subject(protocol: Protocol, source: PromptSource, name: str) -> Subject:
    """The concept `name` in words. What the protocol calls its neighbours must not count as it either."""
    concept = source.concept(name)
    group = protocol.neighbours.get(name)
    near = [*concept.confusables, *(group.names if group else ())]
    own = [words(n) for n in concept.names]
    beside = source.alternatives(concept) or _company(protocol, own)
    alternatives = tuple(n for n in dict.fromkeys([*near, *beside]) if words(n) not in own)
    confusables = tuple(n for n in alternatives if n in near)
    return Subject(concept.model_copy(update={"confusables": confusables}), alternatives)


def _company(protocol: Protocol, own: Sequence[Sequence[str]]) -> list[str]:
    """Whom the protocol counts with a concept, its names (as words) among them: a neighbour's concept and the rest of that
    group, or all others."""
    groups = [(name, *group.names) for name, group in protocol.neighbours.items()]
    return [n for group in (*groups, protocol.others) if any(words(m) in own for m in group) for n in group]
