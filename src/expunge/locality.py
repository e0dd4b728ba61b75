"""How close two prompts are in the model's own eyes, and what that says about mapping prompts and neighbours.

Score distance (arXiv 2512.02657, ECCV version; reference implementation: model_score_map_gen.py, mode "discrete"):

    d(p, q) = E_k mean_chw ( eps(x_k, t_k, p; theta*) - eps(x_k, t_k, q; theta*) )^2

over K shared draws x_k = q(x_{t_k} | z_k), z_k ~ N(0, I), t_k uniform. Because all candidates see the same draws, their
distances are paired and few draws suffice to order them. Distances are comparable within one model only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from expunge.backbones import Backbone, Conditioning, Predictor
from expunge.prompts import Candidate, ForgetPrompt


@dataclass(frozen=True)
class Draws:
    """Noisy latents `(k c h w)` and their network times `(k,)`."""

    latents: Tensor
    t: Tensor


@dataclass(frozen=True)
class Choice:
    """A forget prompt with the mapping prompts chosen for it, and, where score distance chose, its candidates' distances.

    Attributes:
        id: the prompt source's, of which each concept may have the same ones.
        concept: name of what the forget prompt shows.
    """

    id: str
    forget: str
    mapping: tuple[Candidate, ...]
    distances: tuple[float, ...] = ()
    concept: str = ""

    @classmethod
    def read(cls, kept: Mapping[str, Any]) -> Self:
        """As `dataclasses.asdict` wrote it."""
        mapping = tuple(Candidate(**candidate) for candidate in kept["mapping"])
        return cls(kept["id"], kept["forget"], mapping, tuple(kept["distances"]), kept["concept"])


def scoring_draws(backbone: Backbone, count: int, generator: torch.Generator) -> Draws:
    """`count` draws as published: pure noise z carried to a uniform time. Hence x ~ N(0, I) at every time where the noising
    preserves variance; on the straight way of a flow model its variance is (1 - sigma)^2 + sigma^2, least in the middle."""
    shape = (count, *backbone.latent_shape)
    clean, noise = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    t = backbone.network_time(torch.randint(1000, (count,), generator=generator)).to(backbone.device)
    return Draws(backbone.add_noise(clean.to(backbone.device), noise.to(backbone.device), t), t)


Compared = tuple[Conditioning, Conditioning]
"""A source prompt (one row) and its candidates `(m ...)`."""


@torch.no_grad()
def distances_by_draw(predict: Predictor, compared: Sequence[Compared], draws: Draws, batch_size: int) -> list[Tensor]:
    """For each source prompt the terms whose mean over k draws is its score distance to each of its m candidates: `(k m)`
    float32 on the CPU."""
    prompts = Conditioning.cat([part for pair in compared for part in pair])
    k, n = len(draws.t), len(prompts)
    rows = _rounded(k * n, batch_size).to(draws.t.device)
    parts = [
        predict(draws.latents[batch // n], draws.t[batch // n], prompts[batch % n]) for batch in rows.split(batch_size)
    ]
    predictions = torch.cat(parts)[: k * n].view(k, n, *draws.latents.shape[1:])
    each = predictions.split([1 + len(candidates) for _, candidates in compared], dim=1)
    return [(of[:, 1:] - of[:, :1]).square().mean(dim=(2, 3, 4)).cpu() for of in each]


def nearest(
    predict: Predictor,
    compared: Sequence[Compared],
    draws: Draws,
    batch_size: int,
    *,
    halving: int | None = None,
) -> list[list[tuple[int, float]]]:
    """For each source prompt the places of its candidates with their distance to it, nearest first (ties in the given order).

    Args:
        compared: source prompts with equally many candidates; their predictions share batches.
        halving: None scores every candidate on all draws. With a number, successive halving (Karnin et al., "Almost optimal
            exploration in multi-armed bandits", ICML 2013): the farther half of the candidates drops out after every round,
            and the draws so far double, until as few are left as can be without being fewer than that number; these see all
            draws. Who dropped out comes after who stayed, with its distance over the draws that it saw.
    """
    m, k = len(compared[0][1]), len(draws.t)
    ends = _ends(m, k, halving)
    races, begin = [_Race(m) for _ in compared], 0
    for end in ends:
        some = Draws(draws.latents[begin:end], draws.t[begin:end])
        left = [(source, candidates[race.left]) for (source, candidates), race in zip(compared, races, strict=True)]
        for race, distances in zip(races, distances_by_draw(predict, left, some, batch_size), strict=True):
            race.run(distances, end, last=end == k)
        begin = end
    return [race.ranking for race in races]


def _ends(m: int, k: int, halving: int | None) -> list[int]:
    """How many of `k` draws have been seen after each round of `m` candidates; the last sees all."""
    rounds = 0
    while halving and m >> (rounds + 1) >= halving and k >> (rounds + 1) >= 1:
        rounds += 1
    return [k >> (rounds - i) for i in range(rounds + 1)]


class _Race:
    """The m candidates of one prompt: who is left, the sums of their terms, and who dropped out, nearest first."""

    def __init__(self, m: int) -> None:
        self.left, self._sums = torch.arange(m), torch.zeros(m)
        self.ranking: list[tuple[int, float]] = []

    def run(self, distances: Tensor, draws: int, last: bool) -> None:
        """Add the terms `(k m)` of those who are left, who have now seen so many `draws`; the farther half, or all, are
        ranked."""
        self._sums[self.left] += distances.sum(0)
        order = self.left[self._sums[self.left].argsort(stable=True)]
        stay = 0 if last else -(-len(order) // 2)
        self.ranking = [(i, float(self._sums[i]) / draws) for i in order[stay:].tolist()] + self.ranking
        self.left = order[:stay].sort().values


def _rounded(count: int, batch_size: int) -> Tensor:
    """0 ... count - 1, the last repeated up to a multiple of 8 (of the batch size, where that is less).

    oneDNN compiles kernels for every batch size it meets, and keeps them. Candidates get fewer with every request, so a
    last batch as small as it could be would be of a new size each time, to be compiled and kept.
    """
    whole = min(8, batch_size)
    return torch.arange(-(-count // whole) * whole).clamp(max=count - 1)


def rank(
    predict: Predictor, name: str, others: Sequence[str], draws: Draws, batch_size: int, halving: int | None = None
) -> list[tuple[str, float]]:
    """`others` with their score distance to `name`, nearest first (`halving`: see `nearest`)."""
    encode = predict.backbone.encode
    (found,) = nearest(predict, [(encode([name]), encode(others))], draws, batch_size, halving=halving)
    return [(others[i], distance) for i, distance in found]


def choose_mapping(
    predict: Predictor,
    prompts: Sequence[ForgetPrompt],
    draws: Draws,
    batch_size: int,
    targets: int = 1,
    halving: bool = False,
) -> list[Choice]:
    """For each forget prompt the `targets` candidates nearest in score distance (the first, where two are equally near), by
    successive halving where asked for (see `nearest`).

    A single candidate is not scored, and its choice has no distances.
    """
    encode = predict.backbone.encode
    choices = [Choice(p.id, p.prompt, p.candidates) for p in prompts]
    fewest = targets if halving else None
    for places in _together([len(p.candidates) for p in prompts], len(draws.t), batch_size, fewest):
        some = [prompts[i] for i in places]
        texts = [text for p in some for text in (p.prompt, *(c.prompt for c in p.candidates))]
        each = 1 + len(some[0].candidates)
        size = max(batch_size, each)
        told = Conditioning.cat([encode(texts[i : i + size]) for i in range(0, len(texts), size)])
        compared = [(told[i : i + 1], told[i + 1 : i + each]) for i in range(0, len(told), each)]
        ranked = nearest(predict, compared, draws, batch_size, halving=fewest)
        for place, prompt, found in zip(places, some, ranked, strict=True):
            chosen = tuple(prompt.candidates[i] for i, _ in found[:targets])
            choices[place] = Choice(prompt.id, prompt.prompt, chosen, tuple(d for _, d in sorted(found)))
    return choices


FULL = 4
"""Batches that the first round of scoring fills, so that later rounds, with fewer rows, still fill most of theirs."""


def _together(candidates: Sequence[int], draws: int, batch_size: int, halving: int | None) -> Iterator[Sequence[int]]:
    """Places of prompts with equally many candidates, at least two, as many at a time as fill `FULL` batches in the first
    round.

    Args:
        candidates: how many each prompt has.
        halving: as `nearest` takes it.
    """
    for m in sorted({*candidates} - {1}):
        same = [i for i, n in enumerate(candidates) if n == m]
        first = _ends(m, draws, halving)[0]
        each = max(1, FULL * batch_size // (first * (1 + m)))
        yield from (same[start : start + each] for start in range(0, len(same), each))
