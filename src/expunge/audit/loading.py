"""Load a recognised model as a backbone: the base model's pipeline, with what the other tool changed in it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from expunge import backbones
from expunge.audit.sources import PEFT_FILE, Kind, Source
from expunge.backbones import Backbone
from expunge.errors import ExpungeError
from expunge.files import load_tensors, tensor_shapes
from expunge.memory import room_for


def load(source: Source, base: Backbone, folder: Path) -> Backbone:
    """The model, all components in float32, on the CPU, with the base model's scheduler: what is compared is weights.

    Args:
        base: the base model, which stays as it is. A model in one file shares with it the components that the file lacks.
        folder: the base model's pipeline folder.

    Raises:
        ExpungeError: when the model does not fit the base model, or is not whole.
    """
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    try:
        with room_for("the model"), backbones.without_bars():
            backbone = _LOADERS[source.kind](source.path, base, folder)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError, SingleFileComponentError) as error:
        raise ExpungeError(
            f"{source.path} could not be loaded as a {source.kind} over the base model {folder.name} "
            f"({' '.join(str(error).split())[:300]}). Is it whole, and was it made from this base model?"
        ) from error
    backbone.pipeline.register_modules(scheduler=base.pipeline.scheduler)
    return backbone


def fingerprints(backbone: Backbone) -> dict[str, str]:
    """{component: digest of its tensors}: which parts of two pipelines are the same."""
    modules = {n: m for n, m in backbone.pipeline.components.items() if isinstance(m, nn.Module)}
    return {name: _digest(module) for name, module in modules.items()}


def _digest(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).numpy())
    return digest.hexdigest()


# -- one loader per kind --------------------------------------------------------------------------------------------------


def _pipeline(path: Path, base: Backbone, folder: Path) -> Backbone:
    return backbones.load(path)


def _lora(path: Path, base: Backbone, folder: Path) -> Backbone:
    backbone = backbones.load(folder)
    pipeline = backbone.pipeline
    pipeline.load_lora_weights(str(path), local_files_only=True)
    # Diffusers warns of factors that fit nowhere and goes on without them.
    modules = [module for module in pipeline.components.values() if isinstance(module, nn.Module)]
    found = sum(".lora_" in name for module in modules for name, _ in module.named_parameters())
    given = sum("alpha" not in name for name in tensor_shapes(path))
    if found != given:
        raise ValueError(f"the base model has place for {found} of its {given} factors")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    return backbone


def _peft(path: Path, base: Backbone, folder: Path) -> Backbone:
    from peft import PeftModel, get_peft_model_state_dict  # takes seconds, and is needed nowhere else here

    backbone = backbones.load(folder)
    given = tensor_shapes(path / PEFT_FILE)
    adapted = PeftModel.from_pretrained(backbone.denoiser, path)
    # PEFT warns of factors that fit nowhere, and draws those that are missing.
    if strange := sorted(given.keys() ^ get_peft_model_state_dict(adapted).keys()):
        raise ValueError(f"{len(strange)} factors do not belong to it or are missing, {strange[0]} first")
    adapted.merge_and_unload()
    return backbone


def _single_file(path: Path, base: Backbone, folder: Path) -> Backbone:
    from diffusers.loaders.single_file_utils import is_clip_model_in_single_file, is_t5_in_single_file

    cls, names = type(base), tensor_shapes(path)
    parts = {c: {n for n in names if n.startswith(prefix)} for c, prefix in cls.original_prefixes.items()}
    brought = {component: own for component, own in parts.items() if own}
    for component, own in brought.items():
        # For a text encoder that it does not know by its names, Diffusers would look in the base model's folder.
        module = base.pipeline.components.get(component)
        known = is_clip_model_in_single_file(type(module), own) or is_t5_in_single_file(own)
        if component.startswith("text_encoder") and module is not None and not known:
            raise ValueError(f"its {component} is in a layout that is not read (it holds {min(own)})")
    lent = {c: value for c, value in base.pipeline.components.items() if c not in brought}
    return cls(
        backbones.diffusers_class(cls.pipeline_name).from_single_file(
            str(path), config=str(folder), dtype=torch.float32, local_files_only=True, **lent
        )
    )


def _denoiser(path: Path, base: Backbone, folder: Path) -> Backbone:
    backbone = backbones.load(folder)
    tensors = {name: value.float() for name, value in load_tensors(path).items()}
    backbone.denoiser.load_state_dict(tensors, strict=False)
    return backbone


_LOADERS: Mapping[Kind, Callable[[Path, Backbone, Path], Backbone]] = {
    "pipeline": _pipeline,
    "LoRA": _lora,
    "PEFT adapter": _peft,
    "single file": _single_file,
    "denoiser": _denoiser,
}
