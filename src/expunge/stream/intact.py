"""Whether what serving reads of a run is still what the run left there. `verify` looks at everything; this only at what would
lead the next step or the summary astray.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from expunge.errors import ExpungeError
from expunge.files import digest_file
from expunge.stream.directory import RunDirectory, StepDirectory
from expunge.stream.history import History
from expunge.stream.judged import digest_images
from expunge.stream.summary import read_record

COPY = "Restore it from a copy of the run."


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
    elif digest_images(directory.base_images, pd.read_parquet(path)) != measured[found]:
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
