"""The stopping rule on made-up checks, where the answer is known."""

from __future__ import annotations

import pytest

from expunge.stopping import Check, StopConfig, relative, verdict

RULE = StopConfig(check_every=10, patience=2, tolerance=0.02, target=0.1)


def _checks(forget: list[float], retain: list[float] | None = None) -> list[Check]:
    return [Check(10 * i, f, r) for i, (f, r) in enumerate(zip(forget, retain or [0.0] * len(forget), strict=True))]


@pytest.mark.parametrize(
    ("forget", "retain", "expected"),
    [
        ([1.0, 0.5, 0.09, 0.05, 0.02], None, "reached"),
        ([1.0, 0.5, 0.12, 0.05, 0.02], None, None),  # at the target for one interval only
        ([1.0, 0.5, 0.31, 0.30, 0.305], None, "settled"),
        ([1.0, 0.5, 0.35, 0.30, 0.305], None, None),  # still falling
        ([1.0, 0.5, 0.09, 0.05, 0.02], [0, 0, 0.1, 0.2, 0.3], None),  # retain still rises
        ([1.0, 0.05, 0.04], None, None),  # the start does not count as long as two intervals are needed after it
    ],
)
def test_training_stops_when_both_distances_have_settled(
    forget: list[float], retain: list[float] | None, expected: str | None
) -> None:
    assert verdict(_checks(forget, retain), RULE, warmup_steps=0) == expected


def test_distances_are_relative_to_the_start() -> None:
    far = [Check(c.step, 50 * c.forget, 50 * c.retain) for c in _checks([1.0, 0.5, 0.09, 0.05, 0.02])]
    assert [c.forget for c in relative(far)] == pytest.approx([1.0, 0.5, 0.09, 0.05, 0.02])
    assert verdict(far, RULE, warmup_steps=0) == "reached"


def test_standing_still_while_the_learning_rate_warms_up_is_not_settling() -> None:
    checks = _checks([1.0, 1.0, 0.995])
    assert verdict(checks, RULE, warmup_steps=0) == "settled"
    assert verdict(checks, RULE, warmup_steps=10) is None


def test_a_concept_that_is_its_mapping_already_has_settled() -> None:
    assert verdict(_checks([0.0, 0.0, 0.0]), RULE, warmup_steps=0) == "reached"
