"""Runs: requests one after another, resumable, measured, gated."""

from expunge.stream.config import DEFAULT_PRESET, PRESETS, RunConfig, preset
from expunge.stream.rehearsal import Estimate, estimate
from expunge.stream.run import Run, paint_one
from expunge.stream.summary import Check, StepRecord, Summary, summary_schema
from expunge.stream.verify import Findings, verify
from expunge.stream.workshop import Progress

__all__ = [
    "DEFAULT_PRESET",
    "PRESETS",
    "Check",
    "Estimate",
    "Findings",
    "Progress",
    "Run",
    "RunConfig",
    "StepRecord",
    "Summary",
    "estimate",
    "paint_one",
    "preset",
    "summary_schema",
    "verify",
]
