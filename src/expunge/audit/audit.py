"""A model that any tool made, measured beside the base model that it was made from."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import pandas as pd
from pydantic import Field

from expunge import backbones
from expunge.audit.loading import fingerprints, load
from expunge.audit.paired import compare_tables
from expunge.audit.sources import Source, recognise
from expunge.audit.summary import AuditSummary, EvaluatedModel
from expunge.backbones import Backbone
from expunge.concepts import Request
from expunge.errors import ExpungeError
from expunge.evaluation import Protocol, Row, evaluate_each, metrics, protocol_rows
from expunge.files import canonical_json, digest_bytes, read_json, write_json, write_text
from expunge.hardware import Precision, compute_dtype, processes, settled
from expunge.memory import room_for
from expunge.prompts import PromptSource, VocabularyConfig
from expunge.schema import validated
from expunge.stream import Progress
from expunge.stream.config import EvaluateConfig, ModelConfig, PromptsConfig, TomlConfig
from expunge.stream.directory import in_use
from expunge.stream.drift import compare_with_base, pictured, staying, weight_drift
from expunge.stream.judged import Shelf, completed, read_table, write_images, write_table
from expunge.stream.named import (
    check_judged,
    check_protocol,
    forgettable,
    judge_called,
    model_folder,
    model_name,
    prompt_source,
    read_protocol,
)
from expunge.stream.summary import ModelSummary, measure, summarise_base


class AuditConfig(TomlConfig):
    """`audit.toml`: what is compared with what. `rows` is a digest of all that decides which rows are painted, and how."""

    schema_: Literal[1] = Field(1, alias="schema")
    base: ModelConfig
    model: ModelConfig
    evaluate: EvaluateConfig
    prompts: PromptsConfig = VocabularyConfig()
    forgotten: tuple[str, ...] = ()
    rows: str = ""


class Audit:
    """A folder in which a model is measured beside its base model.

    audit = Audit.create("audits/mine", model="fox.safetensors", base="iconworld", protocol="iconworld-demo",
                         forgotten=["fox"])
    audit.evaluate().metrics.ua
    """

    def __init__(self, path: str | Path) -> None:
        """Open an existing evaluation.

        Raises:
            ExpungeError: when `path` holds none, or its configuration cannot be used.
        """
        self.path = Path(path)
        if not (self.path / "audit.toml").is_file():
            raise ExpungeError(f"{path} holds no evaluation (no audit.toml). `expunge evaluate` makes one.")
        self.config = self._stored
        self.base, self.model = (
            Shelf(self.path / name / "judgements.parquet", self.path / name / "images") for name in ("base", "model")
        )
        self.report = self.path / "report.html"
        self._summary = self.path / "summary.json"

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        model: str,
        base: str,
        protocol: str,
        forgotten: Sequence[str] = (),
        changes: Mapping[str, Any] = {},
    ) -> Self:
        """Check everything that can be checked without reading weights, then write `audit.toml` where there is none.

        Where `path` holds an evaluation against the same base model under the same protocol, the base model's pictures and
        judgements there are used again. `evaluate` puts another model in the place of the one that was evaluated.

        Args:
            model: a Diffusers folder, hub id or built-in name, or a .safetensors file: an adapter, a whole model in its
                authors' layout, or tensors of the denoiser.
            base: the model that it was made from: a folder, hub id or built-in name.
            protocol: a protocol's name or file.
            forgotten: concepts that the model should not show; all that the protocol's requests name where none is given.
            changes: fields of the sections [prompts] and [evaluate] of a run's configuration, for prompts of one's own
                and another precision: {"prompts": {"vocabulary": "words.toml"}}.

        Raises:
            ExpungeError: when something is missing, unknown, pickled, or does not fit the base model.
        """
        folder = model_folder(base)
        asked = read_protocol(protocol)
        check_protocol(asked, model_name(base, folder), backbones.backbone_class(folder))
        given = {"base": {"source": base}, "model": {"source": model}}
        evaluate = {**changes.get("evaluate", {}), "protocol": protocol}
        config = AuditConfig.from_data({**changes, **given, "evaluate": evaluate}, "This evaluation")
        precision = settled(config.evaluate.precision)
        compute_dtype(precision)
        source = prompt_source(config.prompts)
        names = forgotten or [name for request in asked.requests for name in request]
        concepts = list(dict.fromkeys(forgettable(source, name) for name in names))
        for judge in (asked.judge, *asked.also):
            check_judged(asked.model_copy(update={"judge": judge}), source, concepts, folder)
        digest = recognise(model, folder).digest
        config = config.model_copy(
            update={
                "base": ModelConfig(source=base, digest=backbones.model_digest(folder)),
                "model": ModelConfig(source=model, digest=digest),
                "forgotten": tuple(c.name for c in concepts),
                "evaluate": EvaluateConfig(protocol=protocol, precision=precision),
                "rows": _rows(asked, source, precision),
            }
        )
        if _is_free(Path(path), config):
            write_text(Path(path) / "audit.toml", config.to_toml())
        audit = cls(path)
        audit.config = config
        return audit

    def evaluate(self, progress: Callable[[Progress], None] = lambda _: None) -> AuditSummary:
        """Paint and judge the protocol's rows with both models, as far as that is not done yet; what was measured.

        Raises:
            ExpungeError: when a model cannot be loaded, or is another than the one that `create` found; when memory runs out,
                or another process is at work here.
        """
        with in_use(self.path):
            return self._evaluate(progress)

    def _evaluate(self, progress: Callable[[Progress], None]) -> AuditSummary:
        progress(Progress(0, "load", 0, 1))
        base, model = self._load()
        parts = (fingerprints(base), fingerprints(model))
        stored, changed = (b.denoiser.state_dict() for b in (base, model))
        drift = weight_drift(changed, stored)
        before, *before_also = self._judged(base, self.base, "evaluate base", progress)
        self._take_place()  # not earlier: what lies there is whole until another model has loaded
        after, *after_also = self._judged(model, self.model, "evaluate", progress)
        forgotten = list(self.config.forgotten)
        image_drift = metrics.mean(after[after["role"] != "forget"], "drift")
        summary = AuditSummary(
            base_model=ModelSummary(
                source=self.config.base.source, name=self.protocol.model, digest=self.config.base.digest
            ),
            model=EvaluatedModel(
                source=self.config.model.source,
                name=self._recognised.name,
                digest=self.config.model.digest,
                kind=self._recognised.kind,
                changed=[name for name, digest in parts[0].items() if parts[1].get(name) != digest],
            ),
            protocol=self.protocol.name,
            judge=self.protocol.judge,
            forgotten=forgotten,
            base=summarise_base(before, forgotten),
            metrics=measure(before, after, forgotten, forgotten, {"image_drift": image_drift, "weight_drift": drift}),
            against_base=compare_tables(before, after, forgotten, forgotten, base=True),
            also={
                judge: compare_tables(first, second, forgotten, forgotten, base=True)
                for judge, first, second in zip(self.protocol.also, before_also, after_also, strict=True)
            },
            pictures=len(after),
        )
        write_json(self._summary, summary.model_dump(mode="json", by_alias=True))
        return summary

    def summary(self) -> AuditSummary:
        """What `summary.json` holds.

        Raises:
            ExpungeError: before `evaluate` has ended.
        """
        if not self._summary.exists() or self._stored != self.config:
            raise ExpungeError(f"{self.path} is not evaluated to the end. Run the same `expunge evaluate` again.")
        return validated(AuditSummary, read_json(self._summary), str(self._summary))

    @cached_property
    def protocol(self) -> Protocol:
        return read_protocol(self.config.evaluate.protocol)

    @cached_property
    def source(self) -> PromptSource:
        return prompt_source(self.config.prompts)

    @property
    def requests(self) -> tuple[Request, ...]:
        """What should be forgotten, as one request for each concept."""
        concepts = [self.source.concept(name) for name in self.config.forgotten]
        return tuple(Request(id=f"{i:04d}", concepts=(c,), received_at="") for i, c in enumerate(concepts, 1))

    @property
    def rows(self) -> str:
        """What `audit.toml` would say of the rows now."""
        return _rows(self.protocol, self.source, self.config.evaluate.precision)

    # -- parts ----------------------------------------------------------------------------------------------------

    @cached_property
    def _folder(self) -> Path:
        return model_folder(self.config.base.source)

    @cached_property
    def _recognised(self) -> Source:
        return recognise(self.config.model.source, self._folder)

    @property
    def _stored(self) -> AuditConfig:
        """What the results in the folder are of."""
        return AuditConfig.read(self.path / "audit.toml")

    def _take_place(self) -> None:
        """Delete what was measured of another model, or of other concepts, and is not used again."""
        before = self._stored
        if before == self.config:
            return
        for old in (self._summary, self.report):
            old.unlink(missing_ok=True)
        if before.model.digest != self.config.model.digest:
            self.model.judgements.unlink(missing_ok=True)
            shutil.rmtree(self.path / "model", ignore_errors=True)
        elif self.model.judgements.exists():
            table = read_table(self.model.judgements)
            if staying(table, before.forgotten) != staying(table, self.config.forgotten):
                table["kernel"] = math.nan  # a distance of other pictures, of which not all are there any more
                write_table(self.model.judgements, table)
        write_text(self.path / "audit.toml", self.config.to_toml())

    def _load(self) -> tuple[Backbone, Backbone]:
        for what, digest, expected in (
            (self._folder, backbones.model_digest(self._folder), self.config.base.digest),
            (self._recognised.path, self._recognised.digest, self.config.model.digest),
        ):
            if digest != expected:
                raise ExpungeError(
                    f"{what} is not what this evaluation began with (its digest is {digest}, it was {expected}). "
                    "Restore it, or evaluate anew."
                )
        with room_for("the base model and the model"):
            base = backbones.load(self._folder)
            return base, load(self._recognised, base, self._folder)

    def _judged(
        self, backbone: Backbone, shelf: Shelf, phase: str, progress: Callable[[Progress], None]
    ) -> list[pd.DataFrame]:
        """Each judge's judgements of one of the two models for all rows; those that are on disk are not made again."""
        judges = [judge_called(name) for name in (self.protocol.judge, *self.protocol.also)]
        further = shelf.further(len(judges) - 1)
        rows = protocol_rows(self.protocol, self.source, [c for q in self.requests for c in q.concepts])
        enough = None if shelf is self.base else self.protocol.enough
        if enough and shelf.judgements.exists():  # what is measured there already was painted as far as was enough
            done = read_table(shelf.judgements).set_index("row")
            measured = {row.measures for row in rows if row.id in done.index}
            rows = [row for row in rows if row.id in done.index or row.measures not in measured]

        def judge(missing: Sequence[Row]) -> pd.DataFrame:
            sampler = self.protocol.sampler
            with room_for(f"{sampler.batch_size} pictures at once", "sampler.batch_size in the protocol"):
                backbone.to(processes().device)
                (table, *others), images = evaluate_each(
                    backbone,
                    missing,
                    sampler,
                    judges,
                    lambda done, of: progress(Progress(0, phase, done, of)),
                    self.config.evaluate.precision,
                    enough,
                )
                backbone.to("cpu")
            for path, other in zip(further, others, strict=True):  # first: what the main table holds is done
                _add(path, other)
            if shelf is self.base:
                write_images(shelf.images, images, table, list(images))
            else:
                write_images(shelf.images, images, table, pictured(table))
                compare_with_base(table, images, self.base, judges[0], self.config.forgotten, sampler.batch_size)
            return table

        have = completed(shelf.judgements, rows, judge)
        painted = set(have["row"])
        wanted = [row.id for row in rows if row.id in painted]
        return [t.set_index("row").loc[wanted].reset_index() for t in (have, *map(read_table, further))]


def _rows(protocol: Protocol, source: PromptSource, precision: Precision) -> str:
    models = [judge_called(name).digest for name in (protocol.judge, *protocol.also) if ":" in name]
    return digest_bytes(canonical_json([protocol.model_dump(mode="json"), source.digest, precision, *models]).encode())


def _add(path: Path, table: pd.DataFrame) -> None:
    """Store further judgements at `path`, in the place of any of the same rows that a killed process left there."""
    if path.exists():
        have = read_table(path)
        table = pd.concat([have[~have["row"].isin(table["row"])], table], ignore_index=True)
    write_table(path, table)


def _is_free(path: Path, config: AuditConfig) -> bool:
    """Whether nothing lies in `path`; refuse what is no evaluation, or one that nothing can be used of."""
    if not path.exists() or not any(path.iterdir()):
        return True
    if not (path / "audit.toml").is_file():
        raise ExpungeError(f"{path} is not empty, and holds no evaluation. Choose another folder.")
    before = Audit(path).config
    if (before.base.digest, before.rows) != (config.base.digest, config.rows):
        raise ExpungeError(
            f"{path} holds an evaluation of another base model, or under another protocol, with other prompts or in "
            "another precision. Choose another folder."
        )
    return False
