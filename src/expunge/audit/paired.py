"""Two models over the same rows: each one's values, and the difference picture by picture."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from expunge.evaluation import Value, metrics
from expunge.schema import Result


class Pair(Result):
    """A value of the first model and of the second, and second minus first over the pictures that both have.

    Where a value is None, `reason` says why.
    """

    first: Value | None
    second: Value | None
    difference: Value | None
    reason: str | None = None


class Paired(Result):
    """`ua`, `context`, `ira` and `cra` as in `summary.json`, and `concepts`: UA of each forgotten concept alone."""

    ua: Pair
    context: Pair
    ira: Pair
    cra: Pair
    concepts: dict[str, Pair]


def compare_tables(
    first: pd.DataFrame,
    second: pd.DataFrame,
    forgotten: Sequence[str],
    requested: Sequence[str],
    base: bool = False,
) -> Paired:
    """Compare two judgement tables over the rows that both have.

    Args:
        forgotten: the concepts whose forgetting is compared.
        requested: all concepts that either model was asked to forget; retention is measured without them.
        base: whether the first is the base model: a difference from it leaves out what could not be said of it, as in a run.
    """

    rows = set(first["row"]) & set(second["row"])
    parts = [
        metrics.of_roles(table[table["row"].isin(rows)].assign(gone=~table["shown"]), forgotten, requested)
        for table in (first, second)
    ]

    def pair(role: str, column: str, missing: bool | None) -> Pair:
        first, second = (part[role] for part in parts)
        if column == "context":
            first, second = (metrics.beside(table, requested) for table in (first, second))
        return _explained(
            metrics.mean(first, column, missing=missing),
            metrics.mean(second, column, missing=missing),
            _difference(first, second, column, missing, base),
        )

    def concept(name: str) -> Pair:
        first, second = (part["forget"][part["forget"]["concept"] == name] for part in parts)
        return _explained(
            metrics.unlearning_accuracy(first, name),
            metrics.unlearning_accuracy(second, name),
            _difference(first, second, "gone", False, base),
        )

    return Paired(
        ua=pair("forget", "gone", False),
        context=pair("forget", "context", None),
        ira=pair("neighbour", "shown", False),
        cra=pair("other", "shown", False),
        concepts={name: concept(name) for name in forgotten},
    )


def _difference(
    first: pd.DataFrame, second: pd.DataFrame, column: str, missing: bool | None, base: bool
) -> Value | None:
    """Second minus first. An answer that is unknown counts against the model that it is an answer about, whichever it is;
    where the first is the base model, a pair of which its answer is unknown is left out."""
    if base:
        return metrics.difference(second, first, column, missing)
    if missing is None or first[column].isna().all() or second[column].isna().all():
        return metrics.difference(second, first, column)
    one, other = (table.assign(**{column: table[column].fillna(missing)}) for table in (first, second))
    value = metrics.difference(other, one, column)
    unknown = first.merge(second, on="row", suffixes=("", "_second"))[[column, f"{column}_second"]].isna().any(axis=1)
    return value and value.model_copy(update={"unknown": int(unknown.sum())})


def _explained(first: Value | None, second: Value | None, difference: Value | None) -> Pair:
    whole = first and second and difference
    return Pair(
        first=first,
        second=second,
        difference=difference,
        reason=None if whole else "no picture of this kind could be judged for both models",
    )
