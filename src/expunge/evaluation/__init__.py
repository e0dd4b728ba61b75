"""Protocols, judges, judgements, metrics."""

from expunge.evaluation.judge import UNSURE, Answer, Judge, Question, Seen, Subject
from expunge.evaluation.judges import ClipJudge, VisionLanguageJudge, find_judge
from expunge.evaluation.kernel import kernel_distances
from expunge.evaluation.metrics import Value
from expunge.evaluation.pixels import pictures
from expunge.evaluation.protocol import Protocol, Row, SamplerConfig, forget_rows, protocol_rows, retention_rows
from expunge.evaluation.run import Images, evaluate, evaluate_each, paint

__all__ = [
    "UNSURE",
    "Answer",
    "ClipJudge",
    "Images",
    "Judge",
    "Protocol",
    "Question",
    "Row",
    "SamplerConfig",
    "Seen",
    "Subject",
    "Value",
    "VisionLanguageJudge",
    "evaluate",
    "evaluate_each",
    "find_judge",
    "forget_rows",
    "kernel_distances",
    "paint",
    "pictures",
    "protocol_rows",
    "retention_rows",
]
