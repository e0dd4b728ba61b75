"""What all commands share: sentences for what goes wrong, quiet libraries, `--set`."""

from __future__ import annotations

import os
import signal
import tomllib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any

import typer
from rich.console import Console

from expunge.errors import ExpungeError, Interrupted, Notice, quoted

console = Console(markup=False, emoji=False)  # names and paths may hold [brackets] and :colons:
problems = Console(stderr=True)

Set = Annotated[
    list[str], typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Change a field of the preset (repeatable).")
]


@contextmanager
def sentences(resuming: str = "`expunge resume RUN` goes on from the last checkpoint.") -> Iterator[None]:
    """Turn what goes wrong into a sentence and an exit code. `resuming`: how to go on after an interruption.

    SIGTERM, by which services and launchers end a process, is an interruption too.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = partial(_show, warnings.showwarning)
            _mind_manners()
            yield
    except ExpungeError as error:
        _say(str(error), "bold red" if error.exit_code == 2 else "bold yellow")
        raise typer.Exit(error.exit_code) from None
    except OSError as error:
        of = f" {quoted(str(error.filename))}" if error.filename else ""
        _say(f"The system refused{of}: {error.strerror or error}.", "bold red")
        raise typer.Exit(ExpungeError.exit_code) from None
    except KeyboardInterrupt:
        problems.print(f"Interrupted. Nothing is lost: {resuming}")
        raise typer.Exit(Interrupted.exit_code) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _show(others: Callable[..., None], message: Warning | str, category: type[Warning], *place: Any) -> None:
    """Print our own warnings as sentences, and `others` as Python does."""
    if issubclass(category, Notice):
        _say(str(message), "yellow")
    else:
        others(message, category, *place)


def _say(sentence: str, style: str) -> None:
    """Print a sentence. What a user gave may be part of it, and must not steer the terminal."""
    safe = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in sentence)
    problems.print(safe, style=style, highlight=False, markup=False)


SPIN = "10000"
"""Turns that a thread of OpenMP waits for the others before it sleeps. By default these are milliseconds, in which it takes
the core away from whoever it waits for (docs/performance.md, Beside other work)."""


def _mind_manners() -> None:
    """What torch, Diffusers and Transformers read when they are imported: threads that do not spin for long, and no hints."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN)
    for library in ("DIFFUSERS", "TRANSFORMERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")


def changes_of(assignments: list[str]) -> dict[str, Any]:
    """--set train.steps=80 -> {"train": {"steps": 80}}; values are TOML, bare words are strings."""
    changes: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        section, dot, field = path.partition(".")
        if not equals or bool(dot) != bool(field) or (not dot and section not in ("seed", "keep")):
            raise ExpungeError(
                f"--set {quoted(assignment)} is not SECTION.FIELD=VALUE, e.g. train.steps=80 (or seed=1, keep=3)."
            )
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        if dot:
            if not isinstance(table := changes.setdefault(section, {}), dict):
                raise ExpungeError(
                    f"--set {quoted(assignment)} names a field of {section}, which is a number and has none."
                )
            table[field] = value
        else:
            changes[section] = value
    return changes
