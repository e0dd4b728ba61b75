"""Pages: each one file that holds all it shows and asks the network for nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

import expunge
from expunge.audit import Audit, Comparison
from expunge.files import write_text
from expunge.report import comparison, evaluation
from expunge.report.content import gather
from expunge.stream import Run


def write(run: Run) -> Path:
    """Write `report.html` in the run's directory, as a whole or not at all; its path.

    Raises:
        ExpungeError: before the first step is finished.
    """
    write_text(run.directory.report, render("page.html.jinja", gather(run)))
    return run.directory.report


def write_evaluation(audit: Audit) -> Path:
    """Write `report.html` in the evaluation's folder; its path.

    Raises:
        ExpungeError: before the evaluation has ended.
    """
    write_text(audit.report, render("side_by_side.html.jinja", evaluation.gather(audit)))
    return audit.report


def write_comparison(found: Comparison, path: str | Path) -> Path:
    """Write the page of a comparison to `path`; the path."""
    write_text(Path(path), render("side_by_side.html.jinja", comparison.gather(found)))
    return Path(path)


def render(template: str, page: Any) -> str:
    """A page as HTML. The same page gives the same text."""
    environment = Environment(
        loader=PackageLoader("expunge", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(page=page, version=expunge.__version__)
