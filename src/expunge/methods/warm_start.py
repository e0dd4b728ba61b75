"""A warm start in closed form: what keys and values alone can forget is forgotten before the first optimizer step.

Cross-attention reads a prompt through linear maps W, the keys and values of every layer, of its tokens' embeddings e. With
these in the place of the network, the losses of a method (weights lambda_l, prompts p, targets q) have a minimum in closed
form:

    W_k = argmin_W  sum_l lambda_l E || W e(p) - W* e(q) ||^2  +  rho || W - W_(k-1) ||^2
        = (W* sum_l lambda_l E e(q) e(p)^T  +  rho W_(k-1)) (sum_l lambda_l E e(p) e(p)^T  +  rho I)^(-1)

W* is the teacher's. The means go over all tokens of all prompts of a loss, and e(q) is the embedding of that token of q that
stands in the place of p's (`aligned`). It costs no evaluation of the denoiser, so many more prompts can be kept than replay
could paint. Training then begins at W_k, and a few steps do what many did.

Source: the solution is that of UCE (Gandikota et al., "Unified Concept Editing in Diffusion Models", arXiv 2308.14761,
section 4), there a method of its own, with one target for each concept's name instead of whole prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from expunge.backbones import Backbone
from expunge.schema import Strict

Pairs = Sequence[tuple[str, str]]
"""Prompts, each with a target of the same loss."""

BATCH = 64
"""Prompts that are encoded at once."""


class WarmStartConfig(Strict):
    """
    Attributes:
        ridge: rho, in units of the mean eigenvalue of the matrix that it is added to.
        retain_prompts: retain prompts of each concept that the solution keeps, beside those that are replayed.
    """

    ridge: float = Field(0.05, gt=0)
    retain_prompts: int = Field(512, ge=1, le=100_000)


@dataclass(frozen=True)
class WarmStart:
    """What the solution needs of the prompts, for maps of any number of outputs.

    Attributes:
        maps: names of the weights W `(out d)`.
        own: sum_l lambda_l E e(p) e(p)^T `(d d)`, float64.
        cross: sum_l lambda_l E e(q) e(p)^T `(d d)`, float64.
        ridge: see `WarmStartConfig`.
    """

    maps: Sequence[str]
    own: Tensor
    cross: Tensor
    ridge: float

    def solve(self, teacher: Tensor, previous: Tensor) -> Tensor:
        """W_k `(out d)` from W* and W_(k-1) `(out d)`, in the dtype of W_(k-1)."""
        rho = self.ridge * self.own.diagonal().mean()
        start, target = previous.to(self.own), teacher.to(self.own)
        own = self.own + rho * torch.eye(len(self.own), dtype=self.own.dtype, device=self.own.device)
        # own is symmetric, so W own = B is own W^T = B^T.
        solved = torch.linalg.solve(own, (target @ self.cross + rho * start).T).T
        return solved.to(previous)


@torch.no_grad()
def warm_start(
    config: WarmStartConfig, backbone: Backbone, pairs: Mapping[str, Pairs], weights: Mapping[str, float]
) -> WarmStart:
    """The warm start for losses with these pairs and weights.

    Raises:
        ExpungeError: for a family whose denoiser does not read prompts through linear maps of their own.
    """
    maps = backbone.text_maps()
    own, cross = torch.zeros(()), torch.zeros(())
    for loss, given in pairs.items():
        moments = _moments(backbone, list(dict.fromkeys(given)))
        own, cross = (total + weights[loss] * moment for total, moment in zip((own, cross), moments, strict=True))
    return WarmStart(maps, own, cross, config.ridge)


def _moments(backbone: Backbone, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """E e(p) e(p)^T and E e(q) e(p)^T `(d d)`, float64, on the backbone's device."""
    own, cross, count = torch.zeros(()), torch.zeros(()), 0
    for start in range(0, len(pairs), BATCH):
        told, aimed = (list(prompts) for prompts in zip(*pairs[start : start + BATCH], strict=True))
        seen = backbone.encode(told).tensors["encoder_hidden_states"].double()
        meant = seen
        if told != aimed:
            meant = backbone.encode(aimed).tensors["encoder_hidden_states"].double()
            tokens = zip(backbone.tokens(told), backbone.tokens(aimed), strict=True)
            places = torch.tensor([aligned(p, q, seen.shape[1]) for p, q in tokens], device=meant.device)
            meant = meant.gather(1, places[..., None].expand_as(meant))
        own = own.to(seen) + torch.einsum("bni,bnj->ij", seen, seen)
        cross = cross.to(seen) + torch.einsum("bni,bnj->ij", meant, seen)
        count += seen.shape[0] * seen.shape[1]
    return own / count, cross / count


def aligned(told: Sequence[int], aimed: Sequence[int], length: int) -> list[int]:
    """For each of `length` positions of one prompt, the position of the other whose token stands in its place.

    What both begin with and what both end with belong together. What differs between is matched from its end, since a text
    encoder that reads from left to right knows a name at its last token only. Where the other prompt has nothing there, the
    token that comes next takes the place; what follows the last token (end and padding) goes with what follows the other's.

    Args:
        told, aimed: tokens from the first to the last before the end mark.
    """
    first = _common(told, aimed)
    last = _common(told[first:][::-1], aimed[first:][::-1])
    between, other = len(told) - last, len(aimed) - last
    places = []
    for place in range(length):
        if place < first:
            match = place
        elif place < between:
            match = max(first, other - (between - place)) if other > first else other
        else:
            match = place + len(aimed) - len(told)
        places.append(min(match, length - 1))
    return places


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
