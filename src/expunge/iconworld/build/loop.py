"""One training loop for all stages: it may be stopped at any moment and goes on from its last checkpoint.

Everything random in a step is derived from the seed and the number of the step, so that an interrupted run and an
uninterrupted one end with the same bits.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Protocol

import torch
from torch import Tensor, nn

from expunge import files
from expunge.errors import ExpungeError, Interrupted


@dataclass(frozen=True)
class Budget:
    """When to stop and when to store.

    Attributes:
        minutes: stop after this many minutes of wall clock, to go on another day; None: when all steps are done.
        checkpoint_minutes: minutes between checkpoints.
        print_steps: steps between lines on the terminal and in the curve.
    """

    minutes: float | None = None
    checkpoint_minutes: float = 10.0
    print_steps: int = 50


class Trainee(Protocol):
    """What a stage trains."""

    name: str
    steps: int
    settings: Mapping[str, object]
    """What a checkpoint must agree on before it is continued."""

    def step(self, number: int) -> dict[str, float]:
        """Take optimizer step `number`, counted from 0; returns what goes into the curve."""

    def tensors(self) -> dict[str, Tensor]:
        """Everything that later steps depend on."""

    def restore(self, tensors: Mapping[str, Tensor]) -> None: ...


def train(trainee: Trainee, folder: Path, budget: Budget) -> None:
    """Take the steps that are left.

    Raises:
        Interrupted: when the budget is spent or the process is told to stop; a checkpoint has been written.
        ExpungeError: when the checkpoint was made with other settings, or a loss is not finite.
    """
    checkpoint, curve = folder / f"{trainee.name}.checkpoint.safetensors", folder / f"{trainee.name}.csv"
    first = _restore(trainee, checkpoint)
    _cut(curve, first)
    begun = stored = time.monotonic()
    means: dict[str, float] = {}
    with _told_to_stop() as stop:
        for number in range(first, trainee.steps):
            values = trainee.step(number)
            if not all(map(math.isfinite, values.values())):
                raise ExpungeError(
                    f"Step {number} of the {trainee.name} gave {values}. The last checkpoint is {checkpoint}."
                )
            means = {k: v + 0.95 * (means.get(k, v) - v) for k, v in values.items()}
            done, now = number + 1, time.monotonic()
            if done % budget.print_steps == 0 or done == trainee.steps:
                _note(curve, done, values)
                left = (now - begun) / (done - first) * (trainee.steps - done)
                shown = "  ".join(f"{k} {v:.4g}" for k, v in means.items())
                print(f"{trainee.name} {done}/{trainee.steps}  {shown}  {left / 60:.0f} min left", flush=True)
            spent = budget.minutes is not None and now - begun > 60 * budget.minutes
            if stop or spent or done == trainee.steps or now - stored > 60 * budget.checkpoint_minutes:
                _store(trainee, checkpoint, done)
                stored = time.monotonic()
            if (stop or spent) and done < trainee.steps:
                raise Interrupted(
                    f"The {trainee.name} stopped after step {done} of {trainee.steps}; the same command goes on."
                )


def cosine(number: int, steps: int, peak: float, *, warmup: int, floor: float = 0.02) -> float:
    """Learning rate of step `number`: up in `warmup` steps, then down along a cosine to `floor * peak`."""
    return peak * min(1.0, (number + 1) / warmup) * (floor + (1 - floor) * (1 + math.cos(math.pi * number / steps)) / 2)


class Weights:
    """Networks, their moving average and their AdamW, as one set of tensors.

    Args:
        networks: {name: network}; their parameters are trained together.
        decay: share of the moving average that each step keeps, once warmed up. BatchNorm statistics are not averaged.
    """

    def __init__(self, networks: Mapping[str, nn.Module], *, decay: float, weight_decay: float) -> None:
        self.networks = dict(networks)
        named = {f"{name}.{k}": p for name, n in networks.items() for k, p in n.named_parameters()}
        self.parameters, self._names, self._decay = list(named.values()), list(named), decay
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=0.0, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True
        )

    def update(self, loss: Tensor, number: int, rate: float, *, clip: float = 1.0) -> float:
        """One optimizer step at learning rate `rate`; returns the norm of the gradient."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, clip)
        self.optimizer.step()
        keep = min(self._decay, (1 + number) / (10 + number))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, list[Tensor](self.parameters), 1 - keep)
        return float(norm)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside the block the networks hold their moving average."""
        own = [p.detach().clone() for p in self.parameters]
        self._put(self.average)
        try:
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    def tensors(self) -> dict[str, Tensor]:
        state = {f"{name}.{k}": t for name, n in self.networks.items() for k, t in n.state_dict().items()}
        tensors = {f"weights/{k}": t for k, t in state.items()}
        for name, parameter, average in zip(self._names, self.parameters, self.average, strict=True):
            tensors[f"average/{name}"] = average
            for moment, value in self.optimizer.state[parameter].items():
                tensors[f"{moment}/{name}"] = value
        return tensors

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        for name, network in self.networks.items():
            start = f"weights/{name}."
            network.load_state_dict({k.removeprefix(start): t for k, t in tensors.items() if k.startswith(start)})
        for name, parameter, average in zip(self._names, self.parameters, self.average, strict=True):
            average.copy_(tensors[f"average/{name}"])
            self.optimizer.state[parameter] = {
                "step": tensors[f"step/{name}"].clone().to(parameter.device),
                "exp_avg": torch.empty_like(parameter).copy_(tensors[f"exp_avg/{name}"]),
                "exp_avg_sq": torch.empty_like(parameter).copy_(tensors[f"exp_avg_sq/{name}"]),
            }


# -- files --------------------------------------------------------------------------------------------------------------


def _settings(trainee: Trainee) -> str:
    return files.canonical_json(dict(trainee.settings))


def _store(trainee: Trainee, checkpoint: Path, done: int) -> None:
    # One entry, because safetensors writes several in any order.
    made = files.canonical_json({"steps": done, "settings": _settings(trainee)})
    files.save_tensors(checkpoint, trainee.tensors(), ("made", made))


def _restore(trainee: Trainee, checkpoint: Path) -> int:
    """Steps that are done already."""
    if not checkpoint.exists():
        return 0
    made = json.loads(files.metadata(checkpoint)["made"])
    if made["settings"] != _settings(trainee):
        raise ExpungeError(
            f"{checkpoint} was made with the settings {made['settings']}, not {_settings(trainee)}. "
            "Take the same settings to go on, or delete it to begin anew."
        )
    trainee.restore(files.load_tensors(checkpoint))
    return int(made["steps"])


def _note(curve: Path, done: int, values: Mapping[str, float]) -> None:
    if not curve.exists():
        files.append_line(curve, ",".join(["step", *values]))
    files.append_line(curve, ",".join([str(done), *(f"{v:.6g}" for v in values.values())]))


def _cut(curve: Path, steps: int) -> None:
    """Take out of a curve what came after step `steps`, the last one that was stored."""
    lines = files.read_lines(curve)
    if lines:
        kept = lines[:1] + [line for line in lines[1:] if int(line.split(",")[0]) <= steps]
        files.write_text(curve, "\n".join(kept) + "\n")


@contextmanager
def _told_to_stop() -> Iterator[list[int]]:
    """A list that holds the signals (SIGTERM, SIGINT) that came meanwhile."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
