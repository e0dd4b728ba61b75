"""Which pictures of a model are kept, and how far the model lies from the base model, in pictures and in weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from expunge.evaluation import Images, Judge, Value, kernel_distances, metrics, pictures
from expunge.stream.judged import Shelf, read_image, read_table

PICTURES_PER_CONCEPT = 3
"""Pictures of each concept and role that are kept for the report."""


def pictured(table: pd.DataFrame) -> list[str]:
    """Rows whose pictures are kept: a few prompts of each concept, and every one that is not known to be without it."""
    few = (
        table[table["level"] == "between"]
        .drop_duplicates("prompt")
        .groupby(["role", "concept"])
        .head(PICTURES_PER_CONCEPT)
    )
    back = table[(table["role"] == "forget") & table["shown"].fillna(True)]
    return [*few["row"], *back["row"]]


def compare_with_base(
    table: pd.DataFrame, images: Images, base: Shelf, judge: Judge, requested: Sequence[str], batch: int
) -> None:
    """Add to the table how its pictures differ from the base model's: each row's `drift`, the root mean squared difference of
    a pixel, in [0, 1], and its part in the `kernel` distance (`expunge.evaluation.kernel`) of pictures of what stays.

    Args:
        requested: names that were ever asked to go; no picture that was to show one is among what stays.
        batch: pictures that the judge sees at once.
    """
    judged = read_table(base.judgements, ["row", "image"])
    digests = dict(zip(judged["row"], judged["image"], strict=True))
    stays = staying(table, requested)
    drift: dict[str, float] = {}
    features: dict[str, list[Tensor]] = {}
    rows = [row for row in table["row"] if row in digests]
    for start in range(0, len(rows), batch):
        read = {row: read_image(base.images, digests[row]) for row in rows[start : start + batch]}
        before = {row: picture for row, picture in read.items() if picture is not None}
        drift |= {row: _difference(images[row], picture) for row, picture in before.items()}
        if compared := [row for row in before if row in stays]:
            sides = [before[row] for row in compared], [images[row] for row in compared]
            told = [f for side in sides if (f := judge.features(pictures(side))) is not None]
            features |= {row: [side[i] for side in told] for i, row in enumerate(compared) if told}
    kernel: dict[str, float] = {}
    if len(features) > 1:
        x, y = (torch.stack(side) for side in zip(*features.values(), strict=True))
        kernel = dict(zip(features, kernel_distances(x, y).tolist(), strict=True))
    for column, values in (("drift", drift), ("kernel", kernel)):
        table[column] = table["row"].map(values).astype("float64")


def staying(table: pd.DataFrame, requested: Sequence[str]) -> set[str]:
    """The table's rows that measure what stays, where the names `requested` were ever asked to go."""
    parts = metrics.of_roles(table, [], requested)
    return {*parts["neighbour"]["row"], *parts["other"]["row"]}


def _difference(picture: np.ndarray, before: np.ndarray) -> float:
    return float(np.sqrt(np.mean(((picture.astype(float) - before) / 255) ** 2)))


def weight_drift(changed: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> Value | None:
    """|| M - M(0) || / || M(0) || over the denoiser's tensors `stored`, of which M has those in `changed` instead. Exact, so
    the interval is a point. None where that is no finite number: where M holds NaN."""
    moved = sum(float((v.float() - stored[n].float()).square().sum()) for n, v in changed.items())
    size = sum(float(v.float().square().sum()) for v in stored.values())
    ratio = (moved / size) ** 0.5
    if not math.isfinite(ratio):
        return None
    return Value(value=ratio, low=ratio, high=ratio, n=sum(v.numel() for v in stored.values()))
