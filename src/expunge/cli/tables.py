"""Tables in the terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table

from expunge.audit import AuditSummary, Comparison, Paired
from expunge.evaluation import Value
from expunge.stream import Estimate, Run

if TYPE_CHECKING:
    from expunge.benchmark.speed import Ratio, SpeedResults, Timed


def status_table(run: Run) -> Table:
    """Requests, what became of them, and what was measured after each. It fits 80 columns; the report says more."""
    table = _table(str(run.directory.path))
    for name in ("id", "concepts", "status"):
        table.add_column(name)
    for name in ("UA", "context", "IRA", "CRA"):
        table.add_column(name, justify="right")
    records, history = {r.request: r for r in run.records}, run.history
    if records:
        base = run.summary().base
        table.add_row("", "base model", "", "", _share(base.context), _share(base.ira), _share(base.cra), style="dim")
    for request in run.requests:
        names = ", ".join(c.name for c in request.concepts)
        record = records.get(request.id)
        if record is None:
            begun = "begun" if history.at_work == request.step else "open"
            table.add_row(request.id, names, history.status.get(request.step, begun))
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


def speed_table(results: SpeedResults) -> Table:
    """What each request took, reference / fast, and below it the median ratio with the least and the greatest."""
    table = _table()
    shown: dict[str, tuple[Callable[[Timed], str], Ratio | None]] = {
        "seconds": (lambda row: f"{row.seconds.total:.1f}", results.wall_ratio),
        "with its start": (
            lambda row: "" if row.process is None else f"{row.process:.1f}",
            results.wall_ratio_process,
        ),
        "of training": (lambda row: f"{row.seconds.replay + row.seconds.train:.1f}", results.wall_ratio_training),
        "evaluations": (
            lambda row: f"{row.evaluations.forward + 2 * row.evaluations.backward}",
            results.evaluations_ratio,
        ),
        "MB held": (lambda row: f"{sum(row.held.values()) / 1e6:.0f}", results.bytes_ratio),
        "MB peak": (lambda row: f"{row.peak_memory / 1e6:.0f}", results.peak_memory_ratio),
    }
    table.add_column("request")
    for name in shown:
        table.add_column(name, justify="right")
    for reference, fast in results.pairs:
        cells = [f"{read(reference)} / {read(fast)}" for read, _ in shown.values()]
        table.add_row(", ".join(reference.concepts), *cells)
    ratios = [ratio for _, ratio in shown.values()]
    table.add_section()
    table.add_row("ratio", *(f"{r.value:.2f} [{r.low:.2f}, {r.high:.2f}]" if r else "" for r in ratios), style="bold")
    return table


def estimate_table(found: Estimate) -> Table:
    """What each request would take, and below it the sum with the pictures of the base model, and bytes."""
    table = _table()
    table.add_column("request")
    for name in ("evaluations", "choose, replay", "train", "evaluate", "seconds"):
        table.add_column(name, justify="right")
    for request in found.requests:
        counts = request.evaluations
        seconds = (request.prepare, request.train, request.evaluate, request.seconds)
        names = ", ".join(request.concepts)
        table.add_row(names, f"{counts.forward + 2 * counts.backward:,}", *(f"{value:.0f}" for value in seconds))
    table.add_row("base model", "", "", "", f"{found.base:.0f}", f"{found.base:.0f}", end_section=True)
    table.add_row("together", "", "", "", "", f"{found.seconds:.0f}", style="bold")
    table.caption = (
        f"Memory: {found.peak / 1e6:,.0f} MB at the most. Disk: {(found.artifact + found.memory) / 1e6:,.1f} MB a request, "
        "without pictures."
    )
    return table


def experiment_table(steps: pd.DataFrame) -> Table:
    """Means over seeds after the last step, one line per variant."""
    table = _table()
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


def evaluation_table(summary: AuditSummary) -> Table:
    """The base model, the evaluated one, and the paired differences; then each concept."""
    return _paired_table(summary.against_base, ("base", "model"), summary.model.name)


def comparison_table(comparison: Comparison) -> Table:
    """A, B and the paired differences where they are compared last."""
    point = comparison.outcome
    a, b = (f"{letter}: {stage.name}" for letter, stage in zip("AB", point.stages, strict=True))
    return _paired_table(point.paired, (a, b), f"A is {comparison.a.path}, B is {comparison.b.path}")


def _paired_table(paired: Paired, names: tuple[str, str], title: str) -> Table:
    table = _table(title)
    table.add_column("")
    for name in (*names, "difference", "95% interval"):
        table.add_column(name, justify="right")
    main = {"UA": paired.ua, "context": paired.context, "IRA": paired.ira, "CRA": paired.cra}
    for i, (name, pair) in enumerate([*main.items(), *((f"UA of {c}", p) for c, p in paired.concepts.items())]):
        gap = pair.difference
        table.add_row(
            name,
            _share(pair.first),
            _share(pair.second),
            "?" if gap is None else f"{gap.value:+.2f}",
            "" if gap is None else f"{gap.low:+.2f} to {gap.high:+.2f}",
            end_section=i == len(main) - 1,
        )
    return table


def _table(title: str | None = None) -> Table:
    """A table without columns yet."""
    return Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        title=title,
        title_justify="left",
        title_style="bold",
        caption_justify="left",
    )


def _share(value: Value | None) -> str:
    return "?" if value is None else f"{value.value:.2f} ±{(value.high - value.low) / 2:.2f}"
