"""A run is a directory. This file knows where things lie in it and how they are written; it decides nothing."""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from filelock import BaseFileLock, FileLock, Timeout

from expunge.concepts import Request
from expunge.errors import ExpungeError
from expunge.files import (
    append_line,
    canonical_json,
    digest_bytes,
    digest_file,
    read_lines,
    sweep,
    write_text,
    writing,
)
from expunge.schema import parse_toml, read_text
from expunge.stream import chain
from expunge.stream.config import RunConfig
from expunge.stream.history import History
from expunge.stream.judged import Shelf

_T = TypeVar("_T")

_STEP = re.compile(r"\d{4,}(\.replaced-\d+)?")
"""What the folder of a step is called."""


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class StepDirectory:
    """`steps/NNNN`, or `steps/NNNN.replaced-M` for work that gave way to later work. Numbers, never a concept's name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.index = int(path.name.partition(".")[0])
        self.prompts = path / "prompts.json"
        self.choices = path / "choices.json"
        self.log = path / "train.jsonl"
        self.weights = path / "weights.safetensors"
        self.judgements = path / "judgements.parquet"
        self.images = path / "images"
        self.state = path / "state"
        self.timings = self.state / "timings.json"
        self.level = self.state / "level"
        """Which counts of the protocol the judgements are of: "between" or "final"."""
        self.record = path / "step.json"
        self.attempt = path / "attempt.json"
        """The record of an attempt that was followed by another one."""

    @property
    def shelf(self) -> Shelf:
        return Shelf(self.judgements, self.images)

    @property
    def finished(self) -> bool:
        return self.record.exists()

    def digests(self) -> dict[str, str]:
        """Digests of the files that a step leaves, beside its record and the pictures."""
        files = (self.prompts, self.choices, self.log, self.weights, self.judgements)
        return {p.name: digest_file(p) for p in files if p.exists()}

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
        self.memory = path / "memory"
        """What M(0) painted for one step and will be asked by later ones; what is missing is painted anew."""
        self.event_lines = path / "events.jsonl"
        self.last_event = path / "events.head"
        """The digest of the last event, so that one that is cut off is missed."""
        self.request_lines = path / "requests.jsonl"
        self._append_lock = FileLock(path / "append.lock")

    @property
    def base(self) -> Shelf:
        return Shelf(self.base_judgements, self.base_images)

    def step(self, index: int) -> StepDirectory:
        return StepDirectory(self.path / "steps" / f"{index:04d}")

    def steps(self) -> list[StepDirectory]:
        """All of them, work that gave way too."""
        found = sorted((self.path / "steps").glob("*"))
        return [StepDirectory(path) for path in found if _STEP.fullmatch(path.name) and path.is_dir()]

    def replaced(self, index: int) -> list[StepDirectory]:
        """Earlier work on a step, in the order in which it was set aside."""
        found = [step for step in self.steps() if step.index == index and "." in step.path.name]
        return sorted(found, key=_place)

    def set_aside(self, index: int) -> None:
        """Make room for new work on a step; what is there is kept."""
        if (step := self.step(index)).path.exists():
            last = max((_place(step) for step in self.replaced(index)), default=0)
            step.path.rename(step.path.with_name(f"{step.path.name}.replaced-{last + 1}"))

    @property
    def vacant(self) -> bool:
        """Whether a run can be made here: at most half a run.toml lies here, from a process that was killed as it wrote it."""
        return not self.path.exists() or all(p.name.startswith(f".{self.config.name}.") for p in self.path.iterdir())

    def sweep(self) -> None:
        """Delete what a process that was killed while it served had not written to its end."""
        for folder in (self.memory, self.base_judgements.parent, self.path / "steps"):
            sweep(folder)
        for index in History.of(self.events()).records:
            if (step := self.step(index)).finished:
                step.forget_state()

    def announce(self, config: RunConfig, name: str, protocol: str, judge: str) -> None:
        """Add the first event, which keeps the settings that `run.toml` holds.

        Args:
            name: what the base model is called.
            protocol, judge: digests of what is measured, and of what it is judged by.
        """
        self.add_event(
            "created",
            config=digest_file(self.config),
            settings=config.to_data(),
            model=config.model.digest,
            name=name,
            protocol=protocol,
            judge=judge,
            code=config.own_code,
        )

    # -- append-only files ----------------------------------------------------------------------------------------

    def appending(self) -> AbstractContextManager[None]:
        """Held for the moment of an append, so that a request can be added while another process serves the run."""
        return _held(self._append_lock)

    def requests(self) -> list[Request]:
        """
        Raises:
            ExpungeError: when a line was damaged.
        """
        return _parsed(self.request_lines, Request.model_validate_json)

    def add_request(self, request: Request) -> None:
        """Its line, then its event: `announce_requests` makes up for one that a process did not come to add."""
        with self.appending():
            append_line(self.request_lines, request.model_dump_json())
            self.announce_requests()

    def announce_requests(self) -> None:
        """Add the event of each request that has none."""
        with self.appending():
            known = {event["request"] for event in self.events() if event["event"] == "requested"}
            for request, line in zip(self.requests(), read_lines(self.request_lines), strict=True):
                if request.id not in known:
                    self.add_event("requested", request=request.id, line=digest_bytes(line.encode()))

    def events(self) -> list[chain.Event]:
        """
        Raises:
            ExpungeError: when a line was damaged.
        """
        return _parsed(self.event_lines, chain.event)

    def add_event(self, event: str, **details: Any) -> None:
        """Append a state change to the chain."""
        with self.appending():
            line = chain.link(read_lines(self.event_lines), {"at": now(), "event": event, **details})
            append_line(self.event_lines, line)
            write_text(self.last_event, f"{chain.head([line])}\n")

    # -- what M(0) painted for later steps --------------------------------------------------------------------------

    def remembered(self) -> dict[str, str]:
        """{file in `memory`: its digest}, as the events say."""
        return {name: digest for event in self.events() for name, digest in event.get("memory", {}).items()}

    def newly_remembered(self) -> dict[str, str]:
        """The same of the tensors that no event speaks of yet, by the digests that were written beside them: to read all that
        a long stream painted would make every step dearer than the one before."""
        known = self.remembered()
        digests = sorted(self.memory.glob("[!.]*.digest"))
        found = {path.with_suffix(".safetensors").name: path.read_text("utf-8") for path in digests}
        return {name: digest for name, digest in found.items() if known.get(name) != digest}

    def forget_damaged(self) -> None:
        """Delete what is in `memory` and is not what the events say: it will be painted anew."""
        for name, digest in self.remembered().items():
            if (path := self.memory / name).exists() and digest_file(path) != digest:
                path.unlink()

    # -- what must hold before anything is written -----------------------------------------------------------------

    def check(self) -> None:
        """
        Raises:
            ExpungeError: when no event says how the run was made, `run.toml` is not what it was made with, or a link leads out
                of the run.
        """
        if link := next(self._links_out(), None):
            raise ExpungeError(
                f"{link} is a link that leads out of the run, to {link.resolve()}, and nothing is written there. Put what "
                "it leads to in its place."
            )
        events = self.events()
        if not events or events[0]["event"] != "created":
            raise ExpungeError(
                f"{self.event_lines} does not say how this run was made. If its making was interrupted, the same "
                "`expunge run` completes it; otherwise restore the file from a copy of the run."
            )
        if digest_file(self.config) != events[0].get("config"):
            raise ExpungeError(
                f"{self.config} is not what the run was made with: {self._edited(events[0])}. Put it back, or make a new "
                "run with these settings."
            )

    def _links_out(self) -> Iterator[Path]:
        for folder, folders, files in os.walk(self.path):  # unlike rglob, it does not mind what goes away meanwhile
            for path in (Path(folder, name) for name in (*folders, *files)):
                if path.is_symlink() and not path.resolve().is_relative_to(self.path.resolve()):
                    yield path

    def _edited(self, created: chain.Event) -> str:
        """How `run.toml` differs from the settings that the event `created` holds."""
        now = parse_toml(read_text(self.config, str(self.config)), str(self.config))
        found = changed(created["settings"], now)
        return ", ".join(found) or "every setting is the same, but it is written in another way"

    @property
    def head(self) -> str:
        """The digest of the last event, which stands for all of them."""
        found = chain.head(read_lines(self.event_lines))
        assert found is not None
        return found

    # -- one process serves ------------------------------------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process; raises as `in_use` does, and as `check`."""
        self.check()
        with in_use(self.path):
            yield


def _place(replaced: StepDirectory) -> int:
    """Of work that gave way: how much of the same step had given way when it did, and itself."""
    return int(replaced.path.name.rpartition("-")[2])


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Hold a folder for this process. The system frees the lock when a process dies, however it dies.

    Raises:
        ExpungeError: when another process holds it.
    """
    owner = folder / "lock.owner"
    try:
        with _held(FileLock(folder / "lock", timeout=0)):
            write_text(owner, f"process {os.getpid()} on {socket.gethostname()} since {now()}\n")
            yield
    except Timeout as error:
        who = owner.read_text("utf-8").strip() if owner.exists() else "another process"
        raise ExpungeError(f"{folder} is in use by {who}. Wait until it ends, or stop it.") from error


@contextmanager
def _held(lock: BaseFileLock) -> Iterator[None]:
    with writing(Path(lock.lock_file)):
        taken = lock.acquire()
    with taken:
        yield


def _parsed(path: Path, parse: Callable[[str], _T]) -> list[_T]:
    found: list[_T] = []
    try:
        found.extend(parse(line) for line in read_lines(path))
    except ValueError as error:
        where = "A line" if isinstance(error, UnicodeDecodeError) else f"Line {len(found) + 1}"
        raise ExpungeError(
            f"{where} of {path} was damaged or edited, and cannot be read. Restore the file from a copy of the run."
        ) from error
    return found


def changed(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Every value of nested tables that is not what it was, in words."""
    before, after = _flat(then), _flat(now)
    names = [name for name in {**before, **after} if _said(after, name) != _said(before, name)]
    return [f"{name} is {_said(after, name)} and was {_said(before, name)}" for name in names]


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """{"train.steps": 80}: every value of nested tables under its whole name."""
    if not isinstance(value, (dict, list)):
        return {name: value}
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    return {n: v for key, part in inner for n, v in _flat(part, f"{name}.{key}".removeprefix(".")).items()}


def _said(settings: Mapping[str, Any], name: str) -> str:
    return canonical_json(settings[name]) if name in settings else "not there"
