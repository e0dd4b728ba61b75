"""The UA matrix: what became of every concept over the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from expunge.evaluation import Value
from expunge.privacy import Names
from expunge.report import wording
from expunge.stream import StepRecord, Summary


@dataclass(frozen=True)
class Cell:
    """One cell of the UA matrix. `kind`: "missing", "before" its turn, "own" turn, "after" it, or not "taken"."""

    kind: str
    text: str
    title: str
    colour: str = ""
    strength: float = 0.0


@dataclass(frozen=True)
class MatrixRow:
    name: str
    cells: tuple[Cell, ...]


def ua_after(summary: Summary, concept: str, step: int) -> Value | None:
    """The concept's UA after a step."""
    place = [s.index for s in summary.steps].index(step)
    return summary.ua_matrix[summary.concepts.index(concept)][place]


def matrix(
    summary: Summary, records: Sequence[StepRecord], turn: Mapping[str, int], names: Names
) -> tuple[MatrixRow, ...]:
    """
    Args:
        records: of the summary's steps, the columns.
        turn: the accepted step at which each concept was forgotten.
    """
    return tuple(
        MatrixRow(
            names.label(concept),
            tuple(
                _cell(
                    f"{names.label(concept)}, step {r.index}", r, turn.get(concept), ua_after(summary, concept, r.index)
                )
                for r in records
            ),
        )
        for concept in summary.concepts
    )


def _cell(where: str, record: StepRecord, own: int | None, value: Value | None) -> Cell:
    if value is None:
        return Cell("missing", wording.UNMEASURED, f"{where}: not measured")
    if own is not None and record.index == own:
        kind, when = "own", "forgotten at this step"
    elif record.status != "accepted":
        kind, when = (
            "untaken",
            "the step was withdrawn" if record.status == "withdrawn" else "the step was not taken",
        )
    elif own is None or record.index < own:
        kind, when = "before", "before its turn"
    else:
        kind, when = "after", "forgotten earlier"
    unknown = f", {value.unknown} of them unknown" if value.unknown else ""
    shown = wording.count(value.n, "picture")
    title = f"{where}: UA {wording.share(value)} ({wording.share_interval(value)}), {shown}{unknown}, {when}"
    colour = "good" if value.value >= 0.5 else "bad"
    strength = round(0.08 + 0.5 * abs(value.value - 0.5) * 2, 3)
    return Cell(kind, f"{wording.percent(value.value)}%", title, colour, strength)
