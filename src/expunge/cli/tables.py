"""Tables in the terminal."""

from __future__ import annotations

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table

from expunge.evaluation import Value
from expunge.stream import Run


def status_table(run: Run) -> Table:
    """Requests, what became of them, and what was measured after each. It fits 80 columns; the report says more."""
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        title=str(run.directory.path),
        title_justify="left",
        title_style="bold",
    )
    for name in ("id", "concepts", "status"):
        table.add_column(name)
    for name in ("UA", "context", "IRA", "CRA"):
        table.add_column(name, justify="right")
    records = {r.request: r for r in run.records}
    if records:
        base = run.summary().base
        table.add_row("", "base model", "", "", _share(base.context), _share(base.ira), _share(base.cra), style="dim")
    for request in run.requests:
        names = ", ".join(c.name for c in request.concepts)
        record = records.get(request.id)
        if record is None:
            begun = run.directory.step(int(request.id)).path.exists()
            table.add_row(request.id, names, "begun" if begun else "open")
            continue
        m = record.metrics
        table.add_row(
            request.id,
            names,
            record.status,
            _share(m.ua),
            _share(m.context),
            _share(m.ira),
            _share(m.cra),
            style="" if record.status == "accepted" else "yellow",
        )
    return table


def experiment_table(steps: pd.DataFrame) -> Table:
    """Means over seeds after the last step, one line per variant."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("variant")
    shown = {
        "ua": "UA", "ua_worst": "worst", "context": "context", "ira": "IRA", "cra": "CRA", "ira_difference": "IRA - base",
        "cra_difference": "CRA - base", "seconds_serving": "seconds",
    }  # fmt: skip
    for name in ("seeds", *shown.values()):
        table.add_column(name, justify="right")
    for variant, part in steps.groupby("variant", sort=False):
        means = part[list(shown)].mean()
        cells = [f"{means[n]:.0f}" if n == "seconds_serving" else f"{means[n]:.2f}" for n in shown]
        table.add_row(str(variant), str(len(part)), *cells)
    return table


def _share(value: Value | None) -> str:
    return "?" if value is None else f"{value.value:.2f} ±{(value.high - value.low) / 2:.2f}"
