"""Pipelines in the layouts that other tools write: one file in the original layout, and adapters in kohya's naming.

The renaming is the inverse of the one in Diffusers' `loaders/single_file_utils.py`, whose reading the tests use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_TRANSFORMER = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj.": "x_embedder.proj.",
    "time_text_embed.timestep_embedder.linear_1.": "t_embedder.mlp.0.",
    "time_text_embed.timestep_embedder.linear_2.": "t_embedder.mlp.2.",
    "time_text_embed.text_embedder.linear_1.": "y_embedder.mlp.0.",
    "time_text_embed.text_embedder.linear_2.": "y_embedder.mlp.2.",
    "context_embedder.": "context_embedder.",
    "norm_out.linear.": "final_layer.adaLN_modulation.1.",
    "proj_out.": "final_layer.linear.",
}
_JOINT_BLOCK = {
    **{f"attn.to_{x}.": "x_block.attn.qkv." for x in "qkv"},
    **{f"attn2.to_{x}.": "x_block.attn2.qkv." for x in "qkv"},
    **{f"attn.add_{x}_proj.": "context_block.attn.qkv." for x in "qkv"},
    **{f"attn.norm_{x}.": f"x_block.attn.ln_{x}." for x in "qk"},
    **{f"attn2.norm_{x}.": f"x_block.attn2.ln_{x}." for x in "qk"},
    **{f"attn.norm_added_{x}.": f"context_block.attn.ln_{x}." for x in "qk"},
    "attn.to_out.0.": "x_block.attn.proj.",
    "attn2.to_out.0.": "x_block.attn2.proj.",
    "attn.to_add_out.": "context_block.attn.proj.",
    "norm1.linear.": "x_block.adaLN_modulation.1.",
    "norm1_context.linear.": "context_block.adaLN_modulation.1.",
    "ff.net.0.proj.": "x_block.mlp.fc1.",
    "ff.net.2.": "x_block.mlp.fc2.",
    "ff_context.net.0.proj.": "context_block.mlp.fc1.",
    "ff_context.net.2.": "context_block.mlp.fc2.",
}
"""Parts of a block of Stable Diffusion 3; what goes to one name is joined in this order."""


def single_file(pipeline: Any, path: Path, parts: str = "unet vae text_encoder") -> Path:
    """Write a Stable Diffusion pipeline as one .safetensors file in the original layout."""
    tensors: dict[str, Tensor] = {}
    if "unet" in parts:
        layers = pipeline.unet.config.layers_per_block
        for name, value in pipeline.unet.state_dict().items():
            tensors[f"model.diffusion_model.{_unet(name, layers)}"] = value
    if "vae" in parts:
        tensors |= _autoencoder(pipeline.vae)
    if "text_encoder" in parts:
        for name, value in pipeline.text_encoder.state_dict().items():
            tensors[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = value
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    return path


def single_file_3(pipeline: Any, path: Path, parts: str = "transformer vae") -> Path:
    """Write a Stable Diffusion 3 pipeline, without its text encoders, as one .safetensors file in the original layout."""
    tensors = _joint_transformer(pipeline.transformer) if "transformer" in parts else {}
    if "vae" in parts:
        tensors |= _autoencoder(pipeline.vae)
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    return path


def kohya(lora: Mapping[str, Tensor], alpha: float, path: Path) -> Path:
    """Write the adapter `lora` ({Diffusers name: tensor}, as `save_lora_weights` writes it) as kohya's scripts do."""
    tensors: dict[str, Tensor] = {}
    for name, value in lora.items():
        component, rest = name.split(".", 1)
        module, factor = re.fullmatch(r"(.*)\.lora_([AB])\.weight", rest).groups()  # type: ignore[union-attr]
        # Its files name a text encoder's modules as every version of Transformers before 5 did.
        prefix = f"lora_{'unet' if component == 'unet' else 'te_text_model'}_{module.replace('.', '_')}"
        tensors[f"{prefix}.lora_{'down' if factor == 'A' else 'up'}.weight"] = value.contiguous()
        tensors[f"{prefix}.alpha"] = value.new_tensor(alpha)
    save_file(tensors, path)
    return path


def _unet(name: str, layers: int) -> str:
    for new, old in _UNET.items():
        if name.startswith(new + "."):
            return name.replace(new, old, 1)
    if mid := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", name):
        kind, place, rest = mid.groups()
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(place)}.{_part(kind, rest)}"
    side, block, kind, place, rest = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name).groups()  # type: ignore[union-attr]
    first = int(block) * (layers + 1)
    match side, kind:
        case "down", "downsamplers":
            return f"input_blocks.{first + layers + 1}.0.{rest.replace('conv', 'op', 1)}"
        case "up", "upsamplers":
            # Diffusers reads it after a resnet (1) as well as after a resnet and an attention (2).
            return f"output_blocks.{first + layers}.2.{rest}"
        case "down", _:
            return f"input_blocks.{first + 1 + int(place)}.{int(kind == 'attentions')}.{_part(kind, rest)}"
        case _:
            return f"output_blocks.{first + int(place)}.{int(kind == 'attentions')}.{_part(kind, rest)}"


def _part(kind: str, rest: str) -> str:
    module, suffix = rest.rsplit(".", 1)
    return f"{_RESNET[module]}.{suffix}" if kind == "resnets" else rest


def _joint_transformer(transformer: Any) -> dict[str, Tensor]:
    blocks = len(transformer.transformer_blocks)
    table = {
        **_TRANSFORMER,
        **{
            f"transformer_blocks.{i}.{part}": f"joint_blocks.{i}.{old}"
            for i in range(blocks)
            for part, old in _JOINT_BLOCK.items()
        },
    }
    # Diffusers holds the scale of a last modulation before its shift, the original after it.
    swapped = ("norm_out.linear.", f"transformer_blocks.{blocks - 1}.norm1_context.linear.")
    found: dict[str, list[Tensor]] = {}
    left = transformer.state_dict()
    for part, old in table.items():
        for name in [n for n in left if n.startswith(part)]:
            value = left.pop(name)
            halves = value.chunk(2)[::-1] if part in swapped else (value,)
            found.setdefault(f"model.diffusion_model.{old}{name.removeprefix(part)}", []).extend(halves)
    assert not left
    return {name: torch.cat(pieces) for name, pieces in found.items()}


def _autoencoder(vae: Any) -> dict[str, Tensor]:
    tensors = {}
    for name, value in vae.state_dict().items():
        renamed = _vae(name, len(vae.config.block_out_channels))
        convolution = ".attn_1." in renamed and renamed.endswith("weight") and value.ndim == 2
        tensors[f"first_stage_model.{renamed}"] = value[:, :, None, None] if convolution else value
    return tensors


def _vae(name: str, levels: int) -> str:
    def up(match: re.Match[str]) -> str:
        return f"up.{levels - 1 - int(match[1])}."

    name = re.sub(r"up_blocks\.(\d+)\.", up, name)
    name = re.sub(r"down_blocks\.(\d+)\.", r"down.\1.", name)
    name = re.sub(r"(down|up)samplers\.0\.", r"\1sample.", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1").replace(".resnets.", ".block.")
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    if ".attn_1." in name:
        for new, old in _ATTENTION.items():
            name = name.replace(f".attn_1.{new}.", f".attn_1.{old}.")
    return name
