"""Whether what serving reads of a run is still what the run left there. `verify` looks at everything; this only at what would
lead the next step or the summary astray.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from expunge.errors import ExpungeError
from expunge.evaluation import Row
from expunge.files import digest_bytes, digest_file, read_lines
from expunge.stream.chain import Event
from expunge.stream.directory import RunDirectory, StepDirectory
from expunge.stream.history import History
from expunge.stream.judged import digest_images, read_table
from expunge.stream.summary import read_record

COPY = "Restore it from a copy of the run."


def cut_off(directory: RunDirectory, lines: Sequence[str]) -> str | None:
    """Whether the event that was last added is there, in a sentence where it is not. Processes that were killed, or found the
    disk full, may have added more.

    Args:
        lines: of `events.jsonl`.
    """
    path = directory.last_event
    if not path.exists():
        return f"{path.name} is missing. {COPY}" if len(lines) > 1 else None
    head = path.read_text(errors="replace")
    if any(f"{digest_bytes(line.encode())}\n" == head for line in reversed(lines)):
        return None
    return f"events.jsonl does not have the event that {path.name} says: events were cut off its end. {COPY}"


def check_events(directory: RunDirectory) -> None:
    """
    Raises:
        ExpungeError: when events are missing at the end, so that work which was finished would be done again.
    """
    with directory.appending():  # no event is added between looking at one file and at the other
        wrong = cut_off(directory, read_lines(directory.event_lines))
    if wrong:
        raise ExpungeError(f"{directory.path}: {wrong}")


def check_requests(directory: RunDirectory) -> None:
    """
    Raises:
        ExpungeError: when requests are missing or other ones than came in: one would be lost, or its number used again.
    """
    with directory.appending():
        directory.requests()  # whether they can be read
        lines = [line.encode() for line in read_lines(directory.request_lines)]
        if wrong := next(other_requests(lines, directory.events()), None):
            raise ExpungeError(f"{directory.path}: {wrong}")
        directory.announce_requests()


def other_requests(lines: Sequence[bytes], events: Sequence[Event]) -> Iterator[str]:
    """How the lines of `requests.jsonl` differ from what events say came in. The last one may lack its event: its process may
    have been killed before it added that."""
    said = {e["request"]: e["line"] for e in events if e["event"] == "requested"}  # the last word on each counts
    digests = [digest_bytes(line) for line in lines]
    if len(digests) not in (len(said), len(said) + 1):
        yield f"requests.jsonl has {len(digests)} lines, and the events speak of {len(said)} requests. {COPY}"
    elif len(digests) > len(said) and _id(lines[-1]) != (following := f"{len(lines):04d}"):
        yield f"The last line of requests.jsonl is not request {following}, which would be the next one. {COPY}"
    for number, (found, (request, line)) in enumerate(zip(digests, said.items(), strict=False), 1):
        if found != line:
            yield (
                f"Line {number} of requests.jsonl is not request {request} as it came in: its digest was {line} and is "
                f"{found}. {COPY}"
            )


def _id(line: bytes) -> object:
    try:
        return json.loads(line)["id"]
    except (ValueError, KeyError, TypeError):
        return None


def check_rows(directory: RunDirectory, rows: Sequence[Row]) -> None:
    """Whether the pictures that models are compared by are still those that the base model was judged by.

    Args:
        rows: what will be painted; only those that the base model was judged by already are looked at.

    Raises:
        ExpungeError: when a row has another prompt now.
    """
    if not directory.base_judgements.exists():
        return
    table = read_table(directory.base_judgements, columns=["row", "prompt", "seed"])
    judged = {row: (prompt, seed) for row, prompt, seed in table.itertuples(index=False)}
    for row in rows:
        prompt, seed = judged.get(row.id, (row.prompt, row.seed))
        if (prompt, seed) != (row.prompt, row.seed):
            raise ExpungeError(
                f"The base model was judged by {prompt!r} ({row.id}), and that picture's prompt would be {row.prompt!r} now: "
                "the words that the prompt source offers were changed since. Put them back as they were: new ones may be "
                "added where they change no evaluation prompt ([scenes] of a protocol names the words that these use)."
            )


def check_weights(directory: RunDirectory, index: int) -> None:
    """Whether the model of step `index` (0: the base model) can be made current.

    Raises:
        ExpungeError: when its weights were pruned, damaged or deleted.
    """
    if not index:
        return
    step = directory.step(index)
    pruned = [digest for e in directory.events() if e["event"] == "pruned" for digest in e["weights"]]
    if read_record(step.record).files[step.weights.name] in pruned:
        raise ExpungeError(
            f"The weights of step {index} are no longer there: this run keeps those of the last steps only (keep in "
            "run.toml). Its concepts can be requested anew in a new run."
        )
    _check_file(step, step.weights, COPY)


def check_measured(directory: RunDirectory) -> None:
    """What the summary is made from: judgements of the base model and of every finished step, and the steps' records.

    Raises:
        ExpungeError: for the first file that is not what it was, with both digests and the way back.
    """
    events = directory.events()
    history = History.of(events)
    finished = {i: step for i in sorted(history.status) if (step := directory.step(i)).finished}
    _check_base(directory, events, needed=bool(finished))
    for index, step in finished.items():
        if history.status[index] != "withdrawn":
            _check(step.record, history.records[index], COPY)
        _check_file(step, step.judgements, COPY)


def check_model(directory: RunDirectory) -> None:
    """What the next step is made from: the current weights, and what accepted steps chose.

    Raises:
        ExpungeError: as `check_measured` does.
    """
    accepted = History.of(directory.events()).accepted
    for before, index in zip([0, *accepted], accepted, strict=False):
        step = directory.step(index)
        way = (
            f"Restore it from a copy of the run, or go back with `expunge rollback RUN {before}` and request again what was "
            "forgotten since."
        )
        _check_file(step, step.choices, way)
        if index == accepted[-1]:
            _check_file(step, step.weights, way)


def _check_base(directory: RunDirectory, events: list[dict[str, object]], *, needed: bool) -> None:
    path = directory.base_judgements
    measured = {e["judgements"]: e["images"] for e in events if e["event"] == "measured"}
    if not measured or not (path.exists() or needed):  # a process that was killed may have announced it alone
        return
    found = digest_file(path) if path.exists() else None
    if found not in measured:
        _check(path, str(list(measured)[-1]), COPY)
    elif digest_images(directory.base_images, read_table(path)) != measured[found]:
        raise ExpungeError(
            f"{directory.base_images}: a picture of the base model was damaged, edited or deleted. {COPY}"
        )


def _check_file(step: StepDirectory, path: Path, way: str) -> None:
    """Compare a file with what the record of its step says."""
    _check(path, read_record(step.record).files[path.name], way)


def _check(path: Path, digest: str, way: str) -> None:
    if not path.exists():
        raise ExpungeError(f"{path} is missing. {way}")
    if (found := digest_file(path)) != digest:
        raise ExpungeError(f"{path} was damaged or edited: its digest was {digest} and is {found}. {way}")
