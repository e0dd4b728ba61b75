"""How many pairs of prompts does the closed form of a warm start need?

It moves ten concepts at once, from n pairs each, and is then measured on 64 pairs that it has not seen.

    python benchmarks/tuning/pairs.py

writes benchmarks/tuning/pairs.json: {protocol: {n: {concept: what is left of its way on the unseen pairs}}}. No denoiser is
evaluated; a minute on one core. Development sequences only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from expunge import backbones, iconworld
from expunge.backbones import Backbone
from expunge.concepts import Concept
from expunge.files import write_json
from expunge.methods.warm_start import WarmStartConfig, left, warm_start
from expunge.prompts import ForgetPrompt
from expunge.stream import preset

COUNTS = (8, 16, 32, 64)
UNSEEN = 64
CONFIG = WarmStartConfig.model_validate(preset("anchored-iconworld").method["warm_start"])


Pair = tuple[str, tuple[str, ...]]


def pairs(concept: Concept, count: int, off_limits: frozenset[str]) -> tuple[list[Pair], list[Pair]]:
    """Forget prompts, each with the same concept in another's place: `count` to move, and others to measure."""
    source = iconworld.vocabulary()
    near = next(name for name in source.related(concept) if name not in off_limits)
    seen, more = (source.forget_prompts(concept, [near], n, seed, off_limits) for n, seed in ((count, 0), (1000, 1)))
    moved = {prompt.prompt: prompt for prompt in seen}
    others = {prompt.prompt: prompt for prompt in more if prompt.prompt not in moved}
    assert len(others) >= UNSEEN, f"{len(others)} pairs of {concept.name} are left to measure"
    return [_pair(prompt) for prompt in seen], [_pair(prompt) for prompt in [*others.values()][:UNSEEN]]


def _pair(prompt: ForgetPrompt) -> Pair:
    return prompt.prompt, (prompt.candidates[0].prompt,)


def measured(backbone: Backbone, concepts: Sequence[Concept], held_out: frozenset[str], count: int) -> dict[str, float]:
    """{concept: what is left of its way on pairs that were not seen}"""
    source, off = iconworld.vocabulary(), held_out | {c.name for c in concepts}
    names = sorted({*source.related(concepts[0]), *source.unrelated(concepts[0])} - off)
    kept = [source.retain_prompts(names, CONFIG.retain_prompts, 2, off), [""]]
    told = {c.name: pairs(c, count, off) for c in concepts}
    seen, unseen = (
        warm_start(CONFIG, backbone, kept, {name: each[i] for name, each in told.items()}, dict.fromkeys(told, 1.0))
        for i in (0, 1)
    )
    weights = {n: p.detach() for n, p in backbone.denoiser.named_parameters()}
    solved = seen.solve(weights, weights)
    aim, now = (torch.cat([w[n].double() for n in seen.maps]) for w in (weights, solved))
    metric = aim.T @ aim
    return {name: left(aim.T @ now, metric, moments) for name, moments in unseen.moved(metric).items()}


def main() -> None:
    folder = iconworld.model_folder("iconworld")
    assert folder is not None
    backbone, found = backbones.load(folder), {}
    for name in ("iconworld-dev-a", "iconworld-dev-b"):
        protocol = iconworld.protocol(name)
        concepts = [iconworld.vocabulary().concept(c) for request in protocol.requests for c in request]
        found[name] = {n: measured(backbone, concepts, protocol.held_out, n) for n in COUNTS}
        for n, ways in found[name].items():
            worst = max(ways, key=lambda c: ways[c])
            print(name, n, f"mean {sum(ways.values()) / len(ways):.3f}, most {ways[worst]:.3f} ({worst})")
    write_json(Path(__file__).with_suffix(".json"), {"schema": 1, "asked": CONFIG.remaining, "left": found})


if __name__ == "__main__":
    main()
