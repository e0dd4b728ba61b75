"""Requests one after another, on a model that stays whole."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import pandas as pd
from accelerate import PartialState
from PIL import Image

from expunge import backbones, reference
from expunge.backbones import Backbone
from expunge.concepts import Concept, Request
from expunge.errors import ExpungeError, nearest
from expunge.evaluation import Protocol, SamplerConfig, find_judge, paint
from expunge.files import load_tensors, write_json, write_text
from expunge.hardware import compute_dtype
from expunge.prompts import PromptSource
from expunge.stream.config import DEFAULT_PRESET, RunConfig, preset
from expunge.stream.directory import RunDirectory, now
from expunge.stream.named import (
    JUDGES,
    check_judged,
    check_protocol,
    check_solver,
    forgettable,
    model_folder,
    model_name,
    prompt_source,
    read_protocol,
)
from expunge.stream.step import Cost, Progress, ProgressCallback, Workshop, serve, train_alone
from expunge.stream.summary import ModelSummary, StepRecord, StepSummary, Summary, summarise_base, unlearning_row


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
        self.config = RunConfig.from_toml(self.directory.config.read_text(), str(self.directory.config))

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

        Args:
            requests: concepts to forget, one request each (or a list of concepts for one request).
            preset_name: a preset's name or a TOML file.
            changes: fields laid over the preset, by section: {"train": {"steps": 80}}.

        Raises:
            ExpungeError: when `path` is in use, or something in the configuration or the requests cannot be served.
        """
        directory = RunDirectory(Path(path))
        if directory.path.exists() and any(directory.path.iterdir()):
            raise ExpungeError(f"{path} is not empty. Choose another folder, or `expunge request {path} CONCEPT`.")
        config = preset(preset_name, changes)
        folder = model_folder(config.model.source)
        _check(config, folder)
        source = prompt_source(config.prompts)
        asked = [forgettable(source, n).name for r in requests for n in ([r] if isinstance(r, str) else r)]
        if twice := sorted({name for name in asked if asked.count(name) > 1}):
            raise ExpungeError(f"{twice[0]!r} is requested twice. One request for it is enough.")
        check_judged(read_protocol(config.evaluate.protocol), source, [source.concept(name) for name in asked], folder)
        digest = backbones.model_digest(folder)
        write_text(directory.config, config.frozen(digest).to_toml())
        run = cls(path)
        run.directory.add_event("created", model=digest)
        for names in requests:
            run.request(*([names] if isinstance(names, str) else names))
        return run

    # -- requests -------------------------------------------------------------------------------------------------

    def request(self, *names: str) -> Request:
        """Append one request for the concepts `names`; `resume` serves it, also one that is already at work.

        Raises:
            ExpungeError: for an unknown concept, or one that is already requested or forgotten.
        """
        if not names:
            raise ExpungeError("A request names at least one concept.")
        concepts = tuple(dict.fromkeys(forgettable(self.source, name) for name in names))
        check_judged(self.protocol, self.source, concepts, self._folder)
        with self.directory.appending:
            requests = self.directory.requests()
            taken = {c.name: r.id for r in requests if self._status(r) != "rejected" for c in r.concepts}
            for concept in concepts:
                if concept.name in taken:
                    raise ExpungeError(f"{concept.name!r} is already requested (request {taken[concept.name]}).")
            request = Request(id=f"{len(requests) + 1:04d}", concepts=concepts, received_at=now())
            self.directory.add_request(request)
        return request

    @property
    def requests(self) -> list[Request]:
        return self.directory.requests()

    @property
    def open_requests(self) -> list[Request]:
        return [r for r in self.requests if not self.directory.step(int(r.id)).finished]

    @property
    def records(self) -> list[StepRecord]:
        """The finished steps, in order."""
        steps = [self.directory.step(int(r.id)) for r in self.requests]
        return [StepRecord.model_validate(s.read_record()) for s in steps if s.finished]

    def _status(self, request: Request) -> str:
        step = self.directory.step(int(request.id))
        return str(step.read_record()["status"]) if step.finished else "open"

    # -- serving --------------------------------------------------------------------------------------------------

    def serve(self, progress: ProgressCallback = lambda _: None) -> Iterator[StepRecord]:
        """Serve the open requests in order, yielding each finished step. Stops after a step that the gate rejects."""
        if PartialState().num_processes > 1:
            raise ExpungeError("A run is served by one process so far. Start it without `accelerate launch`.")
        with self.directory.locked():
            if self.records:  # a process that was killed may have left the summary a step behind
                self._write_summary()
            shop: Workshop | None = None
            while todo := self.open_requests:
                shop = shop or self._workshop(progress)
                request = todo[0]
                accepted = [r for r in self.records if r.status == "accepted"]
                forgotten = [c for r in self.requests if r.id in {a.request for a in accepted} for c in r.concepts]
                level = "between" if len(todo) > 1 else "final"
                if not self.directory.step(int(request.id)).path.exists():
                    self.directory.add_event("started", step=int(request.id))
                record = serve(shop, request, self.current_weights, forgotten, self._known, level)
                self._write_summary()
                yield record
                if record.status == "rejected":
                    return

    def resume(self, progress: ProgressCallback = lambda _: None) -> list[StepRecord]:
        """Serve all open requests (see `serve`); the steps that were finished by this call."""
        return list(self.serve(progress))

    def train(self, request: Request, previous: Path | None) -> Cost:
        """Train the step of `request` on top of the weights `previous` (None: the base model), and judge nothing: the step
        stays open. This is what `expunge bench speed` times; `serve` is what serves a request.
        """
        with self.directory.locked():
            forgotten = [c for r in self.requests if r.id < request.id for c in r.concepts]
            return train_alone(self._workshop(lambda _: None), request, previous, forgotten)

    @property
    def _known(self) -> list[Concept]:
        """All concepts that the run was ever asked to forget."""
        return list(dict.fromkeys(c for r in self.requests for c in r.concepts))

    def _workshop(self, progress: ProgressCallback) -> Workshop:
        progress(Progress(0, "load", 0, 1))
        backbone = self._load()
        if self.config.train.engine == "reference":
            reference.default_layout(backbone)
        return Workshop(
            directory=self.directory,
            config=self.config,
            backbone=backbone,
            stored=backbones.stored_denoiser(self._folder),
            source=self.source,
            protocol=self.protocol,
            judge=find_judge(self.protocol.judge, JUDGES),
            progress=progress,
        )

    # -- outcome --------------------------------------------------------------------------------------------------

    @property
    def current_weights(self) -> Path | None:
        """The weights file of the last accepted step; None while the model is still M(0)."""
        accepted = [r.index for r in self.records if r.status == "accepted"]
        return self.directory.step(accepted[-1]).weights if accepted else None

    def backbone(self) -> Backbone:
        """The current model, loaded."""
        backbone = self._load()
        if self.current_weights is not None:
            changed = {n: v.float() for n, v in load_tensors(self.current_weights).items()}
            backbone.denoiser.load_state_dict(changed, strict=False)
        return backbone

    def export(self, folder: str | Path) -> Path:
        """Write the current model as a Diffusers folder that loads without Expunge; the folder.

        Raises:
            ExpungeError: when no step was accepted yet, or `folder` exists and is not empty.
        """
        target = Path(folder)
        if self.current_weights is None:
            raise ExpungeError("No step was accepted yet, so there is nothing to export.")
        if target.exists() and any(target.iterdir()):
            raise ExpungeError(f"{target} is not empty. Choose another folder.")
        temporary = target.with_name(f".{target.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(self._folder, temporary)
        backbones.replace_denoiser(temporary, load_tensors(self.current_weights))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.rename(target)
        self.directory.add_event("exported", model=backbones.model_digest(target))
        return target

    def summary(self) -> Summary:
        """What `summary.json` holds.

        Raises:
            ExpungeError: before the first step is finished.
        """
        if not self.directory.summary.exists():
            raise ExpungeError(f"{self.directory.path} has no finished step yet. `expunge resume` serves its requests.")
        return Summary.model_validate_json(self.directory.summary.read_text())

    def _write_summary(self) -> None:
        records = self.records
        base = pd.read_parquet(self.directory.base_judgements)
        tables = [pd.read_parquet(self.directory.step(r.index).judgements) for r in records]
        names = [c.name for c in self._known]
        fields = set(StepSummary.model_fields)
        summary = Summary(
            model=ModelSummary(
                source=self.config.model.source,
                name=model_name(self.config.model.source, self._folder),
                digest=self.config.model.digest,
            ),
            requests=[[c.name for c in r.concepts] for r in self.requests],
            base=summarise_base(base, names),
            steps=[StepSummary.model_validate(r.model_dump(include=fields)) for r in records],
            concepts=names,
            ua_matrix=[unlearning_row(tables, name) for name in names],
            seconds_total=sum(r.seconds.total for r in records),
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
        digest = backbones.model_digest(self._folder)
        if digest != self.config.model.digest:
            raise ExpungeError(
                f"{self._folder} is not the model that this run began with (its digest is {digest}, the run's is "
                f"{self.config.model.digest}). Restore that model, or start a new run."
            )
        return backbones.load(self._folder).to(PartialState().device)


def _check(config: RunConfig, folder: Path) -> None:
    """All that can be known to fail before anything is loaded."""
    backbone = backbones.backbone_class(folder)
    compute_dtype(config.train.precision)
    compute_dtype(config.evaluate.precision)
    groups = ("full", *backbone.parameter_groups)
    if config.train.parameters not in groups:
        wrong = config.train.parameters
        raise ExpungeError(f"{backbone.__name__} has no parameter group {wrong!r}. {nearest(wrong, groups)}")
    check_protocol(read_protocol(config.evaluate.protocol), model_name(config.model.source, folder), backbone)
    check_solver(config.replay.solver, backbone)


def paint_one(model: str, prompt: str, *, seed: int, steps: int, guidance: float) -> Image.Image:
    """One picture from a run's current model, a built-in model, a folder or a hub id, with the pipeline's own solver."""
    folder = Path(model)
    backbone = Run(folder).backbone() if (folder / "run.toml").exists() else backbones.load(model_folder(model))
    sampler = SamplerConfig(solver="default", steps=steps, guidance=guidance)
    picture = paint(backbone, backbone.denoiser, [prompt], [seed], sampler)[0]
    return Image.fromarray((picture.permute(1, 2, 0) * 255).round().byte().numpy())
