"""The gate: what a step must reach before its model replaces the one before it, and what may be tried where it does not.

Forgetting and context are measured on few pictures of a concept (ten between steps), of which no interval excludes much: their
value is compared. Retention and collapse are measured on hundreds, and their claim is that nothing was harmed: the end of
the interval that is worst for the model is compared, the harm that the pictures cannot exclude. See docs/runs.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count

from expunge.errors import ExpungeError
from expunge.evaluation import Row, Value
from expunge.evaluation.metrics import never_seen
from expunge.stream.config import GateConfig
from expunge.stream.summary import Attempt, Check, CheckName, Metrics

CHECKS: Mapping[CheckName, str] = {
    "ua": "UA",
    "context drop": "context below the base model's",
    "ira drop": "IRA below the base model's, upper end",
    "cra drop": "CRA below the base model's, upper end",
    "collapsed": "share of collapsed pictures, upper end",
}


def checks(
    config: GateConfig,
    result: Metrics,
    accuracies: Mapping[str, Value | None],
    context: Value | None,
    scenes: bool = True,
) -> list[Check]:
    """
    Args:
        accuracies: UA of each concept forgotten so far.
        context: paired difference from the base model, over pictures of these concepts.
        scenes: whether their prompts ask for anything else, of which context could be lost.
    """
    kept = [_check("context drop", 0.0 - context.value if context else None, config.max_context_drop)] if scenes else []
    ira, cra = (0.0 - d.low if d else None for d in (result.ira_difference, result.cra_difference))
    return [
        *(_check("ua", v.value if v else None, config.forget, concept) for concept, v in accuracies.items()),
        *kept,
        _check("ira drop", ira, config.max_ira_drop),
        _check("cra drop", cra, config.max_cra_drop),
        _check("collapsed", result.collapsed.high if result.collapsed else None, config.max_collapsed),
    ]


def check_reachable(config: GateConfig, rows: Sequence[Row], protocol: str) -> None:
    """Whether a model that lost nothing would pass, judged by `rows`.

    Raises:
        ExpungeError: when so few different prompts could not show it, whatever a method does.
    """
    if not config.enforce:
        return
    of = {role: {row.prompt for row in rows if row.role == role} for role in ("neighbour", "other")}
    for what, prompts, field in (
        ("of neighbours", of["neighbour"], "max_ira_drop"),
        ("of others", of["other"], "max_cra_drop"),
        ("in all", {row.prompt for row in rows}, "max_collapsed"),
    ):
        limit = getattr(config, field)
        if (found := never_seen(len(prompts))) > limit:
            needed = next(n for n in count(1) if never_seen(n) <= limit) if limit else "infinitely many"
            raise ExpungeError(
                f"No step could pass the gate: the protocol {protocol} leads to {len(prompts)} different prompts {what}, and "
                f"even a model that loses nothing needs {needed} for gate.{field} = {limit:g} (the 95 % interval reaches "
                f"{found:.2f}). More evaluation templates, scenes or concepts make more prompts, and seeds_per_prompt = 1 "
                f"spreads the same pictures over more of them; or raise gate.{field}, or set gate.enforce=false."
            )


def passed(config: GateConfig, found: Sequence[Check]) -> bool:
    return not config.enforce or all(c.passed for c in found)


def next_attempt(
    config: GateConfig, found: Sequence[Check], strength: float | None, tries: int
) -> tuple[float | None, str]:
    """The strength to try next and why, or None and why not.

    Args:
        found: the checks of the attempt that was not let pass.
        strength: the attempt's; None for a method that has none.
        tries: attempts so far.
    """
    failed = [c for c in found if not c.passed]
    forgetting = any(c.name == "ua" for c in failed)
    keeping = any(c.name != "ua" for c in failed)
    if tries > config.retries:
        return None, "no attempt is left"
    if strength is None:
        return None, "the method has no strength to change"
    if any(c.value is None for c in failed):
        return None, "what cannot be measured is not mended by another strength"
    if forgetting and keeping:
        return None, "more strength would keep less, and less of it would forget less"
    if forgetting:
        return strength * config.retry_factor, "too little was forgotten"
    return strength / config.retry_factor, "too much was lost"


def concerned(found: Sequence[Check], asked: Sequence[str]) -> frozenset[str]:
    """Because of whom another attempt is made: concepts that show too often; or where too much was lost, `asked`, the
    concepts of the step, since the model before it was let pass.

    Args:
        found: the checks of the attempt that was not let pass.
    """
    return frozenset(c.concept for c in found if c.concept and not c.passed) or frozenset(asked)


def missed(check: Check) -> str:
    """Which check failed, and by how much."""
    name = CHECKS[check.name] + (f" of {check.concept}" if check.concept else "")
    if check.value is None:
        return f"{name} could not be measured"
    side = "under" if check.at_least else "over"
    return (
        f"{name} is {check.value:.3f}, {abs(check.value - check.threshold):.3f} {side} the limit of {check.threshold:g}"
    )


def verdict(step: int, attempts: Sequence[Attempt], run: str) -> str:
    """Sentences about a step that was rejected: which gate, by how much, what was tried, and what could be done."""
    last = attempts[-1]
    failed = [c for c in last.gate if not c.passed]
    said = [f"Step {step} did not pass the gate: {'; '.join(missed(c) for c in failed)}."]
    if len(attempts) > 1:
        said.append(f"It was tried with strength {' and '.join(f'{a.strength:g}' for a in attempts)}.")
    else:
        said.append(f"It was not tried again: {last.then}.")
    said.append("The model before it stays current.")
    said.append(
        f"`expunge accept {run} {step} --reason WHY` takes its model all the same; `expunge resume {run}` leaves it out."
    )
    if any(c.value is None for c in failed):
        said.append("What was not measured needs a protocol and a judge that can.")
    elif all(c.name == "ua" for c in failed):
        more = "more train.steps" if last.strength is None else "more method.strength or more train.steps"
        said.append(f"To forget more, start a run with {more}.")
    elif all(c.name != "ua" for c in failed):
        less = "fewer train.steps" if last.strength is None else "less method.strength"
        said.append(f"To keep more, start a run with {less}, or measure by more prompts.")
    else:
        said.append("To forget more and keep more, start a run with more train.steps or a lower train.learning_rate.")
    return " ".join(said)


def _check(name: CheckName, value: float | None, threshold: float, concept: str | None = None) -> Check:
    at_least = name == "ua"
    reached = value is not None and (value >= threshold if at_least else value <= threshold)
    return Check(name=name, concept=concept, value=value, threshold=threshold, at_least=at_least, passed=reached)
