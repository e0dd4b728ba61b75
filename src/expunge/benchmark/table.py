"""Tables of results files: one row per variant, means over seeds, differences paired by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from expunge import files

MEASURED = ("ua", "context", "ira", "ira_unreplayed", "cra", "harmonic_mean", "ira_difference", "cra_difference")


def value(measured: Mapping[str, float] | None) -> float:
    """A value of a results file; NaN where it could not be measured."""
    return np.nan if measured is None else measured["value"]


def last_steps(results: Path) -> pd.DataFrame:
    """One row per results file: variant, seed, the metrics after the last step, the least UA of a concept, the strongest
    resurgence (largest fall of a concept's UA after its own step), seconds of serving and of evaluation, and how it was made.
    What could not be measured is NaN, also where it could not be for a single concept that a least or a largest is of."""
    rows = []
    for path in sorted(results.glob("*-*.json")):
        summary = files.read_json(path)
        variant, _, seed = path.stem.rpartition("-")
        last = summary["steps"][-1]
        seconds = [step["seconds"] for step in summary["steps"]]
        evaluating = sum(s["evaluate"] for s in seconds)
        rows.append(
            {
                "variant": variant,
                "seed": int(seed),
                **{name: value(last["metrics"][name]) for name in MEASURED},
                "ua_worst": float(np.min([value(row[-1]) for row in summary["ua_matrix"]])),
                "resurgence": _resurgence(summary),
                "seconds_serving": sum(s["total"] for s in seconds) - evaluating,
                "seconds_evaluating": evaluating,
                "made": _made(summary.get("made")),
            }
        )
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=["variant", "seed"])


def differences(table: pd.DataFrame, metric: str, baseline: str) -> pd.DataFrame:
    """Each variant's mean difference from `baseline` in `metric`, paired by seed, with a 95 % t interval where there are
    two seeds or more."""
    wide = table.pivot(index="seed", columns="variant", values=metric)
    rows = []
    for variant in wide.columns.drop(baseline):
        pairs = (wide[variant] - wide[baseline]).dropna()
        half = _half_width(pairs.to_numpy())
        mean = float(pairs.mean()) if len(pairs) else np.nan
        rows.append({"variant": variant, "difference": mean, "low": mean - half, "high": mean + half, "n": len(pairs)})
    return pd.DataFrame(rows, columns=["variant", "difference", "low", "high", "n"]).set_index("variant")


def knob_points(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of variants named FAMILY@KNOB, and of FAMILY itself where there are such, with the column `family`."""
    family = table["variant"].str.partition("@")[0]
    turned = set(family[table["variant"].str.contains("@")])
    return table.assign(family=family)[family.isin(turned)]


def knob_curve(points: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One family's curve, by rising UA: `ua` and `metric` of each variant, means over the seeds that all of them have."""
    common = points.groupby("seed").filter(lambda part: len(part) == points["variant"].nunique())
    return common.groupby("variant")[["ua", metric]].mean().sort_values("ua")


def at_matched_forgetting(table: pd.DataFrame, metric: str, ua: float) -> pd.DataFrame:
    """Each family's `metric` where its UA is `ua`: erasing less is not preserving better.

    The points of a family's curve over a knob are those of `knob_points`. Between the two neighbouring points around `ua` the
    metric is interpolated linearly; a family that never reaches `ua`, or never falls below it, has NaN.

    Args:
        table: that of `last_steps`.

    Returns:
        One row per family and seed, with the column `metric`.
    """
    rows = []
    for (family, seed), part in knob_points(table).groupby(["family", "seed"], sort=False):
        curve = part.groupby("ua")[metric].mean().sort_index()  # of equal UA the mean
        inside = len(curve) > 1 and curve.index[0] <= ua <= curve.index[-1]
        value = float(np.interp(ua, curve.index.to_numpy(), curve.to_numpy())) if inside else np.nan
        rows.append({"family": family, "seed": seed, metric: value})
    return pd.DataFrame(rows, columns=["family", "seed", metric])


def matched_markdown(read: pd.DataFrame, ua: float) -> str:
    """A table of what each family keeps where its UA is `ua`, order by order.

    Args:
        read: `ira` and `cra` for each family and seed, as `at_matched_forgetting` gives them.
    """
    lines = [f"| family | IRA at UA {ua}, by seed | CRA at UA {ua}, by seed |", "|---|---|---|"]
    for family, part in read.sort_values("seed").groupby("family", sort=False):
        values = part.set_index("seed")[["ira", "cra"]].map(lambda value: "-" if np.isnan(value) else f"{value:.3f}")
        cells = [", ".join(f"{seed}: {value}" for seed, value in column.items()) for _, column in values.items()]
        lines.append(f"| {' | '.join([str(family), *cells])} |")
    return "\n".join([*lines, "", "A dash where UA never reaches that, or never falls below it."]) + "\n"


def markdown(table: pd.DataFrame, baseline: str, notes: Mapping[str, str]) -> str:
    """The table of docs/: per variant the means over its seeds, and the paired differences from `baseline` in what stays."""
    columns = {"ua": "UA", "ua_worst": "worst concept", "context": "context", "ira": "IRA", "cra": "CRA"}
    lines = [
        f"| variant | seeds | {' | '.join(columns.values())} | resurgence | IRA, difference | CRA, difference | |",
        "|---" * (len(columns) + 6) + "|",
    ]
    against = {metric: differences(table, metric, baseline) for metric in ("ira", "cra")}
    for variant in [v for v in notes if v in set(table["variant"])]:
        part = table[table["variant"] == variant]
        cells = [
            variant,
            str(len(part)),
            *(f"{part[c].mean():.3f}" for c in columns),
            f"{part['resurgence'].mean():.3f}",
        ]
        cells += ["" if variant == baseline else _paired(found, variant) for found in against.values()]
        lines.append(f"| {' | '.join([*cells, notes[variant]])} |")
    if said := caveats(table[table["variant"].isin(list(notes))]):
        lines += ["", *(f"- {caveat}" for caveat in said)]
    return "\n".join(lines) + "\n"


def caveats(table: pd.DataFrame) -> list[str]:
    """How the rows of `last_steps` were made, where they were not all made alike or it was not recorded."""
    kinds = set(table["made"])
    if len(kinds) == 1 and NOT_RECORDED not in kinds:
        return []
    return [f"{made!s}: {_sequences(part)}." for made, part in table.groupby("made", sort=False)]


NOT_RECORDED = "Arithmetic and machine were not recorded"
"""Of results files that were made before they were."""


def _made(made: Mapping[str, Any] | None) -> str:
    """Arithmetic and machine of a results file, in words."""
    if made is None:
        return NOT_RECORDED
    train, evaluate = (made["config"][section]["precision"] for section in ("train", "evaluate"))
    machine = made["machine"]
    where = f"{machine['gpu'] or machine['processor']} with torch {machine['torch']}"
    return f"Trained in {train} and painted in {evaluate}, on {where}"


def _sequences(table: pd.DataFrame) -> str:
    """The variants, each with its seeds."""
    seeds = table.groupby("variant", sort=False)["seed"]
    return ", ".join(f"{variant} ({', '.join(map(str, own))})" for variant, own in seeds)


def _paired(found: pd.DataFrame, variant: str) -> str:
    row = found.loc[[variant]].iloc[0]
    if not row["n"]:
        return "no common seed"
    interval = f" [{row['low']:+.3f}, {row['high']:+.3f}]" if row["n"] > 1 else " (one seed)"
    return f"{row['difference']:+.3f}{interval}"


def _resurgence(summary: dict[str, object]) -> float:
    """Largest fall of a concept's UA from its own step to any later one; NaN where that of one concept is not known."""
    falls = [0.0]
    matrix: Sequence[Sequence[dict[str, float] | None]] = summary["ua_matrix"]  # type: ignore[assignment]
    steps: Sequence[dict[str, Sequence[str]]] = summary["steps"]  # type: ignore[assignment]
    concepts: Sequence[str] = summary["concepts"]  # type: ignore[assignment]
    for concept, row in zip(concepts, matrix, strict=True):
        own = next(i for i, step in enumerate(steps) if concept in step["concepts"])
        if later := row[own + 1 :]:
            falls.append(value(row[own]) - min((v["value"] for v in later if v is not None), default=np.nan))
    return float(np.max(falls))


def _half_width(values: np.ndarray) -> float:
    if len(values) < 2:
        return float("nan")
    return float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)
