"""Model families. To add one: write a file with a `Backbone` and name it in `BACKBONES`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError, safe_open
from torch import Tensor

from expunge.backbones.base import Asked, Backbone, Conditioning, Evaluations, Predictor, Prompts
from expunge.backbones.stable_diffusion import StableDiffusion
from expunge.backbones.stable_diffusion_3 import StableDiffusion3
from expunge.errors import ExpungeError
from expunge.files import digest_folder, load_tensors, save_tensors, tensor_shapes

BACKBONES: dict[str, type[Backbone]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusion3Pipeline": StableDiffusion3,
}
"""{pipeline class name in model_index.json: backbone}"""

_PICTURES = ("*.png", "*.jpg", "*.jpeg", "*.gif", "*.webp", "*.bmp", "*.tif", "*.tiff")


def locate(source: str) -> Path:
    """The pipeline folder that `source` (a folder or a hub id) means.

    Raises:
        ExpungeError: when it is neither, or holds no Diffusers pipeline.
    """
    folder = Path(source).expanduser()
    if not folder.exists():
        if folder.is_absolute() or source.startswith(".") or source.count("/") != 1:
            raise ExpungeError(f"The model {source!r} is no folder, and no hub id (owner/name) either.")
        try:
            folder = Path(DiffusionPipeline.download(source))
        except (OSError, ValueError) as error:
            raise ExpungeError(
                f"There is no folder {source!r}, and the hub did not give a pipeline of that id ({error}). "
                "Check the spelling, or download the pipeline and give its folder."
            ) from error
    if not (folder / "model_index.json").is_file():
        raise ExpungeError(f"{folder} holds no model_index.json. A model is a folder written by save_pretrained.")
    return folder


def backbone_class(folder: Path) -> type[Backbone]:
    """The backbone for the pipeline class that `folder`/model_index.json names. Reads no weights."""
    name = _index(folder).get("_class_name")
    if name not in BACKBONES:
        raise ExpungeError(f"{folder} is a {name}, which is not supported yet. Supported: {', '.join(BACKBONES)}.")
    return BACKBONES[name]


def load(folder: Path) -> Backbone:
    """Load a pipeline folder, all components in float32, on the CPU.

    Raises:
        ExpungeError: when the pipeline is not supported, incomplete, damaged, or stored as pickled weights.
    """
    check(folder)
    cls = backbone_class(folder)
    extras = _extras(cls)
    try:
        pipeline = cls.pipeline_class.from_pretrained(
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
    for name, entry in _index(folder).items():
        if isinstance(entry, list) and entry[0] is not None and name not in _extras(cls):
            _check_component(folder / name, is_denoiser=name == cls.denoiser_name)


def _extras(cls: type[Backbone]) -> dict[str, None]:
    """Components that a pipeline is loaded without."""
    return {"safety_checker": None} if cls is StableDiffusion else {}


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


def read_config(folder: Path, file: str = "config.json") -> dict[str, Any]:
    """The configuration of a pipeline's component.

    Raises:
        ExpungeError: when it is missing or damaged.
    """
    path = folder / file
    try:
        config: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ExpungeError(f"{path} cannot be read as JSON ({error}). Is the model whole?") from error
    return config


def _index(folder: Path) -> dict[str, Any]:
    """What `folder`/model_index.json says."""
    path = folder / "model_index.json"
    try:
        index = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ExpungeError(f"{path} cannot be read as JSON ({error}). Is the model whole?") from error
    if not isinstance(index, dict):
        raise ExpungeError(f"{path} is not a pipeline's index. A model is a folder written by save_pretrained.")
    return index


def _check_component(folder: Path, is_denoiser: bool) -> None:
    """Refuse pickled weights, and gaps that the libraries fill with something empty without a word."""
    files = {path.name for path in folder.glob("*")}
    if not files:
        raise ExpungeError(f"{folder} is missing or empty. Download the whole pipeline.")
    if folder.name.startswith("tokenizer") and not files & {"tokenizer.json", "vocab.json", "spiece.model"}:
        raise ExpungeError(f"{folder} holds no vocabulary. Download the whole pipeline.")
    suffixes = {Path(file).suffix for file in files}
    if ".safetensors" not in suffixes and (is_denoiser or suffixes & {".bin", ".ckpt", ".pt", ".pth"}):
        raise ExpungeError(
            f"{folder} holds no .safetensors file. Pickled weights are not opened, because they can run code. "
            "Where you trust them, load the pipeline with Diffusers and write it anew with save_pretrained."
        )
    weights = sorted(folder.glob("*.safetensors"))
    if weights and all("." in path.stem for path in weights):  # model.fp16.safetensors
        variant = weights[0].stem.split(".")[1].split("-")[0]
        raise ExpungeError(
            f"{folder} holds its weights as the variant {variant!r} alone ({weights[0].name}), which is not looked for. Load "
            f"the pipeline with Diffusers (variant={variant!r}) and write it anew with save_pretrained, without a variant."
        )
    for path in weights:
        tensor_shapes(path)


def denoiser_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the denoiser's tensors as they lie in `folder`. Reads no weights."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted((folder / backbone_class(folder).denoiser_name).glob("*.safetensors")):
        shapes |= tensor_shapes(path)
    return shapes


def stored_denoiser(folder: Path) -> dict[str, Tensor]:
    """The denoiser's tensors as they lie in `folder`, in their stored dtype."""
    tensors: dict[str, Tensor] = {}
    for path in sorted((folder / backbone_class(folder).denoiser_name).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            tensors.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - not a dict
    return tensors


def replace_denoiser(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Put `tensors` in place of the denoiser's tensors of the same names in the pipeline folder, file by file."""
    for path in sorted((folder / backbone_class(folder).denoiser_name).glob("*.safetensors")):
        stored = load_tensors(path)
        save_tensors(path, {name: tensors.get(name, value) for name, value in stored.items()}, ("format", "pt"))


def copy_pipeline(folder: Path, target: Path) -> None:
    """Copy what the pipeline is loaded from, and its licence. Whatever else lies in `folder`, pictures too, stays behind."""
    for path in folder.iterdir():
        if path.name == "model_index.json" or path.name.upper().startswith(("LICENSE", "LICENCE", "NOTICE")):
            shutil.copy(path, target)
        elif isinstance(_index(folder).get(path.name), list):
            shutil.copytree(path, target / path.name, ignore=shutil.ignore_patterns(*_PICTURES))


def model_digest(folder: Path) -> str:
    """Digest of a pipeline folder's configuration and weights."""
    return digest_folder(folder, (".json", ".safetensors", ".txt", ".model"))


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
    "load",
    "locate",
    "model_digest",
    "picture_size",
    "read_config",
    "replace_denoiser",
    "stored_denoiser",
]
