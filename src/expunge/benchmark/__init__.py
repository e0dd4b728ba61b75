"""Experiments as files, results as files, tables and figures from these."""

from expunge.benchmark.experiment import Experiment, Variant, serve_variant
from expunge.benchmark.table import differences, last_steps, markdown

__all__ = ["Experiment", "Variant", "differences", "last_steps", "markdown", "serve_variant"]
