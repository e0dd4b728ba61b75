"""`run.toml`: everything that decides what a run does, frozen when the run is made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import Discriminator, Field, Tag, ValidationError, ValidationInfo, field_validator, model_validator

from expunge import iconworld, reference, seeds
from expunge.constraints import CONSTRAINTS, Constraint
from expunge.engine import TrainConfig
from expunge.errors import ExpungeError, quoted, suggestion
from expunge.files import digest_file
from expunge.hardware import Precision, settled
from expunge.methods import METHODS, GradientMethod
from expunge.prompts import FolderConfig, LlmConfig, VocabularyConfig
from expunge.replay import ReplayConfig
from expunge.schema import Strict, from_anywhere, parse_toml, read_text, read_toml, validated
from expunge.stream.own import named_class, own_file, whole_name

DEFAULT_PRESET = "anchored-iconworld"
_FROZEN = "a run's own file"
PRESETS = {path.stem: path for path in sorted((Path(__file__).parent.parent / "presets").glob("*.toml"))}


class TomlConfig(Strict):
    """A configuration that is kept as a TOML file."""

    def to_data(self) -> dict[str, Any]:
        # TOML has no null: what is absent is off.
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def to_toml(self) -> str:
        return tomli_w.dumps(self.to_data())

    @classmethod
    def read(cls, path: Path) -> Self:
        return read_toml(cls, path, str(path))

    @classmethod
    def from_data(cls, data: Mapping[str, Any], where: str) -> Self:
        return validated(cls, data, where)


class ModelConfig(Strict):
    """
    Attributes:
        source: a built-in name, a folder or a hub id.
        digest: of the model's files; filled in when the run is made, and checked ever after.
    """

    source: str = "iconworld"
    digest: str = ""

    @field_validator("source")
    @classmethod
    def _folder(cls, source: str) -> str:
        built_in = iconworld.model_folder(source)
        return from_anywhere(source) if not built_in and Path(source).expanduser().exists() else source


def _prompt_source(section: Any) -> Any:
    return section.get("source", "vocabulary") if isinstance(section, dict) else getattr(section, "source", None)


PromptsConfig = Annotated[
    Annotated[VocabularyConfig, Tag("vocabulary")]
    | Annotated[FolderConfig, Tag("folder")]
    | Annotated[LlmConfig, Tag("llm")],
    Discriminator(
        _prompt_source,
        custom_error_type="prompt_source",
        custom_error_message="a source of prompts is 'vocabulary', 'folder' or 'llm'",
    ),
]
"""Where prompts come from; each source has its own fields."""


class EvaluateConfig(Strict):
    """
    Attributes:
        protocol: a protocol file, or the name of a built-in one.
        precision: arithmetic in which pictures are painted; "auto" is settled when the run is made.
    """

    protocol: str = "iconworld-demo"
    precision: Precision = "fp32"

    @field_validator("protocol")
    @classmethod
    def _file(cls, name: str) -> str:
        return from_anywhere(name) if name.endswith(".toml") else name


class GateConfig(Strict):
    """What a step must reach before its model replaces the previous one (docs/runs.md says why these defaults).

    Attributes:
        forget: least unlearning accuracy, for every concept forgotten so far.
        max_ira_drop: most that IRA, the retain accuracy on neighbours, may lie below the base model's, at the end of the 95 %
            interval that is worse.
        max_cra_drop: the same for CRA, the retain accuracy on the rest.
        max_context_drop: most that context may lie below the base model's.
        max_collapsed: largest share of collapsed pictures, at the upper end of its interval.
        retries: how often a step that does not pass is trained anew, with another strength; a warm start uses it for the
            concepts alone because of which it is done.
        retry_factor: by how much the strength is multiplied where too little was forgotten, divided where too much was lost.
        enforce: false lets every step pass; what it missed is recorded all the same.
    """

    forget: float = Field(0.8, ge=0, le=1)
    max_ira_drop: float = Field(0.15, ge=0, le=1)
    max_cra_drop: float = Field(0.15, ge=0, le=1)
    max_context_drop: float = Field(0.2, ge=0, le=1)
    max_collapsed: float = Field(0.05, ge=0, le=1)
    retries: int = Field(1, ge=0, le=1)
    retry_factor: float = Field(1.5, gt=1)
    enforce: bool = True


class RunConfig(TomlConfig):
    """The whole of `run.toml`. `method` and `constraints` hold a name and the fields of what it names, all written out.

    With the engine `reference` the settings of the published loop take the place of a preset's, and are written out too.

    Attributes:
        schema: version of the format.
        seed: what every draw of the run derives from.
        keep: weights of how many accepted steps stay on disk, the latest ones; left out, all.
        model: M(0), on which requests are served.
        method: how a concept is forgotten. `name` may also be `file.py:Class`, a method of your own; left out, it is `lacu`.
        constraints: what holds the weights near earlier ones while they are trained. The list may be empty; `name` may be
            `file.py:Class` here too.
        replay: how the teacher paints what is trained on.
        train: the optimizer, and for how long.
        prompts: where prompts come from (docs/prompts.md); without a `source`, from a vocabulary.
        evaluate: what is measured after every step.
        gate: what a step must reach.
    """

    schema_: Literal[1] = Field(1, alias="schema")
    seed: int = Field(0, ge=0, lt=2**63)
    keep: int | None = Field(None, ge=1)
    model: ModelConfig = ModelConfig()
    method: dict[str, Any] = {"name": "lacu"}
    constraints: tuple[dict[str, Any], ...] = ()
    replay: ReplayConfig = ReplayConfig()
    train: TrainConfig = TrainConfig()
    prompts: PromptsConfig = VocabularyConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    gate: GateConfig = GateConfig()

    @classmethod
    def read(cls, path: Path) -> Self:
        """A `run.toml`. Code of one's own wrote its settings out when the run was made; it is not run to look at them."""
        return read_toml(cls, path, str(path), _FROZEN)

    @model_validator(mode="before")
    @classmethod
    def _written_out(cls, data: Any, info: ValidationInfo) -> Any:
        if not isinstance(data, dict):
            return data
        data = dict(data)
        train = data.get("train")
        published = isinstance(train, dict) and train.get("engine") == "reference"
        if published:
            data |= {
                name: {**section, **fields}
                for name, fields in reference.SETTINGS.items()
                if isinstance(section := data.get(name, {}), dict)
            }
        section = data.get("method", {"name": "lacu"})
        if not isinstance(section, dict) or not isinstance(name := section.get("name", "lacu"), str):
            raise ValueError('method is a table with a name, e.g. name = "lacu"')
        if not (info.context is _FROZEN and own_file(name)):
            section = {field: value for field, value in section.items() if field != "name"}
            config = method_class(name).Config
            if published:
                section |= {f: v for f, v in reference.METHOD_SETTINGS.items() if f in config.model_fields}
            data["method"] = {"name": whole_name(name), **config.model_validate(section).model_dump()}
        constraints = data.get("constraints", ())
        if not isinstance(constraints, (list, tuple)) or not all(isinstance(c, dict) for c in constraints):
            raise ValueError(
                "constraints is a list of tables; change it in a preset file of your own (--preset FILE.toml)"
            )
        data["constraints"] = [
            c if info.context is _FROZEN and own_file(str(c.get("name", ""))) else _written_constraint(c)
            for c in constraints
        ]
        return data

    @model_validator(mode="after")
    def _rows_are_held_out(self) -> Self:
        if self.train.stop and self.replay.source == "trajectory":
            raise ValueError(
                'replay.source "trajectory" keeps no rows that training does not see, and train.stop needs such; '
                'use "bank" with train.stop'
            )
        return self

    @property
    def strength(self) -> float | None:
        """The method's strength; None where it has none."""
        return self.method.get("strength")

    def step_seed(self, index: int) -> int:
        """The seed of step `index`, from which all its draws derive."""
        return seeds.derive(self.seed, "step", index)

    def with_strength(self, strength: float) -> Self:
        return self.model_copy(update={"method": {**self.method, "strength": strength}})

    def takes(self, strength: float) -> bool:
        """Whether the method's own settings allow it."""
        try:
            self.with_strength(strength).build_method()
        except ValidationError:
            return False
        return True

    def at_most(self, rows: int) -> Self:
        """The same with no more than `rows` rows at once, where a batch of `train` or `replay` is larger."""
        replay = {"batch_size": min(rows, self.replay.batch_size)}
        return self.model_copy(
            update={"train": self.train.at_most(rows), "replay": self.replay.model_copy(update=replay)}
        )

    def build_method(self) -> GradientMethod[Any, Any]:
        cls = method_class(self.method["name"])
        return cls(cls.Config.model_validate({k: v for k, v in self.method.items() if k != "name"}))

    def build_constraints(self) -> list[Constraint]:
        return [_constraint(section) for section in self.constraints]

    @property
    def method_name(self) -> str:
        """Without the file that it is in: where that lay on someone's disk is nobody's business."""
        return str(self.method["name"]).rpartition(":")[2]

    @property
    def own_code(self) -> dict[str, str]:
        """{file of a method or constraint of one's own: its digest, "" where it is not there}"""
        names = (self.method["name"], *(section["name"] for section in self.constraints))
        files = {file for file in map(own_file, names) if file}
        return {str(file): digest_file(file) if file.is_file() else "" for file in sorted(files)}

    def frozen(self, model_digest: str) -> Self:
        """This configuration with all that the model and the machine decide written out: it means the same ever after."""
        return self.model_copy(
            update={
                "model": self.model.model_copy(update={"digest": model_digest}),
                "train": self.train.model_copy(update={"precision": settled(self.train.precision)}),
                "evaluate": self.evaluate.model_copy(update={"precision": settled(self.evaluate.precision)}),
            }
        )


def preset(name: str, changes: Mapping[str, Any] = {}) -> RunConfig:
    """The configuration that preset `name` (or a TOML file) gives, with `changes` laid over it, table by table."""
    path = PRESETS.get(name, Path(name))
    if not path.is_file():
        raise ExpungeError(f"There is no preset {quoted(name)}, and no file of that name. {suggestion(name, PRESETS)}")
    where = f"The preset {name}"
    return RunConfig.from_data(_merge(parse_toml(read_text(path, where), where), changes), where)


def method_class(name: str) -> type[GradientMethod[Any, Any]]:
    """The method that `name` means; raises as `named_class` does."""
    return named_class(name, METHODS, GradientMethod)


def _constraint(section: Mapping[str, Any]) -> Constraint:
    cls = named_class(str(section.get("name", "")), CONSTRAINTS, Constraint)
    return cls(cls.Config.model_validate(section))


def _written_constraint(section: Mapping[str, Any]) -> dict[str, Any]:
    fields = _constraint(section).config.model_dump()
    return {**fields, "name": whole_name(fields["name"])}


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return merged
