"""The built-in judge: a small convolutional classifier of things and styles, trained on drawings only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from expunge.errors import ExpungeError, nearest
from expunge.evaluation import Answer, Question, Seen

SIDE = 64
"""Pixels a side of the pictures that it was trained on."""
CONFIDENT = 0.5
"""Probability of the likeliest thing from which on a picture counts as recognisable."""


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class JudgeNetwork(nn.Module):
    """Pictures `(b 3 64 64)` in [-1, 1] -> logits of things `(b things)` and styles `(b styles)`."""

    def __init__(self, things: int, styles: int) -> None:
        super().__init__()
        self.features = nn.Sequential(*(_block(i, o) for i, o in ((3, 24), (24, 48), (48, 96), (96, 160))))
        self.things = nn.Linear(160, things)
        self.styles = nn.Linear(320, styles)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(pictures)
        mean, peak = features.mean((2, 3)), features.amax((2, 3))
        return self.things(peak), self.styles(torch.cat([mean, peak], 1))


class IconworldJudge:
    """Sees things and styles; it has no eye for backgrounds."""

    slots: tuple[str, ...] = ("thing", "style")

    def __init__(self, name: str, weights: Path, things: Sequence[str], styles: Sequence[str]) -> None:
        self.name = name
        self._values = {"thing": list(things), "style": list(styles)}
        self._network = JudgeNetwork(len(things), len(styles)).eval()
        self._network.load_state_dict(load_file(weights))

    def check(self, questions: Sequence[Question], size: tuple[int, int]) -> None:
        if size != (SIDE, SIDE):
            raise ExpungeError(
                f"The judge {self.name} knows pictures of {SIDE} x {SIDE} pixels, and the model paints {size[1]} x "
                f"{size[0]}. Name another judge in the protocol (docs/judges.md)."
            )
        for question in questions:
            if question.slot not in self._values:
                raise ExpungeError(
                    f"The judge {self.name} cannot see the {question.slot} {question.name!r}; it sees "
                    f"{' and '.join(self._values)}. Name another judge in the protocol (docs/judges.md)."
                )
            if question.name not in self._values[question.slot]:
                raise ExpungeError(
                    f"The judge {self.name} does not know the {question.slot} {question.name!r}. "
                    f"{nearest(question.name, self._values[question.slot])}"
                )

    @torch.no_grad()
    def judge(self, images: Tensor, questions: Sequence[Question]) -> list[Answer]:
        logits = cast(tuple[Tensor, Tensor], self._network(images * 2 - 1))
        probabilities = {slot: part.softmax(1) for slot, part in zip(self.slots, logits, strict=True)}
        return [self._answer({s: p[i] for s, p in probabilities.items()}, q) for i, q in enumerate(questions)]

    def _answer(self, probabilities: dict[str, Tensor], question: Question) -> Answer:
        seen = {slot: Seen(self._values[slot][int(p.argmax())], float(p.max())) for slot, p in probabilities.items()}
        others = [slot for slot in question.scene if slot != question.slot and slot in self._values]
        known = question.slot in self._values
        return Answer(
            shown=seen[question.slot].value == question.name if known else None,
            confidence=self._probability(probabilities, question) if known else None,
            recognisable=float(probabilities["thing"].max()) >= CONFIDENT,
            context=all(seen[slot].value == question.scene[slot] for slot in others) if others else None,
            seen=seen,
        )

    def _probability(self, probabilities: dict[str, Tensor], question: Question) -> float:
        return float(probabilities[question.slot][self._values[question.slot].index(question.name)])
