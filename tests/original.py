"""Pipelines in the layouts that other tools write: one file in the original layout, and adapters in kohya's naming.

The renaming is the inverse of the one in Diffusers' `loaders/single_file_utils.py`, whose reading the tests use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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


def single_file(pipeline: Any, path: Path, parts: str = "unet vae text_encoder") -> Path:
    """Write a Stable Diffusion pipeline as one .safetensors file in the original layout."""
    tensors: dict[str, Tensor] = {}
    if "unet" in parts:
        layers = pipeline.unet.config.layers_per_block
        for name, value in pipeline.unet.state_dict().items():
            tensors[f"model.diffusion_model.{_unet(name, layers)}"] = value
    if "vae" in parts:
        levels = len(pipeline.vae.config.block_out_channels)
        for name, value in pipeline.vae.state_dict().items():
            renamed = _vae(name, levels)
            convolution = ".attn_1." in renamed and renamed.endswith("weight") and value.ndim == 2
            tensors[f"first_stage_model.{renamed}"] = value[:, :, None, None] if convolution else value
    if "text_encoder" in parts:
        for name, value in pipeline.text_encoder.state_dict().items():
            tensors[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = value
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    return path


def kohya(lora: Mapping[str, Tensor], alpha: float, path: Path) -> Path:
    """Write the adapter `lora` ({Diffusers name: tensor}, as `save_lora_weights` writes it) as kohya's scripts do."""
    tensors: dict[str, Tensor] = {}
    for name, value in lora.items():
        component, rest = name.split(".", 1)
        module, factor = re.fullmatch(r"(.*)\.lora_([AB])\.weight", rest).groups()  # type: ignore[union-attr]
        prefix = f"lora_{'unet' if component == 'unet' else 'te'}_{module.replace('.', '_')}"
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
