"""Generative replay: clean latents that the teacher paints for prompts, so that no training data is needed.

Both sources answer `draw(position, count)`, where `position` counts the rows drawn so far. A draw depends on its position
alone, so a resumed run sees the rows that an uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from expunge import seeds
from expunge.backbones import Predictor, Prompts
from expunge.files import load_tensors, save_tensors


class ReplayConfig(BaseModel):
    """How replay latents are made.

    Attributes:
        source: "bank" (sampled once per request, drawn again and again) or "fresh" (sampled anew for every row, as published).
        steps: solver steps per latent, without guidance. Source: arXiv 2512.02657, ECCV version: 20 DDIM steps.
        solver: the backbone's solver; "published" is the family's deterministic one of the published code (DDIM, Euler).
        forget_latents, retain_latents: latents of each forget prompt and of each retain prompt in the bank.
        batch_size: latents sampled at once for the bank, and predictions made at once when prompts are scored.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: Literal["bank", "fresh"] = "bank"
    steps: int = Field(20, ge=1, le=1000)
    solver: str = "published"
    forget_latents: int = Field(2, ge=1)
    retain_latents: int = Field(2, ge=1)
    batch_size: int = Field(64, ge=1)


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
        noise = self.teacher.backbone.noise(generators)
        return self.teacher.sample(self.prompts[rows], noise, steps=self.steps, solver=self.solver)


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
        rows = torch.tensor([self._row(i) for i in range(position, position + count)])
        return self.latents[rows], self.prompts[rows]

    def _row(self, position: int) -> int:
        epoch, place = divmod(position, len(self.latents))
        order = torch.randperm(len(self.latents), generator=seeds.generator(self.seed, "order", epoch))
        return int(order[place])


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
    if path is not None and path.exists():
        stored = load_tensors(path)
        return Bank(stored["latents"], stored["prompts"], seed)
    bank = fill()
    if path is not None:
        save_tensors(path, {"latents": bank.latents, "prompts": bank.prompts})
    return bank
