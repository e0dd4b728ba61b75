"""Metrics by name: what they mean, and how their values are printed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from expunge.evaluation import Value
from expunge.report import wording
from expunge.stream.summary import Metrics


@dataclass(frozen=True)
class Tile:
    """One of the few values at the head of a page."""

    name: str
    value: str
    detail: str


@dataclass(frozen=True)
class MetricRow:
    name: str
    meaning: str
    value: str
    interval: str
    n: str


@dataclass(frozen=True)
class Unmeasured:
    name: str
    reason: str
    steps: str


@dataclass(frozen=True)
class Metric:
    name: str
    meaning: str
    value: Callable[[Value | None], str]
    interval: Callable[[Value | None], str]


def _share(name: str, meaning: str) -> Metric:
    return Metric(name, meaning, wording.share, wording.share_interval)


MAIN = {
    "ua": _share("UA", "unlearning accuracy: pictures of forget prompts that do not show the forgotten concept"),
    "context": _share("Context", "pictures of forget prompts that keep what else the prompt asked for"),
    "ira": _share("IRA", "in-domain retain accuracy: pictures of neighbouring concepts that show what was asked"),
    "ira_difference": Metric("IRA difference", "IRA minus the base model's, on the same prompts and seeds",
                              wording.points, wording.points_interval),
    "ira_unreplayed": _share("IRA, held out", "IRA on the neighbours that training never saw"),
    "cra": _share("CRA", "cross-domain retain accuracy: pictures of unrelated concepts that show what was asked"),
    "cra_difference": Metric("CRA difference", "CRA minus the base model's, on the same prompts and seeds",
                              wording.points, wording.points_interval),
    "recognisable": _share("Recognisable", "pictures in which the judge is confident of some thing"),
}  # fmt: skip
MORE = {
    "ua_recognisable": _share("UA, recognisable", "of forget prompts: the concept does not show, yet some thing does"),
    "harmonic_mean": _share("Harmonic mean", "of UA, IRA and CRA"),
    "collapsed": _share("Collapsed", "pictures of one colour, or of nothing but noise"),
    "image_drift": Metric("Image drift", "root mean squared pixel difference from the base model, pixels from 0 to 1",
                           wording.number, wording.number_interval),
    "weight_drift": Metric("Weight drift", "change of the denoiser's weights, relative to their norm",
                            wording.number, wording.number_interval),
    "kid_judge": Metric("KID", "kernel distance between pictures before and after, in the judge's features",
                         wording.number, wording.number_interval),
}  # fmt: skip
METRICS = {**MAIN, **MORE}
TILES = {
    "ua": "Forgotten (UA)",
    "ira_difference": "Neighbours against base (IRA)",
    "cra_difference": "The rest against base (CRA)",
    "context": "Context kept",
}
"""{metric at the head of a page: its name there}"""


def tiles(titles: Mapping[str, str], measured: Metrics) -> tuple[Tile, ...]:
    values = ((title, METRICS[field], getattr(measured, field)) for field, title in titles.items())
    return tuple(Tile(title, kind.value(value), kind.interval(value)) for title, kind, value in values)


def metric_rows(kinds: Mapping[str, Metric], measured: Metrics) -> tuple[MetricRow, ...]:
    rows = []
    for field, kind in kinds.items():
        value: Value | None = getattr(measured, field)
        n = wording.counted(value) if value else ""
        rows.append(MetricRow(kind.name, kind.meaning, kind.value(value), kind.interval(value), n))
    return tuple(rows)
