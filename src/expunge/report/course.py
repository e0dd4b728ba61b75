"""The course of a run over its steps: curves of what was measured, losses, and times."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.evaluation import Value, metrics
from expunge.files import read_lines
from expunge.report import charts, wording
from expunge.report.measures import METRICS
from expunge.report.pictures import Album
from expunge.stream import StepRecord, Summary


@dataclass(frozen=True)
class Chart:
    title: str
    note: str
    svg: str


@dataclass(frozen=True)
class TimingRow:
    step: str
    request: str
    seconds: tuple[str, ...]
    total: str
    memory: str
    forward: str
    backward: str


def curves(summary: Summary, records: Sequence[StepRecord], base: Album) -> tuple[Chart, ...]:
    """UA, IRA and CRA over the steps, each from the base model on."""
    before = {"ua": _base_ua(summary, base), "ira": summary.base.ira, "cra": summary.base.cra}
    notes = {
        "ua": "All concepts forgotten so far. At base: all requested concepts, before anything was removed.",
        "ira": "Neighbours of the concepts of the protocol.",
        "cra": "Unrelated concepts.",
    }
    points = {
        field: [
            charts.Point(0, before[field], True),
            *(charts.Point(r.index, getattr(r.metrics, field), r.status == "accepted") for r in records),
        ]
        for field in before
    }
    lows = [p.value.low for f in ("ira", "cra") for p in points[f] if p.value]
    floor = min([0.8, *(math.floor(10 * low) / 10 for low in lows)])
    return tuple(
        Chart(
            METRICS[field].name,
            notes[field] + (f" Axis from {floor:.0%}." if field != "ua" and floor else ""),
            charts.curve(METRICS[field].name, points[field], 0.0 if field == "ua" else floor),
        )
        for field in before
    )


def _base_ua(summary: Summary, base: Album) -> Value | None:
    table = base.table
    if table is None:
        return None
    forget = table[(table["role"] == "forget") & table["concept"].isin(summary.concepts)]
    return metrics.mean(forget.assign(gone=~forget["shown"]), "gone", missing=False)


def losses(logs: Mapping[int, Path], titles: Mapping[int, str]) -> tuple[Chart, ...]:
    """The losses of steps, from {step: its train.jsonl} and {step: what its request is called}."""
    lines = {index: _entries(path) for index, path in logs.items()}
    limits = charts.loss_limits([log for log in lines.values() if log])
    drawn = []
    for index, log in lines.items():
        title = f"Step {index}: {titles[index]}"
        if log is None:
            drawn.append(Chart(title, "Its train.jsonl is damaged, so its losses cannot be drawn.", ""))
        elif log and limits:
            drawn.append(Chart(title, "", charts.losses(f"Losses of step {index}", log, limits)))
    return tuple(drawn)


def _entries(log: Path) -> list[dict[str, Any]] | None:
    """The lines of a `train.jsonl`; None where they cannot be read."""
    try:
        entries = [json.loads(line) for line in read_lines(log)]
    except ValueError:
        return None
    return entries if all(isinstance(entry, dict) and "losses" in entry for entry in entries) else None


def timing_chart(records: Sequence[StepRecord]) -> str:
    return charts.timings("Seconds by step", [(f"step {r.index}", r.seconds.model_dump()) for r in records])


def timing_row(record: StepRecord) -> TimingRow:
    return TimingRow(
        step=f"{record.index}",
        request=record.request,
        seconds=tuple(f"{getattr(record.seconds, phase):.1f}" for phase in charts.PHASES),
        total=f"{record.seconds.total:.1f}",
        memory=wording.memory(record.peak_memory_bytes),
        forward=f"{record.evaluations.forward:,}",
        backward=f"{record.evaluations.backward:,}",
    )
