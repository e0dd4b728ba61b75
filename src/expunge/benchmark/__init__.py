"""Experiments as files, results as files, tables and figures from these."""

from expunge.benchmark.experiment import Experiment, Variant, serve_variant
from expunge.benchmark.table import at_matched_forgetting, differences, last_steps, markdown
from expunge.benchmark.writing import MATCHED_UA, write_experiment

__all__ = [
    "MATCHED_UA",
    "Experiment",
    "Variant",
    "at_matched_forgetting",
    "differences",
    "last_steps",
    "markdown",
    "serve_variant",
    "write_experiment",
]
