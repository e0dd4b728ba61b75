"""`summary.json`, schema 1: what a run did and measured, made anew from the run's files after every step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import Field

from expunge.concepts import Request
from expunge.evaluation import Value, metrics
from expunge.files import read_json
from expunge.schema import Result, validated
from expunge.stopping import Reason

Status = Literal["accepted", "rejected", "withdrawn"]
CheckName = Literal["ua", "context drop", "ira drop", "cra drop", "collapsed"]


class Metrics(Result):
    """What a step is measured by. A value is None where it could not be measured; `reasons` says why."""

    ua: Value | None
    ua_recognisable: Value | None
    context: Value | None
    recognisable: Value | None
    ira: Value | None
    ira_unreplayed: Value | None
    cra: Value | None
    harmonic_mean: Value | None
    ira_difference: Value | None
    cra_difference: Value | None
    kid_judge: Value | None
    image_drift: Value | None
    weight_drift: Value | None
    collapsed: Value | None
    reasons: dict[str, str] = {}


class Check(Result):
    """One threshold of the gate. Unmeasured is failed.

    Attributes:
        name: "ua" of one `concept`; "context drop", "ira drop" or "cra drop" against the base model; or "collapsed".
        value: what is compared (expunge.stream.gate says which end of which interval).
        at_least: whether `value` must be at least `threshold`, or at most.
    """

    name: CheckName
    concept: str | None = None
    value: float | None
    threshold: float
    at_least: bool
    passed: bool


class Seconds(Result):
    choose: float = 0.0
    replay: float = 0.0
    train: float = 0.0
    save: float = 0.0
    evaluate: float = 0.0
    total: float = 0.0

    def plus(self, other: Seconds) -> Seconds:
        return Seconds(**{name: value + getattr(other, name) for name, value in self})


class EvaluationCounts(Result):
    """Denoiser evaluations of the step's training and its preparation, per latent."""

    forward: int
    backward: int

    def plus(self, other: EvaluationCounts) -> EvaluationCounts:
        return EvaluationCounts(forward=self.forward + other.forward, backward=self.backward + other.backward)


class StepSummary(Result):
    """One step; `step.json` is this, with the digests of the step's files and the gate's checks."""

    index: int
    request: str
    concepts: list[str]
    status: Status
    seconds: Seconds
    peak_memory_bytes: int
    evaluations: EvaluationCounts
    metrics: Metrics


class Training(Result):
    """How a step's training ended.

    Attributes:
        steps: optimizer steps that it took.
        stopped: "steps" (all that it was given), "reached" or "settled" (docs/training.md).
        forget, retain: distances on held-out rows at the end, relative to the forget distance at the start; None without
            a stopping rule, or where the last step was not checked.
    """

    steps: int
    stopped: Reason
    forget: float | None
    retain: float | None


class Attempt(Result):
    """One attempt at a step.

    Attributes:
        strength: the method's; None where it has none.
        then: what followed, and why.
    """

    strength: float | None
    gate: list[Check]
    then: str


class StepRecord(StepSummary):
    """`step.json`: what was done, and what the gate said. What became of the step since then is in the events.

    Attributes:
        previous: digest of the weights file that the step began with, or of the base model.
        gate: checks of the attempt whose files these are, the last one.
        attempts: all attempts, in order; seconds and evaluations are theirs together.
        files: {name: digest} of the step's files.
        pictures: digest of the pictures that were kept.
    """

    schema_: Literal[1] = Field(1, alias="schema")
    level: Literal["between", "final"]
    previous: str = ""
    training: Training
    gate: list[Check]
    attempts: list[Attempt] = []
    files: dict[str, str]
    pictures: str = ""
    finished_at: str


def read_record(path: Path) -> StepRecord:
    """
    Raises:
        ExpungeError: when it is damaged, or a newer version of Expunge wrote it.
    """
    return validated(StepRecord, read_json(path), str(path))


class ModelSummary(Result):
    source: str
    name: str
    digest: str


class BaseSummary(Result):
    """The base model under the same rows; `accuracy` is the share of each concept's pictures that show it."""

    ira: Value | None
    cra: Value | None
    context: Value | None
    accuracy: dict[str, Value | None]


class Summary(Result):
    schema_: Literal[1] = Field(1, alias="schema")
    model: ModelSummary
    requests: list[list[str]]
    base: BaseSummary
    steps: list[StepSummary]
    concepts: list[str]
    ua_matrix: list[list[Value | None]]
    seconds_total: float


def measure(
    base: pd.DataFrame,
    after: pd.DataFrame,
    forgotten: Sequence[str],
    requested: Sequence[str],
    drift: Mapping[str, Value | None],
) -> Metrics:
    """Metrics of one step from its judgements and the base model's.

    Args:
        forgotten: concepts of this step and the accepted ones before it.
        requested: all concepts that the run was ever asked to forget; retention is measured without them.
        drift: "image_drift" and "weight_drift", which need more than judgements.
    """
    parts = metrics.of_roles(after, forgotten, requested)
    before = metrics.of_roles(base, forgotten, requested)
    forget = parts["forget"].assign(gone=~parts["forget"]["shown"])
    recognised = forget["recognisable"].notna().any()  # else nothing is known of it, not even of what still shows
    forget["gone_recognisable"] = forget["gone"] & forget["recognisable"] if recognised else forget["recognisable"]
    gone, ira, cra = (
        part[["prompt"]].assign(x=part[column])
        for part, column in ((forget, "gone"), (parts["neighbour"], "shown"), (parts["other"], "shown"))
    )
    context = metrics.beside(forget, requested)
    everything = pd.concat([parts["forget"], parts["neighbour"], parts["other"]])
    values: dict[str, Value | None] = {
        "ua": metrics.mean(forget, "gone", missing=False),
        "ua_recognisable": metrics.mean(forget, "gone_recognisable", missing=False),
        "context": metrics.mean(context, "context"),
        "recognisable": metrics.mean(everything, "recognisable"),
        "ira": metrics.mean(parts["neighbour"], "shown", missing=False),
        "ira_unreplayed": metrics.mean(parts["neighbour_unreplayed"], "shown", missing=False),
        "cra": metrics.mean(parts["other"], "shown", missing=False),
        "harmonic_mean": metrics.harmonic_mean([gone, ira, cra], missing=False),
        "ira_difference": metrics.difference(parts["neighbour"], before["neighbour"], "shown", missing=False),
        "cra_difference": metrics.difference(parts["other"], before["other"], "shown", missing=False),
        "kid_judge": metrics.kernel_distance(after),
        "collapsed": metrics.mean(everything, "collapsed"),
        **drift,
    }
    reasons = {name: "no row of this kind could be judged" for name, value in values.items() if value is None}
    if context.empty:
        reasons["context"] = "no forget prompt asks for anything beside what was asked to go"
    if values["weight_drift"] is None:
        reasons["weight_drift"] = "the model's weights hold NaN, or values too large to count with: the model is broken"
    if values["kid_judge"] is None:
        reasons["kid_judge"] = (
            "the judge has no features, or there are no two pictures of what stays to compare by them, or the model was "
            "judged with other concepts to forget before, when other pictures were of what stays"
        )
    return Metrics(**values, reasons=reasons)


def summarise_base(base: pd.DataFrame, requested: Sequence[str]) -> BaseSummary:
    parts = metrics.of_roles(base, requested, requested)
    shown = base.groupby("concept")["shown"].agg(["sum", "count", "size"])
    return BaseSummary(
        ira=metrics.mean(parts["neighbour"], "shown", missing=False),
        cra=metrics.mean(parts["other"], "shown", missing=False),
        context=metrics.mean(metrics.beside(parts["forget"], requested), "context"),
        accuracy={
            str(name): metrics.wilson(int(row["sum"]), int(row["size"]), int(row["size"] - row["count"]))
            for name, row in shown.iterrows()
        },
    )


def summarise(
    model: ModelSummary,
    requests: Sequence[Request],
    steps: Sequence[tuple[StepRecord, pd.DataFrame]],
    base: pd.DataFrame,
) -> Summary:
    """What a run did, from its files.

    Args:
        requests: all of the run.
        steps: the finished ones with their judgements.
        base: judgements of the base model.
    """
    names = list(dict.fromkeys(c.name for r in requests for c in r.concepts))
    accuracies = [metrics.unlearning_accuracies(table) for _, table in steps]
    fields = set(StepSummary.model_fields)
    return Summary(
        model=model,
        requests=[[c.name for c in r.concepts] for r in requests],
        base=summarise_base(base, names),
        steps=[StepSummary.model_validate(record.model_dump(include=fields)) for record, _ in steps],
        concepts=names,
        ua_matrix=[[after.get(name) for after in accuracies] for name in names],
        seconds_total=sum(record.seconds.total for record, _ in steps),
    )


def summary_schema() -> dict[str, Any]:
    """The JSON Schema of `summary.json` (docs/summary.schema.json)."""
    return Summary.model_json_schema(by_alias=True)
