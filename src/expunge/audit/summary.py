"""`summary.json` of an evaluation, schema 1: the base model and the evaluated one under the same rows."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from expunge.audit.paired import Paired
from expunge.schema import Result
from expunge.stream.summary import BaseSummary, Metrics, ModelSummary


class EvaluatedModel(ModelSummary):
    """The model that was evaluated.

    Attributes:
        kind: what it was recognised as (docs/evaluate.md).
        changed: components of the pipeline whose weights differ from the base model's.
    """

    kind: str
    changed: list[str]


class AuditSummary(Result):
    """What an evaluation measured. `metrics` and `base` are those of a run's `summary.json` at its last step.

    Attributes:
        against_base: base model (first), evaluated model (second), and the paired difference.
        also: the same by each further judge of the protocol.
        pictures: pictures judged of each of the two.
    """

    schema_: Literal[1] = Field(1, alias="schema")
    base_model: ModelSummary
    model: EvaluatedModel
    protocol: str
    judge: str
    forgotten: list[str]
    base: BaseSummary
    metrics: Metrics
    against_base: Paired
    also: dict[str, Paired] = {}
    pictures: int


def audit_schema() -> dict[str, Any]:
    """The JSON Schema of an evaluation's `summary.json` (docs/evaluation.schema.json)."""
    return AuditSummary.model_json_schema(by_alias=True)
