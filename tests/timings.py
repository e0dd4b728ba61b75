"""Timings as `expunge bench speed` keeps them, made by hand."""

from __future__ import annotations

from expunge.benchmark.speed import Timed
from expunge.reference import EngineName
from expunge.stream.summary import EvaluationCounts, Seconds


def timed(request: int, engine: EngineName, seconds: float) -> Timed:
    """All of it training."""
    return Timed(
        request=request,
        concepts=("fox",),
        engine=engine,
        seconds=Seconds(train=seconds, total=seconds),
        evaluations=EvaluationCounts(forward=10, backward=0),
        held={"student": 8},
        peak_memory=9,
        artifact=4,
        finished_at="2026-01-01T00:00:00+00:00",
    )
