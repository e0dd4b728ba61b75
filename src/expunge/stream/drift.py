"""Which pictures of a model are kept, and how far the model lies from the base model, in pictures and in weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from expunge.evaluation import Images, Value
from expunge.stream.judged import read_image

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


def drifts(base: pd.DataFrame, base_images: Path, table: pd.DataFrame, images: Images) -> list[float | None]:
    """For each row the root mean squared pixel difference, in [0, 1], from the base model's picture."""
    before = dict(zip(base["row"], base["image"], strict=True))
    found: list[float | None] = []
    for row in table["row"]:
        picture = read_image(base_images, before[row]) if row in before else None
        difference = None if picture is None else (images[row].astype(float) - picture) / 255
        found.append(None if difference is None else float(np.sqrt(np.mean(difference**2))))
    return found


def weight_drift(changed: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> Value | None:
    """|| M - M(0) || / || M(0) || over the denoiser's tensors `stored`, of which M has those in `changed` instead. Exact, so
    the interval is a point. None where that is no finite number: where M holds NaN."""
    moved = sum(float((v.float() - stored[n].float()).square().sum()) for n, v in changed.items())
    size = sum(float(v.float().square().sum()) for v in stored.values())
    ratio = (moved / size) ** 0.5
    if not math.isfinite(ratio):
        return None
    return Value(value=ratio, low=ratio, high=ratio, n=sum(v.numel() for v in stored.values()))
