"""What Expunge says when it cannot go on: one sentence on what is wrong, one on what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ExpungeError(Exception):
    """Bad usage or input. The command line prints the message and ends with `exit_code`."""

    exit_code = 2


class GateFailed(ExpungeError):
    """A step was finished and measured, but its model did not pass the gate."""

    exit_code = 1


class Tampered(ExpungeError):
    """A run's files are not what its events say."""

    exit_code = 1


class Interrupted(ExpungeError):
    """Work stopped half-way; `expunge resume` goes on from the last checkpoint."""

    exit_code = 3


class DiskFull(Interrupted):
    """A file does not fit on its disk. What was done is kept, and the same command goes on when there is room."""


class OutOfMemory(Interrupted):
    """Memory ran out. What was done is kept, and fewer rows at once need less."""


class Notice(UserWarning):
    """Something was left out or is not as it should be, and work goes on. The command line prints the sentence."""


def quoted(text: str) -> str:
    """What a user gave, in quotes: no control character as such, and no more of it than can be read."""
    return repr(text if len(text) <= 60 else text[:60] + "…")


def suggestion(name: str, known: Iterable[str]) -> str:
    """A sentence that offers the known names closest to `name` (all of them where none is close)."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(close)}?" if close else f"Known: {', '.join(names)}."
