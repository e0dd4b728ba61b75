"""When training has done its work: one rule in place of steps that are tuned by hand for each concept.

Every few optimizer steps two distances are measured on held-out rows, which are the same at every check and which no step
trains on:

    forget   the method's loss `unlearn` (re-steering: student(forget) against teacher(mapping), a score distance)
    retain   the sum of its other losses (distillation: student(retain) against teacher(retain))

Both are stated in units of the forget distance before the first step, so forget begins at 1, and a concept far from its
mapping prompts is measured by the same rule as one that is near.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from expunge.schema import Strict

Reason = Literal["steps", "reached", "settled"]


class StopConfig(Strict):
    """Training stops at the first check at which, over the last `patience` intervals between checks, retain has moved by at
    most `tolerance`, and forget has stayed at or below `target` or has moved by at most `tolerance` too.

    Attributes:
        check_every: optimizer steps between checks.
        patience: intervals that must agree. Checks within the warm-up of the learning rate do not count.
        tolerance: most that a distance may move (largest less smallest) and still be settled.
        target: forget distance at which the concept is gone as far as training can tell; 0 asks for settling alone.
        batches: held-out micro-batches per check and process.
    """

    check_every: int = Field(10, ge=1)
    patience: int = Field(3, ge=1)
    tolerance: float = Field(0.02, ge=0)
    target: float = Field(0.1, ge=0)
    batches: int = Field(4, ge=1)


@dataclass(frozen=True)
class Check:
    """Mean distances on the held-out rows after `step` optimizer steps; the first check has `step` 0."""

    step: int
    forget: float
    retain: float


def relative(checks: Sequence[Check]) -> list[Check]:
    """`checks` in units of the first one's forget distance (as they are, where that is 0: there was nothing to forget)."""
    start = checks[0].forget or 1.0
    return [Check(c.step, c.forget / start, c.retain / start) for c in checks]


def verdict(checks: Sequence[Check], config: StopConfig, warmup_steps: int) -> Reason | None:
    """ "reached" (forget is at its target) or "settled" (it stays above) where training may stop, else None.

    Args:
        checks: all checks so far, that of step 0 first.
    """
    window = [c for c in relative(checks) if c.step >= warmup_steps][-config.patience - 1 :]
    if len(window) <= config.patience or not _settled([c.retain for c in window], config.tolerance):
        return None
    forget = [c.forget for c in window]
    if max(forget) <= config.target:
        return "reached"
    return "settled" if _settled(forget, config.tolerance) else None


def _settled(values: Sequence[float], tolerance: float) -> bool:
    return max(values) - min(values) <= tolerance
