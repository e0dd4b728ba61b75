"""The tokenizer: CLIP's byte-level byte-pair encoding, with merges learnt from the captions. Every text has tokens."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from expunge import seeds
from expunge.iconworld.build import captions, draw, stock

LENGTH = 24
"""Tokens per prompt, with those that begin, end and pad it."""
SIZE = 1024
"""Tokens to learn at most, bytes included."""
END_OF_WORD = "</w>"


def sample_captions(count: int, seed: int) -> list[str]:
    """Captions of `count` planned pictures."""
    shown = stock.labels(draw.plan(seed, 0, count))
    return captions.captions(shown, random.Random(seeds.derive(seed, "captions")))


def build(count: int = 20_000, seed: int = 0) -> Any:
    """Learn merges from `count` captions; returns a CLIPTokenizer."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = Tokenizer(models.BPE(end_of_word_suffix=END_OF_WORD))
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, initial_alphabet=letters, end_of_word_suffix=END_OF_WORD, min_frequency=20, show_progress=False
    )
    learner.train_from_iterator(sample_captions(count, seed), trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    words = [*letters, *(letter + END_OF_WORD for letter in letters), *(a + b for a, b in merges)]
    numbers = {word: i for i, word in enumerate(dict.fromkeys([*words, "<|startoftext|>", "<|endoftext|>"]))}
    return CLIPTokenizer(vocab=numbers, merges=merges, model_max_length=LENGTH)


def save(folder: Path) -> None:
    build().save_pretrained(folder)


def load(folder: Path) -> Any:
    return CLIPTokenizer.from_pretrained(folder, model_max_length=LENGTH)
