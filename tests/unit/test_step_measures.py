"""What a step's judgements, pictures and weights come to, on tables written by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from expunge.concepts import Request
from expunge.evaluation import Value
from expunge.files import save_tensors
from expunge.stream import preset, step
from expunge.stream.drift import compare_with_base, pictured, weight_drift
from expunge.stream.judged import Shelf, write_images, write_table
from handmade import FOX, NEON, judgements


def put(table: pd.DataFrame, column: str, value: bool, concept: str, *numbers: int) -> None:
    rows = [f"{concept}/by hand {i}" for i in numbers]
    assert table["row"].isin(rows).sum() == len(rows)
    table.loc[table["row"].isin(rows), column] = value


def test_a_step_is_measured_beside_the_base_model_and_every_loss_is_a_drop(tmp_path: Path) -> None:
    """Of 8 forget rows (fox now, neon before), 16 of neighbours (the dogs replayed) and 4 of others."""
    base, after = judgements(0, [])[0].assign(context=True), judgements(1, ["fox", "cat"])[0].assign(context=True)
    put(base, "shown", False, "forget/neon", 0)
    put(base, "shown", False, "other/house", 0)
    put(after, "shown", True, "forget/fox", 3)
    put(after, "shown", False, "forget/neon", 0, 1)
    put(after, "recognisable", False, "forget/fox", 0)
    put(after, "context", False, "forget/fox", 0, 1, 2)
    put(after, "collapsed", True, "neighbour/dog", 0)
    put(after, "collapsed", True, "neighbour/clown", 0)
    after["drift"] = after["role"].map({"forget": 0.9, "neighbour": 0.25, "other": 0.0})
    save_tensors(tmp_path / "weights.safetensors", {"a": torch.full((4,), 3.0)})
    shop: Any = SimpleNamespace(config=preset("lacu-iconworld"), stored={"a": torch.full((4,), 2.0)})
    own: Any = SimpleNamespace(weights=tmp_path / "weights.safetensors")
    request = Request(id="0002", concepts=(FOX,), received_at="2026-02-03T04:05:06+00:00")

    result, checks = step._measured(shop, request, own, base, after, {1: (NEON,)}, [NEON, FOX])

    expected = {
        "ua": 5 / 8,
        "ua_recognisable": 4 / 8,
        "context": 5 / 8,
        "recognisable": 27 / 28,
        "ira": 12 / 16,
        "ira_unreplayed": 8 / 12,
        "cra": 1.0,
        "harmonic_mean": 3 / (8 / 5 + 16 / 12 + 1),
        "ira_difference": -4 / 16,
        "cra_difference": 1 / 4,
        "image_drift": 0.2,
        "weight_drift": 0.5,
        "collapsed": 2 / 28,
    }
    assert {name: value.value for name, value in result if isinstance(value, Value)} == pytest.approx(expected)
    assert result.ira_difference
    assert result.cra_difference
    assert result.collapsed
    assert [(c.name, c.concept, c.value) for c in checks] == [
        ("ua", "neon", 0.5),
        ("ua", "fox", 0.75),
        ("context drop", None, 3 / 8),
        ("ira drop", None, -result.ira_difference.low),
        ("cra drop", None, -result.cra_difference.low),
        ("collapsed", None, result.collapsed.high),
    ]


def test_weights_drift_by_the_length_of_their_way_over_their_own() -> None:
    drift = weight_drift({"a": torch.full((4,), 3.0)}, {"a": torch.full((4,), 2.0)})
    assert drift == Value(value=0.5, low=0.5, high=0.5, n=4)
    held = weight_drift({"a": torch.full((4,), 3.0)}, {"a": torch.full((4,), 2.0), "b": torch.full((3,), 4.0)})
    assert held
    assert (held.value, held.n) == (0.25, 7)  # what did not move counts in their length


def test_pictures_are_kept_of_what_may_show_a_forgotten_concept() -> None:
    table = judgements(1, ["fox"])[0]
    spare = table[~table["row"].isin(pictured(table)) & (table["concept"] == "fox")]["row"]
    assert len(spare)  # beside the first few
    for shown, kept in ((False, False), (True, True), (pd.NA, True)):
        table.loc[table["row"] == spare.iloc[0], "shown"] = shown
        assert (spare.iloc[0] in pictured(table)) == kept


def test_a_pictures_drift_is_the_root_of_its_mean_squared_difference(tmp_path: Path) -> None:
    base, after = ({"row": np.zeros((8, 8, 3), np.uint8)} for _ in range(2))
    after["row"][:4, :4] = 255  # a quarter of the picture
    told = {
        "row": ["row"],
        "role": ["forget"],
        "concept": ["fox"],
        "asked": ["{}"],
        "replayed": [False],
        "image": ["sha"],
    }
    shelf = Shelf(tmp_path / "judgements.parquet", tmp_path)
    write_table(shelf.judgements, pd.DataFrame(told))
    write_images(shelf.images, base, pd.DataFrame(told), ["row"])
    table = pd.DataFrame(told)
    compare_with_base(table, after, shelf, Any, ["fox"], 1)
    assert table["drift"].tolist() == [0.5]
