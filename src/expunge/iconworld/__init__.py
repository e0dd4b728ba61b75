"""The built-in model: its weights, its vocabulary, its judge and its protocols."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from expunge.errors import ExpungeError, quoted, suggestion
from expunge.evaluation import Judge, Protocol
from expunge.iconworld.classifier import CalibratedJudge
from expunge.prompts import Vocabulary

HERE = Path(__file__).parent
DEFAULT = "iconworld-1"
"""What the name "iconworld" means today."""
PROTOCOL_FILE = tomllib.loads((HERE / "protocols.toml").read_text("utf-8"))
PROTOCOLS = tuple(PROTOCOL_FILE["protocols"])


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
        raise ExpungeError(f"There is no protocol {quoted(name)}. {suggestion(name, PROTOCOLS)}")
    own: dict[str, Any] = PROTOCOL_FILE["protocols"][name]
    return Protocol.model_validate({**PROTOCOL_FILE["common"], **own, "name": name})


def judge() -> Judge:
    return CalibratedJudge(HERE / "models" / f"{DEFAULT}-judge.safetensors")
