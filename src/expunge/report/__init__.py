"""The page a person looks at."""

from expunge.report.page import write, write_comparison, write_evaluation

__all__ = ["write", "write_comparison", "write_evaluation"]
