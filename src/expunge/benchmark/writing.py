"""An experiment's results as files to put into a page."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from expunge.benchmark import figures
from expunge.benchmark.experiment import Experiment, unserved
from expunge.benchmark.table import at_matched_forgetting, last_steps, markdown, matched_markdown
from expunge.errors import ExpungeError
from expunge.files import write_text

MATCHED_UA = 0.95
"""The unlearning accuracy at which curves over a knob are compared."""


def write_experiment(experiment: Experiment, results: Path, stem: Path) -> pd.DataFrame:
    """Write `STEM-table.md`, and the figures `STEM-outcomes.png`, `STEM-sequence.png`, and over a knob `STEM-matched.png`
    and `STEM-matched.md`.

    Variants named FAMILY@KNOB are in the last two of these alone, where there are others.

    Returns:
        IRA and CRA of each family of variants over a knob at UA `MATCHED_UA`, a row for each seed; empty without a knob.

    Raises:
        ExpungeError: when there are no results yet, or some of something else than the experiment asks for.
    """
    notes = {name: variant.note for name, variant in experiment.variants.items()}
    table = last_steps(results)
    table = table[table["variant"].isin(list(notes))]
    if table.empty:
        raise ExpungeError(f"{results} holds no results yet. Without --write, the command serves the sequences.")
    unserved(experiment, zip(table["variant"], table["seed"].tolist(), strict=True), results)
    measured = [name for name in notes if name in set(table["variant"])]
    points = [name for name in measured if "@" in name]
    shown = [name for name in measured if name not in points] or points
    stem.parent.mkdir(parents=True, exist_ok=True)
    write_text(
        stem.with_name(f"{stem.name}-table.md"), markdown(table, shown[0], {name: notes[name] for name in shown})
    )
    figures.after_the_last_step(table, shown, stem.with_name(f"{stem.name}-outcomes.png"))
    figures.over_the_sequence(table, results, shown[:5], stem.with_name(f"{stem.name}-sequence.png"))
    if not points:
        return pd.DataFrame(columns=["family", "seed", "ira", "cra"])
    figures.retention_over_forgetting(table, MATCHED_UA, stem.with_name(f"{stem.name}-matched.png"))
    read = [at_matched_forgetting(table, metric, MATCHED_UA).set_index(["family", "seed"]) for metric in ("ira", "cra")]
    found = pd.concat(read, axis=1).reset_index()
    write_text(stem.with_name(f"{stem.name}-matched.md"), matched_markdown(found, MATCHED_UA))
    return found
