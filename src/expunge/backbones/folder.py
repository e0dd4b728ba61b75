"""A pipeline's folder: where it lies, what is in it and whether it is whole. Nothing here knows of families."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from expunge.errors import ExpungeError
from expunge.files import PICKLES, check_room, digest_folder, tensor_shapes

_PICTURES = ("*.png", "*.jpg", "*.jpeg", "*.gif", "*.webp", "*.bmp", "*.tif", "*.tiff")


def locate(source: str) -> Path:
    """The pipeline folder that `source` (a folder or a hub id) means.

    Raises:
        ExpungeError: when it is neither, or holds no Diffusers pipeline.
    """
    folder = folder_of(source, "The model", "pipeline", _download)
    if not (folder / "model_index.json").is_file():
        raise ExpungeError(f"{folder} holds no model_index.json. A model is a folder written by save_pretrained.")
    return folder


@contextmanager
def without_bars() -> Iterator[None]:
    """While a model is loaded: the libraries' own progress bars are off. They count files, in no time."""
    import diffusers
    import transformers

    shown = [
        library.utils.logging
        for library in (diffusers, transformers)
        if library.utils.logging.is_progress_bar_enabled()
    ]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()


def _download(hub_id: str) -> str:
    from diffusers import DiffusionPipeline

    return str(DiffusionPipeline.download(hub_id))


def folder_of(source: str, what: str, kind: str, download: Callable[[str], str]) -> Path:
    """The folder that `source` (a folder, or a hub id, which is downloaded) means.

    Args:
        what, kind: what `source` is of, as the start of a sentence, and what the hub should give.

    Raises:
        ExpungeError: when it is neither.
    """
    folder = Path(source).expanduser()
    if folder.exists():
        return folder
    if folder.is_absolute() or source.startswith(".") or source.count("/") != 1:
        raise ExpungeError(f"{what} {source!r} is no folder, and no hub id (owner/name) either.")
    try:
        return Path(download(source))
    except (OSError, ValueError) as error:
        raise ExpungeError(
            f"There is no folder {source!r}, and the hub did not give a {kind} of that id ({error}). "
            f"Check the spelling, or download the {kind} and give its folder."
        ) from error


def read_config(folder: Path, file: str = "config.json") -> dict[str, Any]:
    """The configuration of a pipeline's component.

    Raises:
        ExpungeError: when it is missing or damaged.
    """
    path = folder / file
    try:
        config: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ExpungeError(f"{path} cannot be read as JSON ({error}). Is the model whole?") from error
    return config


def read_index(folder: Path) -> dict[str, Any]:
    """What `folder`/model_index.json says; raises as `read_config` does."""
    index = read_config(folder, "model_index.json")
    if not isinstance(index, dict):
        raise ExpungeError(
            f"{folder / 'model_index.json'} is not a pipeline's index. A model is a folder written by save_pretrained."
        )
    return index


def weight_files(component: Path) -> list[Path]:
    """The files that hold the weights of a pipeline's component."""
    return sorted(component.glob("*.safetensors"))


def check_component(folder: Path, is_denoiser: bool) -> None:
    """Refuse pickled weights, and gaps that the libraries fill with something empty without a word."""
    files = {path.name for path in folder.glob("*")}
    if not files:
        raise ExpungeError(f"{folder} is missing or empty. Download the whole pipeline.")
    if folder.name.startswith("tokenizer") and not files & {"tokenizer.json", "vocab.json", "spiece.model"}:
        raise ExpungeError(f"{folder} holds no vocabulary. Download the whole pipeline.")
    weights = weight_files(folder)
    if not weights and (is_denoiser or PICKLES & {Path(file).suffix for file in files}):
        raise ExpungeError(
            f"{folder} holds no .safetensors file. Pickled weights are not opened, because they can run code. "
            "Where you trust them, load the pipeline with Diffusers and write it anew with save_pretrained."
        )
    if weights and all("." in path.stem for path in weights):  # model.fp16.safetensors
        variant = weights[0].stem.split(".")[1].split("-")[0]
        raise ExpungeError(
            f"{folder} holds its weights as the variant {variant!r} alone ({weights[0].name}), which is not looked for. Load "
            f"the pipeline with Diffusers (variant={variant!r}) and write it anew with save_pretrained, without a variant."
        )
    for path in weights:
        tensor_shapes(path)


def copy_pipeline(folder: Path, target: Path) -> None:
    """Copy what the pipeline is loaded from, and its licence. Whatever else lies in `folder`, pictures too, stays behind.

    Raises:
        DiskFull: when its weights do not fit beside what is there.
    """
    components = read_index(folder)
    check_room(target, sum(path.stat().st_size for path in folder.glob("*/*.safetensors")))
    for path in folder.iterdir():
        if path.name == "model_index.json" or path.name.upper().startswith(("LICENSE", "LICENCE", "NOTICE")):
            shutil.copy(path, target)
        elif isinstance(components.get(path.name), list):
            shutil.copytree(path, target / path.name, ignore=shutil.ignore_patterns(*_PICTURES))


def model_digest(folder: Path) -> str:
    """Digest of a pipeline folder's configuration and weights."""
    return digest_folder(folder, (".json", ".safetensors", ".txt", ".model"))
