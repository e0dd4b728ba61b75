"""Classes of one's own: a method or a constraint that a run's settings name as `file.py:Class`."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from expunge.errors import ExpungeError, suggestion
from expunge.files import digest_file
from expunge.schema import Strict, from_anywhere

_Plug = TypeVar("_Plug")


def named_class(name: str, known: Mapping[str, type[_Plug]], base: Any) -> type[_Plug]:
    """The class that `name` means: one of `known`, or `file.py:Class`, a subclass of `base` with a `Config`.

    Raises:
        ExpungeError: when there is none, its file cannot be run, or it lacks something.
    """
    if name in known:
        return known[name]
    what = base.__name__
    file, colon, attribute = name.rpartition(":")
    if not colon:
        raise ExpungeError(
            f"There is no {_word(what)} {name!r}. {suggestion(name, known)} Your own is given as file.py:Class."
        )
    if not Path(file).is_file():
        raise ExpungeError(f"The {_word(what)} {name!r} names no Python file.")
    cls: Any = getattr(_module(Path(file)), attribute, None)
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise ExpungeError(f"{file} has no class {attribute!r} that is a {what}.")
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        raise ExpungeError(f"{attribute} in {file} lacks {', '.join(missing)}, which a {what} has.")
    config = getattr(cls, "Config", None)
    if not (isinstance(config, type) and issubclass(config, Strict)):
        raise ExpungeError(
            f"{attribute} in {file} lacks a class Config, which is a {what.removeprefix('Gradient')}Config."
        )
    found: type[_Plug] = cls
    return found


def whole_name(name: str) -> str:
    """A name as it means the same from every folder: of a class of one's own the file's whole path."""
    file, colon, attribute = name.rpartition(":")
    return f"{from_anywhere(file)}{colon}{attribute}"


def own_file(name: str) -> Path | None:
    """The file of a class of one's own."""
    file, colon, _ = name.rpartition(":")
    return Path(file) if colon else None


def _word(what: str) -> str:
    return what.removeprefix("Gradient").lower()


def _module(file: Path) -> ModuleType:
    """The file as a module, run once for each content. Annotations and dataclasses look for it in `sys.modules`."""
    name = f"expunge_own_{digest_file(file).removeprefix('sha256:')[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ExpungeError(f"{file} is no Python file.")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        line = getattr(error, "lineno", None) or (lines[-1] if lines else None)
        where = f", line {line}" if line else ""
        what = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ExpungeError(f"{file}{where} cannot be run: {type(error).__name__}: {what}.") from error
    return module
