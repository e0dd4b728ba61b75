"""The kernel distance, against what can be computed by hand, and its interval, against how often it holds the truth."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from expunge.evaluation import kernel, kernel_distances, metrics


def normal(n: int, d: int, mean: float, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + mean


def test_two_pairs_by_hand() -> None:
    """k(0, 1) + k(1, 2) - k(0, 2) - k(1, 1) with k(a, b) = (ab + 1)^3"""
    before, after = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]])
    assert kernel_distances(before, after).tolist() == [1 + 27 - 1 - 8] * 2


def test_it_is_the_sum_over_all_other_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(7, 3, 0.0, 1).double(), normal(7, 3, 0.5, 2).double()

    def k(a: Tensor, b: Tensor) -> float:
        return float((a @ b / 3 + 1) ** 3)

    def part(i: int) -> float:
        others = [j for j in range(7) if j != i]
        return sum(k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(x[j], y[i]) for j in others) / 6

    monkeypatch.setattr(kernel, "_ROWS", 3)  # more than one block of rows, the last one smaller
    assert kernel_distances(x, y).tolist() == pytest.approx([part(i) for i in range(7)])


def test_the_same_pictures_are_at_no_distance_and_worse_ones_further_away() -> None:
    before = normal(200, 16, 0.0, 1)
    assert kernel_distances(before, before).abs().max() == 0
    noise = normal(200, 16, 0.0, 2)
    found = [float(kernel_distances(before, before + size * noise + size).mean()) for size in (0.1, 0.3, 1.0)]
    assert 0 < found[0] < found[1] < found[2]


def interval_holds(truth: float, seed: int, shift: float) -> tuple[bool, bool]:
    """Whether the interval holds the truth, and whether one that is not stretched would."""
    x = normal(120, 1, 0.0, seed)
    y = 0.6 * x + 0.8 * normal(120, 1, 0.0, seed + 100_000) + shift  # of the same noise, in part
    table = pd.DataFrame({"prompt": range(120), "kernel": kernel_distances(x, y)})
    value = metrics.kernel_distance(table)
    assert value is not None
    low, high = ((value.value + bound) / 2 for bound in (value.low, value.high))
    return value.low <= truth <= value.high, low <= truth <= high


def test_its_interval_holds_the_truth() -> None:
    """Between normal distributions in one dimension the distance follows from their moments:
    (m3 - m3')^2 + 3 (m2 - m2')^2 + 3 (m1 - m1')^2, here of N(0, 1) and N(s, 1)."""
    s = 0.7
    truth = (s**3 + 3 * s) ** 2 + 3 * s**4 + 3 * s**2
    held = np.mean([interval_holds(truth, seed, s) for seed in range(300)], axis=0)
    assert held[0] > 0.88
    assert held[1] < 0.75  # the control


def test_what_was_not_measured_is_none() -> None:
    assert metrics.kernel_distance(pd.DataFrame({"prompt": ["a", "b"]})) is None
    assert metrics.kernel_distance(pd.DataFrame({"prompt": ["a", "b"], "kernel": [None, None]})) is None
