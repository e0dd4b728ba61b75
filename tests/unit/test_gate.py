"""The gate on values that are known beforehand."""

from __future__ import annotations

import pytest

from expunge.evaluation import Value
from expunge.stream import gate
from expunge.stream.config import GateConfig
from expunge.stream.summary import Attempt, Check, Metrics
from handmade import check

SHARE = Value(value=0.9, low=0.7, high=0.98, n=10)


def measured(**values: Value | None) -> Metrics:
    return Metrics(**{**dict.fromkeys((n for n in Metrics.model_fields if n != "reasons"), SHARE), **values})


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {c.name + (f" of {c.concept}" if c.concept else ""): c for c in checks}


def test_each_check_compares_the_end_that_the_docs_name() -> None:
    result = measured(
        ira_difference=Value(value=-0.05, low=-0.12, high=0.01, n=100),
        cra_difference=Value(value=0.02, low=-0.16, high=0.04, n=100),
        collapsed=Value(value=0.0, low=0.0, high=0.033, n=210),
    )
    context = Value(value=-0.1, low=-0.4, high=0.0, n=10)
    config = GateConfig(forget=0.8)
    found = by_name(gate.checks(config, result, {"fox": SHARE, "neon": SHARE}, context))
    assert {name: c.value for name, c in found.items()} == {
        "ua of fox": 0.9,  # the value, not 0.7
        "ua of neon": 0.9,
        "context drop": 0.1,  # the value, not 0.4
        "ira drop": 0.12,  # the drop that the interval cannot exclude
        "cra drop": 0.16,
        "collapsed": 0.033,
    }
    assert [name for name, c in found.items() if not c.passed] == ["cra drop"]


def test_what_could_not_be_measured_has_failed_however_low_the_bar() -> None:
    result = measured(ira_difference=None, cra_difference=None, collapsed=None)
    config = GateConfig(forget=0, max_ira_drop=1, max_cra_drop=1, max_context_drop=1, max_collapsed=1)
    found = gate.checks(config, result, {"fox": None}, None)
    assert [c.value for c in found] == [None] * 5
    assert not any(c.passed for c in found)
    assert not gate.passed(config, found)
    assert gate.passed(GateConfig(enforce=False), found)  # an experiment goes on all the same


def test_where_prompts_ask_for_nothing_else_no_context_is_asked_for() -> None:
    """A folder's prompts, and a language model's, name what they show and nothing of it apart."""
    found = gate.checks(GateConfig(), measured(), {"fox": SHARE}, None, scenes=False)
    assert [c.name for c in found] == ["ua", "ira drop", "cra drop", "collapsed"]


@pytest.mark.parametrize(
    ("failed", "strength", "factor", "why"),
    [
        ([check("ua of fox", 0.5, 0.8)], 1.0, 1.5, "too little was forgotten"),
        ([check("ira drop", 0.3, 0.15)], 1.0, 1 / 1.5, "too much was lost"),
        ([check("context drop", 0.3, 0.2)], 2.0, 2 / 1.5, "too much was lost"),
        ([check("collapsed", 0.1, 0.05), check("cra drop", 0.2, 0.15)], 1.0, 1 / 1.5, "too much was lost"),
        ([check("ua of fox", 0.5, 0.8), check("ira drop", 0.3, 0.15)], 1.0, None, "more strength would keep less"),
        ([check("ua of fox", None, 0.8)], 1.0, None, "cannot be measured"),
        ([check("ua of fox", 0.5, 0.8)], None, None, "no strength to change"),
    ],
)
def test_the_failed_check_chooses_the_next_strength(
    failed: list[Check], strength: float | None, factor: float | None, why: str
) -> None:
    passed = [check("ua of neon", 1.0, 0.8)]
    chosen, said = gate.next_attempt(GateConfig(), [*passed, *failed], strength, 1)
    assert chosen == (factor and pytest.approx(factor))
    assert why in said
    assert gate.next_attempt(GateConfig(), failed, strength, 2)[0] is None
    assert gate.next_attempt(GateConfig(retries=0), failed, strength, 1)[0] is None


def test_a_rejection_says_which_check_by_how_much_and_what_could_be_done() -> None:
    failed = [check("ua of fox", 0.7, 0.8), check("ira drop", 0.05, 0.15)]
    tried = [Attempt(strength=s, gate=failed, then="") for s in (1.0, 1.5)]
    said = gate.verdict(3, tried, "runs/mine")
    assert "Step 3 did not pass the gate: UA of fox is 0.700, 0.100 under the limit of 0.8." in said
    assert "IRA" not in said
    assert "strength 1 and 1.5" in said
    assert "`expunge accept runs/mine 3 --reason WHY`" in said
    assert "more method.strength" in said
    (without,) = [Attempt(strength=None, gate=failed, then="the method has no strength to change")]
    assert "start a run with more train.steps." in gate.verdict(3, [without], "runs/mine")
    unmeasured = [Attempt(strength=1.0, gate=[check("context drop", None, 0.2)], then="no attempt is left")]
    assert "context below the base model's could not be measured" in gate.verdict(1, unmeasured, "runs/mine")
