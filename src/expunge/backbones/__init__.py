"""Model families. To add one: write a file with a `Backbone` and name it in `BACKBONES`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from expunge.backbones.base import Asked, Backbone, Conditioning, Evaluations, Predictor, Prompts, diffusers_class
from expunge.backbones.folder import (
    check_component,
    copy_pipeline,
    locate,
    model_digest,
    read_config,
    read_index,
    weight_files,
    without_bars,
)
from expunge.backbones.stable_diffusion import StableDiffusion
from expunge.backbones.stable_diffusion_3 import StableDiffusion3
from expunge.errors import ExpungeError
from expunge.files import load_tensors, save_tensors, tensor_shapes
from expunge.memory import keep_freed_memory

BACKBONES: dict[str, type[Backbone]] = {
    backbone.pipeline_name: backbone for backbone in (StableDiffusion, StableDiffusion3)
}
"""{pipeline class name in model_index.json: backbone}"""


def backbone_class(folder: Path) -> type[Backbone]:
    """The backbone for the pipeline class that `folder`/model_index.json names. Reads no weights."""
    name = read_index(folder).get("_class_name")
    if name not in BACKBONES:
        raise ExpungeError(f"{folder} is a {name}, which is not supported yet. Supported: {', '.join(BACKBONES)}.")
    return BACKBONES[name]


def load(folder: Path) -> Backbone:
    """Load a pipeline folder, all components in float32, on the CPU. From then on this process keeps freed memory.

    Raises:
        ExpungeError: when the pipeline is not supported, incomplete, damaged, or stored as pickled weights.
    """
    check(folder)
    keep_freed_memory()
    cls = backbone_class(folder)
    extras = dict.fromkeys(cls.unused)
    try:
        with without_bars():
            pipeline = diffusers_class(cls.pipeline_name).from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, **extras
            )
    except (OSError, ValueError, SafetensorError) as error:
        raise ExpungeError(f"{folder} cannot be loaded ({error}). Is every file there, and whole?") from error
    pipeline.set_progress_bar_config(disable=True)
    backbone = cls(pipeline)
    # Diffusers fills in what is not stored with random weights, and goes on.
    missing = {name for name, _ in backbone.denoiser.named_parameters()} - denoiser_shapes(folder).keys()
    if missing:
        raise ExpungeError(f"{folder / cls.denoiser_name} lacks {len(missing)} tensors, {min(missing)} among them.")
    return backbone


def check(folder: Path) -> None:
    """Whether all components are there, none of them pickled, and every file of weights as long as it says. Reads no weights.

    Raises:
        ExpungeError: as `load` does.
    """
    cls = backbone_class(folder)
    for name, entry in read_index(folder).items():
        if isinstance(entry, list) and entry[0] is not None and name not in cls.unused:
            check_component(folder / name, is_denoiser=name == cls.denoiser_name)


def picture_size(folder: Path) -> tuple[int, int]:
    """(height, width) in pixels of the pictures that the pipeline paints at its own size. Reads no weights."""
    denoiser = read_config(folder / backbone_class(folder).denoiser_name)
    try:
        side = denoiser["sample_size"]
        height, width = (side, side) if isinstance(side, int) else side
        scale = 2 ** (len(read_config(folder / "vae")["block_out_channels"]) - 1)
    except (KeyError, TypeError, ValueError) as error:
        raise ExpungeError(
            f"The configuration in {folder} does not give the size of its pictures ({error})."
        ) from error
    return height * scale, width * scale


def _denoiser_files(folder: Path) -> list[Path]:
    return weight_files(folder / backbone_class(folder).denoiser_name)


def denoiser_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the denoiser's tensors as they lie in `folder`. Reads no weights."""
    return {name: shape for path in _denoiser_files(folder) for name, shape in tensor_shapes(path).items()}


def stored_denoiser(folder: Path) -> dict[str, Tensor]:
    """The denoiser's tensors as they lie in `folder`, in their stored dtype."""
    return {name: tensor for path in _denoiser_files(folder) for name, tensor in load_tensors(path).items()}


def replace_denoiser(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Put `tensors` in place of the denoiser's tensors of the same names in the pipeline folder, file by file."""
    for path in _denoiser_files(folder):
        stored = load_tensors(path)
        save_tensors(path, {name: tensors.get(name, value) for name, value in stored.items()}, ("format", "pt"))


__all__ = [
    "BACKBONES",
    "Asked",
    "Backbone",
    "Conditioning",
    "Evaluations",
    "Predictor",
    "Prompts",
    "backbone_class",
    "check",
    "copy_pipeline",
    "denoiser_shapes",
    "diffusers_class",
    "load",
    "locate",
    "model_digest",
    "picture_size",
    "read_config",
    "replace_denoiser",
    "stored_denoiser",
    "without_bars",
]
