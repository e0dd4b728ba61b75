"""A page about two models over the same rows: what it says, and the parts that an evaluation and a comparison share."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from expunge.audit import Pair, Paired
from expunge.privacy import Names
from expunge.report import wording
from expunge.report.measures import METRICS, MetricRow, Tile, Unmeasured
from expunge.report.pictures import Album, Column, Strip, columns, neighbour

MEASURED = ("ua", "context", "ira", "cra")
"""The fields of `Paired`."""
_REST = 6
"""Columns of the strip of unrelated concepts."""


@dataclass(frozen=True)
class PairRow:
    """One measured quantity: the first model's value, the second's, and second minus first."""

    name: str
    meaning: str
    first: str
    first_interval: str
    second: str
    second_interval: str
    difference: str
    interval: str
    n: str


@dataclass(frozen=True)
class Card:
    """One forgotten concept."""

    title: str
    facts: str
    note: str
    strips: tuple[Strip, ...]


@dataclass(frozen=True)
class PointRow:
    """Where the two were compared: the stage of each, how many concepts both had forgotten, differences with intervals."""

    stages: tuple[str, str]
    forgotten: int
    differences: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class SidePage:
    """`names`: what the first and the second model are called in headings."""

    eyebrow: str
    title: str
    verdict: str
    facts: tuple[tuple[str, str], ...]
    tiles_caption: str
    tiles: tuple[Tile, ...]
    names: tuple[str, str]
    lead: str
    rows: tuple[PairRow, ...]
    concepts: tuple[PairRow, ...]
    points: tuple[PointRow, ...]
    cards: tuple[Card, ...]
    rest: Strip | None
    more: tuple[MetricRow, ...]
    unmeasured: tuple[Unmeasured, ...]
    judged: str
    glossary: tuple[tuple[str, str], ...]
    origin: str


def pair_row(name: str, meaning: str, pair: Pair) -> PairRow:
    return PairRow(
        name=name,
        meaning=meaning,
        first=wording.share(pair.first),
        first_interval=wording.share_interval(pair.first),
        second=wording.share(pair.second),
        second_interval=wording.share_interval(pair.second),
        difference=wording.points(pair.difference),
        interval=wording.points_interval(pair.difference),
        n=wording.counted(pair.difference) if pair.difference else "",
    )


def both(pair: Pair, models: Sequence[str]) -> str:
    """The two values in words."""
    return ", ".join(
        f"{model}\N{NO-BREAK SPACE}{wording.share(v)}"
        for model, v in zip(models, (pair.first, pair.second), strict=True)
    )


def metric_pairs(paired: Paired) -> tuple[PairRow, ...]:
    return tuple(pair_row(METRICS[f].name, METRICS[f].meaning, getattr(paired, f)) for f in MEASURED)


def concept_pairs(paired: Paired, names: Names) -> tuple[PairRow, ...]:
    return tuple(pair_row(names.label(c), "UA of this concept", pair) for c, pair in paired.concepts.items())


def unmeasured(paired: Paired) -> tuple[Unmeasured, ...]:
    pairs = {METRICS[f].name: getattr(paired, f) for f in MEASURED}
    return tuple(Unmeasured(name, pair.reason, "") for name, pair in pairs.items() if pair.reason)


def cards(
    forgotten: Sequence[str],
    paired: Paired,
    names: Names,
    groups: Mapping[str, Sequence[str]],
    albums: Sequence[tuple[str, Album]],
    requested: Collection[str],
) -> tuple[Card, ...]:
    """One card for each forgotten concept, with pictures of it and of a neighbour; none of a person.

    Args:
        requested: names that were ever asked to go.
        groups: {concept: its neighbours}.
        albums: the base model first.
    """
    found = []
    labels = tuple(name for name, _ in albums)
    for concept in forgotten:
        pair = paired.concepts[concept]
        facts = f"UA: {both(pair, labels[-2:])}"
        title = names.label(concept)
        if names.private(concept):
            found.append(Card(title, facts, "Prompts and pictures of a person are not shown.", ()))
            continue
        strips = [Strip(f"Forget: {title}", labels, _kept(columns("forget", concept, albums, names, wanted=False)))]
        if near := neighbour(groups.get(concept, ()), albums[-1][1], names, requested):
            pictured = columns("neighbour", near, albums, names, wanted=True, free_of=requested)
            strips.append(Strip(f"Neighbour: {names.label(near)}", labels, _kept(pictured)))
        strips = [s for s in strips if s.columns]
        note = "" if strips else "No picture was kept of a row that all models painted."
        found.append(Card(title, facts, note, tuple(strips)))
    return tuple(found)


def rest(
    others: Sequence[str], names: Names, albums: Sequence[tuple[str, Album]], requested: Collection[str]
) -> Strip | None:
    """One picture each of the first unrelated concepts; of none that was `requested` to go."""
    public = [c for c in others if not names.private(c)]
    found = _kept(
        [c for n in public for c in columns("other", n, albums, names, wanted=True, free_of=requested, count=1)]
    )
    return Strip("Unrelated concepts", tuple(name for name, _ in albums), found[:_REST]) if found else None


def _kept(found: Sequence[Column]) -> tuple[Column, ...]:
    """Columns of which every model after the base model kept the picture."""
    return tuple(column for column in found if all(picture.uri for picture in column.pictures[1:]))
