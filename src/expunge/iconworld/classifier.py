"""The judge of iconworld-1: one small network with a calibrated head for things, one for styles, one for backgrounds.

It is trained on renders alone, never on generated pictures (`expunge.iconworld.build.judge`). Its file says which values
each head knows, the temperature that calibrates it, and the probability below which it answers `unsure`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from expunge import files
from expunge.errors import ExpungeError, suggestion
from expunge.evaluation import UNSURE, Answer, Question, Seen

SIDE = 64
"""Pixels along each side of the pictures that it knows."""
WIDTHS = (24, 48, 96, 192)


@dataclass(frozen=True)
class Head:
    """What a head of the network knows.

    Attributes:
        values: names, in the order of the logits.
        temperature: what its logits are divided by.
        threshold: probability of the likeliest value below which the answer is `unsure`.
    """

    values: tuple[str, ...]
    temperature: float = 1.0
    threshold: float = 0.5


class Classifier(nn.Module):
    """Pictures `(b 3 64 64)` in [-1, 1] -> {slot: logits `(b values)`}.

    Args:
        sizes: {slot: number of its values}.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        super().__init__()
        self.features = nn.Sequential(*(_block(i, o) for i, o in zip((3, *WIDTHS), WIDTHS, strict=False)))
        self.heads = nn.ModuleDict({slot: nn.Linear(2 * WIDTHS[-1], n) for slot, n in sizes.items()})

    def pooled(self, pictures: Tensor) -> Tensor:
        """What the heads read, `(b d)`."""
        features = self.features(pictures)
        return torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1)

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        pooled = self.pooled(pictures)
        return {slot: head(pooled) for slot, head in self.heads.items()}


def save(path: Path, network: Classifier, heads: Mapping[str, Head]) -> None:
    """Write network and heads as one file, in fp16; BatchNorm's statistics stay in fp32."""
    tensors = {
        k: t.half() if t.is_floating_point() and "running" not in k else t for k, t in network.state_dict().items()
    }
    files.save_tensors(path, tensors, ("heads", json.dumps({slot: asdict(head) for slot, head in heads.items()})))


def heads_of(path: Path) -> dict[str, Head]:
    """{slot: what its head knows} of a stored judge."""
    described = json.loads(files.metadata(path)["heads"])
    return {slot: Head(**{**h, "values": tuple(h["values"])}) for slot, h in described.items()}


def load(path: Path) -> tuple[Classifier, dict[str, Head]]:
    heads = heads_of(path)
    network = Classifier({slot: len(head.values) for slot, head in heads.items()})
    network.load_state_dict({k: t.float() if t.is_floating_point() else t for k, t in files.load_tensors(path).items()})
    return network.eval(), heads


class CalibratedJudge:
    """An `evaluation.Judge` that answers for every slot its file has a head for."""

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        self._path, self._heads = path, heads_of(path)

    @property
    def digest(self) -> str:
        return files.digest_file(self._path)

    @cached_property
    def _network(self) -> Classifier:
        return load(self._path)[0]

    def check(self, questions: Sequence[Question], size: tuple[int, int]) -> None:
        if size != (SIDE, SIDE):
            raise ExpungeError(
                f"The judge {self.name} knows pictures of {SIDE} x {SIDE} pixels, and the model paints {size[1]} x "
                f"{size[0]}. Name another judge in the protocol (docs/judges.md)."
            )
        for question in questions:
            if question.slot not in self._heads:
                raise ExpungeError(
                    f"The judge {self.name} cannot see the {question.slot} {question.name!r}; it sees "
                    f"{' and '.join(self._heads)}. Name another judge in the protocol (docs/judges.md)."
                )
            if question.name not in self._heads[question.slot].values:
                raise ExpungeError(
                    f"The judge {self.name} does not know the {question.slot} {question.name!r}. "
                    f"{suggestion(question.name, self._heads[question.slot].values)}"
                )

    @torch.no_grad()
    def judge(self, images: Tensor, questions: Sequence[Question]) -> list[Answer]:
        logits = self._network(images * 2 - 1)
        probabilities = {slot: (part / self._heads[slot].temperature).softmax(1) for slot, part in logits.items()}
        return [self._answer({s: p[i] for s, p in probabilities.items()}, q) for i, q in enumerate(questions)]

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        return self._network.pooled(images * 2 - 1)

    def _answer(self, probabilities: Mapping[str, Tensor], question: Question) -> Answer:
        seen = {slot: self._seen(slot, p) for slot, p in probabilities.items()}
        others = [slot for slot in question.scene if slot != question.slot and slot in seen]
        known = question.slot in seen
        answer = seen[question.slot].value if known else UNSURE
        return Answer(
            shown=None if answer == UNSURE else answer == question.name,
            confidence=float(probabilities[question.slot][self._number(question)]) if known else None,
            recognisable=seen["thing"].value != UNSURE,
            context=all(seen[slot].value == question.scene[slot] for slot in others) if others else None,
            seen=seen,
        )

    def _seen(self, slot: str, probabilities: Tensor) -> Seen:
        head, best = self._heads[slot], float(probabilities.max())
        return Seen(head.values[int(probabilities.argmax())] if best >= head.threshold else UNSURE, best)

    def _number(self, question: Question) -> int:
        return self._heads[question.slot].values.index(question.name)


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )
