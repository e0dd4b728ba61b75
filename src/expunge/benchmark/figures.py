"""Figures of an experiment's results files."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from expunge import files
from expunge.benchmark.experiment import results_file
from expunge.benchmark.table import knob_curve, knob_points, value

OUTCOMES = {
    "ua": "forgotten (UA)",
    "context": "context kept",
    "ira": "neighbours kept (IRA)",
    "cra": "the rest kept (CRA)",
}


def after_the_last_step(table: pd.DataFrame, variants: Sequence[str], picture: Path) -> None:
    """One panel per metric, one line per variant, the first on top: a dot for each seed, a bar for the mean of several.

    Args:
        table: that of `last_steps`.
    """
    variants = variants[::-1]
    figure = Figure(figsize=(12, 0.9 + 0.32 * len(variants)))
    axes = figure.subplots(1, len(OUTCOMES), sharey=True)
    for ax, (metric, label) in zip(axes, OUTCOMES.items(), strict=True):
        for place, variant in enumerate(variants):
            values = table.loc[table["variant"] == variant, metric]
            ax.plot(values, [place] * len(values), "o", color="tab:blue", alpha=0.5, markersize=5)
            if len(values) > 1:
                ax.plot([values.mean()] * 2, [place - 0.3, place + 0.3], color="black", linewidth=2)
        ax.set(title=label, yticks=range(len(variants)), yticklabels=variants)
        ax.grid(axis="x", alpha=0.3)
    files.write_figure(picture, figure)


def over_the_sequence(table: pd.DataFrame, results: Path, variants: Sequence[str], picture: Path) -> None:
    """UA, IRA and CRA after every step, means over the seeds in the table, one line per variant."""
    shown = {"ua": "forgotten (UA)", "ira": "neighbours kept (IRA)", "cra": "the rest kept (CRA)"}
    figure = Figure(figsize=(12, 3.4))
    axes = figure.subplots(1, len(shown), sharey=True)
    for variant in variants:
        served = table.loc[table["variant"] == variant, "seed"].tolist()
        runs = [files.read_json(results_file(results, variant, seed)) for seed in served]
        forgotten = list(accumulate(len(step["concepts"]) for step in runs[0]["steps"]))
        for ax, (metric, label) in zip(axes, shown.items(), strict=True):
            course = pd.DataFrame([[value(step["metrics"][metric]) for step in run["steps"]] for run in runs])
            ax.plot(forgotten, course.mean(), marker="o", markersize=3, label=variant)
            ax.set(title=label, xlabel="concepts forgotten", ylim=(0, 1.02))
            ax.grid(alpha=0.3)
    axes[0].legend(frameon=False, fontsize=8)
    files.write_figure(picture, figure)


def retention_over_forgetting(table: pd.DataFrame, ua: float, picture: Path) -> None:
    """IRA and CRA over UA, one curve per family of variants (`knob_points`); a dotted line where they are compared."""
    kept = {"ira": "neighbours kept (IRA)", "cra": "the rest kept (CRA)"}
    figure = Figure(figsize=(10, 3.8))
    axes = figure.subplots(1, len(kept), sharey=True)
    for ax, (metric, label) in zip(axes, kept.items(), strict=True):
        for family, part in knob_points(table).groupby("family", sort=False):
            curve = knob_curve(part, metric)
            ax.plot(curve["ua"], curve[metric], marker="o", markersize=4, label=family)
        ax.axvline(ua, color="black", linewidth=1, linestyle=":")
        ax.set(title=label, xlabel="forgotten (UA)")
        ax.grid(alpha=0.3)
    axes[0].legend(frameon=False, fontsize=8)
    files.write_figure(picture, figure)
