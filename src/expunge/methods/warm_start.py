"""A warm start in closed form: what keys and values alone can forget is forgotten before the first optimizer step.

Cross-attention reads a prompt through linear maps W, the keys and values of every layer, of its tokens' embeddings e. With
forget prompts p of each concept c, the new ones and those that `again` re-steers, their mapping prompts q, and r what stays,

    W_k = argmin_W  E || W e(r) - W* e(r) ||^2 / E || W* e(r) ||^2  +  the same for the empty prompt
                    +  sum_c mu_c E || W e(p) - W* e(q) ||^2 / E || W* e(p) - W* e(q) ||^2  +  rho || W - W_(k-1) ||^2,

W* being the teacher's (the solution is `solved`; the empty prompt is what guidance reads in every second evaluation). The
multipliers are turned up or down until of every concept's way just so much is left:

    E < W e(p) - W* e(q), W* e(p) - W* e(q) >  =  remaining  E || W* e(p) - W* e(q) ||^2.

One multiplier for all would not do: a background's tokens have far less of a way to go than a style's (docs/method.md), and a
background comes back where a style is long gone. The means go over all tokens. Cross-attention does not see their order, so
the tokens of q may change places, and they take the order in which least has to move (`paired`). Of several mapping prompts
the mean is aimed at.

No denoiser is evaluated for it, so that many more prompts can be kept than replay could paint. Training then begins at W_k,
and a few steps do what many did.

Source: the solution for given multipliers is that of UCE (Gandikota et al., "Unified Concept Editing in Diffusion Models",
arXiv 2308.14761, section 4), there a method of its own, with one target for each concept's name instead of whole prompts. The
constraints and the order of tokens are ours.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from pydantic import Field
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from expunge.backbones import Backbone
from expunge.errors import Notice
from expunge.schema import Strict

Pairs = Sequence[tuple[str, tuple[str, ...]]]
"""Prompts, each with its targets, equally many for all."""

BATCH = 64
"""Prompts that are encoded at once."""
ROUNDS = 200
"""How often the multipliers are turned at most. Fifty concepts took some twenty."""
CLOSE = 0.02
"""How far from `remaining` a concept may end, as a part of it."""
LEAST = 1e-6
"""The least multiplier: that of a concept which is gone already."""
NO_WAY = 1e-9
"""A way that is shorter than this part of its end's square is rounding."""


class WarmStartConfig(Strict):
    """
    Attributes:
        remaining: what is left at most of the way from a forget prompt's keys and values to its mapping prompt's. `strength`
            divides it, and so does what the gate made of a concept (docs/runs.md).
        ridge: rho, how strongly keys and values are held where they were, in units of the mean eigenvalue of the matrix that
            it is added to.
        retain_prompts: retain prompts of each concept that the solution keeps, those that are replayed among them.
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

    @classmethod
    def of(cls, told: Tensor, aimed: Tensor) -> Moments:
        """Of embeddings e(p) and e(q) `(n d)`."""
        return cls(*(one.T @ other / len(told) for one, other in ((told, told), (aimed, told), (aimed, aimed))))


@dataclass(frozen=True)
class WarmStart:
    """What the solution needs of the prompts.

    Attributes:
        maps: names of the weights W `(out d)`.
        kept: E e(r) e(r)^T `(d d)` of what stays, float64; each part is as heavy as the other.
        concepts: embeddings of each concept's prompts `(n tokens d)` and of their targets `(n targets tokens d)`.
        remaining: of each concept's way.
    """

    maps: Sequence[str]
    kept: Sequence[Tensor]
    concepts: Mapping[str, tuple[Tensor, Tensor]]
    remaining: Mapping[str, float]
    ridge: float

    def solve(self, teacher: Mapping[str, Tensor], previous: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{map: W_k `(out d)`} from W* and W_(k-1), in the dtype of W_(k-1).

        Warns: `Notice`, where the search for multipliers did not settle. W_k is what it had by then.
        """
        aims, starts = (torch.cat([given[n].to(self.kept[0]) for n in self.maps]) for given in (teacher, previous))
        metric = aims.T @ aims
        problem = Problem(metric, self.kept, self.moved(metric), self.ridge)
        moved = solved(*problem.sums(problem.multipliers(aims.T @ starts, self.remaining)), aims, starts, self.ridge)
        parts = moved.split([len(previous[n]) for n in self.maps])
        return {n: part.to(previous[n]) for n, part in zip(self.maps, parts, strict=True)}

    def moved(self, metric: Tensor) -> dict[str, Moments]:
        """Of each concept, its tokens paired. Where the encoder cuts prompts off before they differ, there is no way to go."""
        found = {}
        for name, (told, aimed) in self.concepts.items():
            told, aimed = told.to(metric), aimed.to(metric)
            ends = [
                torch.stack([q[paired(p, q, metric)] for q in targets]).mean(0)
                for p, targets in zip(told, aimed, strict=True)
            ]
            found[name] = Moments.of(told.flatten(0, 1), torch.cat(ends))
        return {n: m for n, m in found.items() if way(metric, m) > NO_WAY * (metric * m.target).sum()}


@dataclass(frozen=True)
class Problem:
    """What stays and what moves, seen through W*.

    Attributes:
        metric: W*^T W* `(d d)`.
        kept, ridge: see `WarmStart` and `WarmStartConfig`.
        moved: of each concept.
    """

    metric: Tensor
    kept: Sequence[Tensor]
    moved: Mapping[str, Moments]
    ridge: float

    @cached_property
    def stays(self) -> Tensor:
        """sum E e(r) e(r)^T over the parts that stay, each in units of what it would be if nothing of it were left `(d d)`."""
        return torch.stack([kept / (self.metric * kept).sum() for kept in self.kept]).sum(dim=0)

    @cached_property
    def ways(self) -> dict[str, Tensor]:
        """{concept: E || W* e(p) - W* e(q) ||^2}"""
        return {name: way(self.metric, moments) for name, moments in self.moved.items()}

    def multipliers(self, start: Tensor, most: Mapping[str, float]) -> dict[str, float]:
        """{concept: mu_c} with which no more than `most` of each concept's way remains.

        A concept's loss is in units of what it is before anything moves, and that of each part that stays in units of what it
        would be if nothing of it were left. No mu_c is greater than 1: a concept's whole way counts at most as much as all of
        one part of what stays. One that would need more keeps more of its way.

        Args:
            start: W*^T W_(k-1) `(d d)`.
        """
        mu = dict.fromkeys(self.moved, 0.01)
        for _ in range(ROUNDS):
            # All that the search needs of W is W*^T W, and that is the same solution for W*^T W* and W*^T W_(k-1).
            mixed = solved(*self.sums(mu), self.metric, start, self.ridge)
            over = {name: left(mixed, self.metric, moments) / most[name] for name, moments in self.moved.items()}
            if all(_settled(over[n], mu[n]) for n in mu):
                return mu
            mu = {n: min(1.0, max(LEAST, mu[n] * max(over[n], 0.1))) for n in mu}
        warnings.warn(_unsettled(over), Notice, stacklevel=2)
        return mu

    def sums(self, mu: Mapping[str, float]) -> tuple[Tensor, Tensor]:
        """The sums of E e(p) e(p)^T and of E e(q) e(p)^T over what stays and what moves, weighted, `(d d)` each."""
        scales = {name: mu[name] / self.ways[name] for name in self.moved}
        own = [scales[name] * moments.own for name, moments in self.moved.items()]
        cross = [scales[name] * moments.cross for name, moments in self.moved.items()]
        return torch.stack([self.stays, *own]).sum(dim=0), torch.stack([self.stays, *cross]).sum(dim=0)


def _settled(over: float, multiplier: float) -> bool:
    """Whether a concept of which `over` times what may remain is left needs no other multiplier."""
    return abs(over - 1) < CLOSE or multiplier == (1 if over > 1 else LEAST)


def _unsettled(over: Mapping[str, float]) -> str:
    least, greatest = min(over.values()), max(over.values())
    return (
        f"The warm start did not settle in {ROUNDS} rounds: between {least:.2f} and {greatest:.2f} times what "
        "method.warm_start.remaining asks for is left of the concepts. Training goes on from there; a greater "
        "remaining settles sooner."
    )


def solved(own: Tensor, cross: Tensor, teacher: Tensor, previous: Tensor, ridge: float) -> Tensor:
    """argmin_W  sum mu E || W e(p) - W* e(q) ||^2  +  rho || W - W_(k-1) ||^2

        = (W* sum mu E e(q) e(p)^T  +  rho W_(k-1)) (sum mu E e(p) e(p)^T  +  rho I)^(-1)

    Args:
        own, cross: the sums `(d d)` over everything that is kept or moved.
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


def left(mixed: Tensor, metric: Tensor, moments: Moments) -> float:
    """E < W e(p) - W* e(q), W* e(p) - W* e(q) > / E || W* e(p) - W* e(q) ||^2: 1 where nothing moved, 0 at the target.

    Args:
        mixed, metric: W*^T W and W*^T W* `(d d)`.
    """
    reached = (mixed * moments.own).sum() - (mixed * moments.cross).sum()
    aim = (metric * (moments.cross - moments.target)).sum()
    return float((reached - aim) / way(metric, moments))


@torch.no_grad()
def warm_start(
    config: WarmStartConfig,
    backbone: Backbone,
    kept: Sequence[Sequence[str]],
    concepts: Mapping[str, Pairs],
    strength: Mapping[str, float],
) -> WarmStart:
    """The warm start that keeps the prompts of each part of `kept`, and moves the pairs of each of `concepts`, as far as its
    strength asks for.

    Raises:
        ExpungeError: for a family whose denoiser does not read prompts through linear maps of their own.
    """
    maps = backbone.text_maps()
    embedded = {}
    for name, pairs in concepts.items():
        told, aimed = zip(*dict.fromkeys(pairs), strict=True)
        ends = torch.cat([*_embedded(backbone, [target for targets in aimed for target in targets])])
        embedded[name] = (torch.cat([*_embedded(backbone, told)]), ends.unflatten(0, (len(told), -1)))
    moments = [_second_moment(_embedded(backbone, list(dict.fromkeys(prompts)))) for prompts in kept]
    remaining = {name: config.remaining / strength[name] for name in embedded}
    return WarmStart(maps, moments, embedded, remaining, config.ridge)


def _embedded(backbone: Backbone, prompts: Sequence[str]) -> Iterator[Tensor]:
    """`(n tokens d)` of a few prompts at a time."""
    for start in range(0, len(prompts), BATCH):
        yield backbone.encode(list(prompts[start : start + BATCH])).tensors["encoder_hidden_states"]


def _second_moment(embedded: Iterable[Tensor]) -> Tensor:
    """E e(r) e(r)^T over all tokens `(d d)`, float64."""
    sums, tokens = [], 0
    for some in embedded:
        seen = some.flatten(0, 1).double()
        sums.append(seen.T @ seen)
        tokens += len(seen)
    return torch.stack(sums).sum(dim=0) / tokens


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
