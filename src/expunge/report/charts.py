"""Charts as inline SVG. Colours become CSS variables of the page, so that one drawing serves light and dark.

The same numbers give the same text: identifiers are salted with the chart's own name, and no date is written.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    PercentFormatter,
)

from expunge.evaluation import Value

# What matplotlib draws with, and the variable of page.css that takes its place.
_INK, _MUTED, _GRID, _BLUE, _CARD = "#010101", "#020202", "#030303", "#040404", "#050505"
_PHASES = {"choose": "#0a0101", "replay": "#0a0202", "train": "#0a0303", "save": "#0a0404", "evaluate": "#0a0505"}
_VARIABLES = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _GRID: "var(--line)",
    _BLUE: "var(--blue)",
    _CARD: "var(--card)",
    **{colour: f"var(--phase-{phase})" for phase, colour in _PHASES.items()},
}
PHASES = tuple(_PHASES)
_SMOOTH = 9
"""Optimizer steps in the running mean of a loss."""


@dataclass(frozen=True)
class Point:
    """A measured value after a step (0: the base model); `taken`: the step's model replaced the one before it."""

    step: int
    value: Value | None
    taken: bool


def curve(name: str, points: Sequence[Point], floor: float) -> str:
    """A share over the steps with its 95 % interval; steps that were not taken are hollow and off the line.

    Args:
        name: the chart's name, unique on the page.
        floor: lower end of the vertical axis, in [0, 1).
    """
    figure, axes = _figure(3.5, 2.4)
    seen = [(p.step, p.value, p.taken) for p in points if p.value is not None]
    line = [(step, value) for step, value, taken in seen if taken]
    steps = [step for step, _ in line]
    axes.fill_between(steps, [v.low for _, v in line], [v.high for _, v in line], color=_BLUE, alpha=0.16, lw=0)
    axes.plot(
        steps,
        [v.value for _, v in line],
        color=_BLUE,
        lw=1.8,
        marker="o",
        ms=4.5 if len(steps) <= 16 else 2.5,
        clip_on=False,
        zorder=3,
    )
    for step, value, taken in seen:
        if not taken:
            axes.plot([step, step], [value.low, value.high], color=_MUTED, lw=1.2)
            axes.plot(
                [step],
                [value.value],
                marker="o",
                ms=5.5,
                mfc=_CARD,
                mec=_MUTED,
                mew=1.4,
                ls="",
                clip_on=False,
                zorder=3,
            )
    last = max((p.step for p in points), default=1)
    every = -(-last // 10)
    ticks = list(range(0, last + 1, every))
    axes.set_xlim(-0.06 * max(last, 1), last + 0.06 * max(last, 1))
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.set_xticklabels(["base" if t == 0 else str(t) for t in ticks])
    axes.set_xlabel("step")
    axes.set_ylim(floor, 1.0)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(axis="y", color=_GRID, lw=0.8)
    said = ", ".join(f"{'base' if step == 0 else step}: {value.value:.3f}" for step, value, _ in seen)
    return _svg(figure, name, f"{name} over the steps. {said}.")


def losses(name: str, log: Sequence[Mapping[str, object]], limits: Mapping[str, tuple[float, float]]) -> str:
    """The losses of one step over its optimizer steps, one panel each on a logarithmic axis.

    Args:
        log: the lines of train.jsonl.
        limits: {loss: lower and upper end of its axis}, the same for all steps so that they can be compared.
    """
    height = 0.45 + 0.95 * len(limits)
    figure = Figure(figsize=(2.7, height))
    # Margins in inches: measuring the texts to find them takes longer than everything else on the page.
    figure.subplots_adjust(left=0.16, right=0.97, bottom=0.42 / height, top=1 - 0.2 / height, hspace=0.42)
    panels = np.atleast_1d(figure.subplots(len(limits), 1, sharex=True))
    x, series = loss_series(log)
    for axes, (loss, (low, high)) in zip(panels, limits.items(), strict=True):
        _bare(axes)
        y = np.array(series.get(loss, [math.nan] * len(x)), dtype=float)
        y[~(np.isfinite(y) & (y > 0))] = math.nan
        axes.plot(x, y, color=_BLUE, lw=0.8, alpha=0.45)
        axes.plot(x, pd.Series(y).rolling(_SMOOTH, center=True, min_periods=1).mean(), color=_BLUE, lw=1.8)
        axes.set_yscale("log")
        axes.set_ylim(low, high)
        axes.yaxis.set_major_locator(LogLocator(numticks=4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.0e}".replace("e-0", "e-").replace("e+0", "e")))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(axis="y", color=_GRID, lw=0.8)
        axes.set_title(loss, loc="left", fontsize=8.5, color=_INK, pad=2)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    panels[-1].set_xlabel("optimizer step")
    ends = [f"{loss} ends at {values[-1]:.2g}" for loss, values in series.items() if loss in limits and values]
    return _svg(figure, name, f"{name}. {', '.join(ends)}.")


def loss_series(log: Sequence[Mapping[str, object]]) -> tuple[list[int], dict[str, list[float]]]:
    """Optimizer steps and the losses at each. Where a step was done again after an interruption, the later line counts."""
    lines = {int(str(line["step"])): line["losses"] for line in log}
    x = sorted(lines)
    table: list[Mapping[str, float]] = [dict(v) if isinstance(v, Mapping) else {} for v in (lines[i] for i in x)]
    names = list(dict.fromkeys(name for row in table for name in row))
    return x, {name: [float(row.get(name, math.nan)) for row in table] for name in names}


def loss_limits(logs: Sequence[Sequence[Mapping[str, object]]]) -> dict[str, tuple[float, float]]:
    """For each loss that is ever positive, ends of a logarithmic axis that hold nearly all of its values in all logs.

    The axis spans at most four decades below its top: at the first optimizer steps some losses are 0 but for rounding.
    """
    values: dict[str, list[float]] = {}
    for log in logs:
        for name, series in loss_series(log)[1].items():
            values.setdefault(name, []).extend(v for v in series if math.isfinite(v) and v > 0)
    ends = {name: (min(v), max(v)) for name, v in values.items() if v}
    return {name: (max(low / 1.5, high * 1e-4), high * 1.5) for name, (low, high) in ends.items()}


def timings(name: str, rows: Sequence[tuple[str, Mapping[str, float]]]) -> str:
    """Seconds per phase, one stacked bar per row (label, {phase: seconds})."""
    figure, axes = _figure(9.6, 0.55 + 0.34 * len(rows))
    left = np.zeros(len(rows))
    for phase, colour in _PHASES.items():
        seconds = np.array([row.get(phase, 0.0) for _, row in rows])
        axes.barh(range(len(rows)), seconds, left=left, height=0.62, color=colour, edgecolor=_CARD, lw=0.8)
        left += seconds
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.yaxis.set_major_locator(FixedLocator(list(range(len(rows)))))
    axes.set_yticklabels([label for label, _ in rows])
    axes.set_xlim(0, max(left.max(initial=0.0) * 1.02, 1e-9))
    axes.set_xlabel("seconds")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.grid(axis="x", color=_GRID, lw=0.8)
    axes.spines["bottom"].set_visible(False)
    said = "; ".join(f"{label}: {total:.0f} s in all" for (label, _), total in zip(rows, left, strict=True))
    return _svg(figure, name, f"{name}. {said}.")


# -- drawing --------------------------------------------------------------------------------------------------------------


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of `width` x `height` inches with one panel."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    _bare(axes)
    return figure, axes


def _bare(axes: Axes) -> None:
    axes.set_facecolor("none")
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    axes.tick_params(length=0, labelsize=8.5, labelcolor=_MUTED, pad=4)
    axes.xaxis.label.set(color=_MUTED, fontsize=8.5)


def _svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an `<svg>` element for a page: no fixed size, no addresses, colours and fonts left to the page."""
    key = re.sub(r"\W+", "-", name.lower()).strip("-")
    figure.patch.set_alpha(0.0)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": key, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    label = html.escape(description)
    text = re.sub(
        r"^<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>", lambda m: f'<svg {m[1]} role="img" aria-label="{label}">', text
    )
    text = re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>{key}-", text)
    text = re.sub("|".join(_VARIABLES), lambda match: _VARIABLES[match[0]], text)
    return text.strip()
