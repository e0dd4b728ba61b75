"""A picture with NaN in it is unknown to every judge: it looks black, but it is not forgotten."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import tiny_judges
from expunge import iconworld
from expunge.evaluation import ClipJudge, Judge, VisionLanguageJudge, forget_rows, metrics, run

PROTOCOL = iconworld.protocol("iconworld-demo")
VOCABULARY = iconworld.vocabulary()
ROWS = forget_rows(PROTOCOL, VOCABULARY, VOCABULARY.concept("fox"))[:4]
MAKE: dict[str, Callable[[Path], Judge]] = {
    "iconworld": lambda folder: iconworld.judge(),
    "clip": lambda folder: ClipJudge(tiny_judges.save(folder, *tiny_judges.clip()), threshold=0.5),
    "vl": lambda folder: VisionLanguageJudge(tiny_judges.save(folder, *tiny_judges.vision_language())),
}


def judged(judge: Judge, pictures: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    monkeypatch.setattr(run, "paint", lambda *_: pictures)
    backbone: Any = type(
        "Backbone", (), {"denoiser": None, "device": torch.device("cpu"), "lay_out": lambda layout: None}
    )
    return run.evaluate(backbone, ROWS, PROTOCOL.sampler, judge)[0].set_index("row")


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_every_judge_leaves_it_unknown(
    name: str, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = MAKE[name](tmp_path)
    pictures = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    whole = judged(judge, pictures, monkeypatch)
    pictures[1] = value
    pictures[2, 0, 5, 5] = value
    table = judged(judge, pictures, monkeypatch)
    broken = table.iloc[1:3]
    assert broken[["shown", "confidence"]].isna().all(axis=None)
    assert not broken[["recognisable", "context"]].any(axis=None)  # nor is anything kept, or to be recognised
    assert broken[["recognisable", "context"]].notna().all(axis=None)
    assert set(broken["seen_thing"]) == {"unsure"}
    assert broken["collapsed"].all()
    pd.testing.assert_frame_equal(
        table.iloc[[0, 3]], whole.iloc[[0, 3]]
    )  # their neighbours in the batch are as they were


def test_it_counts_as_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CLIP with a threshold of 0.5 always answers, and says of black that it is no fox."""
    judge = MAKE["clip"](tmp_path)
    black = torch.zeros(4, 3, 64, 64)
    table = judged(judge, black, monkeypatch)
    ua = metrics.unlearning_accuracy(table, "fox")
    assert ua is not None
    assert ua.value == 1.0
    black[:3] = float("nan")
    ua = metrics.unlearning_accuracy(judged(judge, black, monkeypatch), "fox")
    assert ua is not None
    assert (ua.value, ua.n, ua.unknown) == (0.25, 4, 3)
