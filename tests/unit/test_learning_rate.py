"""The learning rate over optimizer steps."""

from __future__ import annotations

import pytest

from expunge.engine import TrainConfig, learning_rate


def test_the_learning_rate_rises_over_optimizer_steps() -> None:
    config = TrainConfig(learning_rate=1.0, warmup_steps=4)
    assert [learning_rate(config, step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert learning_rate(TrainConfig(learning_rate=1.0, warmup_steps=0), 0) == 1.0


def test_a_cosine_falls_to_nothing() -> None:
    cosine = TrainConfig(learning_rate=1.0, warmup_steps=0, steps=4, schedule="cosine")
    assert [learning_rate(cosine, step) for step in range(5)] == pytest.approx(
        [1, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5, 0]
    )
