"""The training loop on three weights: every step is what a plain loop gives."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from expunge.backbones import Evaluations, Predictor
from expunge.constraints import L2, Anchors, Constraint, ConstraintConfig, L2Config
from expunge.engine import TrainConfig, train
from expunge.errors import ExpungeError
from expunge.hardware import best_device
from expunge.methods import GradientMethod, Position
from expunge.methods.base import TeacherName
from expunge.stopping import StopConfig
from steps import log

START = torch.tensor([1.0, -2.0, 0.5])
BASE = torch.tensor([0.0, 3.0, -1.0])


class Three:
    """What the loop asks of a backbone, around three weights."""

    latent_shape = (1, 1, 1)
    device = best_device()

    def __init__(self, weights: Tensor) -> None:
        self.denoiser = nn.Module()
        self.denoiser.w = nn.Parameter(weights.clone())
        self.denoiser.to(self.device)

    def parameters_of(self, group: str) -> list[str]:
        return ["w"]

    def denoiser_alone(self) -> Any:
        return nullcontext()


class Pull(GradientMethod[None, Tensor]):
    """A parabola with another lowest point in every micro-batch."""

    weights = {"unlearn": 3.0}

    def __init__(self, teacher: TeacherName = "previous") -> None:
        self._teacher: TeacherName = teacher
        self.drawn: list[tuple[nn.Module, int]] = []

    @property
    def teacher(self) -> TeacherName:
        return self._teacher

    def prepare(self, context: Any) -> Any: ...

    def batch(self, state: None, position: Position, student: Predictor) -> Tensor:
        self.drawn.append((student.denoiser, position.first_row(1)))
        return lowest(position.step, position.micro).to(Three.device)

    def losses(self, batch: Tensor, student: Any, teacher: Predictor, state: None) -> Mapping[str, Tensor]:
        return {"unlearn": (student.denoiser.w - batch).square().sum()}


class Seen(Constraint):
    """Changes nothing, and keeps the anchors of every step."""

    def __init__(self) -> None:
        super().__init__(ConstraintConfig(name="seen"))
        self.anchors: list[tuple[Tensor, Tensor]] = []

    def regularize(self, parameters: Mapping[str, nn.Parameter], anchors: Anchors) -> Tensor:
        self.anchors.append((anchors.previous["w"].cpu().clone(), anchors.base["w"].cpu().clone()))
        return torch.zeros(())


def lowest(step: int, micro: int) -> Tensor:
    """Where the parabola of a micro-batch is at its lowest."""
    return torch.tensor([step + 2.0, 0.3 * step - micro, 5.0 * micro])


def trained(
    config: TrainConfig, folder: Path, method: Pull | None = None, constraints: Sequence[Constraint] = ()
) -> Tensor:
    """The weights after training from START, with a teacher at BASE if the method asks for one there."""
    method = method or Pull()
    backbone: Any = Three(START)
    teacher = copy.deepcopy(backbone.denoiser if method.teacher == "previous" else Three(BASE).denoiser)
    train(
        backbone,
        Predictor(backbone, teacher, Evaluations()),
        method,
        None,
        constraints,
        {"w": BASE},
        config,
        seed=0,
        checkpoint=folder,
        log=folder / "train.jsonl",
        evaluations=Evaluations(),
    )
    return backbone.denoiser.w.detach().cpu()


def test_a_step_is_the_mean_gradient_with_the_penalties_clipped_and_given_to_adamw(tmp_path: Path) -> None:
    first, second, epsilon, decay, clip = 0.6, 0.7, 0.2, 0.1, 20.0
    config = TrainConfig(
        steps=4,
        accumulation=2,
        learning_rate=0.3,
        schedule="cosine",
        warmup_steps=2,
        betas=(first, second),
        epsilon=epsilon,
        weight_decay=decay,
        max_grad_norm=clip,
    )
    held = [L2(L2Config(weight=0.8, toward="previous")), L2(L2Config(weight=0.3, toward="base"))]
    found = trained(config, tmp_path, constraints=held)

    w, mean, square = START.clone(), torch.zeros(3), torch.zeros(3)
    rates, norms, losses = [], [], []
    for step in range(4):
        away = torch.stack([w - lowest(step, micro) for micro in range(2)])
        losses.append(float(away.square().sum(1).mean()))
        gradient = 3 * 2 * away.mean(0) + 2 * 0.8 * (w - START) + 2 * 0.3 * (w - BASE)
        norms.append(float(gradient.norm()))
        gradient = gradient * min(1.0, clip / norms[-1])
        rates.append(0.3 * min(1, (step + 1) / 2) * (1 + math.cos(math.pi * step / 4)) / 2)
        mean = first * mean + (1 - first) * gradient
        square = second * square + (1 - second) * gradient**2
        unbiased = mean / (1 - first ** (step + 1)), square / (1 - second ** (step + 1))
        w = w - rates[-1] * (decay * w + unbiased[0] / (unbiased[1].sqrt() + epsilon))

    assert min(norms) < clip < max(norms)
    torch.testing.assert_close(found, w, rtol=1e-4, atol=1e-5)
    told = log(tmp_path)
    assert [line["gradient_norm"] for line in told] == pytest.approx(norms, rel=1e-4)
    assert [line["learning_rate"] for line in told] == pytest.approx(rates)
    assert [line["losses"]["unlearn"] for line in told] == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize("teacher", ["previous", "base"])
def test_constraints_hold_on_to_where_the_step_began_and_to_the_base_model(
    teacher: TeacherName, tmp_path: Path
) -> None:
    """Whoever the teacher is, and in the second step as in the first."""
    seen = Seen()
    after = trained(TrainConfig(steps=2), tmp_path, Pull(teacher), [seen])
    assert not torch.equal(after, START)
    assert len(seen.anchors) == 2
    for previous, base in seen.anchors:
        assert torch.equal(previous, START)
        assert torch.equal(base, BASE)


def test_the_stopping_rule_looks_at_rows_that_no_step_trains_on(tmp_path: Path) -> None:
    method = Pull()
    stop = StopConfig(check_every=1, patience=9, tolerance=0, target=0, batches=3)
    trained(TrainConfig(steps=4, accumulation=2, stop=stop), tmp_path, method)
    teacher, student = dict.fromkeys(drawer for drawer, _ in method.drawn)
    checked, learned = ([row for drawer, row in method.drawn if drawer is who] for who in (teacher, student))
    assert (len(set(checked)), len(set(learned))) == (3, 8)
    assert not {*checked} & {*learned}


def test_a_launcher_does_not_average_what_is_averaged_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(steps=3, accumulation=2, warmup_steps=2)
    plain = trained(config, tmp_path / "plain")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert torch.equal(trained(config, tmp_path / "launched"), plain)
    assert log(tmp_path / "launched") == log(tmp_path / "plain")


@pytest.mark.parametrize("scale", [2.0**20, 2.0**127])
def test_a_step_whose_gradient_overflows_is_taken_again(
    scale: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published loop counts it as done. Scales are powers of two, which change no digit of a gradient."""

    class Scaled(Accelerator):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            self.scaler = torch.amp.GradScaler(self.device.type, init_scale=scale)

        def unscale_gradients(self, optimizer: Any = None) -> None:
            self.scaler.unscale_(optimizer.optimizer)

    config = TrainConfig(steps=3, accumulation=2, warmup_steps=2)
    plain = trained(config, tmp_path / "plain")
    method = Pull()
    monkeypatch.setattr("expunge.engine.Accelerator", Scaled)
    assert torch.equal(trained(config, tmp_path / "scaled", method), plain)
    rows = [row for _, row in method.drawn]
    assert sorted(set(rows)) == list(range(6))
    assert (len(rows) > 6) == (scale > 2**100)
    assert [line["step"] for line in log(tmp_path / "scaled")] == [1, 2, 3]


def test_a_gradient_that_overflows_at_every_scale_ends_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Overflowing(Accelerator):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            self.scaler = torch.amp.GradScaler(self.device.type)

        def unscale_gradients(self, optimizer: Any = None) -> None:
            optimizer.param_groups[0]["params"][0].grad.fill_(math.inf)
            self.scaler.unscale_(optimizer.optimizer)

    monkeypatch.setattr("expunge.engine.Accelerator", Overflowing)
    with pytest.raises(ExpungeError, match="gradient is not finite at optimizer step 1"):
        trained(TrainConfig(steps=3), tmp_path)
