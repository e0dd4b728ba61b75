"""What a model is that another tool wrote, and whether it can stand in the base model's place. Reads headers, no weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from expunge import backbones
from expunge.errors import ExpungeError
from expunge.files import digest_file, digest_folder, metadata, refuse_pickle, tensor_shapes
from expunge.stream.named import model_folder, model_name

Shapes = Mapping[str, tuple[int, ...]]
"""{name: shape} of tensors."""
Kind = Literal["pipeline", "LoRA", "PEFT adapter", "single file", "denoiser"]
"""A Diffusers folder; an adapter file that Diffusers loads; a folder or file that PEFT saved; a whole model in one file, in
its authors' layout; tensors of the denoiser under Diffusers' names, all of them or those that changed."""


@dataclass(frozen=True)
class Source:
    """A model that was recognised. `path` is a folder for "pipeline" and "PEFT adapter", otherwise a file. `name` is that of
    the folder or the file that was given."""

    kind: Kind
    path: Path
    name: str

    @property
    def digest(self) -> str:
        if self.kind == "pipeline":
            return backbones.model_digest(self.path)
        if self.kind == "PEFT adapter":
            return digest_folder(self.path, (".json", ".safetensors"))
        return digest_file(self.path)


def recognise(model: str, base: Path) -> Source:
    """What `model` (a built-in name, a folder, a hub id or a file) is, beside the pipeline folder `base`.

    Raises:
        ExpungeError: when it is nothing that can be loaded, pickled, of another family than the base model, or of another
            size.
    """
    path = Path(model).expanduser()
    if path.suffix == ".safetensors" or path.is_file():
        return _file(path, base)
    refuse_pickle(path)
    if (path / "adapter_config.json").is_file():
        return _peft(path, path.resolve().name)
    if (path / "run.toml").is_file():
        raise ExpungeError(
            f"{path} is a run. Give a step's model (steps/NNNN/weights.safetensors in it), or write its current one with "
            f"`expunge export {path} FOLDER` and give that folder."
        )
    if path.is_dir() and not (path / "model_index.json").exists() and (file := _only_file(path)):
        return replace(_file(file, base), name=path.resolve().name)
    folder = model_folder(model)
    _check_pipeline(folder, base)
    return Source("pipeline", folder, model_name(model, folder))


def _only_file(folder: Path) -> Path | None:
    """The only file of weights in a folder without an index: what `save_lora_weights` or `save_pretrained` wrote."""
    files = sorted(folder.glob("*.safetensors"))
    if len(files) > 1:
        raise ExpungeError(
            f"{folder} holds {len(files)} .safetensors files and no model_index.json, so it is no pipeline. Give one file. "
            "Where they are parts of one model, load it and write it anew as one (save_pretrained, max_shard_size)."
        )
    return files[0] if files else None


def _file(path: Path, base: Path) -> Source:
    shapes = tensor_shapes(path)
    family = backbones.backbone_class(base)
    if any(name.startswith("base_model.model.") for name in shapes):
        if path.name != PEFT_FILE:
            raise ExpungeError(
                f"{path} holds an adapter of PEFT, which is read under the name {PEFT_FILE} alone. Give it that name, in a "
                "folder of its own with its adapter_config.json."
            )
        return _peft(path.parent, path.name)
    if strange := next((name for name in shapes if _LYCORIS.search(name)), None):
        raise ExpungeError(
            f"{path} is a LyCORIS adapter (LoHa, LoKr or OFT: it holds {strange}), and only LoRA is read. Merge it "
            "into the base model with the tool that made it, and give the merged model."
        )
    if any("lora" in name for name in shapes):
        return Source("LoRA", path, path.name)
    for name, other in backbones.BACKBONES.items():
        if _starts(shapes, other.original_prefixes[other.denoiser_name]):
            if other is not family:
                raise ExpungeError(f"{path} is a {name} in one file, and the base model {base.name} is none. {_ASIDE}")
            return Source("single file", path, path.name)
    stored = backbones.denoiser_shapes(base)
    if not shapes.keys() & stored.keys():
        raise ExpungeError(
            f"{path} holds no tensor of the base model {base.name}, no LoRA, and no model in one file "
            f"(its first tensor is {min(shapes, default='none')}). {_ASIDE}"
        )
    _check_shapes(path, shapes, base, stored)
    # Weights of a step are a difference from one model; over another they would mean nothing.
    if (begun := metadata(path).get("base")) and begun != backbones.model_digest(base):
        raise ExpungeError(
            f"{path} holds what a run changed in another model ({begun}), not in {base.name}. Give the model that the run "
            "began with as the base."
        )
    return Source("denoiser", path, path.name)


PEFT_FILE = "adapter_model.safetensors"
"""What the file of an adapter is called in the folder that PEFT's `save_pretrained` writes."""
_LYCORIS = re.compile(r"\.(hada|lokr|oft)_")


def _peft(folder: Path, name: str) -> Source:
    for needed in ("adapter_config.json", PEFT_FILE):
        if not (folder / needed).is_file():
            raise ExpungeError(
                f"{folder} holds an adapter of PEFT, but no {needed}. Save it anew with save_pretrained."
            )
    return Source("PEFT adapter", folder, name)


_ASIDE = "A model is compared with the base model that it was made from (--base)."


def _check_pipeline(folder: Path, base: Path) -> None:
    family, expected = backbones.backbone_class(folder), backbones.backbone_class(base)
    if family is not expected:
        raise ExpungeError(
            f"{folder.name} is a {family.pipeline_name}, and the base model {base.name} is a "
            f"{expected.pipeline_name}. {_ASIDE}"
        )
    for what, component, file, field in (
        ("latents of {} channels", family.denoiser_name, "config.json", "in_channels"),
        ("latents of size {}", family.denoiser_name, "config.json", "sample_size"),
        ("predictions of the type {}", "scheduler", "scheduler_config.json", "prediction_type"),
    ):
        mine, its = (backbones.read_config(f / component, file).get(field) for f in (folder, base))
        if mine != its:
            raise ExpungeError(
                f"{folder.name} has {what.format(mine)}, and the base model {base.name} has {what.format(its)}. {_ASIDE}"
            )
    mine, its = (backbones.picture_size(f) for f in (folder, base))
    if mine != its:
        raise ExpungeError(
            f"{folder.name} paints {_by(mine)} pixels, and the base model {base.name} {_by(its)}. {_ASIDE}"
        )
    backbones.check(folder)
    _check_shapes(folder, backbones.denoiser_shapes(folder), base, backbones.denoiser_shapes(base))


def _check_shapes(path: Path, shapes: Shapes, base: Path, stored: Shapes) -> None:
    for name, shape in shapes.items():
        if stored.get(name) != shape:
            raise ExpungeError(
                f"{path} does not fit the base model {base.name}: {name} is {_by(shape)} there, "
                f"{_by(stored[name]) if name in stored else 'absent'} in the base model. {_ASIDE}"
            )


def _starts(names: Iterable[str], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)


def _by(shape: Iterable[int]) -> str:
    return " x ".join(str(size) for size in shape)
