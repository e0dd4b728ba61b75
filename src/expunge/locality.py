"""How close two prompts are in the model's own eyes, and what that says about mapping prompts and neighbours.

Score distance (arXiv 2512.02657, ECCV version; reference implementation: model_score_map_gen.py, mode "discrete"):

    d(p, q) = E_k mean_chw ( eps(x_k, t_k, p; theta*) - eps(x_k, t_k, q; theta*) )^2

over K shared draws x_k = q(x_{t_k} | z_k), z_k ~ N(0, I), t_k uniform. Because all candidates see the same draws, their
distances are paired and few draws suffice to order them. Distances are comparable within one model only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """`count` draws as published: pure noise z carried to a uniform time, hence x ~ N(0, I) at every time."""
    shape = (count, *backbone.latent_shape)
    clean, noise = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    t = backbone.network_time(torch.randint(1000, (count,), generator=generator)).to(backbone.device)
    return Draws(backbone.add_noise(clean.to(backbone.device), noise.to(backbone.device), t), t)


@torch.no_grad()
def distances_by_draw(
    predict: Predictor, source: Conditioning, candidates: Conditioning, draws: Draws, batch_size: int
) -> Tensor:
    """The terms whose mean over k draws is the score distance of one source prompt to each of m candidates: `(k m)` float32 on
    the CPU."""
    prompts = Conditioning.cat([source, candidates])
    k, m = len(draws.t), len(prompts)
    rows = _rounded(k * m, batch_size).to(draws.t.device)
    parts = [
        predict(draws.latents[batch // m], draws.t[batch // m], prompts[batch % m]) for batch in rows.split(batch_size)
    ]
    predictions = torch.cat(parts)[: k * m].view(k, m, *draws.latents.shape[1:])
    return (predictions[:, 1:] - predictions[:, :1]).square().mean(dim=(2, 3, 4)).cpu()


def nearest(
    predict: Predictor,
    source: Conditioning,
    candidates: Conditioning,
    draws: Draws,
    batch_size: int,
    *,
    halving: int | None = None,
) -> list[tuple[int, float]]:
    """Places of the candidates with their distance to the source, nearest first (ties in the given order).

    Args:
        halving: None scores every candidate on all draws. With a number, successive halving (Karnin et al., "Almost optimal
            exploration in multi-armed bandits", ICML 2013): the farther half of the candidates drops out after every round,
            and the draws so far double, until as few are left as can be without being fewer than that number; these see all
            draws. Who dropped out comes after who stayed, with its distance over the draws that it saw.
    """
    m, k = len(candidates), len(draws.t)
    rounds = 0
    while halving and m >> (rounds + 1) >= halving and k >> (rounds + 1) >= 1:
        rounds += 1
    ends = [k >> (rounds - i) for i in range(rounds + 1)]
    left, sums, begin = torch.arange(m), torch.zeros(m), 0
    behind: list[tuple[int, float]] = []
    for end in ends:
        some = Draws(draws.latents[begin:end], draws.t[begin:end])
        sums[left] += distances_by_draw(predict, source, candidates[left], some, batch_size).sum(0)
        left, begin = left[sums[left].argsort(stable=True)], end
        stay = len(left) if end == k else -(-len(left) // 2)
        behind = [(i, float(sums[i]) / end) for i in left[stay:].tolist()] + behind
        left = left[:stay].sort().values
    left = left[sums[left].argsort(stable=True)]
    return [(i, float(sums[i]) / k) for i in left.tolist()] + behind


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
    found = nearest(predict, encode([name]), encode(others), draws, batch_size, halving=halving)
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
    choices = []
    for prompt in prompts:
        if len(prompt.candidates) == 1:
            choices.append(Choice(prompt.id, prompt.prompt, prompt.candidates))
            continue
        conditioning = encode([c.prompt for c in prompt.candidates])
        least = targets if halving else None
        found = nearest(predict, encode([prompt.prompt]), conditioning, draws, batch_size, halving=least)
        chosen = tuple(prompt.candidates[i] for i, _ in found[:targets])
        choices.append(Choice(prompt.id, prompt.prompt, chosen, tuple(distance for _, distance in sorted(found))))
    return choices
