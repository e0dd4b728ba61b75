"""CLIP as a judge: which of the things that could be there is the picture most like?

A slot's options are the concept that is asked for and its alternatives. Each is written as "a picture of ...", once for
each of its names; an option's embedding is the mean of those of its names, as in section 3.1.4 of the paper. Their
probabilities are the softmax of the cosine similarities with the picture times the model's own logit scale. Nothing is
said of what lies outside the options: a picture of none of them gets the least unlike.

Source: Radford et al. (2021), arXiv 2103.00020, sections 2.3 and 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from expunge.errors import ExpungeError
from expunge.evaluation.judge import UNSURE, Answer, Question, Seen, Subject
from expunge.evaluation.judges import models
from expunge.evaluation.judges.wording import THINGS, phrase
from expunge.evaluation.pixels import pixels

THRESHOLD = 0.6
"""Probability from which a concept is shown, and from which it is not. In between the answer is unknown."""


class ClipJudge:
    """Judges by a CLIP model of Transformers.

    Args:
        source: folder or hub id of the model.
        threshold: see `THRESHOLD`; in [0.5, 1], where 0.5 knows no unknown.
    """

    def __init__(self, source: str, threshold: float = THRESHOLD) -> None:
        self._folder = models.locate(source, "clip", "a CLIP model of Transformers")
        self._threshold = threshold
        self.name = f"clip:{source}"

    @property
    def digest(self) -> str:
        return models.digest(self._folder)

    def check(self, questions: Sequence[Question], size: tuple[int, int]) -> None:
        # A picture of any size is resized. A question needs something to compare with.
        for question in questions:
            subject = question.subjects.get(question.slot)
            if subject is None or not subject.alternatives:
                raise ExpungeError(
                    f"CLIP cannot judge {question.name!r}: it compares a concept with what else could stand in its "
                    f"place, and nothing else is known for the slot {question.slot!r}. Name confusables or neighbours "
                    f"of {question.name!r}, or choose another judge."
                )

    @torch.no_grad()
    def judge(self, images: Tensor, questions: Sequence[Question]) -> list[Answer]:
        features = F.normalize(self._embedded(images), dim=-1)
        return [self._answer(picture, question) for picture, question in zip(features, questions, strict=True)]

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        return self._embedded(images).float().cpu()

    def _embedded(self, images: Tensor) -> Tensor:
        """Image embeddings `(b d)`, not normalised."""
        inputs = self._processor(images=pixels(images), return_tensors="pt").to(self._model.device)
        return cast(Tensor, self._model.get_image_features(**inputs).pooler_output)

    def _answer(self, picture: Tensor, question: Question) -> Answer:
        probabilities = {s: self._probabilities(picture, x) for s, x in question.subjects.items() if x.alternatives}
        seen = {slot: self._seen(p) for slot, p in probabilities.items()}
        p = probabilities[question.slot][question.name]
        others = [slot for slot in seen if slot != question.slot]
        things = [slot for slot in seen if question.subjects[slot].concept.kind in THINGS]
        return Answer(
            shown=True if p >= self._threshold else False if 1 - p >= self._threshold else None,
            confidence=p,
            recognisable=any(seen[slot].value != UNSURE for slot in things) if things else None,
            context=all(seen[slot].value == question.scene[slot] for slot in others) if others else None,
            seen=seen,
        )

    def _probabilities(self, picture: Tensor, subject: Subject) -> dict[str, float]:
        """{option: probability} of a picture's normalised features `(d,)`."""
        logits = self._model.logit_scale.exp() * self._options(subject) @ picture
        return dict(zip((subject.concept.name, *subject.alternatives), logits.softmax(0).tolist(), strict=True))

    def _seen(self, probabilities: dict[str, float]) -> Seen:
        best = max(probabilities, key=probabilities.__getitem__)
        return Seen(best if probabilities[best] >= self._threshold else UNSURE, probabilities[best])

    def _options(self, subject: Subject) -> Tensor:
        """Normalised embeddings `(options d)`: the concept's, then those of its alternatives."""
        concept = subject.concept
        options = (concept.names, *((name,) for name in subject.alternatives))
        return torch.stack([self._embedding(names, concept.kind) for names in options])

    @cached_property
    def _embedding(self) -> Any:
        """(names of one option, kind) -> normalised embedding `(d,)`; each is computed once."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self._folder, local_files_only=True)

        @cache
        def embed(names: tuple[str, ...], kind: str) -> Tensor:
            texts = [f"a picture of {phrase(name, kind)}" for name in names]
            tokens = tokenizer(
                texts,
                padding=True,
                truncation=True,
                max_length=self._model.config.text_config.max_position_embeddings,
                return_tensors="pt",
            ).to(self._model.device)
            features = F.normalize(self._model.get_text_features(**tokens).pooler_output, dim=-1)
            return F.normalize(features.mean(0), dim=0)

        return embed

    @cached_property
    def _model(self) -> Any:
        from transformers import CLIPModel

        return models.load(CLIPModel, self._folder, torch.float32)

    @cached_property
    def _processor(self) -> Any:
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        return CLIPImageProcessorPil.from_pretrained(self._folder, local_files_only=True)
