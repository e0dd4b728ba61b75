"""The built-in model: its weights, its vocabulary, its judge and its protocols."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from expunge.errors import ExpungeError, nearest
from expunge.evaluation import Judge, Protocol
from expunge.iconworld.judge import IconworldJudge
from expunge.prompts import Vocabulary

HERE = Path(__file__).parent
DEFAULT = "iconworld-0"
"""What the name "iconworld" means today."""
PROTOCOLS = tuple(sorted(path.stem for path in (HERE / "protocols").glob("*.toml")))


def model_folder(name: str) -> Path | None:
    """The pipeline folder of a built-in model, or None where `name` is no built-in."""
    folder = HERE / "models" / (DEFAULT if name == "iconworld" else name)
    return folder if folder.parent == HERE / "models" and (folder / "model_index.json").exists() else None


@cache
def vocabulary() -> Vocabulary:
    return Vocabulary.read(HERE / "vocabulary.toml")


def protocol(name: str) -> Protocol:
    """A protocol that comes with Expunge.

    Raises:
        ExpungeError: for an unknown name.
    """
    if name not in PROTOCOLS:
        raise ExpungeError(f"There is no protocol {name!r}. {nearest(name, PROTOCOLS)}")
    return Protocol.read(HERE / "protocols" / f"{name}.toml")


def judge() -> Judge:
    words = vocabulary()
    weights = HERE / "models" / f"{DEFAULT}-judge.safetensors"
    return IconworldJudge(f"{DEFAULT}-judge", weights, words.names("thing"), words.names("style"))
