"""Tables in the terminal."""

from __future__ import annotations

from rich.table import Table

from expunge.evaluation import Value
from expunge.stream import Run


def status_table(run: Run) -> Table:
    """Requests, what became of them, and what was measured after each."""
    table = Table(title=str(run.directory.path), title_justify="left", title_style="bold")
    for name in ("request", "concepts", "status"):
        table.add_column(name)
    for name in ("UA", "worst UA", "context", "IRA", "CRA", "seconds"):
        table.add_column(name, justify="right")
    records = {r.request: r for r in run.records}
    if records:
        base = run.summary().base
        table.add_row(
            "", "base model", "", "", "", _share(base.context), _share(base.ira), _share(base.cra), "", style="dim"
        )
    for request in run.requests:
        names = ", ".join(c.name for c in request.concepts)
        record = records.get(request.id)
        if record is None:
            begun = run.directory.step(int(request.id)).path.exists()
            table.add_row(request.id, names, "begun" if begun else "open")
            continue
        m = record.metrics
        worst = [c.value for c in record.gate if c.name == "ua" and c.value is not None]
        table.add_row(
            request.id,
            names,
            record.status,
            _share(m.ua),
            f"{min(worst):.2f}" if worst else "?",
            _share(m.context),
            _share(m.ira),
            _share(m.cra),
            f"{record.seconds.total:.0f}",
            style="" if record.status == "accepted" else "yellow",
        )
    return table


def _share(value: Value | None) -> str:
    return "?" if value is None else f"{value.value:.2f} ±{(value.high - value.low) / 2:.2f}"
