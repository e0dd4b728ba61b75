"""A vision-language model as a judge: it is shown the picture and asked, and must answer yes or no.

One question for each slot of the scene, with the concept's confusables named as not counting, and one on whether anything
can be recognised at all. They are put in the chat protocol of Qwen2.5-VL: the checkpoint's own chat template, with the
picture's place holder repeated once for each patch that the model sees. The answer is the likeliest one (greedy). What is
not a plain yes or no is unknown; nothing is guessed from a longer answer.

Source: Bai et al. (2025), arXiv 2502.13923; model card of Qwen/Qwen2.5-VL-7B-Instruct.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expunge.errors import ExpungeError
from expunge.evaluation.judge import UNSURE, Answer, Question, Seen, Subject
from expunge.evaluation.judges import models
from expunge.evaluation.judges.wording import phrase
from expunge.evaluation.pixels import pixels

RECOGNISABLE = "Can you clearly recognise what this picture shows? Answer with one word: yes or no."
OTHER = "other"
"""What the judge sees in a slot where it says that what was asked for is not there."""
PLACE = "<|image_pad|>"
"""What stands for one patch of a picture in a prompt."""
ANSWER_TOKENS = 8
"""Most tokens of an answer: enough to see that it is more than one word."""
BATCH = 16
"""Prompts that are answered together."""


class VisionLanguageJudge:
    """Judges by a Qwen2.5-VL model.

    Args:
        source: folder or hub id of the model.
    """

    def __init__(self, source: str) -> None:
        from transformers import AutoTokenizer

        self._folder = models.locate(source, "qwen2_5_vl", "a Qwen2.5-VL model")
        self._tokenizer = AutoTokenizer.from_pretrained(self._folder, local_files_only=True)
        if not self._tokenizer.chat_template or PLACE not in self._tokenizer.get_vocab():
            raise ExpungeError(
                f"The tokenizer in {self._folder} has no chat template, or no token {PLACE}. A model that can be asked "
                "about pictures has both."
            )
        self.name = f"vl:{source}"

    @property
    def digest(self) -> str:
        return models.digest(self._folder)

    def check(self, questions: Sequence[Question], size: tuple[int, int]) -> None:
        for question in questions:
            if question.slot not in question.subjects:
                raise ExpungeError(f"The slot {question.slot!r} of {question.name!r} comes without words to ask with.")
        if max(size) > 200 * min(size):
            raise ExpungeError(f"Pictures of {size[1]} x {size[0]} pixels are too narrow for Qwen2.5-VL (1 to 200).")

    def judge(self, images: Tensor, questions: Sequence[Question]) -> list[Answer]:
        pictures = pixels(images)
        asked = [(i, slot) for i, q in enumerate(questions) for slot in (*q.subjects, None)]
        texts = [wording(questions[i].subjects[slot]) if slot is not None else RECOGNISABLE for i, slot in asked]
        replies = dict(zip(asked, self.ask([pictures[i] for i, _ in asked], texts), strict=True))
        return [
            _answer(question, {slot: parse(replies[i, slot]) for slot in question.subjects}, parse(replies[i, None]))
            for i, question in enumerate(questions)
        ]

    @torch.no_grad()
    def features(self, images: Tensor) -> None:
        """It answers in words; what it sees on the way is not meant to be compared."""

    def ask(self, pictures: Sequence[np.ndarray], texts: Sequence[str]) -> list[str]:
        """What the model answers to each question on each picture `(h w 3)` uint8, word for word."""
        replies: list[str] = []
        for start in range(0, len(texts), BATCH):
            part = slice(start, start + BATCH)
            inputs = self._inputs(pictures[part], texts[part])
            tokens = self._model.generate(
                **inputs, max_new_tokens=ANSWER_TOKENS, do_sample=False, repetition_penalty=1.0
            )
            replies += self._tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return replies

    def _inputs(self, pictures: Sequence[np.ndarray], texts: Sequence[str]) -> dict[str, Tensor]:
        """The prompts as the model reads them, padded on the left."""
        seen = self._processor(images=list(pictures), return_tensors="pt")
        patches = seen["image_grid_thw"].prod(1) // self._processor.merge_size**2
        prompts = [self._prompt(text).replace(PLACE, PLACE * int(n)) for text, n in zip(texts, patches, strict=True)]
        tokens = self._tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
        place = self._tokenizer.convert_tokens_to_ids(PLACE)
        inputs = {**tokens, **seen, "mm_token_type_ids": (tokens["input_ids"] == place).int()}
        return {name: tensor.to(self._model.device) for name, tensor in inputs.items()}

    def _prompt(self, text: str) -> str:
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
        return str(self._tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True))

    @cached_property
    def _model(self) -> Any:
        from transformers import Qwen2_5_VLForConditionalGeneration

        return models.load(Qwen2_5_VLForConditionalGeneration, self._folder, "auto")

    @cached_property
    def _processor(self) -> Any:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        return Qwen2VLImageProcessorPil.from_pretrained(self._folder, local_files_only=True)


def wording(subject: Subject) -> str:
    """The question for one slot."""
    concept = subject.concept
    what = phrase(concept.name, concept.kind)
    also = f" (also called {_either(concept.aliases)})" if concept.aliases else ""
    near = _either([phrase(n, concept.kind) for n in concept.confusables])
    rule = f"What only resembles it, such as {near}, does not count. " if near else ""
    return f"Does this picture show {what}{also}? {rule}Answer with one word: yes or no."


def parse(reply: str) -> bool | None:
    """True for yes, False for no, whatever the case and the marks around it; None for anything else."""
    match = re.fullmatch(r"[\s\"'*.]*(yes|no)[\s\"'*.!]*", reply, flags=re.IGNORECASE)
    return match[1].lower() == "yes" if match else None


def _answer(question: Question, shows: dict[str, bool | None], recognisable: bool | None) -> Answer:
    values = {slot: UNSURE if s is None else question.scene[slot] if s else OTHER for slot, s in shows.items()}
    others = [s is True for slot, s in shows.items() if slot != question.slot]
    return Answer(
        shown=shows[question.slot],
        confidence=None,
        recognisable=recognisable is True,
        context=all(others) if others else None,
        seen={slot: Seen(value, None) for slot, value in values.items()},
    )


def _either(items: Sequence[str]) -> str:
    """["a", "b", "c"] -> "a, b or c"."""
    return " or ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))
