"""Metrics as pure functions over the judgement table. A metric that cannot be measured is None, never 0.

A picture of which the judge could not tell whether it shows the concept counts against the model, whichever way it is
asked (`missing=False`): it is not forgotten, and not retained. Left out, a model that paints riddles would look better
than it is. `Value.unknown` says how many there were; where every answer is unknown, nothing was measured.

Counts of one concept carry Wilson intervals, as wide as for one picture of each prompt; means over many prompts are
bootstrapped by prompt, because pictures of one prompt are not independent; differences from the base model are paired by
row and bootstrapped the same way.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Sequence

import numpy as np
import pandas as pd

from expunge.schema import Result

_DRAWS = 2000
_LEVEL = 0.95


class Value(Result):
    """A measured value with its 95 % interval and the number of pictures behind it.

    Attributes:
        unknown: how many of the `n` pictures the judge could not tell, and which therefore count against the model.
    """

    value: float
    low: float
    high: float
    n: int
    unknown: int = 0


def wilson(successes: int, n: int, unknown: int = 0, independent: int | None = None) -> Value | None:
    """Share of successes with Wilson's score interval; `unknown` of the n are no successes because nobody could tell.

    Args:
        independent: how many of the n count for the width; None for all.

    Source: Wilson (1927), JASA 22:209-212.
    """
    if n == unknown:
        return None
    z, p, m = 1.959963984540054, successes / n, independent or n
    centre = (p + z * z / (2 * m)) / (1 + z * z / m)
    half = z / (1 + z * z / m) * math.sqrt(p * (1 - p) / m + z * z / (4 * m * m))
    return Value(value=p, low=max(0.0, centre - half), high=min(1.0, centre + half), n=n, unknown=unknown)


def never_seen(n: int) -> float:
    """The upper end of Wilson's interval for a share that was never seen in `n` prompts: z^2 / (n + z^2), 1 for none."""
    value = wilson(0, n)
    return value.high if value else 1.0


def clustered(
    tables: Sequence[pd.DataFrame],
    statistic: Callable[[Sequence[np.ndarray]], np.ndarray],
    lowest: float = 0.0,
    highest: float = 1.0,
    missing: bool | None = None,
) -> Value | None:
    """A statistic of the means of column `x` of each table, with a percentile bootstrap clustered by prompt.

    Each table has the columns `prompt` and `x`. Missing values are left out, or count as `missing` if that is given and
    not all are missing. Prompts are drawn with replacement within each table. `statistic` maps the tables' means (arrays
    of any equal length) to the statistic, which lies in [lowest, highest].

    Where all prompts agree, resampling shows no spread at all; the interval is then as wide as Wilson's for a share that was
    never seen in that many prompts. Where a few answers differ it shows too little: the interval reaches no less far than that
    of tables where none does, so that a model which lost one picture is not thought safer than one which lost none.
    """
    rng = np.random.default_rng(0)
    points, draws, prompts, n, unknown, counted = [], [], [], 0, 0, True
    for table in tables:
        known = table.dropna(subset=["x"])
        if known.empty:
            return None
        if missing is not None:
            unknown += len(table) - len(known)
            known = table.assign(x=table["x"].astype("Float64").fillna(float(missing)))
        prompts.append(known["prompt"].nunique())
        points.append(np.array([known["x"].astype(float).mean()]))
        draws.append(_resampled(known, rng))
        n += len(known)
        counted &= bool(known["x"].astype(float).isin([-1.0, 0.0, 1.0]).all())
    point = float(statistic(points)[0])
    low, high = _bounds(statistic(draws))
    unseen = never_seen(min(prompts))
    if low == high:
        low, high = max(lowest, point - unseen), min(highest, point + unseen)
    elif counted:
        none, every = (0.0, 0.0) if lowest < 0 else (lowest, highest)  # a difference where nothing changed; a share
        low = min(low, every - unseen) if point <= every else low
        high = max(high, none + unseen) if point >= none else high
    return Value(value=point, low=low, high=high, n=n, unknown=unknown)


def _resampled(table: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    """Means of the column `x` over prompts that are drawn with replacement, `(draws)`."""
    groups = table.assign(x=table["x"].astype(float)).groupby("prompt", sort=True)["x"].agg(["sum", "count"])
    sums, counts = groups["sum"].to_numpy(), groups["count"].to_numpy()
    picks = rng.integers(len(groups), size=(_DRAWS, len(groups)))
    means: np.ndarray = sums[picks].sum(axis=1) / counts[picks].sum(axis=1)
    return means


def _bounds(draws: np.ndarray) -> tuple[float, float]:
    tail = (1 - _LEVEL) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def kernel_distance(table: pd.DataFrame) -> Value | None:
    """KID: the mean of the column `kernel` (`expunge.evaluation.kernel`), where there is one.

    Every row's part holds that row once as itself and once more, on average, in the parts of the others. So the mean strays
    twice as far as one of independent parts (Hajek's projection), and the bootstrap by prompt is stretched by two.
    """
    if "kernel" not in table or table["kernel"].isna().all():
        return None
    known = table.dropna(subset=["kernel"]).rename(columns={"kernel": "x"})
    value = float(known["x"].mean())
    low, high = _bounds(value + 2 * (_resampled(known, np.random.default_rng(0)) - value))
    return Value(value=value, low=low, high=high, n=len(known))


def mean(table: pd.DataFrame, column: str, missing: bool | None = None) -> Value | None:
    """Mean of a column, bootstrapped by prompt; missing values are left out, or count as `missing`."""
    return clustered([table[["prompt"]].assign(x=table[column])], lambda means: means[0], missing=missing)


def difference(after: pd.DataFrame, before: pd.DataFrame, column: str, missing: bool | None = None) -> Value | None:
    """Mean of (after - before) over the rows that both tables have, paired by `row` and bootstrapped by prompt.

    A pair that misses a value is left out, but one that misses only the value after counts it as `missing` if that is
    given.
    """
    pair = after.merge(before, on=["row", "prompt"], suffixes=("_after", "_before"))
    now, then = (pair[f"{column}_{side}"].astype("Float64") for side in ("after", "before"))
    unknown = 0
    if missing is not None and now.notna().any():
        unknown = int((now.isna() & then.notna()).sum())
        now = now.fillna(float(missing))
    value = clustered([pair[["prompt"]].assign(x=now - then)], lambda means: means[0], lowest=-1.0)
    return value and value.model_copy(update={"unknown": unknown})


def unlearning_accuracy(table: pd.DataFrame, concept: str) -> Value | None:
    """UA of one concept: share of its forget-prompt pictures of which the judge says that they do not show it."""
    return unlearning_accuracies(table[table["concept"] == concept]).get(concept)


def unlearning_accuracies(table: pd.DataFrame) -> dict[str, Value | None]:
    """UA of every concept that the table has forget prompts of. As many pictures count for the width of its interval as there
    are different prompts: those of one prompt may all come out alike."""
    rows = table[table["role"] == "forget"].groupby("concept")
    shown = rows["shown"].agg(["sum", "count", "size"]).assign(prompts=rows["prompt"].nunique())
    return {
        str(concept): wilson(
            int(row["count"] - row["sum"]), int(row["size"]), int(row["size"] - row["count"]), int(row["prompts"])
        )
        for concept, row in shown.iterrows()
    }


def harmonic_mean(parts: Sequence[pd.DataFrame], missing: bool | None = None) -> Value | None:
    """Harmonic mean of the means of column `x` of the tables (UA, IRA, CRA)."""
    return clustered(
        parts, lambda means: len(means) / np.sum([1 / np.maximum(m, 1e-12) for m in means], axis=0), missing=missing
    )


def asked_for(asked: str) -> set[str]:
    """The names in a row's column `asked`, which holds its scene as JSON, {slot: name}."""
    if not asked.startswith("{"):  # as it was written before 26 November 2026: slot=name; slot=name
        return {part.partition("=")[2] for part in asked.split("; ")}
    return {*json.loads(asked).values()}


def beside(forget: pd.DataFrame, requested: Collection[str]) -> pd.DataFrame:
    """The rows of forget prompts by which context is measured: those that ask for something beside their concept, and for
    nothing of it that was `requested` to go."""
    others = [asked_for(asked) - {concept} for asked, concept in zip(forget["asked"], forget["concept"], strict=True)]
    return forget[[bool(names) and not names & {*requested} for names in others]]


def of_roles(table: pd.DataFrame, forgotten: Sequence[str], free_of: Sequence[str]) -> dict[str, pd.DataFrame]:
    """The table's parts: "forget" (rows of `forgotten`), "neighbour", "neighbour_unreplayed", "other".

    A row that measures retention counts only if nothing in it was ever asked to go (`free_of`).
    """
    gone = set(free_of)
    free = ~table["asked"].map(lambda asked: bool(asked_for(asked) & gone)).astype(bool)
    neighbour = table[(table["role"] == "neighbour") & free]
    return {
        "forget": table[(table["role"] == "forget") & table["concept"].isin(list(forgotten))],
        "neighbour": neighbour,
        "neighbour_unreplayed": neighbour[~neighbour["replayed"]],
        "other": table[(table["role"] == "other") & free],
    }
