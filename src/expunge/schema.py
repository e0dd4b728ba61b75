"""What is read from files: known fields, known schemas, and sentences for everything else."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from expunge.errors import ExpungeError, suggestion

_Model = TypeVar("_Model", bound=BaseModel)


def from_anywhere(path: str) -> str:
    """A path as it leads to the same place from every folder; "" stays."""
    return str(Path(path).expanduser().absolute()) if path else ""


OwnPath = Annotated[str, AfterValidator(from_anywhere)]
"""A file or folder that settings name, looked for from the folder in which they are first read."""


class Strict(BaseModel):
    """Settings that do not change once they are made. An unknown field is an error that offers the nearest known ones."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_field(cls, data: Any) -> Any:
        known = [field.alias or name for name, field in cls.model_fields.items()]
        for name in data if isinstance(data, Mapping) else ():
            if name not in known:
                offer = {"field": name, "offer": suggestion(name, known)}
                raise PydanticCustomError("unknown_field", "there is no field '{field}'. {offer}", offer)
        return data


class Result(BaseModel):
    """What Expunge measured or did, as it is stored. It does not change once it is made, and has no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


def validated(cls: type[_Model], data: Any, where: str, context: Any = None) -> _Model:
    """`data` as a `cls`.

    Args:
        where: what it was read from, as the start of a sentence.
        context: what the model's validators are told.

    Raises:
        ExpungeError: when a newer version of Expunge wrote it, or it does not fit.
    """
    field = cls.model_fields.get("schema_")
    written = data.get("schema") if isinstance(data, Mapping) else None
    if field and isinstance(written, int) and written > (known := max(get_args(field.annotation))):
        raise ExpungeError(
            f"{where} was written by a newer version of Expunge: it has schema {written}, and this version knows schema "
            f"{known}. Update Expunge."
        )
    try:
        return cls.model_validate(data, context=context)
    except ValidationError as error:
        raise ExpungeError(f"{where} cannot be used: {sentences(error)}") from error


def read_text(path: Path, where: str) -> str:
    """
    Raises:
        ExpungeError: when the file cannot be read, or is no UTF-8 text.
    """
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise ExpungeError(f"{where} cannot be used: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ExpungeError(f"{where} cannot be used: it is not UTF-8 text (byte {error.start}).") from error


def parse_toml(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ExpungeError(f"{where} cannot be used: it is not valid TOML ({error}).") from error


def read_toml(cls: type[_Model], path: Path, where: str, context: Any = None) -> _Model:
    """The TOML file at `path` as a `cls`; raises as `validated` does."""
    return validated(cls, parse_toml(read_text(path, where), where), where, context)


def sentences(error: ValidationError) -> str:
    """What pydantic found, in sentences."""
    found = []
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"])
        if item["type"] == "unknown_field":
            field = f"{place}.{item['ctx']['field']}".removeprefix(".")
            found.append(f"There is no field {field!r}. {item['ctx']['offer']}")
        else:
            message = item["msg"].removeprefix("Value error, ")
            found.append((f"{place}: {message}" if place else message).rstrip(".") + ".")
    return " ".join(found).replace("?.", "?")
