"""The engines `reference` and `fast` timed in turn, request by request, on one machine.

Both serve request k from the same weights: those that `reference` left at request k-1. Which of them goes first changes with
every request. Each serves it in a process of its own, from choosing prompts to the weights file; loading the model and
evaluating it are not timed. The results file is written after every pair, so a measurement that was interrupted goes on.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

from pydantic import Field, computed_field

from expunge import backbones, files
from expunge.benchmark.experiment import OPEN_GATE, begun_or_made
from expunge.benchmark.machine import BUSY, Beside, Machine, Session, load_average
from expunge.errors import ExpungeError
from expunge.reference import EngineName
from expunge.schema import Result, validated
from expunge.stream import Run, RunConfig, preset
from expunge.stream.directory import now
from expunge.stream.named import model_folder, read_protocol
from expunge.stream.summary import EvaluationCounts, Seconds

ENGINES: tuple[EngineName, EngineName] = ("reference", "fast")
PAIRS = 6
"""Requests from which on a ratio is quoted."""


class Timed(Result):
    """One request under one engine.

    Attributes:
        evaluations: denoiser evaluations per latent.
        held: bytes of tensors that were held while training, by what they are (docs/performance.md).
        peak_memory: most bytes that were resident at once in the process that served the request.
        artifact: bytes of the weights file.
        process: seconds of the whole process, from its start: imports and loading the model among them. None: not recorded.
        beside: cores that other processes took meanwhile, on average. None: not recorded.
    """

    request: int
    concepts: tuple[str, ...]
    engine: EngineName
    seconds: Seconds
    evaluations: EvaluationCounts
    held: dict[str, int]
    peak_memory: int
    artifact: int
    finished_at: str
    process: float | None = None
    beside: float | None = None


class Ratio(Result):
    """Median, least and greatest of n paired ratios, reference to fast."""

    value: float
    low: float
    high: float
    n: int


class Settings(Result):
    """What was compared: the sections `method`, `constraints`, `replay` and `train` of each engine's run.toml."""

    preset: str
    protocol: str
    model: str
    seed: int
    engines: dict[EngineName, dict[str, Any]]


class SpeedResults(Result):
    """The results file. Ratios are None while there is no pair; `caveats` says why one must not be quoted yet."""

    schema_: Literal[1] = Field(1, alias="schema")
    machine: Machine
    settings: Settings
    sessions: tuple[Session, ...] = ()
    rows: tuple[Timed, ...] = ()

    @property
    def pairs(self) -> list[tuple[Timed, Timed]]:
        found = {(row.request, row.engine): row for row in self.rows}
        return [(found[k, "reference"], found[k, "fast"]) for k in sorted({row.request for row in self.rows})]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def wall_ratio(self) -> Ratio | None:
        return _ratio(self.pairs, lambda row: row.seconds.total)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def wall_ratio_training(self) -> Ratio | None:
        return _ratio(self.pairs, lambda row: row.seconds.replay + row.seconds.train)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def wall_ratio_process(self) -> Ratio | None:
        """Where every request has a process of its own; None where a row does not say how long that took."""
        timed = all(row.process is not None for row in self.rows)
        return _ratio(self.pairs, lambda row: row.process or 0.0) if timed else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def evaluations_ratio(self) -> Ratio | None:
        """A backward evaluation counts as two forward ones."""
        return _ratio(self.pairs, lambda row: row.evaluations.forward + 2 * row.evaluations.backward)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def bytes_ratio(self) -> Ratio | None:
        return _ratio(self.pairs, lambda row: sum(row.held.values()))

    @computed_field  # type: ignore[prop-decorator]
    @property
    def peak_memory_ratio(self) -> Ratio | None:
        return _ratio(self.pairs, lambda row: row.peak_memory)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def artifact_ratio(self) -> Ratio | None:
        return _ratio(self.pairs, lambda row: row.artifact)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def caveats(self) -> list[str]:
        few = len(self.pairs) < PAIRS
        return [
            *([f"Ratios are quoted from {PAIRS} requests on; this is {len(self.pairs)}."] if few else []),
            *(
                f"The session of {s.started_at} was forced beside a load average of {s.load_average:.2f}."
                for s in self.sessions
                if s.forced
            ),
            *(
                f"While the engine {row.engine} served request {row.request}, other processes took {row.beside:.2f} cores."
                for row in self.rows
                if (row.beside or 0.0) > BUSY
            ),
        ]

    def write(self, path: Path) -> None:
        files.write_json(path, self.model_dump(mode="json", by_alias=True))

    @classmethod
    def read(cls, path: Path) -> SpeedResults:
        stored = files.read_json(path)
        return validated(
            cls, {k: v for k, v in stored.items() if k not in cls.model_computed_fields}, f"The results file {path}"
        )


@dataclass(frozen=True)
class Plan:
    """What is timed.

    Attributes:
        protocol: whose requests are served, in its order.
        changes: laid over the preset for each engine, section by section.
    """

    preset: str
    protocol: str
    seed: int = 0
    changes: Mapping[EngineName, Mapping[str, Any]] = field(default_factory=dict)

    def changes_for(self, engine: EngineName) -> dict[str, Any]:
        """No stopping rule: both engines take all their optimizer steps."""
        changes = self.changes.get(engine, {})
        train = {**changes.get("train", {}), "engine": engine, "stop": None}
        evaluate = {"protocol": self.protocol}
        return {**changes, "train": train, "evaluate": evaluate, "gate": OPEN_GATE, "seed": self.seed}


def measure(
    plan: Plan,
    requests: int,
    out: Path,
    work: Path,
    *,
    force: bool = False,
    load: Callable[[], float] = load_average,
    progress: Callable[[int, EngineName], None] = lambda request, engine: None,
) -> SpeedResults:
    """Time the first `requests` requests of the protocol that `out` has no results for.

    Args:
        work: folder of the two engines' runs, from whose weights later requests start.
        progress: told the request and the engine before each is timed.

    Raises:
        ExpungeError: where something else is running and `force` is not given, where `out` was measured on another machine
            or with other settings, where `work` lost the weights to go on from, or where a request cannot be served.
    """
    protocol = read_protocol(plan.protocol)
    if requests > len(protocol.requests):
        raise ExpungeError(f"The protocol {protocol.name} has {len(protocol.requests)} requests, not {requests}.")
    results = _begun(plan, protocol.name, out)
    done = {row.request for row in results.rows}
    todo = [k for k in range(1, requests + 1) if k not in done]
    if not todo:
        return results
    session = Session.begin(load(), force)
    runs = {e: _run(plan, e, work / e, protocol.requests) for e in ENGINES}
    results = results.model_copy(update={"sessions": (*results.sessions, session)})
    for k in todo:
        pair = []
        for engine in ENGINES if k % 2 else ENGINES[::-1]:
            progress(k, engine)
            pair.append(_timed(runs, engine, k, work))
        results = results.model_copy(update={"rows": (*results.rows, *pair)})
        results.write(out)
    return results


def _begun(plan: Plan, protocol: str, out: Path) -> SpeedResults:
    """The results so far, or new ones.

    Raises:
        ExpungeError: where those so far are of another machine, or of other settings.
    """
    configs = {engine: preset(plan.preset, plan.changes_for(engine)) for engine in ENGINES}
    digest = backbones.model_digest(model_folder(configs["fast"].model.source))
    engines = {engine: settings_of(config.frozen(digest)) for engine, config in configs.items()}
    settings = Settings(preset=Path(plan.preset).stem, protocol=protocol, model=digest, seed=plan.seed, engines=engines)
    new = SpeedResults(machine=Machine.here(), settings=settings)
    old = SpeedResults.read(out) if out.exists() else new
    if old.machine != new.machine:
        raise ExpungeError(f"{out} was measured on another machine. Give another file (--out).")
    if old.settings != settings:
        raise ExpungeError(f"{out} was measured with other settings. Give another file (--out).")
    return old


def _run(plan: Plan, engine: EngineName, folder: Path, requests: Sequence[Sequence[str]]) -> Run:
    return begun_or_made(
        folder,
        f"{folder} was made with other settings. Give another folder (--work).",
        requests=requests,
        preset_name=plan.preset,
        changes=plan.changes_for(engine),
    )


def settings_of(config: RunConfig) -> dict[str, Any]:
    """What a timing is of: the sections of a configuration that say how a request is served."""
    return config.model_dump(mode="json", include={"method", "constraints", "replay", "train"})


def _timed(runs: Mapping[EngineName, Run], engine: EngineName, k: int, work: Path) -> Timed:
    """Serve request k in a process of its own, from the beginning."""
    previous = runs["reference"].directory.step(k - 1).weights if k > 1 else None
    if previous is not None and not previous.exists():
        raise ExpungeError(
            f"{previous} is gone, from which request {k} starts. Measure anew, with another file (--out) and folder (--work)."
        )
    run = runs[engine]
    _as_before(run, k, work / f"{engine}-memory-{k}.json")
    cost = work / "cost.json"
    arguments = [str(run.directory.path), str(k), str(previous or "-"), str(cost)]
    with Beside() as others:
        done = subprocess.run(
            [sys.executable, "-m", "expunge.benchmark.one_request", *arguments], capture_output=True, text=True
        )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it was killed"])[-1]
        raise ExpungeError(f"Request {k} could not be served by the engine {engine}: {reason}")
    concepts = tuple(c.name for c in run.requests[k - 1].concepts)
    told = {"finished_at": now(), "process": others.seconds, "beside": others.cores, **files.read_json(cost)}
    return Timed(request=k, concepts=concepts, engine=engine, **told)


def _as_before(run: Run, k: int, note: Path) -> None:
    """Undo what an attempt to time request k left: its step, and what it painted for later ones, which would be found and not
    painted again. `note` keeps what was there before the first attempt."""
    shutil.rmtree(run.directory.step(k).path, ignore_errors=True)
    painted = {path.name: path for path in run.directory.memory.glob("*")}
    if not note.exists():
        files.write_json(note, sorted(painted))
    for name in painted.keys() - set(files.read_json(note)):
        painted[name].unlink()


def _ratio(pairs: Sequence[tuple[Timed, Timed]], of: Callable[[Timed], float]) -> Ratio | None:
    ratios = [of(reference) / of(fast) for reference, fast in pairs]
    return Ratio(value=median(ratios), low=min(ratios), high=max(ratios), n=len(ratios)) if ratios else None
