"""Tiny pipelines of every supported family: real Diffusers classes, random weights from a fixed seed, nothing to download.

They draw nothing that a person would recognise, but their predictions depend on prompt, time and latents as those of
the large models do, in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from string import ascii_lowercase, digits
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from expunge import iconworld

SENTENCES = (
    "a photo of a red apple on a wooden table",
    "a drawing of a small dog in the snow",
    "an oil painting of a blue car by the sea",
    "two golf balls and a tennis ball on green grass",
)
WORDS = sorted({word for sentence in SENTENCES for word in sentence.split()})
TEXT_WIDTH = 32
TEXT_LENGTH = 16


def stable_diffusion(prediction_type: str = "epsilon") -> StableDiffusionPipeline:
    """Latents `(4 8 8)`, pictures `(3 16 16)`."""
    tokenizer = _clip_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=2,
        cross_attention_dim=TEXT_WIDTH,
    )
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        steps_offset=1,
        set_alpha_to_one=False,
        clip_sample=False,
        prediction_type=prediction_type,
    )
    return StableDiffusionPipeline(
        unet=_randomized(unet, gain=1.5),
        vae=_randomized(_autoencoder(latent_channels=4, scaling_factor=0.18215)),
        text_encoder=_randomized(CLIPTextModel(_clip_config(tokenizer))),
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stand_in() -> StableDiffusionPipeline:
    """In the place of the built-in model where it does not matter what is drawn: its tokenizer, latents `(4 8 8)`, pictures
    `(3 64 64)`."""
    built_in = iconworld.model_folder("iconworld")
    assert built_in is not None
    tokenizer = CLIPTokenizer.from_pretrained(built_in / "tokenizer")
    pipeline = stable_diffusion()
    text = _clip_config(tokenizer, length=tokenizer.model_max_length)
    pipeline.register_modules(
        vae=_randomized(_autoencoder(latent_channels=4, levels=4, scaling_factor=0.18215)),
        text_encoder=_randomized(CLIPTextModel(text)),
        tokenizer=tokenizer,
    )
    return pipeline.to(torch.float16)


def stable_diffusion_3() -> StableDiffusion3Pipeline:
    """Latents `(16 8 8)`, pictures `(3 16 16)`; normalised queries and keys and dual attention, as in version 3.5."""
    tokenizers = [_clip_tokenizer(), _clip_tokenizer()]
    text_encoders = [
        _randomized(CLIPTextModelWithProjection(_clip_config(tokenizer, hidden_size=TEXT_WIDTH // 2)), seed)
        for seed, tokenizer in enumerate(tokenizers)
    ]
    tokenizer_3 = _t5_tokenizer()
    t5 = T5Config(
        vocab_size=len(tokenizer_3),
        d_model=TEXT_WIDTH,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    transformer = SD3Transformer2DModel(
        sample_size=8,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=sum(encoder.config.projection_dim for encoder in text_encoders),
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        transformer=_randomized(transformer),
        vae=_randomized(_autoencoder(latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609)),
        text_encoder=text_encoders[0],
        tokenizer=tokenizers[0],
        text_encoder_2=text_encoders[1],
        tokenizer_2=tokenizers[1],
        text_encoder_3=_randomized(T5EncoderModel(t5)),
        tokenizer_3=tokenizer_3,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


PIPELINES: Mapping[str, Callable[[], Any]] = {
    "sd-epsilon": lambda: stable_diffusion("epsilon"),
    "sd-v": lambda: stable_diffusion("v_prediction").to(torch.float16),
    "sd3": stable_diffusion_3,
}
"""{name: builder} of one pipeline of each kind; "sd-v" is stored in half precision, the others in single."""


def save(name: str, folder: Path) -> Path:
    """Build the pipeline `name`, or "stand-in", and write it to `folder`, as `save_pretrained` does."""
    {**PIPELINES, "stand-in": stand_in}[name]().save_pretrained(folder)
    return folder


def _clip_tokenizer() -> CLIPTokenizer:
    """All bytes, and merges that build up the words of `SENTENCES` letter by letter.

    Spelt out because the trainers of the `tokenizers` library break ties differently in every process.
    """
    letters = sorted(ByteLevel.alphabet())
    merges = []
    for word in WORDS:
        prefix, *pieces = [*word[:-1], word[-1] + "</w>"]
        for piece in pieces:
            merges.append((prefix, piece))
            prefix += piece
    merges = list(dict.fromkeys(merges))
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    tokens = list(dict.fromkeys([*tokens, *("".join(pair) for pair in merges)]))
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=TEXT_LENGTH)


def _t5_tokenizer() -> T5TokenizerFast:
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    letters = [(letter, -10.0) for letter in ("▁", *ascii_lowercase, *digits)]
    return T5TokenizerFast(vocab=[*special, *letters, *(("▁" + word, -1.0) for word in WORDS)], extra_ids=0)


def _clip_config(tokenizer: CLIPTokenizer, hidden_size: int = TEXT_WIDTH, length: int = TEXT_LENGTH) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=length,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        projection_dim=hidden_size,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _autoencoder(latent_channels: int, levels: int = 2, **scaling: float) -> AutoencoderKL:
    """Pictures are 2^(levels - 1) times as large as latents."""
    return AutoencoderKL(
        block_out_channels=(8,) * (levels - 1) + (16,),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=8 * 2 ** (levels - 1),
        **scaling,
    )


@torch.no_grad()
def _randomized(model: nn.Module, seed: int = 0, gain: float = 1.0) -> nn.Module:
    """`model` with every weight drawn anew: matrices scale their input by `gain`, norms by about 1, biases lie near 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(0.0, gain * parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.normal_(0.0 if name.endswith("bias") else 1.0, 0.1, generator=generator)
    return model.eval()
