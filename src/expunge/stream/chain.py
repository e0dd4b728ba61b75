"""The events of a run: an append-only file in which every line holds the digest of the line before it.

An event is one line of canonical JSON. `previous` is the digest of the line before it (None in the first), `digest` that of
the event itself without this field. The digest of the last line is the head: it stands for everything that came before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from expunge.files import canonical_json, digest_bytes

Event = dict[str, Any]


def event(line: str) -> Event:
    """
    Raises:
        ValueError: when `line` is no event.
    """
    found = json.loads(line)
    if not isinstance(found, dict) or "event" not in found:
        raise ValueError("no event")
    return found


def link(lines: Sequence[str], event: Mapping[str, Any]) -> str:
    """The line that adds `event` to the chain `lines`."""
    body = {**event, "previous": head(lines)}
    return canonical_json({**body, "digest": digest_bytes(canonical_json(body).encode())})


def head(lines: Sequence[str]) -> str | None:
    return digest_bytes(lines[-1].encode()) if lines else None


def broken(data: bytes) -> list[str]:
    """What is wrong with a chain, in sentences; nothing where it is whole.

    Args:
        data: the file's content.
    """
    if not data:
        return ["events.jsonl is missing or empty. Restore it from a copy of the run."]
    whole, newline, rest = data.rpartition(b"\n")
    found = [_why(number, line, before) for number, line, before in _numbered(whole)] if newline else []
    if rest:
        found.append(
            "events.jsonl ends in half a line. A process that was killed may leave that; the next event cuts it off."
        )
    return [sentence for sentence in found if sentence]


def _numbered(whole: bytes) -> list[tuple[int, bytes, bytes | None]]:
    lines = whole.split(b"\n")
    return [(i, line, lines[i - 2] if i > 1 else None) for i, line in enumerate(lines, 1)]


def _why(number: int, line: bytes, before: bytes | None) -> str:
    try:
        event = json.loads(line)
        canonical = canonical_json(event).encode()
    except ValueError:
        return f"Line {number} of events.jsonl is no JSON: it was edited."
    if not isinstance(event, dict) or canonical != line:
        return f"Line {number} of events.jsonl is not written as Expunge writes events: it was edited."
    if event.pop("digest", None) != digest_bytes(canonical_json(event).encode()):
        return f"Line {number} of events.jsonl has another digest than its content: it was edited."
    if event.get("previous") != (None if before is None else digest_bytes(before)):
        return (
            f"Line {number} of events.jsonl does not follow the line before it: lines were edited, deleted, added or put "
            "in another order."
        )
    return ""
