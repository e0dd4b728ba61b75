"""A warm start in closed form: what keys and values alone can forget is forgotten before the first optimizer step.

Cross-attention reads a prompt through linear maps W, the keys and values of every layer, of its tokens' embeddings e. W_k is
the least change of them with which every concept c, the new ones and those that earlier steps forgot, has left its place:

    W_k = argmin_W  E || W e(r) - W* e(r) ||^2  +  E || W e("") - W* e("") ||^2  +  rho || W - W_(k-1) ||^2
          such that  E < W e(p) - W* e(q), W* e(p) - W* e(q) >  <=  remaining  E || W* e(p) - W* e(q) ||^2     for every c,

p being its forget prompts, q their mapping prompts and r what stays; W* is the teacher's. (The empty prompt is what guidance
reads in every second evaluation.) Of the way from a forget prompt to its mapping prompt `remaining` is left at most. With a
weight mu_c for each concept in place of the constraints,

    W_k = argmin_W  E || W e(r) - W* e(r) ||^2  +  ...  +  sum_c mu_c E || W e(p) - W* e(q) ||^2  +  rho || W - W_(k-1) ||^2

has the solution `solved`, and the least weights are found by turning each up or down until its concept lies where it shall.
One weight for all would not do: a background moves its tokens a twentieth as far as a style does, and comes back where a style
is long gone. The means go over all tokens. Cross-attention does not see their order, so the tokens of q may change places,
and they take the order in which least has to move (`paired`).

No denoiser is evaluated for it, so that many more prompts can be kept than replay could paint. Training then begins at W_k,
and a few steps do what many did.

Source: the solution for given weights is that of UCE (Gandikota et al., "Unified Concept Editing in Diffusion Models",
arXiv 2308.14761, section 4), there a method of its own, with one target for each concept's name instead of whole prompts. The
constraints and the order of tokens are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from expunge.backbones import Backbone, Predictor
from expunge.schema import Strict

Pairs = Sequence[tuple[str, str]]
"""Prompts, each with its target."""

BATCH = 64
"""Prompts that are encoded at once."""
ROUNDS = 100
"""How often the weights are turned at most."""
CLOSE = 0.01
"""How far from `remaining` a concept may end."""
LIGHT = 1e-6
"""A weight that is none."""


class WarmStartConfig(Strict):
    """
    Attributes:
        remaining: what is left at most of the way from a forget prompt's keys and values to its mapping prompt's. `strength`
            divides it.
        ridge: rho, in units of the mean eigenvalue of the matrix that it is added to.
        retain_prompts: retain prompts of each concept that the solution keeps, beside those that are replayed.
    """

    remaining: float = Field(0.5, gt=0, le=1)
    ridge: float = Field(0.01, gt=0)
    retain_prompts: int = Field(512, ge=1, le=100_000)


@dataclass(frozen=True)
class Moments:
    """Of prompts p and their targets q, means over all tokens `(d d)`, float64.

    Attributes:
        own: E e(p) e(p)^T.
        cross: E e(q) e(p)^T.
        target: E e(q) e(q)^T.
    """

    own: Tensor
    cross: Tensor
    target: Tensor


@dataclass(frozen=True)
class WarmStart:
    """What the solution needs of the prompts.

    Attributes:
        maps: names of the weights W `(out d)`.
        kept: of what stays, each part as heavy as the other; each prompt is its own target.
        concepts: of each concept.
    """

    maps: Sequence[str]
    kept: Sequence[Moments]
    concepts: Mapping[str, Moments]
    remaining: float
    ridge: float

    def solve(self, teacher: Mapping[str, Tensor], previous: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{map: W_k `(out d)`} from W* and W_(k-1), in the dtype of W_(k-1)."""
        aims, starts = (torch.cat([given[n].to(self.kept[0].own) for n in self.maps]) for given in (teacher, previous))
        weights = self.weights(aims, starts)
        moved = solved(*self._sums(weights, aims), aims, starts, self.ridge)
        parts = moved.split([len(previous[n]) for n in self.maps])
        return {n: part.to(previous[n]) for n, part in zip(self.maps, parts, strict=True)}

    def weights(self, teacher: Tensor, previous: Tensor) -> dict[str, float]:
        """{concept: mu_c}, both losses of it in units of what they are where nothing moved and where nothing is left.

        None is greater than 1: nothing is worth more than all the rest. A concept that would need more ends above `remaining`.
        """
        mu = dict.fromkeys(self.concepts, 0.01)
        for _ in range(ROUNDS):
            now = solved(*self._sums(mu, teacher), teacher, previous, self.ridge)
            left = {name: remaining(now, teacher, moments) for name, moments in self.concepts.items()}
            if all(_settled(left[n] - self.remaining, mu[n]) for n in mu):
                break
            mu = {n: min(1.0, mu[n] * max(left[n] / self.remaining, 0.1) ** 2) for n in mu}
        return mu

    def _sums(self, weights: Mapping[str, float], teacher: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted sums of `own` and of `cross`."""
        metric = teacher.T @ teacher
        parts = [(1 / (metric * moments.own).sum(), moments) for moments in self.kept]
        parts += [(weights[name] / way(metric, moments), moments) for name, moments in self.concepts.items()]
        own = torch.stack([scale * moments.own for scale, moments in parts]).sum(dim=0)
        cross = torch.stack([scale * moments.cross for scale, moments in parts]).sum(dim=0)
        return own, cross


def _settled(over: float, weight: float) -> bool:
    """Whether a concept that lies `over` what may remain of it needs no other weight."""
    return abs(over) < CLOSE or (weight == 1 if over > 0 else weight < LIGHT)


def solved(own: Tensor, cross: Tensor, teacher: Tensor, previous: Tensor, ridge: float) -> Tensor:
    """argmin_W  sum mu E || W e(p) - W* e(q) ||^2  +  rho || W - W_(k-1) ||^2

        = (W* sum mu E e(q) e(p)^T  +  rho W_(k-1)) (sum mu E e(p) e(p)^T  +  rho I)^(-1)

    Args:
        own, cross: the sums `(d d)` over everything that is kept or aimed at.
        teacher, previous: W* and W_(k-1) `(out d)`.
        ridge: see `WarmStartConfig`.
    """
    rho = ridge * own.diagonal().mean()
    own = own + rho * torch.eye(len(own), dtype=own.dtype, device=own.device)
    # own is symmetric, so W own = B is own W^T = B^T.
    return torch.linalg.solve(own, (teacher @ cross + rho * previous).T).T


def way(metric: Tensor, moments: Moments) -> Tensor:
    """E || W* e(p) - W* e(q) ||^2, with W*^T W* as `metric` `(d d)`."""
    return (metric * (moments.own - 2 * moments.cross + moments.target)).sum()


def remaining(weights: Tensor, teacher: Tensor, moments: Moments) -> float:
    """E < W e(p) - W* e(q), W* e(p) - W* e(q) > / E || W* e(p) - W* e(q) ||^2: 1 where nothing moved, 0 at the target."""
    metric, mixed = teacher.T @ teacher, teacher.T @ weights
    reached = (mixed * moments.own).sum() - (mixed * moments.cross).sum()
    aim = (metric * (moments.cross - moments.target)).sum()
    return float((reached - aim) / way(metric, moments))


@torch.no_grad()
def warm_start(
    config: WarmStartConfig,
    backbone: Backbone,
    teacher: Predictor,
    kept: Sequence[Sequence[str]],
    concepts: Mapping[str, Pairs],
    strength: float,
) -> WarmStart:
    """The warm start that keeps the prompts of each part of `kept`, and moves the pairs of each of `concepts`.

    Raises:
        ExpungeError: for a family whose denoiser does not read prompts through linear maps of their own.
    """
    maps = backbone.text_maps()
    own = dict(teacher.denoiser.named_parameters())
    metric = sum((own[n].double().T @ own[n].double() for n in maps), start=torch.zeros((), dtype=torch.float64))
    moved = {name: _moments(backbone, pairs, metric) for name, pairs in concepts.items()}
    return WarmStart(
        maps,
        [_moments(backbone, [(prompt, prompt) for prompt in prompts], metric) for prompts in kept],
        # Where the encoder cuts prompts off before they differ, there is no way to go.
        {name: moments for name, moments in moved.items() if way(metric, moments) > 0},
        config.remaining / strength,
        config.ridge,
    )


def _moments(backbone: Backbone, pairs: Pairs, metric: Tensor) -> Moments:
    """On the backbone's device."""
    unlike = list(dict.fromkeys(pairs))
    sums, count = [torch.zeros_like(metric) for _ in range(3)], 0
    for start in range(0, len(unlike), BATCH):
        told, aimed = (list(prompts) for prompts in zip(*unlike[start : start + BATCH], strict=True))
        seen = backbone.encode(told).tensors["encoder_hidden_states"].double()
        meant = seen
        if told != aimed:
            meant = backbone.encode(aimed).tensors["encoder_hidden_states"].double()
            meant = torch.stack([q[paired(p, q, metric)] for p, q in zip(seen, meant, strict=True)])
        for total, (one, other) in zip(sums, ((seen, seen), (meant, seen), (meant, meant)), strict=True):
            total += torch.einsum("bni,bnj->ij", one, other)
        count += seen.shape[0] * seen.shape[1]
    return Moments(*(total / count for total in sums))


def paired(told: Tensor, aimed: Tensor, metric: Tensor) -> Tensor:
    """For each token of one prompt the token of the other that takes its place `(n,)`: every token once, and such that
    sum || W* e(p) - W* e(q) ||^2 is least.

    Args:
        told, aimed: embeddings e(p) and e(q) `(n d)`.
        metric: W*^T W* `(d d)`.
    """
    # The squares of either prompt alone are in the sum whatever the order.
    alike = told @ metric @ aimed.T
    return torch.as_tensor(linear_sum_assignment(alike.cpu().numpy(), maximize=True)[1], device=told.device)
