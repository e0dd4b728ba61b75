"""The published loop, as a baseline: `train.engine = "reference"`.

Same rows, losses and optimizer as the engine `fast`; what differs is what they cost. As the published code does,

    replay       every row's latent is sampled anew, by 20 DDIM steps, inside the loop
    arithmetic   teacher and student in fp32
    passes       student and teacher are evaluated for each loss apart
    prompts      encoded wherever they are used: five passes of the text encoder in a micro-batch of two losses
    scoring      one latent and one prompt at a time; the source prompt, like each candidate, once per draw
    start        at M(k-1), without a warm start
    L2           a term of every micro-batch's loss, its gradient by autograd

Source: the reference code of arXiv 2512.02657, ECCV version (train.py, model_score_map_gen.py, retain_prompt_gen.py).
docs/performance.md says what of it is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from expunge.backbones import Asked, Backbone, Conditioning, Predictor, Prompts

EngineName = Literal["fast", "reference"]

SETTINGS: dict[str, dict[str, Any]] = {
    "train": {"precision": "fp32", "stop": None},
    "replay": {"source": "fresh", "steps": 20, "solver": "published", "batch_size": 1},
}
"""{section of run.toml: fields that `reference` fixes, whatever a preset says}"""
METHOD_SETTINGS: dict[str, Any] = {"warm_start": False, "scoring": "all"}
"""Fields of `method` that it fixes too, where the method has them."""


@dataclass(frozen=True)
class EncodedOnUse:
    """Prompts that go through the text encoder whenever rows of them are asked for."""

    backbone: Backbone
    prompts: Sequence[str]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: Tensor, /) -> Conditioning:
        return self.backbone.conditioning([self.prompts[row] for row in rows.tolist()])


@dataclass(frozen=True)
class SeparatePasses(Predictor):
    """Encodes prompts on use, and evaluates the rows of each loss apart."""

    def encode(self, prompts: Sequence[str]) -> Prompts:
        self.backbone.check_read(prompts)  # once, and not where the loop's cost is counted
        return EncodedOnUse(self.backbone, prompts)

    def each(self, parts: Sequence[Asked]) -> list[Tensor]:
        return [self(*part) for part in parts]


PREDICTORS: dict[EngineName, type[Predictor]] = {"fast": Predictor, "reference": SeparatePasses}
"""How the networks of a step are evaluated."""
