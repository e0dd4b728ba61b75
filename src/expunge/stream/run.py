"""Requests one after another, on a model that stays whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import pandas as pd
from PIL import Image

from expunge import backbones
from expunge.backbones import Backbone
from expunge.concepts import Concept, Request
from expunge.errors import ExpungeError
from expunge.evaluation import Protocol, SamplerConfig, metrics, paint, protocol_rows
from expunge.evaluation.pixels import pixels
from expunge.files import digest_file, load_tensors, read_json, replacing_folder, write_json, write_text
from expunge.hardware import processes
from expunge.memory import room_for, whole
from expunge.privacy import Names, prompted
from expunge.prompts import PromptSource
from expunge.schema import validated
from expunge.stream import gate
from expunge.stream.card import model_card
from expunge.stream.config import DEFAULT_PRESET, RunConfig, preset
from expunge.stream.directory import RunDirectory, now
from expunge.stream.emphasis import emphasis
from expunge.stream.export import check_replaceable, mark
from expunge.stream.history import History
from expunge.stream.intact import (
    check_events,
    check_measured,
    check_model,
    check_requests,
    check_rows,
    check_weights,
)
from expunge.stream.judged import read_table
from expunge.stream.named import (
    check_config,
    check_gate,
    check_requested,
    judge_called,
    model_folder,
    model_name,
    prompt_source,
    read_protocol,
)
from expunge.stream.pruning import prune
from expunge.stream.step import serve
from expunge.stream.summary import ModelSummary, StepRecord, Summary, read_record, summarise
from expunge.stream.team import Team
from expunge.stream.training import Cost, train_alone, train_along
from expunge.stream.workshop import Progress, ProgressCallback, Workshop


class Run:
    """A run directory: a base model, a stream of requests, and the model that they lead to.

    run = Run.create("runs/mine", requests=["fox", "neon style"])
    run.resume()
    run.export("clean-model")
    """

    def __init__(self, path: str | Path) -> None:
        """Open an existing run.

        Raises:
            ExpungeError: when `path` holds no run, or its configuration cannot be used.
        """
        self.directory = RunDirectory(Path(path))
        if not self.directory.config.is_file():
            raise ExpungeError(f"{path} holds no run (no run.toml). `expunge run {path} CONCEPT...` makes one.")
        self.config = RunConfig.read(self.directory.config)

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        requests: Sequence[str | Sequence[str]] = (),
        preset_name: str = DEFAULT_PRESET,
        changes: Mapping[str, Any] = {},
    ) -> Self:
        """Make a run: check everything that can be checked without loading the model, then freeze `run.toml`.

        Where the same call made a run at `path` already, or was killed while it did, that run is completed and opened.

        Args:
            requests: concepts to forget, one request each (or a list of concepts for one request).
            preset_name: a preset's name or a TOML file.
            changes: fields laid over the preset, by section: {"train": {"steps": 80}}.

        Raises:
            ExpungeError: when `path` is in use, or something in the configuration or the requests cannot be served.
        """
        team = Team()
        with team.in_turn():
            if team.first:
                cls._make(path, requests, preset_name, changes)
        return cls(path)

    @classmethod
    def _make(
        cls, path: str | Path, requests: Sequence[str | Sequence[str]], preset_name: str, changes: Mapping[str, Any]
    ) -> None:
        directory = RunDirectory(Path(path))
        if not directory.vacant and not directory.config.exists():
            raise ExpungeError(f"{path} is not empty, and holds no run. Choose another folder.")
        config = preset(preset_name, changes)
        folder = model_folder(config.model.source)
        check_config(config, folder)
        source = prompt_source(config.prompts)
        asked = [[r] if isinstance(r, str) else list(r) for r in requests]
        protocol = read_protocol(config.evaluate.protocol)
        found = check_requested(config, source, protocol, folder, asked)
        check_gate(config, source, protocol, found)
        groups = [[concept.name for concept in concepts] for concepts in found]
        digest = backbones.model_digest(folder)
        config = config.frozen(digest)
        if directory.vacant:
            write_text(directory.config, config.to_toml())
        run = cls(path)
        with run.directory.appending():
            begun = [[c.name for c in r.concepts] for r in run.requests]
            other = run.directory.config.read_text("utf-8") != config.to_toml()
            if other and not run.directory.events():
                raise ExpungeError(
                    f"{run.directory.config} was not written by this call. Settings of your own are given as a preset "
                    "(`--preset FILE.toml`), and Expunge writes run.toml; choose another folder."
                )
            if other or any(a != b for a, b in zip(begun, groups, strict=False)):
                raise ExpungeError(
                    f"{path} is not empty: it holds a run of other settings or requests. Choose another folder, add to that "
                    f"run (`expunge request {path} CONCEPT`), or go on with it (`expunge resume {path}`)."
                )
            if not run.directory.events():
                if begun or run.directory.last_event.exists():
                    raise ExpungeError(
                        f"{run.directory.event_lines} is missing: {path} holds a run, and it does not say how it was made. "
                        "Restore the file from a copy of the run."
                    )
                name, judge = model_name(config.model.source, folder), judge_called(run.protocol.judge)
                run.directory.announce(config, name, run.protocol.digest, judge.digest)
            check_requests(run.directory)
            for names in groups[len(begun) :]:
                run.request(*names)

    # -- requests -------------------------------------------------------------------------------------------------

    def request(self, *names: str) -> Request:
        """Append one request for the concepts `names`; `resume` serves it, also one that is already at work.

        Raises:
            ExpungeError: for an unknown concept, or one that is already requested or forgotten.
        """
        if not names:
            raise ExpungeError("A request names at least one concept.")
        self.directory.check()
        before = [concept for request in self._standing for concept in request.concepts]
        (concepts,) = check_requested(self.config, self.source, self.protocol, self._folder, [names], before)
        with self.directory.appending():
            check_requests(self.directory)
            taken = {c.name: request for request in self._standing for c in request.concepts}
            for concept in concepts:
                if concept.name in taken:
                    which = taken[concept.name]
                    what = "forgotten" if which.step in self.history.accepted else "requested"
                    raise ExpungeError(f"{concept.name!r} is already {what} (request {which.id}).")
            request = Request(id=f"{len(self.requests) + 1:04d}", concepts=concepts, received_at=now())
            self.directory.add_request(request)
        return request

    @property
    def requests(self) -> list[Request]:
        return self.directory.requests()

    @property
    def history(self) -> History:
        """What became of every request."""
        return History.of(self.directory.events())

    @property
    def open_requests(self) -> list[Request]:
        status = self.history.status
        return [r for r in self.requests if r.step not in status]

    @property
    def _standing(self) -> list[Request]:
        """Those that were served, or will be: what is neither rejected nor withdrawn."""
        status = self.history.status
        return [r for r in self.requests if status.get(r.step) not in ("rejected", "withdrawn")]

    @property
    def records(self) -> list[StepRecord]:
        """The finished steps, in order, each with what became of it since. A request that was withdrawn before it was served
        has none."""
        found, history = [], self.history
        for index, status in sorted(history.status.items()):
            step = self.directory.step(index)
            if status != "withdrawn" or (step.finished and digest_file(step.record) == history.records.get(index)):
                record = read_record(step.record)
                found.append(record.model_copy(update={"status": status}))
        return found

    @property
    def decides(self) -> bool:
        """Whether this process is the first of its launch: the others only train beside it."""
        return Team().first

    # -- serving --------------------------------------------------------------------------------------------------

    def serve(self, progress: ProgressCallback = lambda _: None, batch: int | None = None) -> Iterator[StepRecord]:
        """Serve the open requests in order, yielding each finished step. Stops after a step that the gate rejects.

        Args:
            batch: most rows or pictures at once, where memory does not hold the configured ones; the result is the same up to
                rounding.

        Raises:
            Interrupted: when memory or disk are full; what was done is kept.
        """
        team = Team()
        if not team.first:
            self._assist(team, batch)
            return
        with self.directory.locked():
            self.directory.sweep()
            check_events(self.directory)
            check_requests(self.directory)
            check_measured(self.directory)
            check_model(self.directory)
            if self.open_requests:
                self._check_unchanged()
            self.directory.forget_damaged()
            self._write_summary()  # a process that was killed may have left it a step behind
            if batch and self.open_requests:
                self.directory.add_event("resumed", batch=batch)
            shop: Workshop | None = None
            rejected = False
            while (todo := self.open_requests) and not rejected:
                shop = shop or self._workshop(progress, team, batch)
                record = self._attempt(shop, todo[0], "between" if len(todo) > 1 else "final")
                if record is None:
                    continue
                self._write_summary()
                if self.config.keep:
                    prune(self.directory, self.config.keep)
                rejected = record.status == "rejected"
                yield record
            team.tell(None)

    def _assist(self, team: Team, batch: int | None) -> None:
        """Train beside the first process, which does all the rest."""
        shop: Workshop | None = None
        for index in team.told():
            shop = shop or self._workshop(lambda _: None, team, batch)
            # So that the prompt source knows what is evaluated, as the first process's does.
            shop.rows(self._known, "final")
            request = next(r for r in self.requests if r.step == index)
            ready, forgotten = self._set_up(shop)
            train_along(ready, request, self.current_weights, forgotten)

    def _attempt(self, shop: Workshop, request: Request, level: str) -> StepRecord | None:
        """One attempt at a request: its record, or None where the gate asks for another attempt."""
        index, history = request.step, self.history
        if history.at_work != index:  # what lies there began with another model, or was not let pass
            self.directory.set_aside(index)
            self.directory.add_event("started", step=index)
        shop, forgotten = self._set_up(shop)
        return serve(shop, request, self.current_weights, forgotten, self._known, level)

    def _set_up(self, shop: Workshop) -> tuple[Workshop, dict[int, tuple[Concept, ...]]]:
        """The workshop for the attempt that is at work, and what was forgotten before it."""
        history, config = self.history, shop.config
        if config.strength is not None:
            before = [history.retries[i] for i in history.accepted if i in history.retries]
            names = [c.name for r in self.requests for c in r.concepts]
            held = emphasis(before, history.retry, names, config.strength, config.gate.retry_factor)
            shop = replace(shop, emphasis=held)
        if history.retry:
            shop = replace(shop, config=config.with_strength(history.retry.strength), retrying=True)
        concepts = {r.step: r.concepts for r in self.requests}
        return shop, {i: concepts[i] for i in history.accepted}

    def resume(self, progress: ProgressCallback = lambda _: None, batch: int | None = None) -> list[StepRecord]:
        """Serve all open requests (see `serve`); the steps that were finished by this call."""
        return list(self.serve(progress, batch))

    def train(self, request: Request, previous: Path | None) -> Cost:
        """Train the step of `request` on top of the weights `previous` (None: the base model), and judge nothing: the step
        stays open. This is what `expunge bench speed` times; `serve` is what serves a request.
        """
        with self.directory.locked():
            forgotten = {r.step: r.concepts for r in self.requests if r.step < request.step}
            return train_alone(self._workshop(lambda _: None, Team()), request, previous, forgotten)

    # -- decisions ------------------------------------------------------------------------------------------------

    def accept(self, step: int, *, by: str, reason: str) -> None:
        """Make the model of a rejected step current.

        Args:
            by, reason: who decided it, and why; both are kept in the events.

        Raises:
            ExpungeError: when the step was not rejected, or did not begin with the current model.
        """
        with self._deciding():
            history = self.history
            if history.status.get(step) != "rejected":
                raise ExpungeError(f"{self._called(step)}, not rejected: there is nothing to accept.")
            record = read_record(self.directory.step(step).record)
            weights = self.current_weights
            if record.previous != (digest_file(weights) if weights else self.config.model.digest):
                raise ExpungeError(
                    f"Step {step} began with another model than the current one, so accepting it would undo what came "
                    "since. Request its concepts again."
                )
            check_weights(self.directory, step)
            self._decided("accepted", step=step, record=history.records[step], by=by, reason=reason)
            self._write_summary()

    def rollback(self, step: int, *, by: str, reason: str = "") -> None:
        """Make the model of an accepted step current again (0: the base model). Accepted steps after it become withdrawn.

        Raises:
            ExpungeError: when the step is not an accepted one.
        """
        with self._deciding():
            if step and self.history.status.get(step) != "accepted":
                raise ExpungeError(f"{self._called(step)}, not accepted: its model cannot be made current.")
            check_weights(self.directory, step)
            self._decided("rolled back", to=step, by=by, reason=reason)
            self._write_summary()

    def withdraw(self, step: int, *, by: str, reason: str = "") -> None:
        """Take the request of a step back. Accepted steps after it are open again, and `serve` serves them without it.

        Raises:
            ExpungeError: when there is no such request, or it is withdrawn already.
        """
        with self._deciding():
            if step not in {r.step for r in self.requests} or self.history.status.get(step) == "withdrawn":
                raise ExpungeError(f"{self._called(step)}: there is nothing to withdraw.")
            if step in (accepted := self.history.accepted):
                check_weights(self.directory, max((i for i in accepted if i < step), default=0))
            self._decided("withdrawn", step=step, by=by, reason=reason)
            self._write_summary()

    def _decided(self, event: str, **details: Any) -> None:
        """A decision that may end work in the middle, of which what it painted stays."""
        painted = self.directory.newly_remembered()
        self.directory.add_event(event, **details, **({"memory": painted} if painted else {}))

    @contextmanager
    def _deciding(self) -> Iterator[None]:
        """Hold the run, whose summary can be written afterwards."""
        with self.directory.locked():
            check_events(self.directory)
            check_requests(self.directory)
            check_measured(self.directory)
            self.directory.forget_damaged()
            yield

    def _called(self, step: int) -> str:
        """What a step is, as the start of a sentence."""
        known = {r.step for r in self.requests}
        if step not in known:
            return f"{self.directory.path} has no step {step} (it has {len(known)} requests)"
        return f"Step {step} is {self.history.status.get(step, 'open')}"

    @property
    def _known(self) -> list[Concept]:
        """All concepts that the run was ever asked to forget, each as it was last asked for."""
        return list({c.name: c for r in self.requests for c in r.concepts}.values())

    def _workshop(self, progress: ProgressCallback, team: Team, batch: int | None = None) -> Workshop:
        progress(Progress(0, "load", 0, 1))
        backbone = self._load()
        return Workshop(
            directory=self.directory,
            config=self.config.at_most(batch) if batch else self.config,
            backbone=backbone,
            stored=backbones.stored_denoiser(self._folder),
            source=self.source,
            protocol=self.protocol.at_most(batch) if batch else self.protocol,
            judge=judge_called(self.protocol.judge),
            progress=progress,
            team=team,
        )

    # -- outcome --------------------------------------------------------------------------------------------------

    @property
    def current_weights(self) -> Path | None:
        """The weights file of the last accepted step; None while the model is still M(0)."""
        accepted = self.history.accepted
        return self.directory.step(accepted[-1]).weights if accepted else None

    def backbone(self) -> Backbone:
        """The current model, loaded."""
        backbone = self._load()
        if weights := self.current_weights:
            changed = {n: v.float() for n, v in load_tensors(weights).items()}
            backbone.denoiser.load_state_dict(changed, strict=False)
        return backbone

    def export(self, folder: str | Path, *, redacted: bool = True) -> Path:
        """Write the current model as a Diffusers folder that loads without Expunge, with a model card; the folder.

        An earlier export in its place is replaced, and is whole until then.

        Args:
            redacted: the card calls persons by their request, and says nothing that names one.

        Raises:
            ExpungeError: when no step was accepted yet, or `folder` holds something else than an export, or the
                base model.
        """
        self.directory.check()
        check_model(self.directory)
        # One look, before minutes of copying: another process may go on serving meanwhile.
        accepted, requests = [r for r in self.records if r.status == "accepted"], self.requests
        if not accepted:
            raise ExpungeError("No step was accepted yet, so there is nothing to export.")
        current = self.directory.step(accepted[-1].index)
        weights, judged = load_tensors(current.weights), read_table(current.judgements)
        self._check_model()
        target = Path(folder).resolve()  # where it is a link, what it leads to is replaced
        if target == self._folder.resolve():
            raise ExpungeError(
                f"{folder} is the base model of this run, which every step needs. Choose another folder."
            )
        check_replaceable(target)
        with replacing_folder(target) as new:
            backbones.copy_pipeline(self._folder, new)
            backbones.replace_denoiser(new, weights)
            self.directory.add_event("exported", model=backbones.model_digest(new))
            names = Names(requests, prompted(self.protocol, self.source)) if redacted else Names(())
            write_text(new / "README.md", self._card(accepted, requests, judged, names))
            mark(new)
        return Path(folder)

    def _card(
        self, accepted: Sequence[StepRecord], requests: Sequence[Request], judged: pd.DataFrame, names: Names
    ) -> str:
        """The model card of the model that the steps `accepted` led to, with the head of the events as they now stand.

        Args:
            judged: judgements of that model.
        """
        served = [r for r in requests if r.id in {record.request for record in accepted}]
        return model_card(
            self.config,
            self.summary().model,
            self.protocol.name,
            served,
            accepted,
            {c.name: metrics.unlearning_accuracy(judged, c.name) for r in served for c in r.concepts},
            {r.request for r in accepted if not gate.passed(self.config.gate, r.gate)},
            names,
            self.directory.head,
        )

    def summary(self) -> Summary:
        """What `summary.json` holds.

        Raises:
            ExpungeError: before the first step is finished.
        """
        if not self.directory.summary.exists():
            if self.records:  # a process was killed between the event of the first step and this file
                raise ExpungeError(f"{self.directory.summary} is missing. `expunge resume` writes it anew.")
            raise ExpungeError(f"{self.directory.path} has no finished step yet. `expunge resume` serves its requests.")
        return validated(Summary, read_json(self.directory.summary), str(self.directory.summary))

    def _write_summary(self) -> None:
        records = self.records
        if not records:
            return
        source = self.config.model.source
        summary = summarise(
            ModelSummary(source=source, name=model_name(source, self._folder), digest=self.config.model.digest),
            self.requests,
            [(r, read_table(self.directory.step(r.index).judgements)) for r in records],
            read_table(self.directory.base_judgements),
        )
        write_json(self.directory.summary, summary.model_dump(mode="json", by_alias=True))

    # -- parts ----------------------------------------------------------------------------------------------------

    @cached_property
    def source(self) -> PromptSource:
        return prompt_source(self.config.prompts)

    @cached_property
    def protocol(self) -> Protocol:
        return read_protocol(self.config.evaluate.protocol)

    @cached_property
    def _folder(self) -> Path:
        return model_folder(self.config.model.source)

    def _load(self) -> Backbone:
        self._check_model()
        with whole("loading the model"):
            return backbones.load(self._folder).to(processes().device)

    def _check_unchanged(self) -> None:
        """Whether what will be painted is what the base model was judged by, and the code of one's own is what it was."""
        created = self.directory.events()[0]
        code = self.config.own_code
        if edited := [file for file, digest in code.items() if created.get("code", code).get(file) != digest]:
            raise ExpungeError(
                f"{edited[0]} is not the code that this run was made with, so that its steps would not be of one method. Put "
                "it back as it was, or make a new run with it."
            )
        self.config.build_method()  # which may need what was installed once, and is not here
        self.config.build_constraints()
        if created.get("protocol", self.protocol.digest) != self.protocol.digest:
            raise ExpungeError(
                f"The protocol {self.config.evaluate.protocol} is not what this run was made with, so that models would be "
                "compared by other pictures than those before. Put it back as it was, or make a new run with it."
            )
        judge = judge_called(self.protocol.judge).digest
        if created.get("judge", judge) != judge:
            raise ExpungeError(
                f"The judge {self.protocol.judge} is not the one that this run was made with, so models would be compared by "
                "other eyes than those before. Put its files back as they were, or make a new run with it."
            )
        check_rows(self.directory, protocol_rows(self.protocol, self.source, self._known))

    def _check_model(self) -> None:
        digest = backbones.model_digest(self._folder)
        if digest != self.config.model.digest:
            raise ExpungeError(
                f"{self._folder} is not the model that this run began with (its digest is {digest}, the run's is "
                f"{self.config.model.digest}). Restore that model, or start a new run."
            )


def paint_one(model: str, prompt: str, *, seed: int, steps: int, guidance: float) -> Image.Image:
    """One picture from a run's current model, a built-in model, a folder or a hub id, with the pipeline's own solver."""
    folder = Path(model)
    given = {"solver": "default", "steps": steps, "guidance": guidance}
    sampler = validated(SamplerConfig, given, "What was asked for")
    with room_for("this model and one picture of it"):
        if (folder / "run.toml").exists():
            backbone = Run(folder).backbone()
        else:
            backbone = backbones.load(model_folder(model)).to(processes().device)
        return Image.fromarray(pixels(paint(backbone, backbone.denoiser, [prompt], [seed], sampler))[0])
