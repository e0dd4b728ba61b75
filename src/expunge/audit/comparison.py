"""Two runs (or evaluations) of one base model under one protocol, side by side.

They are compared wherever both have forgotten the same concepts, and at the end over the concepts that both have forgotten,
if these are more. Only rows that both painted count, so that every difference is between pictures of one prompt and seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from expunge.audit.audit import Audit
from expunge.audit.paired import Paired, compare_tables
from expunge.concepts import Concept, Request
from expunge.errors import ExpungeError
from expunge.evaluation import Protocol
from expunge.hardware import Precision
from expunge.prompts import PromptSource
from expunge.stream import Run
from expunge.stream.judged import Shelf, read_table

_OTHER = (
    "The protocol {}, or what its prompts are written from, is not what {} was measured with, so there is no saying what was "
    "measured. Put it back as it was, or measure anew."
)


@dataclass(frozen=True)
class Stage:
    """A model of one side. `name`: "step 3", or "model" for an evaluation; `forgotten`: what it should not show."""

    name: str
    forgotten: tuple[str, ...]
    shelf: Shelf


@dataclass(frozen=True)
class Side:
    """One of the two. `made`: the method of a run, or what was evaluated; `requests`: for an evaluation one per concept;
    `left`: {what became of a run's requests that are in none of its stages ("waiting" among it): how many}."""

    path: Path
    made: str
    base_digest: str
    protocol: Protocol
    precision: Precision
    source: PromptSource
    base: Shelf
    requests: tuple[Request, ...]
    stages: tuple[Stage, ...]
    left: Mapping[str, int] = field(default_factory=dict)

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """All that it was asked to forget."""
        return tuple(c for request in self.requests for c in request.concepts)


@dataclass(frozen=True)
class Point:
    """Where the two are compared: a stage of each, the concepts that both have forgotten there, and what was found.

    `paired` has A as the first, B as the second: a difference is B minus A.
    """

    stages: tuple[Stage, Stage]
    forgotten: tuple[str, ...]
    paired: Paired


@dataclass(frozen=True)
class Comparison:
    """`points` in order; the last one is the outcome. There is at least one."""

    a: Side
    b: Side
    points: tuple[Point, ...]

    @property
    def outcome(self) -> Point:
        return self.points[-1]


def compare(a: str | Path, b: str | Path) -> Comparison:
    """Compare two runs, two evaluations, or one with the other.

    Raises:
        ExpungeError: when one of them is neither, is not finished, or the two have another base model, another protocol,
            other prompts or another precision, or have forgotten no concept in common.
    """
    sides = open_side(Path(a)), open_side(Path(b))
    _check(*sides)
    first, second = sides
    requested = list(dict.fromkeys(c.name for side in sides for c in side.concepts))
    points = []
    for one in first.stages:
        for other in second.stages:
            if set(one.forgotten) == set(other.forgotten):
                points.append(_point((one, other), one.forgotten, requested))
    end = first.stages[-1], second.stages[-1]
    both = tuple(name for name in end[0].forgotten if name in end[1].forgotten)
    if not both:
        raise ExpungeError(f"{a} and {b} have forgotten no concept in common, so there is nothing to compare.")
    if not points or len(both) > len(points[-1].forgotten):
        points.append(_point(end, both, requested))
    return Comparison(first, second, tuple(points))


def open_side(path: Path) -> Side:
    """The run or the evaluation in `path`.

    Raises:
        ExpungeError: when it holds neither, or nothing finished.
    """
    if (path / "audit.toml").is_file():
        return _evaluation(Audit(path))
    if (path / "run.toml").is_file():
        return _run(Run(path))
    raise ExpungeError(f"{path} holds neither a run (run.toml) nor an evaluation (audit.toml).")


def _run(run: Run) -> Side:
    if run.directory.events()[0].get("protocol", run.protocol.digest) != run.protocol.digest:
        raise ExpungeError(_OTHER.format(run.config.evaluate.protocol, run.directory.path))
    accepted = [r for r in run.records if r.status == "accepted"]
    if not accepted:
        raise ExpungeError(f"{run.directory.path} has no accepted step yet, so there is no model to compare.")
    status = run.history.status
    stages: list[Stage] = []
    for record in accepted:
        before = stages[-1].forgotten if stages else ()
        step = run.directory.step(record.index)
        stages.append(Stage(f"step {record.index}", (*before, *record.concepts), step.shelf))
    return Side(
        path=run.directory.path,
        made=run.config.method_name,
        base_digest=run.config.model.digest,
        protocol=run.protocol,
        precision=run.config.evaluate.precision,
        source=run.source,
        base=run.directory.base,
        requests=tuple(run.requests),
        stages=tuple(stages),
        left=Counter(
            became for became in (status.get(r.step, "waiting") for r in run.requests) if became != "accepted"
        ),
    )


def _evaluation(audit: Audit) -> Side:
    if audit.rows != audit.config.rows:
        raise ExpungeError(_OTHER.format(audit.config.evaluate.protocol, audit.path))
    made = audit.summary().model
    return Side(
        path=audit.path,
        made=f"{made.name} ({made.kind})",
        base_digest=audit.config.base.digest,
        protocol=audit.protocol,
        precision=audit.config.evaluate.precision,
        source=audit.source,
        base=audit.base,
        requests=audit.requests,
        stages=(Stage("model", audit.config.forgotten, audit.model),),
    )


def _check(a: Side, b: Side) -> None:
    where = f"{a.path} and {b.path} cannot be compared:"
    if a.base_digest != b.base_digest:
        raise ExpungeError(f"{where} the base model of one is {a.base_digest}, of the other {b.base_digest}.")
    if a.protocol != b.protocol:
        raise ExpungeError(
            f"{where} the protocol of one is {a.protocol.name}, of the other {b.protocol.name}, or a file of that name "
            "that says something else."
        )
    if a.precision != b.precision:
        raise ExpungeError(
            f"{where} one was painted in {a.precision}, the other in {b.precision}. Make one of them anew with "
            f"--set evaluate.precision={a.precision}."
        )
    one, other = (read_table(side.base.judgements, ["row", "prompt", "seed"]) for side in (a, b))
    pair = one.merge(other, on="row", suffixes=("_a", "_b"))
    for column in ("prompt", "seed"):
        if (pair[f"{column}_a"] != pair[f"{column}_b"]).any():
            raise ExpungeError(f"{where} their rows have other {column}s. Both need the same source of prompts.")


def _point(stages: tuple[Stage, Stage], forgotten: Sequence[str], requested: Sequence[str]) -> Point:
    first, second = (read_table(stage.shelf.judgements) for stage in stages)
    return Point(stages, tuple(forgotten), compare_tables(first, second, forgotten, requested))
