"""Which folders are exports, so that one may take the place of another and of nothing else."""

from __future__ import annotations

from pathlib import Path

from expunge.errors import ExpungeError
from expunge.files import read_lines, write_text

_MARK = ".expunge"
"""A file in every export: the names of the others, one a line."""


def mark(folder: Path) -> None:
    """Write down what the export holds."""
    write_text(folder / _MARK, "".join(f"{name}\n" for name in _names(folder)))


def check_replaceable(folder: Path) -> None:
    """
    Raises:
        ExpungeError: when the folder holds anything that no export wrote.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / _MARK).is_file():
        raise ExpungeError(f"{folder} is not empty, and is no export of Expunge. Choose another folder.")
    if own := sorted(set(_names(folder)) - {_MARK, *read_lines(folder / _MARK)}):
        raise ExpungeError(f"{folder} holds {own[0]}, which no export wrote. Move it away, or choose another folder.")


def _names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir())
