"""The page a person looks at."""

from expunge.report.page import write

__all__ = ["write"]
