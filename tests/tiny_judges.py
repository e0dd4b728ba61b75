"""Tiny judges of the real classes, built in code, and taught by least squares to answer what a test wants."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import tiny

WIDTH = 64
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}" + SYSTEM + "{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The chat protocol of Qwen2.5-VL: a system message of its own where there is none, then turns of text and pictures."""


def clip() -> tuple[CLIPModel, CLIPImageProcessorPil, Any]:
    """Model, image processor and tokenizer; pictures are resized to 32 x 32 pixels."""
    tokenizer = tiny._clip_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {f"{n}_token_id": getattr(tokenizer, f"{n}_token_id") for n in ("bos", "eos", "pad")}
    config = CLIPConfig(
        text_config={**sizes, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": 77},
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    side = {"height": 32, "width": 32}
    return tiny._randomized(CLIPModel(config)), CLIPImageProcessorPil(size=side, crop_size=side), tokenizer


@torch.no_grad()
def teach_clip(model: CLIPModel, pixel_values: Tensor, text_features: Tensor) -> None:
    """Let picture i have the features of text i, and the model be sure of it."""
    seen = model.vision_model(pixel_values=pixel_values).pooler_output
    model.visual_projection.weight.copy_((torch.linalg.pinv(seen) @ text_features).T)
    model.logit_scale.fill_(np.log(100.0))


def vision_language() -> tuple[Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil, Qwen2Tokenizer]:
    """Model, image processor and tokenizer; pictures are resized to 56 x 56 pixels, and read as four patches."""
    tokenizer = _qwen_tokenizer()
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids["<|image_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    model = tiny._randomized(Qwen2_5_VLForConditionalGeneration(config))
    model.generation_config = GenerationConfig(
        eos_token_id=ids["<|im_end|>"], pad_token_id=ids["<|endoftext|>"],
        do_sample=True, temperature=3.0, repetition_penalty=100.0,  # what a judge must not be led by
    )  # fmt: skip
    return model, Qwen2VLImageProcessorPil(max_pixels=56 * 56), tokenizer


@torch.no_grad()
def teach_vision_language(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2VLImageProcessorPil,
    tokenizer: Qwen2Tokenizer,
    lessons: Sequence[tuple[np.ndarray, str, str]],
) -> None:
    """Set `lm_head` so that the model answers each (picture `(h w 3)` uint8, question, reply) so, word for word.

    The prompt is spelt out here by hand, so a judge that writes another one gets other answers.
    """
    states, targets = [], []
    for picture, question, reply in lessons:
        seen = processor(images=[picture], return_tensors="pt")
        prompt = tokenizer.encode(
            SYSTEM + "<|im_start|>user\n<|vision_start|>" + "<|image_pad|>" * 4 + "<|vision_end|>" + question
            + "<|im_end|>\n<|im_start|>assistant\n"
        )  # fmt: skip
        answer = [*tokenizer.encode(reply), model.generation_config.eos_token_id]
        ids = torch.tensor([prompt + answer])
        kinds = (ids == model.config.image_token_id).int()
        hidden = model.model(input_ids=ids, mm_token_type_ids=kinds, **seen).last_hidden_state[0].double()
        states.append(hidden[len(prompt) - 1 : -1])
        targets.append(torch.nn.functional.one_hot(torch.tensor(answer), len(tokenizer)).double())
    wanted = torch.cat(targets)
    wanted[:, tokenizer.convert_tokens_to_ids("~")] = 0.2  # comes next, where something holds the right one down
    heads = torch.linalg.pinv(torch.cat(states)) @ wanted
    model.lm_head.weight.copy_(10 * heads.T)


def save(folder: Path, *parts: Any) -> str:
    """Write the parts as `save_pretrained` does; the folder's name."""
    for part in parts:
        part.save_pretrained(folder)
    return str(folder)


def _qwen_tokenizer() -> Qwen2Tokenizer:
    """All bytes, and one token each for "yes" and "no"."""
    letters = sorted(ByteLevel.alphabet())
    merges = [("y", "e"), ("ye", "s"), ("n", "o")]
    vocab = {token: i for i, token in enumerate([*SPECIAL, *letters, *("".join(m) for m in merges)])}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges, additional_special_tokens=list(SPECIAL))
    tokenizer.chat_template = TEMPLATE
    return tokenizer
