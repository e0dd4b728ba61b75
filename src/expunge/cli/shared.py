"""What all commands share: sentences for what goes wrong, quiet libraries, `--set`."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console

from expunge.errors import ExpungeError, Interrupted, quoted

console = Console()
problems = Console(stderr=True)

Set = Annotated[
    list[str], typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Change a field of the preset (repeatable).")
]


@contextmanager
def sentences(resuming: str = "`expunge resume RUN` goes on from the last checkpoint.") -> Iterator[None]:
    """Turn what goes wrong into a sentence and an exit code. `resuming`: how to go on after an interruption."""
    try:
        yield
    except ExpungeError as error:
        style = "bold red" if error.exit_code == 2 else "bold yellow"
        problems.print(str(error), style=style, highlight=False, markup=False)
        raise typer.Exit(error.exit_code) from None
    except OSError as error:
        of = f" {quoted(str(error.filename))}" if error.filename else ""
        problems.print(
            f"The system refused{of}: {error.strerror or error}.", style="bold red", highlight=False, markup=False
        )
        raise typer.Exit(ExpungeError.exit_code) from None
    except KeyboardInterrupt:
        problems.print(f"Interrupted. Nothing is lost: {resuming}")
        raise typer.Exit(Interrupted.exit_code) from None


def quiet() -> None:
    """Silence the libraries' own progress bars and hints; ours say what goes on."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def changes_of(assignments: list[str]) -> dict[str, Any]:
    """--set train.steps=80 -> {"train": {"steps": 80}}; values are TOML, bare words are strings."""
    changes: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        section, dot, field = path.partition(".")
        if not equals or bool(dot) != bool(field) or (not dot and section != "seed"):
            raise ExpungeError(f"--set {assignment} is not SECTION.FIELD=VALUE, e.g. train.steps=80 (or seed=1).")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        if dot:
            changes.setdefault(section, {})[field] = value
        else:
            changes[section] = value
    return changes
