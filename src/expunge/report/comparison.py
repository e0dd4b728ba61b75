"""The page of a comparison: two runs (or evaluations) of one base model, A and B."""

from __future__ import annotations

from expunge.audit import Comparison, Paired, Point, Side
from expunge.concepts import PERSON
from expunge.privacy import Names, prompted
from expunge.report import wording
from expunge.report.measures import METRICS, Tile
from expunge.report.pictures import Album
from expunge.report.side_by_side import (
    MEASURED,
    PointRow,
    SidePage,
    both,
    cards,
    concept_pairs,
    metric_pairs,
    rest,
    unmeasured,
)


def gather(comparison: Comparison) -> SidePage:
    a, b, outcome = comparison.a, comparison.b, comparison.outcome
    names = _names(a, b)
    shelves = (("base", a.base), ("A", outcome.stages[0].shelf), ("B", outcome.stages[1].shelf))
    albums = [(name, Album(shelf)) for name, shelf in shelves]
    groups = {name: g.names for name, g in a.protocol.neighbours.items()}
    paired, requested = outcome.paired, {c.name for side in (a, b) for c in side.concepts}
    judges = sorted({names.text(str(r["judge"])) for _, album in albums for r in album.rows.values()})
    common = albums[1][1].rows.keys() & albums[2][1].rows.keys()
    return SidePage(
        eyebrow="Expunge comparison",
        title=names.text(f"{a.path.resolve().name} against {b.path.resolve().name}"),
        verdict=_verdict(outcome),
        facts=(
            ("A", names.text(f"{a.path.resolve().name}: {_made(a)}")),
            ("B", names.text(f"{b.path.resolve().name}: {_made(b)}")),
            ("Base model", f"{names.text(a.protocol.model)} ({wording.short_digest(a.base_digest)})"),
            ("Protocol", names.text(a.protocol.name)),
        ),
        tiles_caption="B minus A, over pictures of the same prompts and seeds. Ranges are 95% intervals.",
        tiles=tuple(_tile(METRICS[f].name, paired, f) for f in MEASURED),
        names=("A", "B"),
        lead="Each column is one prompt with one seed: the base model above, A in the middle, B below. The first rows are "
        "shown of which both kept a picture. An orange frame marks a picture that shows what it should not, or lost what "
        "it should keep.",
        rows=metric_pairs(paired),
        concepts=concept_pairs(paired, names),
        points=tuple(_point(p) for p in comparison.points) if len(comparison.points) > 1 else (),
        cards=cards(outcome.forgotten, paired, names, groups, albums, requested),
        rest=rest(a.protocol.others, names, albums, requested),
        more=(),
        unmeasured=unmeasured(paired),
        judged=f"the judge {wording.listed(judges)} over {wording.count(len(common), 'picture')} of each",
        glossary=tuple((METRICS[f].name, METRICS[f].meaning) for f in MEASURED),
        origin="the files of A and B",
    )


def told_apart(paired: Paired) -> tuple[list[str], list[str], list[str], list[str]]:
    """Metrics in which B is above A, below it, in which the interval of the difference holds 0, and that were not measured."""
    above: list[str] = []
    below: list[str] = []
    neither: list[str] = []
    missing: list[str] = []
    for field in MEASURED:
        difference = getattr(paired, field).difference
        name = f"{METRICS[field].name} ({wording.points(difference)})"
        if difference is None:
            missing.append(METRICS[field].name)
        elif difference.low <= 0 <= difference.high:
            neither.append(METRICS[field].name)
        else:
            (above if difference.value > 0 else below).append(name)
    return above, below, neither, missing


def _verdict(point: Point) -> str:
    n = len(point.forgotten)
    a, b = (stage.name for stage in point.stages)
    above, below, neither, missing = told_apart(point.paired)
    parts = [f"B is above A in {wording.listed(above)}"] if above else []
    parts += [f"B is below A in {wording.listed(below)}"] if below else []
    parts += [f"in {wording.listed(neither)} the two cannot be told apart"] if neither else []
    parts += [f"{wording.listed(missing)} {'was' if len(missing) == 1 else 'were'} not measured"] if missing else []
    text = "; ".join(parts)
    return (
        f"{wording.capital(text)}. Compared: A after {a}, B after {b}, over {wording.count(n, 'concept')} "
        "that both have forgotten."
    ).replace("after model", "as evaluated")


def _names(a: Side, b: Side) -> Names:
    """A person is called by the requests that name them, of both."""
    labels: dict[str, str] = {}
    for letter, side in (("A", a), ("B", b)):
        for request in side.requests:
            for concept in request.concepts:
                if concept.kind == PERSON:
                    said = f"request {request.id} of {letter}"
                    before = labels.get(concept.name)
                    labels[concept.name] = f"{before} and {said}" if before else said
    return Names([*a.requests, *b.requests], prompted(a.protocol, a.source), labels)


def _made(side: Side) -> str:
    if side.stages[-1].name == "model":
        return side.made
    left = ", ".join(f"{n} {became}" for became, n in sorted(side.left.items()))
    return f"{side.made}, {wording.count(len(side.stages), 'step')}" + (
        f" (of its other requests {left})" if left else ""
    )


def _tile(name: str, paired: Paired, field: str) -> Tile:
    pair = getattr(paired, field)
    detail = f"{wording.points_interval(pair.difference)} ({both(pair, 'AB')})"
    return Tile(name, wording.points(pair.difference), detail)


def _point(point: Point) -> PointRow:
    pairs = [getattr(point.paired, f) for f in MEASURED]
    return PointRow(
        stages=(point.stages[0].name, point.stages[1].name),
        forgotten=len(point.forgotten),
        differences=tuple((wording.points(p.difference), wording.points_interval(p.difference)) for p in pairs),
    )
