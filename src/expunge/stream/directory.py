"""A run is a directory. This file knows where things lie in it and how they are written; it decides nothing."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from PIL import Image

from expunge.concepts import Request
from expunge.errors import ExpungeError
from expunge.evaluation import Images
from expunge.files import append_line, canonical_json, digest_bytes, read_json, read_lines, replacing, write_text


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class StepDirectory:
    """`steps/NNNN`: numbers, never a concept's name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.index = int(path.name)
        self.prompts = path / "prompts.json"
        self.choices = path / "choices.json"
        self.log = path / "train.jsonl"
        self.weights = path / "weights.safetensors"
        self.judgements = path / "judgements.parquet"
        self.images = path / "images"
        self.state = path / "state"
        self.timings = self.state / "timings.json"
        self.record = path / "step.json"

    @property
    def finished(self) -> bool:
        return self.record.exists()

    def read_record(self) -> dict[str, Any]:
        record: dict[str, Any] = read_json(self.record)
        return record

    def forget_state(self) -> None:
        shutil.rmtree(self.state, ignore_errors=True)


class RunDirectory:
    """Paths, requests, events and the lock of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "run.toml"
        self.summary = path / "summary.json"
        self.report = path / "report.html"
        self.base_judgements = path / "base" / "judgements.parquet"
        self.base_images = path / "base" / "images"
        self._events = path / "events.jsonl"
        self._requests = path / "requests.jsonl"
        self.appending = FileLock(path / "append.lock")
        """Held for the moment of an append, so that a request can be added while another process serves the run."""

    def step(self, index: int) -> StepDirectory:
        return StepDirectory(self.path / "steps" / f"{index:04d}")

    # -- append-only files ----------------------------------------------------------------------------------------

    def requests(self) -> list[Request]:
        return [Request.model_validate_json(line) for line in read_lines(self._requests)]

    def add_request(self, request: Request) -> None:
        append_line(self._requests, request.model_dump_json())
        self.add_event("requested", request=request.id)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in read_lines(self._events)]

    def add_event(self, event: str, **details: Any) -> None:
        """Append a state change. Each line holds the digest of the line before it: a chain."""
        with self.appending:
            lines = read_lines(self._events)
            previous = digest_bytes(lines[-1].encode()) if lines else None
            append_line(self._events, canonical_json({"at": now(), "event": event, "previous": previous, **details}))

    # -- one process serves ------------------------------------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process. The system frees the lock when a process dies, however it dies.

        Raises:
            ExpungeError: when another process holds it.
        """
        path = self.path / "lock"
        try:
            with FileLock(path, timeout=0):
                owner = path.with_name("lock.owner")
                write_text(owner, f"process {os.getpid()} on {socket.gethostname()} since {now()}\n")
                yield
        except Timeout as error:
            owner = path.with_name("lock.owner")
            who = owner.read_text().strip() if owner.exists() else "another process"
            raise ExpungeError(f"{self.path} is in use by {who}. Wait until it ends, or stop it.") from error


# -- tables and pictures --------------------------------------------------------------------------------------------------


def write_table(path: Path, table: pd.DataFrame) -> None:
    with replacing(path) as temporary:
        table.to_parquet(temporary, index=False)


def write_images(folder: Path, images: Images, table: pd.DataFrame, rows: Sequence[str]) -> None:
    """Store the pictures of `rows`, named by their digest (a row's `image` column), so that no name leaks into a path."""
    for row, digest in table.loc[table["row"].isin(list(rows)), ["row", "image"]].itertuples(index=False):
        path = image_path(folder, digest)
        if not path.exists():
            with replacing(path) as temporary:
                Image.fromarray(images[row]).save(temporary, format="PNG")


def read_image(folder: Path, digest: str) -> np.ndarray | None:
    path = image_path(folder, digest)
    return np.asarray(Image.open(path).convert("RGB")) if path.exists() else None


def image_path(folder: Path, digest: str) -> Path:
    return folder / f"{digest.removeprefix('sha256:')[:24]}.png"
