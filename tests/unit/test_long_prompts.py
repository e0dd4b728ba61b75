"""Prompts whose end a text encoder would not read."""

from __future__ import annotations

from pathlib import Path

import pytest

from expunge.backbones import load
from expunge.errors import ExpungeError
from tiny import TEXT_LENGTH


def test_a_prompt_whose_end_would_not_be_read_is_refused(model_folder: Path) -> None:
    backbone = load(model_folder)
    tokenizer, most = backbone.reader
    assert most == (256 if backbone.denoiser_name == "transformer" else TEXT_LENGTH)
    longest = " ".join(["dog"] * (most - len(tokenizer("")["input_ids"])))
    backbone.encode(["a dog", longest])
    with pytest.raises(ExpungeError, match=rf"'dog dog .*' has {most + 1} tokens, and the model reads {most}"):
        backbone.encode(["a dog", f"{longest} dog"])
