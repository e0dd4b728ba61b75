"""Generative replay: clean latents that the teacher paints for prompts, so that no training data is needed.

A bank and fresh replay answer `draw(position, count)` with clean latents, which are noised for every row. Trajectories hold
the noisy latents that the teacher met on its way to them, and what it predicted there, so that no row needs it again. A draw
depends on its position alone, `position` counting the rows drawn so far: a resumed run sees the rows that an uninterrupted one
would have seen.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from expunge import seeds
from expunge.backbones import Predictor, Prompts
from expunge.errors import ExpungeError
from expunge.files import digest_file, load_tensors, save_tensors, write_text
from expunge.schema import Strict


class ReplayConfig(Strict):
    """How replay latents are made.

    Attributes:
        source: "bank" (sampled once per request, drawn again and again), "fresh" (sampled anew for every row, as published)
            or "trajectory" (every point of the teacher's way is a row, with the teacher's predictions kept beside it).
        steps: solver steps per latent, without guidance. Source: arXiv 2512.02657, ECCV version: 20 DDIM steps.
        solver: the backbone's solver; "published" is the family's deterministic one of the published code (DDIM, Euler).
        forget_latents: latents of each forget prompt in the bank, or its trajectories.
        retain_latents: the same of each retain prompt.
        batch_size: latents sampled at once for the bank, and predictions made at once when prompts are scored.
    """

    source: Literal["bank", "fresh", "trajectory"] = "bank"
    steps: int = Field(20, ge=1, le=1000)
    solver: str = "published"
    forget_latents: int = Field(2, ge=1, le=10_000)
    retain_latents: int = Field(2, ge=1, le=10_000)
    batch_size: int = Field(64, ge=1, le=10_000)


class Replay(Protocol):
    """A source of replayed latents for a fixed list of prompts."""

    def draw(self, position: int, count: int) -> tuple[Tensor, Tensor]:
        """Latents `(count c h w)` and the index of each one's prompt `(count,)`."""


@dataclass(frozen=True)
class Sampler:
    """The teacher painting latents for a list of prompts."""

    teacher: Predictor
    prompts: Prompts
    steps: int
    solver: str

    def __call__(self, rows: Tensor, generators: list[torch.Generator]) -> Tensor:
        return self.teacher.sample(self.prompts[rows], generators, steps=self.steps, solver=self.solver)


@dataclass(frozen=True)
class FreshReplay:
    """The published procedure: prompt uniform with replacement, latent sampled anew, for every row."""

    sampler: Sampler
    seed: int

    def draw(self, position: int, count: int) -> tuple[Tensor, Tensor]:
        generators = [seeds.generator(self.seed, "fresh", i) for i in range(position, position + count)]
        prompts = torch.cat([torch.randint(len(self.sampler.prompts), (1,), generator=g) for g in generators])
        return self.sampler(prompts, generators), prompts


@dataclass(frozen=True)
class Bank:
    """Latents sampled in advance. Each is drawn once before any is drawn again, in an order shuffled anew every time.

    While no latent is drawn twice, a row has the distribution of `FreshReplay`'s rows; reuse keeps every expectation and
    adds correlation between draws of the same latent.
    """

    latents: Tensor
    prompts: Tensor
    seed: int

    def draw(self, position: int, count: int) -> tuple[Tensor, Tensor]:
        rows = shuffled(position, count, len(self.latents), self.seed)
        return self.latents[rows], self.prompts[rows]


def shuffled(position: int, count: int, size: int, seed: int) -> Tensor:
    """The `count` places `(count,)` from the `position`-th draw on, of `size` things that are gone through again and again, in
    an order shuffled anew every time."""
    first, start = divmod(position, size)
    epochs = range(first, first + -(-(start + count) // size))
    orders = [torch.randperm(size, generator=seeds.generator(seed, "order", epoch)) for epoch in epochs]
    return torch.cat(orders)[start : start + count]


@dataclass(frozen=True)
class Trajectories:
    """Points of the teacher's sampling trajectories, each of which is drawn once before any is drawn again.

    x_t on the way to x_0 has the distribution of q(x_t | x_0) as far as the teacher's model of it is right, and the
    prediction at every point is what sampling needed anyway.

    Attributes:
        latents: noisy latents x_t `(n c h w)`.
        t: network times `(n,)`.
        prompts: the index of each point's prompt `(n,)`.
        predictions: the teacher's for that prompt `(n c h w)`.
    """

    latents: Tensor
    t: Tensor
    prompts: Tensor
    predictions: Tensor
    seed: int

    def draw(self, position: int, count: int) -> Tensor:
        """The places `(count,)` of the points to take."""
        return shuffled(position, count, len(self.t), self.seed)

    def only(self, prompts: Sequence[int]) -> tuple[Trajectories, Tensor]:
        """The points of these prompts alone, which are then counted in the given order; and where they stood `(m,)`."""
        number = {prompt: i for i, prompt in enumerate(prompts)}
        numbers = torch.tensor([number.get(prompt, -1) for prompt in self.prompts.tolist()])
        places = torch.nonzero(numbers >= 0).flatten()
        latents, t, predictions = (x[places] for x in (self.latents, self.t, self.predictions))
        return Trajectories(latents, t, numbers[places], predictions, self.seed), places


def joined(parts: Sequence[tuple[Trajectories, int]], seed: int) -> Trajectories:
    """The points of all `parts`, each given with the number of its prompts, which are counted on."""
    latents, t, predictions = (torch.cat([getattr(p, n) for p, _ in parts]) for n in ("latents", "t", "predictions"))
    starts = itertools.accumulate((count for _, count in parts), initial=0)
    prompts = torch.cat([points.prompts + start for (points, _), start in zip(parts, starts, strict=False)])
    return Trajectories(latents, t, prompts, predictions, seed)


GRIDS = 3
"""Numbers of solver steps that trajectories are sampled with, around the configured one: more than one set of times."""


def trace(
    sampler: Sampler,
    each: int,
    times: tuple[float, float],
    batch_size: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Trajectories:
    """The points of `each` trajectories of every prompt that lie between two network times, both inclusive.

    Which grid a trajectory has is drawn: sources deal prompts in turn, and times must not go with what a prompt shows.

    Raises:
        ExpungeError: when a prompt has no point there.
    """
    every = torch.arange(len(sampler.prompts)).repeat(each)
    every = every[torch.randperm(len(every), generator=seeds.generator(seed, "grids"))]
    grids = [every[grid::GRIDS] for grid in range(GRIDS)]
    prompts = torch.cat(grids)
    steps = torch.cat([torch.full_like(rows, max(1, sampler.steps + i - GRIDS // 2)) for i, rows in enumerate(grids)])
    met: dict[int, list[tuple[Tensor, ...]]] = {}
    for places in torch.arange(len(prompts)).split(batch_size):
        alike = {count: places[steps[places] == count] for count in steps[places].unique().tolist()}
        ways = sampler.teacher.trajectories(
            [
                (sampler.prompts[prompts[some]], [seeds.generator(seed, "bank", i) for i in some.tolist()], count)
                for count, some in alike.items()
            ],
            solver=sampler.solver,
        )
        for (count, some), (latents, t, predictions) in zip(alike.items(), ways, strict=True):
            met.setdefault(count, []).append((latents, t, prompts[some].expand(len(t), -1), predictions))
        progress(int(places[-1]) + 1, len(prompts))
    # The order of the points, and so what training draws, does not depend on the batches.
    whole = [[torch.cat(of, dim=1).flatten(0, 1).cpu() for of in zip(*some, strict=True)] for some in met.values()]
    latents, t, rows, predictions = (torch.cat(of) for of in zip(*whole, strict=True))
    kept = (t >= times[0]) & (t <= times[1])
    if without := len(sampler.prompts) - len(rows[kept].unique()):
        raise ExpungeError(
            f"Of {without} of {len(sampler.prompts)} prompts no step of a trajectory of about {sampler.steps} steps lies "
            "between t_min and t_max, so they would not be trained on. Raise replay.steps, or move these."
        )
    return Trajectories(latents[kept], t[kept], rows[kept], predictions[kept], seed)


def kept_tensors(path: Path | None, make: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """The tensors stored at `path`, or new ones that are stored there, with the file's digest beside it. What is not what was
    stored is made anew."""
    if path is None:
        return make()
    stored = path.with_suffix(".digest")
    if path.exists() and stored.exists() and stored.read_text("utf-8") == digest_file(path):
        return load_tensors(path)
    tensors = make()
    save_tensors(path, dict(tensors))
    write_text(stored, digest_file(path))
    return tensors


def fill_bank(
    sampler: Sampler,
    each: int,
    batch_size: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Bank:
    """A bank with `each` latents of every prompt."""
    prompts = torch.arange(len(sampler.prompts)).repeat(each)
    parts = []
    for start in range(0, len(prompts), batch_size):
        rows = prompts[start : start + batch_size]
        generators = [seeds.generator(seed, "bank", start + i) for i in range(len(rows))]
        parts.append(sampler(rows, generators).cpu())
        progress(start + len(rows), len(prompts))
    return Bank(torch.cat(parts), prompts, seed)


def kept_bank(path: Path | None, fill: Callable[[], Bank], seed: int) -> Bank:
    """The bank stored at `path`, or a newly filled one that is stored there."""

    def make() -> Mapping[str, Tensor]:
        bank = fill()
        return {"latents": bank.latents, "prompts": bank.prompts}

    return Bank(**kept_tensors(path, make), seed=seed)


def kept_trajectories(path: Path | None, make: Callable[[], Trajectories], seed: int) -> Trajectories:
    """The trajectories stored at `path`, or new ones that are stored there."""

    def tensors() -> Mapping[str, Tensor]:
        made = make()
        return {name: getattr(made, name) for name in ("latents", "t", "prompts", "predictions")}

    return Trajectories(**kept_tensors(path, tensors), seed=seed)
