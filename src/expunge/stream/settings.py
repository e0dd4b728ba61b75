"""docs/settings.md: every setting of a run, read off the configs, so that the page cannot go stale.

python -m expunge.stream.settings > docs/settings.md
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from expunge.constraints import CONSTRAINTS
from expunge.methods import METHODS
from expunge.schema import Strict
from expunge.stream.config import PRESETS, PromptsConfig, RunConfig, preset

HEAD = """\
<!-- Made by `python -m expunge.stream.settings > docs/settings.md` from the docstrings of the configs: change those. -->

# Settings

What a run does is decided by one configuration, and this page lists all of its fields. They are given when the run is made:

    expunge run RUN CONCEPT...                             the default preset, anchored-iconworld
    expunge run RUN CONCEPT... --preset lacu-iconworld     another one
    expunge run RUN CONCEPT... --preset my-preset.toml     a file of your own
    expunge run RUN CONCEPT... --set train.steps=80        a field, in place of the preset's (repeatable)

- **A preset** is a TOML file of the tables below. A field that it leaves out has the default that stands here, not that of
  another preset: to vary a built-in one, copy its file from `src/expunge/presets`.
- **`--set SECTION.FIELD=VALUE`** takes TOML; a bare word is text. `seed` and `keep` stand in no section: `--set seed=1`. A
  table in a section is one value, and changes the fields that it names: `--set "train.lora={rank = 8}"`. Two things need a
  file of your own: `constraints`, and another method, which has other fields.
- **`--model X`** is short for `--set model.source=X`, and **`--protocol X`** for `--set evaluate.protocol=X`.
- **`run.toml`** is no input. Expunge writes it into the run, with every field and all that the machine decided, and from then
  on it is frozen: one that was written or changed by hand is refused ([runs.md](runs.md)).

From Python it is `expunge.Run.create(..., preset_name="lacu-iconworld", changes={"train": {"steps": 80}})`.

## Presets"""

PRESETS_NOTE = """\
UA is the least unlearning accuracy that the [gate](#gate) asks for; an open gate records and lets pass. The presets for Stable
Diffusion name no protocol of their own: give one that measures your model ([protocol.md](protocol.md))."""


@dataclass(frozen=True)
class Section:
    """A table of `run.toml`.

    Attributes:
        configs: {name: what may stand there}; a single one, without a name, where there is no choice.
        chosen_by: the field that holds the name.
    """

    configs: Mapping[str, type[Strict]]
    chosen_by: str = ""


def sections() -> dict[str, Section]:
    """{its place, e.g. "train.stop": every table}, the whole of `run.toml` at "" first."""
    return _from("", Section({"": RunConfig}))


def properties(config: type[Strict]) -> dict[str, Any]:
    """{field: its JSON Schema}"""
    return config.model_json_schema()["properties"]


def meanings(config: type[Strict]) -> dict[str, str]:
    """{field: what the docstrings say of it}, the config's own fields before those of the configs that it extends."""
    found: dict[str, str] = {}
    for each in config.__mro__:
        if issubclass(each, Strict):
            for name, text in re.findall(r"^    (\w+): (.*(?:\n     .*)*)", _docstring(each)[1], re.MULTILINE):
                found.setdefault(name, text)
    return found


def purpose(config: type[Strict]) -> str:
    """What the config's own docstring says before it comes to the fields."""
    return _docstring(config)[0].strip()


def page() -> str:
    found = sections()
    parts = [HEAD, _presets(), PRESETS_NOTE]
    for place, section in found.items():
        parts += [f"## {place or 'Top level'}", *_introduction(section), *_fields(place, section, found)]
    return "\n\n".join(parts) + "\n"


def _from(place: str, section: Section) -> dict[str, Section]:
    found = {place: section}
    for config in section.configs.values():
        for name, field in config.model_fields.items():
            inner = _inside(place, name)
            if inner in _CHOICES:
                found |= _from(inner, _CHOICES[inner])
            else:
                for table in _configs_in(field.annotation):
                    found |= _from(inner, Section({"": table}))
    return found


def _inside(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _configs_in(annotation: Any) -> Iterator[type[Strict]]:
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        yield annotation
    for part in get_args(annotation):
        yield from _configs_in(part)


_CHOICES = {
    "method": Section({name: method.Config for name, method in METHODS.items()}, "name"),
    "constraints": Section({name: constraint.Config for name, constraint in CONSTRAINTS.items()}, "name"),
    "prompts": Section(
        {config.model_fields["source"].default: config for config in _configs_in(PromptsConfig)}, "source"
    ),
}
"""{place: what may stand there}"""


def _docstring(config: type[Strict]) -> tuple[str, str]:
    """What it says of the config, and of the fields."""
    purpose, _, fields = inspect.cleandoc(config.__doc__ or "").partition("Attributes:\n")
    return purpose, fields


def _presets() -> str:
    lines = ["| preset | for | model | runs on | gate |", "|---|---|---|---|---|"]
    for name, path in PRESETS.items():
        config, title = preset(name), path.read_text("utf-8").splitlines()[0].removeprefix("# ").rstrip(".")
        machine = "CUDA" if config.train.precision == "fp16" else "CPU or CUDA"
        gate = f"UA {config.gate.forget}" if config.gate.enforce else "open"
        lines.append(f"| `{name}` | {_linked(title)} | `{config.model.source}` | {machine} | {gate} |")
    return "\n".join(lines)


def _introduction(section: Section) -> list[str]:
    """Paragraphs, the last of which may be a list."""
    if not section.chosen_by:
        return [_wrapped(text) for config in section.configs.values() for text in purpose(config).split("\n\n") if text]
    choices = [_wrapped(f'- `"{name}"`: {purpose(config)}') for name, config in section.configs.items()]
    return [f"`{section.chosen_by}` is one of", "\n".join(choices)]


def _fields(place: str, section: Section, tables: Collection[str]) -> Iterator[str]:
    """Lists: the fields that all configs have, then those that some have."""
    known = {name: properties(config) for name, config in section.configs.items()}
    texts: dict[str, str] = {}
    for config in section.configs.values():
        texts |= {field: text for field, text in meanings(config).items() if field not in texts}
    lists: dict[tuple[str, ...], list[str]] = {}
    for field, text in texts.items():
        schemas = {name: fields[field] for name, fields in known.items() if field in fields}
        kind = " or ".join(dict.fromkeys(_kind(schema) for schema in schemas.values()))
        if (inner := _inside(place, field)) in tables:
            kind = f"[{kind}](#{inner.replace('.', '')})"
        facts = "; ".join(filter(None, [kind, _default(schemas)]))
        lists.setdefault(tuple(schemas), []).append(_wrapped(f"- `{field}` ({facts}): {text}"))
    for names in sorted(lists, key=lambda names: len(names) < len(known)):
        if section.chosen_by:
            yield f"Only with {_listed(names, 'and')}:" if len(names) < len(known) else "With each:"
        yield "\n".join(lists[names])


def _kind(schema: Mapping[str, Any]) -> str:
    """What a value is, in words."""
    match schema:
        case {"$ref": _}:
            return "table"
        case {"const": value}:
            return f"`{json.dumps(value)}`"
        case {"enum": values}:
            return _listed([json.dumps(value) for value in values], "or")
        case {"anyOf": options} | {"oneOf": options}:
            return " or ".join(dict.fromkeys(_kind(option) for option in options if option != {"type": "null"}))
        case {"prefixItems": items}:
            return f"list of {len(items)}: {_kind(items[0])}"
        case {"items": item}:
            return f"list of {_kind(item)}s"
        case {"additionalProperties": {"type": "string"}}:
            return "table of text"
        case _:
            limits = [text.format(schema[name]) for name, text in _LIMITS.items() if name in schema]
            return ", ".join([_KINDS[schema["type"]], *limits])


_KINDS = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false", "object": "table"}
_LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "minLength": "length at least {}",
    "pattern": "matching `{}`",
}


def _default(schemas: Mapping[str, Mapping[str, Any]]) -> str:
    """A field's default in the first of the configs that have it, and in those where it is another."""
    names: dict[str, list[str]] = {}
    for name, schema in schemas.items():
        match schema:
            case {"default": None}:
                said = "optional"
            case {"default": {**fields}} if fields:
                said = ""  # a table: its own section says it
            case {"default": value}:
                said = f"`{json.dumps(value)}`"
            case _:
                said = "required"
        names.setdefault(said, []).append(name)
    first, *others = names
    first = f"default {first}" if first.startswith("`") else first
    return ", ".join([first, *(f"{other} with {_listed(names[other], 'and')}" for other in others)])


def _listed(texts: Sequence[str], last: str) -> str:
    *most, final = (f"`{text}`" for text in texts)
    return f"{', '.join(most)} {last} {final}" if most else final


def _linked(text: str) -> str:
    return re.sub(r"docs/(\w+\.md)", r"[\1](\1)", text)


def _wrapped(text: str) -> str:
    """A paragraph or an item of a list, in lines that can be read."""
    flowing = " ".join(_linked(text).split())
    hanging = "  " if text.startswith("- ") else ""
    return textwrap.fill(flowing, width=124, subsequent_indent=hanging, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    print(page(), end="")
