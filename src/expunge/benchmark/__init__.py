"""Experiments as files, results as files, tables and figures from these."""

from expunge.benchmark.at_once import serve_at_once
from expunge.benchmark.experiment import Experiment, Variant, serve_variant, unserved
from expunge.benchmark.table import at_matched_forgetting, caveats, differences, last_steps, markdown
from expunge.benchmark.writing import MATCHED_UA, write_experiment

__all__ = [
    "MATCHED_UA",
    "Experiment",
    "Variant",
    "at_matched_forgetting",
    "caveats",
    "differences",
    "last_steps",
    "markdown",
    "serve_at_once",
    "serve_variant",
    "unserved",
    "write_experiment",
]
