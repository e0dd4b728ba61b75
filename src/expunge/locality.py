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
    """A forget prompt with the mapping prompts chosen for it, and, where score distance chose, its candidates' distances."""

    id: str
    forget: str
    mapping: tuple[Candidate, ...]
    distances: tuple[float, ...] = ()

    @classmethod
    def read(cls, kept: Mapping[str, Any]) -> Self:
        """As `dataclasses.asdict` wrote it."""
        mapping = tuple(Candidate(**candidate) for candidate in kept["mapping"])
        return cls(kept["id"], kept["forget"], mapping, tuple(kept["distances"]))


def scoring_draws(backbone: Backbone, count: int, generator: torch.Generator) -> Draws:
    """`count` draws as published: pure noise z carried to a uniform time, hence x ~ N(0, I) at every time."""
    shape = (count, *backbone.latent_shape)
    clean, noise = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    t = backbone.network_time(torch.randint(1000, (count,), generator=generator)).to(backbone.device)
    return Draws(backbone.add_noise(clean.to(backbone.device), noise.to(backbone.device), t), t)


@torch.no_grad()
def score_distances(
    predict: Predictor, source: Conditioning, candidates: Conditioning, draws: Draws, batch_size: int = 64
) -> Tensor:
    """Score distance of one source prompt to each of m candidates: `(m,)` float32 on the CPU."""
    prompts = Conditioning.cat([source, candidates])
    k, m = len(draws.t), len(prompts)
    rows = _rounded(k * m, batch_size).to(draws.t.device)
    parts = [
        predict(draws.latents[batch // m], draws.t[batch // m], prompts[batch % m]) for batch in rows.split(batch_size)
    ]
    predictions = torch.cat(parts)[: k * m].view(k, m, *draws.latents.shape[1:])
    return (predictions[:, 1:] - predictions[:, :1]).square().mean(dim=(0, 2, 3, 4)).cpu()


def _rounded(count: int, batch_size: int) -> Tensor:
    """0 ... count - 1, the last repeated up to a multiple of 8 (of the batch size, where that is less).

    oneDNN compiles kernels for every batch size it meets, and keeps them. Candidates get fewer with every request, so a
    last batch as small as it could be would be of a new size each time, to be compiled and kept.
    """
    whole = min(8, batch_size)
    return torch.arange(-(-count // whole) * whole).clamp(max=count - 1)


def rank(
    predict: Predictor, name: str, others: Sequence[str], draws: Draws, batch_size: int
) -> list[tuple[str, float]]:
    """`others` with their score distance to `name`, nearest first (ties in the given order)."""
    encode = predict.backbone.encode
    distances = score_distances(predict, encode([name]), encode(others), draws, batch_size).tolist()
    return sorted(zip(others, distances, strict=True), key=lambda pair: pair[1])


def choose_mapping(
    predict: Predictor, prompts: Sequence[ForgetPrompt], draws: Draws, batch_size: int, targets: int = 1
) -> list[Choice]:
    """For each forget prompt the `targets` candidates nearest in score distance (the first, where two are equally near).

    A single candidate is not scored, and its choice has no distances.
    """
    encode = predict.backbone.encode
    choices = []
    for prompt in prompts:
        if len(prompt.candidates) == 1:
            choices.append(Choice(prompt.id, prompt.prompt, prompt.candidates))
            continue
        conditioning = encode([c.prompt for c in prompt.candidates])
        distances = score_distances(predict, encode([prompt.prompt]), conditioning, draws, batch_size)
        nearest = distances.argsort(stable=True)[:targets].tolist()
        chosen = tuple(prompt.candidates[i] for i in nearest)
        choices.append(Choice(prompt.id, prompt.prompt, chosen, tuple(distances.tolist())))
    return choices
