"""Measuring what other tools made, and setting two outcomes side by side."""

from expunge.audit.audit import Audit
from expunge.audit.comparison import Comparison, Point, Side, Stage, compare
from expunge.audit.paired import Pair, Paired
from expunge.audit.summary import AuditSummary, audit_schema

__all__ = [
    "Audit",
    "AuditSummary",
    "Comparison",
    "Pair",
    "Paired",
    "Point",
    "Side",
    "Stage",
    "audit_schema",
    "compare",
]
