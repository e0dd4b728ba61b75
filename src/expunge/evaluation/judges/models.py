"""Where a judge's model lies, whether it is one (without reading weights), and loading it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError

from expunge.backbones.folder import folder_of, without_bars
from expunge.errors import ExpungeError
from expunge.files import digest_folder
from expunge.hardware import processes

_FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja")
_PARTS = {
    "tokenizer": ("tokenizer.json", "vocab.json"),
    "image processor": ("preprocessor_config.json", "processor_config.json"),
}
"""{part of a model: the files of which one must be there}"""


def locate(source: str, model_type: str, what: str) -> Path:
    """The folder that `source` (a folder, or a hub id, which is downloaded) means; written by `save_pretrained`.

    Args:
        model_type: what the model's config.json must call itself.
        what: the kind of model in words, for the message.

    Raises:
        ExpungeError: when there is no such model, it is of another kind, or its weights are not safetensors.
    """
    folder = folder_of(source, "The judge's model", "model", partial(snapshot_download, allow_patterns=list(_FILES)))
    try:
        found = json.loads((folder / "config.json").read_text("utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExpungeError(
            f"{folder} holds no model: its config.json is missing or does not say what it is. "
            f"Give a folder with {what}, written by save_pretrained."
        ) from error
    if found != model_type:
        raise ExpungeError(f"{folder} holds a model of the type {found!r}. This judge works with {what}.")
    if not any(folder.glob("*.safetensors")):
        raise ExpungeError(
            f"{folder} holds no .safetensors file. Pickled weights are not opened, because they can run code."
        )
    for part, files in _PARTS.items():
        if not any((folder / file).is_file() for file in files):
            raise ExpungeError(f"{folder} has no {part} ({' or '.join(files)}). Download the whole model.")
    return folder


def digest(folder: Path) -> str:
    """Digest of a model's configuration, words and weights."""
    return digest_folder(folder, (".json", ".safetensors", ".txt", ".jinja"))


def load(cls: Any, folder: Path, dtype: torch.dtype | str) -> Any:
    """The model of class `cls` in `folder`, frozen, on the device that the process works on.

    Raises:
        ExpungeError: when its weights are damaged or incomplete.
    """
    try:
        with without_bars():
            model, info = cls.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
    except (OSError, ValueError, SafetensorError) as error:
        raise ExpungeError(
            f"The judge in {folder} cannot be loaded ({error}). Is every file there, and whole?"
        ) from error
    if missing := info["missing_keys"]:  # Transformers fills these with random weights, and goes on.
        raise ExpungeError(f"The judge in {folder} lacks {len(missing)} tensors, {min(missing)} among them.")
    return model.eval().requires_grad_(False).to(processes().device)
