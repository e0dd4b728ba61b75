"""Protocols, judges, judgements, metrics."""

from expunge.evaluation.judge import Answer, Judge, Question, Seen
from expunge.evaluation.metrics import Value
from expunge.evaluation.protocol import Protocol, Row, SamplerConfig, forget_rows, retention_rows
from expunge.evaluation.run import Images, evaluate, paint

__all__ = [
    "Answer",
    "Images",
    "Judge",
    "Protocol",
    "Question",
    "Row",
    "SamplerConfig",
    "Seen",
    "Value",
    "evaluate",
    "forget_rows",
    "paint",
    "retention_rows",
]
