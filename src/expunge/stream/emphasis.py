"""How much harder than others a concept is held, by what the gate said of it."""

from __future__ import annotations

from collections.abc import Sequence

from expunge.stream.gate import concerned
from expunge.stream.summary import Attempt, StepRecord


def emphasis(accepted: Sequence[StepRecord], retried: StepRecord | None, factor: float) -> dict[str, float]:
    """{concept: what the strength of the attempt at work is multiplied by for it}; 1 for those that are not there.

    A concept keeps what an accepted retry changed for it. Whom a retry at work is not about, it leaves where they were.

    Args:
        accepted: records of the steps that led to the current model, in order.
        retried: the attempt before the one at work, which was not let pass; None in a first attempt.
        factor: by which the method's strength differs from that of a first attempt.
    """
    held: dict[str, float] = {}
    for record in accepted:
        for before, after in zip(record.attempts, record.attempts[1:], strict=False):
            _change(held, before, record.concepts, _factor(before, after))
    if retried:
        forgotten = [c for record in accepted for c in record.concepts]
        held = {c: held.get(c, 1.0) / factor for c in [*forgotten, *retried.concepts]}
        _change(held, retried.attempts[-1], retried.concepts, factor)
    return {concept: value for concept, value in held.items() if value != 1.0}


def _change(held: dict[str, float], missed: Attempt, asked: Sequence[str], factor: float) -> None:
    for concept in concerned(missed.gate, asked):
        held[concept] = held.get(concept, 1.0) * factor


def _factor(before: Attempt, after: Attempt) -> float:
    assert before.strength is not None  # or there would have been no other attempt
    assert after.strength is not None
    return after.strength / before.strength
