"""Load a recognised model as a backbone: the base model's pipeline, with what the other tool changed in it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from torch import nn

from expunge import backbones
from expunge.audit.sources import Kind, Source
from expunge.backbones import Backbone
from expunge.errors import ExpungeError
from expunge.files import load_tensors, tensor_shapes


def load(source: Source, base: Path) -> Backbone:
    """The model, all components in float32, on the CPU, with the base model's scheduler: what is compared is weights.

    Args:
        base: the base model's pipeline folder. What the model does not bring itself comes from there.

    Raises:
        ExpungeError: when it does not fit the base model, or is not whole.
    """
    backbone = backbones.load(base)
    scheduler = backbone.pipeline.scheduler
    try:
        backbone = _LOADERS[source.kind](source.path, base, backbone)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ExpungeError(
            f"{source.path} could not be loaded as a {source.kind} over the base model {base.name} "
            f"({' '.join(str(error).split())[:300]}). Is it whole, and was it made from this base model?"
        ) from error
    backbone.pipeline.register_modules(scheduler=scheduler)
    return backbone


def fingerprints(backbone: Backbone) -> dict[str, str]:
    """{component: digest of its tensors}: which parts of two pipelines are the same."""
    modules = {n: m for n, m in backbone.pipeline.components.items() if isinstance(m, nn.Module)}
    return {name: _digest(module) for name, module in modules.items()}


def _digest(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


# -- one loader per kind --------------------------------------------------------------------------------------------------


def _pipeline(folder: Path, base: Path, backbone: Backbone) -> Backbone:
    return backbones.load(folder)


def _lora(file: Path, base: Path, backbone: Backbone) -> Backbone:
    pipeline = backbone.pipeline
    pipeline.load_lora_weights(str(file), local_files_only=True)
    # Diffusers warns of factors that fit nowhere and goes on without them.
    found = sum(".lora_" in name for module in _modules(pipeline) for name, _ in module.named_parameters())
    given = sum("alpha" not in name and "dora_scale" not in name for name in tensor_shapes(file)[0])
    if found != given:
        raise ValueError(f"the base model has place for {found} of its {given} factors")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    return backbone


def _peft(folder: Path, base: Path, backbone: Backbone) -> Backbone:
    given = tensor_shapes(folder / "adapter_model.safetensors")[0]
    adapted = PeftModel.from_pretrained(backbone.denoiser, folder)
    # PEFT warns of factors that fit nowhere, and draws those that are missing.
    if strange := sorted(given.keys() ^ get_peft_model_state_dict(adapted).keys()):
        raise ValueError(f"{len(strange)} factors do not belong to it or are missing, {strange[0]} first")
    adapted.merge_and_unload()
    return backbone


def _single_file(file: Path, base: Path, backbone: Backbone) -> Backbone:
    names = tensor_shapes(file)[0]
    cls, pipeline = type(backbone), backbone.pipeline
    brought = {c for c, prefix in cls.original_prefixes.items() if any(n.startswith(prefix) for n in names)}
    kept = {c: value for c, value in pipeline.components.items() if c not in brought}
    return cls(
        cls.pipeline_class.from_single_file(
            str(file), config=str(base), dtype=torch.float32, local_files_only=True, **kept
        )
    )


def _denoiser(file: Path, base: Path, backbone: Backbone) -> Backbone:
    tensors = {name: value.float() for name, value in load_tensors(file).items()}
    backbone.denoiser.load_state_dict(tensors, strict=False)
    return backbone


def _modules(pipeline: Any) -> list[nn.Module]:
    return [module for module in pipeline.components.values() if isinstance(module, nn.Module)]


_LOADERS: Mapping[Kind, Callable[[Path, Path, Backbone], Backbone]] = {
    "pipeline": _pipeline,
    "LoRA": _lora,
    "PEFT adapter": _peft,
    "single file": _single_file,
    "denoiser": _denoiser,
}
