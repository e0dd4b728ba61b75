"""The gate on values that are known beforehand."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pandas as pd
import pytest

from expunge import iconworld
from expunge.errors import ExpungeError
from expunge.evaluation import Row, Value, metrics, protocol_rows
from expunge.evaluation.protocol import Counts
from expunge.stream import gate, preset
from expunge.stream.config import GateConfig
from expunge.stream.named import check_gate
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


def rows(neighbours: int, others: int, forget: int, seeds: int = 1) -> list[Row]:
    """Rows of as many different prompts, each painted with `seeds` seeds."""
    return [
        Row(f"{role}/{i}/{s}", role, "fox", "thing", False, "between", f"{role} {i}", {}, s)
        for role, n in (("neighbour", neighbours), ("other", others), ("forget", forget))
        for i in range(n)
        for s in range(seeds)
    ]


@pytest.mark.parametrize(
    ("prompts", "changes", "sentence"),
    [
        ((22, 22, 29), {}, None),
        ((21, 22, 30), {}, "leads to 21 different prompts of neighbours, and .* needs 22 for gate.max_ira_drop = 0.15"),
        ((22, 21, 30), {}, "21 different prompts of others, and .* needs 22 for gate.max_cra_drop"),
        ((22, 22, 28), {}, "72 different prompts in all, and .* needs 73 for gate.max_collapsed = 0.05"),
        ((16, 22, 40), {"max_ira_drop": 0.2}, None),
        ((400, 400, 400), {"max_collapsed": 0.0}, "needs infinitely many for gate.max_collapsed = 0"),
        ((1, 0, 0), {"enforce": False}, None),
    ],
)
def test_a_gate_that_nothing_could_pass_is_refused(
    prompts: tuple[int, int, int], changes: dict[str, Any], sentence: str | None
) -> None:
    with pytest.raises(ExpungeError, match=sentence) if sentence else nullcontext():
        gate.check_reachable(GateConfig(**changes), rows(*prompts, seeds=3), "mine")


@pytest.mark.parametrize(("prompts", "passes"), [((22, 22, 29), True), ((21, 22, 30), False)])
def test_what_is_refused_is_what_a_model_that_lost_nothing_would_miss(
    prompts: tuple[int, int, int], passes: bool
) -> None:
    asked = rows(*prompts, seeds=2)
    table = pd.DataFrame(
        {"row": [r.id for r in asked], "prompt": [r.prompt for r in asked], "role": [r.role for r in asked]}
    )
    kept = table.assign(shown=table["role"] != "forget", collapsed=False)
    of = {role: kept[kept["role"] == role] for role in ("neighbour", "other")}
    result = measured(
        ira_difference=metrics.difference(of["neighbour"], of["neighbour"], "shown"),
        cra_difference=metrics.difference(of["other"], of["other"], "shown"),
        collapsed=metrics.mean(kept, "collapsed"),
    )
    flawless = Value(value=1.0, low=0.7, high=1.0, n=10)
    unchanged = Value(value=0.0, low=-0.3, high=0.3, n=10)
    assert gate.passed(GateConfig(), gate.checks(GateConfig(), result, {"fox": flawless}, unchanged)) == passes


def test_a_gate_is_judged_by_what_the_first_of_several_steps_is_measured_on() -> None:
    protocol = iconworld.protocol("iconworld-dev-a")
    few = protocol.model_copy(update={"between": Counts(forget=10, neighbours=48, others=48)})
    source = iconworld.vocabulary()
    asked = [[source.concept(name) for name in names] for names in protocol.requests]
    config = preset("anchored-iconworld")
    check_gate(config, source, protocol, asked)
    check_gate(config, source, few, asked[:1])  # the only one is judged on all
    with pytest.raises(ExpungeError, match="different prompts in all"):
        check_gate(config, source, few, asked)
    forgotten = {c.name for concepts in asked for c in concepts}
    shown = {v for row in protocol_rows(protocol, source, asked[0]) if row.role != "forget" for v in row.scene.values()}
    assert not forgotten & shown  # a protocol keeps its own requests out of these rows
    with pytest.raises(ExpungeError, match="0 different prompts of others"):
        check_gate(config, source, protocol, [*asked, [source.concept(name) for name in protocol.others]])


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
