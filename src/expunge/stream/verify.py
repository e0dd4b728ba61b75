"""Whether a run's files are what its events say. Nothing is loaded and nothing is written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from expunge.errors import ExpungeError
from expunge.files import digest_bytes, digest_file, json_text
from expunge.stream import chain
from expunge.stream.config import RunConfig
from expunge.stream.directory import RunDirectory, StepDirectory
from expunge.stream.history import History
from expunge.stream.intact import COPY, cut_off, other_requests
from expunge.stream.judged import digest_images, read_table
from expunge.stream.summary import ModelSummary, StepRecord, read_record, summarise

LOOKS = 3
"""Most looks at a run that another process goes on with meanwhile, which would seem not to fit together."""


@dataclass(frozen=True)
class Findings:
    """What `verify` found.

    Attributes:
        problems: what is wrong and where, in sentences; empty where all is well.
        head: digest of the last event.
        steps, events: how many were looked at.
        weights: digest of the current model's weights file, None while the model is M(0).
    """

    problems: tuple[str, ...]
    head: str | None = None
    steps: int = 0
    events: int = 0
    weights: str | None = None


def verify(path: str | Path, head: str | None = None) -> Findings:
    """Recompute the chain of events and every digest of a run, and whether M(k) is what the steps say.

    Args:
        head: a head of the chain that was kept elsewhere (an export's card has one): the chain must go through it.

    Raises:
        ExpungeError: when `path` holds no run at all.
    """
    directory = RunDirectory(Path(path))
    if not directory.config.exists() and not directory.event_lines.exists():
        raise ExpungeError(f"{path} holds no run (no run.toml and no events.jsonl).")
    for _ in range(LOOKS):
        before = _events(directory)
        found = _verify(directory, before, head)
        if not found.problems or _events(directory) == before:
            break
    return found


def _events(directory: RunDirectory) -> bytes:
    return directory.event_lines.read_bytes() if directory.event_lines.exists() else b""


def _verify(directory: RunDirectory, events: bytes, head: str | None) -> Findings:
    if problems := chain.broken(events):
        return Findings((*problems, "Nothing else was looked at, because everything else is measured by the events."))
    lines = events.decode().split("\n")[:-1]
    found = _Verification(directory, [json.loads(line) for line in lines])
    problems = list(found.problems())
    if wrong := cut_off(directory, lines):
        problems.append(wrong)
    if head is not None and head not in {digest_bytes(line.encode()) for line in lines}:
        problems.append(f"The chain does not go through {head}: events were cut off its end, or it was written anew.")
    accepted = found.history.accepted
    return Findings(
        problems=tuple(problems),
        head=chain.head(lines),
        steps=len(found.history.records),
        events=len(lines),
        weights=found.records[accepted[-1]].files["weights.safetensors"] if accepted and not problems else None,
    )


def _changed(was: object, found: str) -> str:
    return f"its digest was {was} and is {found}. {COPY}"


class _Verification:
    """`records`: the record that counts of each step, filled while the steps are looked at."""

    def __init__(self, directory: RunDirectory, events: list[chain.Event]) -> None:
        self.directory = directory
        self.events = events
        self.history = History.of(events)
        self.records: dict[int, StepRecord] = {}

    def problems(self) -> Iterator[str]:
        """Each part builds on those before it, so the first part with a problem is the last one looked at."""
        for part in (
            self._configuration,
            self._requests,
            self._base,
            self._steps,
            self._memory,
            self._models,
            self._summary,
        ):
            found = list(part())
            yield from found
            if found:
                return

    def _said(self, *names: str) -> list[chain.Event]:
        return [e for e in self.events if e["event"] in names]

    def _configuration(self) -> Iterator[str]:
        first = self.events[0]
        if first["event"] != "created" or len(self._said("created")) > 1:
            yield "events.jsonl does not begin with the one event that made the run."
        elif not self.directory.config.exists():
            yield f"run.toml is missing. {COPY}"
        elif (found := digest_file(self.directory.config)) != first.get("config"):
            yield f"run.toml is not the file that the run was made with: {_changed(first.get('config'), found)}"

    def _requests(self) -> Iterator[str]:
        path = self.directory.request_lines
        *lines, half = (path.read_bytes() if path.exists() else b"").split(b"\n")
        if half:
            yield "requests.jsonl ends in half a line."
        yield from other_requests(lines, self.events)

    def _base(self) -> Iterator[str]:
        path = self.directory.base_judgements
        said = self._said("measured")
        last = {e["judgements"]: e for e in reversed(said)}
        allowed = [*last.values()][:2]  # the last one was announced, and is perhaps not in place
        if not said:
            if path.exists():
                yield "base/judgements.parquet is there, and no event speaks of it."
            return
        if not path.exists():
            if len(allowed) > 1 or self._said("accepted", "rejected", "retried"):
                yield f"base/judgements.parquet is missing. {COPY}"
            return
        digest = digest_file(path)
        event = next((e for e in allowed if e["judgements"] == digest), None)
        if event is None:
            was = allowed[0]["judgements"]
            yield f"base/judgements.parquet is not what was measured of the base model: {_changed(was, digest)}"
        elif digest_images(self.directory.base_images, read_table(path)) != event["images"]:
            yield f"base/images: a picture of the base model was edited or deleted. {COPY}"

    def _steps(self) -> Iterator[str]:
        folders = self.directory.steps()
        strangers = {*(self.directory.path / "steps").glob("*")} - {step.path for step in folders}
        for path in sorted(strangers):
            yield f"steps/{path.name} is there, and no step left it."
        written = {
            (step.index, digest_file(path)): (step, path)
            for step in folders
            for path in (step.record, step.attempt)
            if path.exists()
        }
        explained: set[Path] = set()
        placed: dict[int, list[StepDirectory]] = {}
        for event in self._said("accepted", "rejected", "retried"):
            place = written.get((event["step"], event["record"]))
            if place is None:
                yield (
                    f"Step {event['step']}: the record that was {event['event']} at {event['at']} is in none of its "
                    f"folders: it was edited or deleted. Its digest was {event['record']}. {COPY}"
                )
                continue
            step, path = place
            explained.add(step.path)
            placed.setdefault(step.index, []).append(step)
            record = read_record(path)
            yield from self._files(step, record)
            if event["event"] != "retried" and "by" not in event and event["event"] != record.status:
                yield f"Step {step.index}: step.json says {record.status}, and the event says {event['event']}."
            if self.history.records.get(step.index) == event["record"]:
                self.records[step.index] = record
        begun = {e["step"] for e in self._said("started")}
        for step in folders:
            unfinished = step.index in begun and step.state.exists()
            if step.path not in explained and not unfinished:
                yield f"steps/{step.path.name} is there, and no event speaks of what lies in it."
        yield from self._places(placed)

    def _files(self, step: StepDirectory, record: StepRecord) -> Iterator[str]:
        where = f"steps/{step.path.name}"
        pruned = {digest for event in self._said("pruned") for digest in event["weights"]}
        for name, digest in record.files.items():
            if not (step.path / name).exists():
                if name == step.weights.name and digest in pruned:
                    continue
                yield f"{where}/{name} is missing. {COPY}"
            elif (found := digest_file(step.path / name)) != digest:
                yield f"{where}/{name} is not what the step left: {_changed(digest, found)}"
        judged = step.judgements.exists() and digest_file(step.judgements) == record.files[step.judgements.name]
        if judged and digest_images(step.images, read_table(step.judgements)) != record.pictures:
            yield f"{where}/images: a picture was edited or deleted. {COPY}"

    def _places(self, found: Mapping[int, Sequence[StepDirectory]]) -> Iterator[str]:
        """The record that counts lies in the step's own folder, and those before it in the order in which they gave way.

        Args:
            found: {step: the folders of its records, in the order of the events}.
        """
        for index, steps in found.items():
            own = self.directory.step(index)
            order = [step.path for step in (*self.directory.replaced(index), own)]
            places = [order.index(step.path) for step in steps]
            counts = self.history.status.get(index) in ("accepted", "rejected")
            if places != sorted(places) or (counts and steps[-1].path != own.path):
                yield f"Step {index}: its folders have changed places."

    def _memory(self) -> Iterator[str]:
        anew = "The next step that needs it paints it anew."
        said = self.directory.remembered()
        for name, digest in said.items():
            path = self.directory.memory / name
            if not path.exists():
                yield f"memory/{name} is missing. {anew}"
            elif (found := digest_file(path)) != digest:
                yield f"memory/{name} was edited: its digest was {digest} and is {found}. {anew}"
            elif not (beside := path.with_suffix(".digest")).exists() or beside.read_bytes() != digest.encode():
                yield f"memory/{beside.name} is missing or was edited: the digest was {digest}. {anew}"
        if self.history.at_work is None:  # else they are the open step's
            known = {Path(name).with_suffix(suffix).name for name in said for suffix in (".safetensors", ".digest")}
            there = {path.name for path in self.directory.memory.glob("[!.]*")}
            for name in sorted(there - known):
                yield f"memory/{name} is there, and no event speaks of it. Delete it."

    def _models(self) -> Iterator[str]:
        """Each accepted step began with the weights of the one before it."""
        before, name = self.events[0]["model"], "the base model"
        for index in self.history.accepted:
            record = self.records[index]
            if record.previous != before:
                yield f"Step {index} did not begin with {name}, which the events say was current then."
            before, name = record.files["weights.safetensors"], f"the model of step {index}"

    def _summary(self) -> Iterator[str]:
        shown = [
            (self.records[i].model_copy(update={"status": status}), self.directory.step(i))
            for i, status in sorted(self.history.status.items())
            if i in self.records and self.directory.step(i).finished
        ]
        path = self.directory.summary
        if (shown or path.exists()) and not self._summarises(shown):
            yield "summary.json is not what the steps say. `expunge resume RUN` writes it anew."

    def _summarises(self, shown: Sequence[tuple[StepRecord, StepDirectory]]) -> bool:
        made, requests = self.events[0], self.directory.requests()
        config = RunConfig.read(self.directory.config)
        try:
            known = len(json.loads(self.directory.summary.read_bytes())["requests"])
        except (OSError, ValueError, LookupError, TypeError):
            return False
        if known < max((record.index for record, _ in shown), default=0):
            return False
        expected = summarise(
            ModelSummary(source=config.model.source, name=made["name"], digest=made["model"]),
            requests[:known],  # those that came in later are not in it yet
            [(record, read_table(step.judgements)) for record, step in shown],
            read_table(self.directory.base_judgements),
        )
        text = json_text(expected.model_dump(mode="json", by_alias=True))
        return self.directory.summary.read_bytes() == text.encode()
