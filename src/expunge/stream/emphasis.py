"""How much harder than others a concept is held, or how much less, because of what the gate said of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from expunge.stream.history import Retry


def emphasis(
    before: Iterable[Retry], now: Retry | None, concepts: Sequence[str], own: float, factor: float
) -> dict[str, float]:
    """{concept: what the strength of the attempt at work is multiplied by for it}; 1 for those that are not there.

    A concept keeps what the retry of an accepted step changed for it. A retry at work leaves the others where they were.

    Args:
        before: the retries of the steps that led to the current model.
        now: the retry at work; None in a first attempt.
        concepts: all that were ever requested.
        own: the method's strength in a first attempt.
        factor: by which a retry changes it (`gate.retry_factor`).
    """
    turns: Counter[str] = Counter()
    for retry in [*before, now] if now else before:
        turns.update(dict.fromkeys(retry.about, _turn(retry, own)))
    of_all = _turn(now, own) if now else 0
    return {c: factor ** (turns[c] - of_all) for c in concepts if turns[c] != of_all}


def _turn(retry: Retry, own: float) -> int:
    return 1 if retry.strength > own else -1
