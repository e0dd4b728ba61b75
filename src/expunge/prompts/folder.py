"""Prompts from a folder in the format that LACU was published with; one folder for each concept.

    FOLDER/golf_ball/train.csv             id,prompt: forget prompts
    FOLDER/golf_ball/val.csv               id,prompt: evaluation prompts
    FOLDER/golf_ball/candidates_clip.json  mapping candidates of each forget prompt, paired by id
    FOLDER/golf_ball/related_concepts.txt  neighbours, one a line
    FOLDER/golf_ball/related_score.txt     retain prompts, one a line
    FOLDER/eval.csv                        concept,prompt: evaluation prompts of concepts that stay

A prompt that leaks (shows a concept where it must not, or fails to show it where it must) is left out and named; prompts
that are not paired stop the reading, since a wrong pair is a wrong target.

Source: the format of github.com/SonyResearch/LACU.
"""

from __future__ import annotations

import csv
import itertools
import json
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NoReturn

from expunge.concepts import Concept, mentions, words
from expunge.errors import ExpungeError, Notice, quoted, suggestion
from expunge.files import canonical_json, digest_bytes, digest_folder
from expunge.prompts.base import Candidate, ForgetPrompt, ScenePrompt
from expunge.prompts.deck import Deck
from expunge.prompts.known import KnownConcepts, slot_of
from expunge.schema import OwnPath, Strict

_NAMED = 8
"""Names that a notice lists at most."""


class FolderConfig(Strict):
    """Prompts from a folder in the format that LACU was published with.

    Attributes:
        folder: where the prompts lie.
        concepts: a file of kinds, aliases and confusables, or "" for none.
    """

    source: Literal["folder"] = "folder"
    folder: OwnPath
    concepts: OwnPath = ""


@dataclass(frozen=True)
class Line:
    """A text with the line of the file that it stands in, from 1."""

    text: str
    file: Path
    number: int

    def __str__(self) -> str:
        return f"{self.file}:{self.number}: {self.text!r}"


@dataclass(frozen=True)
class ConceptFolder:
    """What was read for one concept. `leaks` are sentences on the prompts that were left out, `bare` the neighbours that have
    none."""

    concept: Concept
    forget: tuple[ForgetPrompt, ...]
    retain: Mapping[str, tuple[str, ...]]
    evaluation: tuple[str, ...]
    leaks: tuple[str, ...]
    bare: tuple[str, ...]


class PromptFolder:
    """A `PromptSource`."""

    def __init__(self, folder: Path, known: KnownConcepts | None = None) -> None:
        """Read and check all of it.

        Raises:
            ExpungeError: when a file is missing or unreadable, or forget prompts and candidates are not paired.
        """
        self._folder, self._known = folder, known or KnownConcepts()
        places = sorted(p.parent for p in folder.glob("*/train.csv"))
        if not places:
            raise ExpungeError(f"{folder} holds no prompts: no folder in it has a train.csv (see docs/prompts.md).")
        own = {place: [*_prompts(place / "val.csv", "id").values()] for place in places}
        rows = [*_rows(folder / "eval.csv", "concept")] if (folder / "eval.csv").exists() else []
        lines = [*itertools.chain(*own.values()), *(line for _, line in rows)]
        evaluated = {tuple(words(line.text)): line for line in lines}
        self.read = [
            _read(place, self._known.concept(place.name.replace("_", " ")), own[place], evaluated) for place in places
        ]
        self._measured = _measured(rows, self._known)
        notes = ["These prompts are left out:", *self.leaks] if self.leaks else []
        if bare := [
            f"{place.name}: {_some(one.bare)}" for place, one in zip(places, self.read, strict=True) if one.bare
        ]:
            notes += [
                "These related concepts have no prompt in related_score.txt, and are no neighbours for that:",
                *bare,
            ]
        if notes:
            warnings.warn("\n".join(notes), Notice, stacklevel=2)

    @property
    def leaks(self) -> list[str]:
        """A sentence on each prompt that was left out, with its file and line."""
        return [leak for one in self.read for leak in one.leaks]

    @cached_property
    def digest(self) -> str:
        files = digest_folder(self._folder, (".csv", ".json", ".txt"))
        known = self._known.model_dump(mode="json", by_alias=True)
        return digest_bytes(canonical_json([files, known]).encode())

    @property
    def persons(self) -> list[Concept]:
        return self._known.persons

    def concept(self, name: str) -> Concept:
        wanted = self._known.concept(name)
        of_folders = [one.concept for one in self.read]
        for concept in (*of_folders, *(self._known.concept(n) for n in self._measured)):
            if words(wanted.name) in [words(n) for n in concept.names]:
                return concept
        names = [*(c.name for c in of_folders), *self._measured]
        raise ExpungeError(f"{self._folder} has no prompts for {quoted(name)}. {suggestion(name, names)}")

    def related(self, concept: Concept) -> list[str]:
        one = self._of(concept)
        for what, prompts in (("forget", one.forget), ("retain", one.retain)):
            if not prompts:
                raise ExpungeError(
                    "\n".join([f"{self._folder} has no {what} prompt for {concept.name!r}.", *one.leaks])
                )
        return list(one.retain)

    def alternatives(self, concept: Concept) -> list[str]:
        return [name for one in self.read if one.concept.name == concept.name for name in one.retain]

    def unrelated(self, concept: Concept) -> list[str]:
        own = {" ".join(words(n)) for n in self.related(concept)}
        names = dict.fromkeys(n for one in self.read for n in one.retain)
        return [n for n in names if " ".join(words(n)) not in own and not mentions(n, concept)]

    def check_replacement(self, concept: Concept, replacement: str) -> None:
        found = [c.replacement for p in self._of(concept).forget for c in p.candidates if c.replacement is not None]
        if not any(words(name) == words(replacement) for name in found):
            raise ExpungeError(
                f"No mapping candidate of {concept.name!r} in {self._folder} has {replacement!r} in its place. "
                f'{suggestion(replacement, dict.fromkeys(found))} Or choose the mapping "score", "contextual" or "null".'
            )

    def forget_prompts(
        self, concept: Concept, replacements: Sequence[str], count: int, seed: int, avoid: frozenset[str]
    ) -> list[ForgetPrompt]:
        prompts = []
        for prompt in self._of(concept).forget:
            allowed = set(self._known.free_of((c.prompt for c in prompt.candidates), avoid))
            candidates = tuple(c for c in prompt.candidates if c.prompt in allowed)
            usable = candidates or not replacements
            if usable and self._known.free_of([prompt.prompt], avoid, concept.names):
                prompts.append(ForgetPrompt(prompt.id, prompt.prompt, candidates))
        if not prompts:
            raise ExpungeError(f"Every forget prompt of {concept.name!r} speaks of a concept that is off limits.")
        return random.Random(f"{seed}/{concept.name}").sample(prompts, min(count, len(prompts)))

    def retain_prompts(self, names: Sequence[str], count: int, seed: int, avoid: frozenset[str]) -> list[str]:
        rng = random.Random(f"{seed}/retain")
        decks = []
        for name in (n for n in names if n not in avoid):
            found = dict.fromkeys(p for one in self.read for p in one.retain.get(name, ()))
            if allowed := self._known.free_of(found, avoid):
                decks.append(Deck(allowed, rng))
        if not decks:
            raise ExpungeError("No retain prompt is left: every one speaks of a concept that is forgotten or held out.")
        return [decks[i % len(decks)].draw() for i in range(count)]

    def evaluation_prompts(
        self, concept: Concept, count: int, seed: int, avoid: frozenset[str], scenes: Mapping[str, Sequence[str]]
    ) -> list[ScenePrompt]:
        own = [one.evaluation for one in self.read if one.concept.name == concept.name]
        prompts = own[0] if own else self._measured[concept.name]
        allowed = self._known.free_of(prompts, avoid, concept.names)
        if len(allowed) < count:
            raise ExpungeError(
                f"{self._folder} has {len(allowed)} evaluation prompts for {concept.name!r}, not {count}. Lower the "
                "protocol's counts, or raise its seeds_per_prompt."
            )
        drawn = random.Random(f"{seed}/{concept.name}").sample(allowed, count)
        return [ScenePrompt(prompt, {slot_of(concept): concept.name}) for prompt in drawn]

    def _of(self, concept: Concept) -> ConceptFolder:
        for one in self.read:
            if one.concept.name == concept.name:
                return one
        raise ExpungeError(
            f"{self._folder} can measure {concept.name!r} (eval.csv) but not forget it: it has no folder of its own."
        )


def _read(
    place: Path, concept: Concept, own: Sequence[Line], evaluated: Mapping[tuple[str, ...], Line]
) -> ConceptFolder:
    """
    Args:
        own: the concept's evaluation prompts.
        evaluated: {words of an evaluation prompt of any concept: where it stands}.
    """
    leaks: list[str] = []

    def trained(line: Line, shows: bool) -> bool:
        """Whether the line speaks of the concept exactly if it should, and nothing is measured with it."""
        if twin := evaluated.get(tuple(words(line.text))):
            leaks.append(f"{line} is an evaluation prompt too ({twin.file.name}:{twin.number}).")
            return False
        return kept(line, shows)

    def kept(line: Line, shows: bool) -> bool:
        found = mentions(line.text, concept)
        if shows and found is None:
            leaks.append(f"{line} does not speak of {concept.name!r}.")
        if not shows and found is not None:
            leaks.append(f"{line} leaks {found!r}.")
        return (found is not None) == shows

    forget = _prompts(place / "train.csv", "id")
    evaluation = [line for line in own if kept(line, shows=True)]
    pairs = []
    for id, candidates in _candidates(place / "candidates_clip.json", forget).items():
        left = [candidate for line, candidate in candidates if trained(line, shows=False)]
        if trained(forget[id], shows=True):
            if not left:
                leaks.append(f"{forget[id]} has no mapping candidate left.")
            else:
                pairs.append(ForgetPrompt(id, forget[id].text, tuple(left)))
    related = [line for line in _lines(place / "related_concepts.txt") if kept(line, shows=False)]
    retain = [line for line in _lines(place / "related_score.txt") if trained(line, shows=False)]
    found = _by_neighbour([line.text for line in related], [line.text for line in retain])
    return ConceptFolder(
        concept=concept,
        forget=tuple(pairs),
        retain={name: own for name, own in found.items() if own},
        evaluation=tuple(line.text for line in evaluation),
        leaks=tuple(leaks),
        bare=tuple(name for name, own in found.items() if not own),
    )


def _by_neighbour(names: Sequence[str], prompts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The prompts of each neighbour, in the order of `names`.

    The file groups prompts by neighbour and does not say which. A prompt belongs to the neighbours that it names, and one
    that names none belongs to that of the prompt before it (at the top of the file: after it).
    """
    neighbours = [Concept(name=name) for name in dict.fromkeys(names)]
    named = [[c.name for c in neighbours if mentions(prompt, c)] for prompt in prompts]
    current = next((n for n in named if n), [c.name for c in neighbours[:1]])
    found: dict[str, list[str]] = {c.name: [] for c in neighbours}
    for prompt, own in zip(prompts, named, strict=True):
        current = own or current
        for name in current:
            found[name].append(prompt)
    return {name: tuple(own) for name, own in found.items()}


def _some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _candidates(file: Path, forget: Mapping[str, Line]) -> dict[str, list[tuple[Line, Candidate]]]:
    """The candidates of each forget prompt, by its id."""
    found: dict[str, list[tuple[Line, Candidate]]] = {}
    wrong: list[str] = []
    for start, end, text, entry in _entries(file):
        number = _number(text, start)
        try:
            id, source = str(entry["id"]), entry["source"].strip()
            candidates = [(c["prompt"].strip(), c["mapping_type"], c["replacement"]) for c in entry["candidates"]]
        except (KeyError, TypeError, AttributeError):
            _refuse(file, number, "needs an id, a source and candidates (prompt, mapping_type, replacement)")
        if id in found:
            wrong.append(f"{file}:{number}: the id {id!r} stands here a second time.")
        elif id not in forget:
            wrong.append(f"{file}:{number}: train.csv has no prompt with the id {id!r}.")
        elif source != forget[id].text:
            wrong.append(f"{file}:{number}: {source!r} is not the prompt with the id {id!r}, which is {forget[id]}.")
        found[id] = []
        for prompt, mapping_type, replacement in candidates:
            if prompt:  # the published generator leaves a blank where it had no answer
                place = max(text.find(json.dumps(prompt, ensure_ascii=ascii), start, end) for ascii in (False, True))
                line = Line(prompt, file, _number(text, place) if place >= 0 else number)
                found[id].append((line, Candidate(prompt, None if mapping_type == "remove" else str(replacement))))
    wrong += [f"{line} (id {id!r}) has no candidates in {file.name}." for id, line in forget.items() if id not in found]
    if wrong:
        raise ExpungeError("Forget prompts and mapping candidates are not paired.\n" + "\n".join(wrong))
    return found


def _entries(file: Path) -> Iterator[tuple[int, int, str, Any]]:
    """The entries of a JSON list, with where each begins and ends in the text."""
    text, decoder = _text(file), json.JSONDecoder()
    try:
        if not isinstance(json.loads(text), list):
            _refuse(file, 1, "is not a list")
    except json.JSONDecodeError as error:
        _refuse(file, error.lineno, f"is not JSON ({error.msg})")
    place = text.index("[") + 1
    while True:
        while text[place] in " \t\r\n,":
            place += 1
        if text[place] == "]":
            return
        entry, end = decoder.raw_decode(text, place)
        yield place, end, text, entry
        place = end


def _prompts(file: Path, key: str) -> dict[str, Line]:
    """{id: prompt} of a CSV file with the columns id and prompt."""
    found: dict[str, Line] = {}
    for id, line in _rows(file, key):
        if id in found:
            _refuse(file, line.number, f"repeats the id {id!r}")
        found[id] = line
    return found


def _rows(file: Path, key: str) -> Iterator[tuple[str, Line]]:
    reader = csv.DictReader(_text(file).splitlines(keepends=True), strict=True)
    try:
        if not {key, "prompt"} <= set(reader.fieldnames or ()):
            _refuse(file, 1, f"needs the columns {key},prompt")
        for row in reader:
            value, prompt = (row[key] or "").strip(), (row["prompt"] or "").strip()
            if not value or not prompt:
                _refuse(file, reader.line_num, f"has no {'prompt' if value else key}")
            yield value, Line(prompt, file, reader.line_num)
    except csv.Error as error:
        _refuse(file, reader.line_num, f"is not CSV ({error})")


def _measured(rows: Sequence[tuple[str, Line]], known: KnownConcepts) -> dict[str, list[str]]:
    """{concept, as `known` calls it: evaluation prompts} of the rows of eval.csv, each prompt once."""
    found: dict[str, list[str]] = {}
    for name, line in rows:
        prompts = found.setdefault(known.concept(name).name, [])
        if line.text not in prompts:
            prompts.append(line.text)
    return found


def _lines(file: Path) -> list[Line]:
    lines = enumerate(_text(file).splitlines(), 1)
    return [Line(text.strip(), file, number) for number, text in lines if text.strip()]


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ExpungeError(f"{file} cannot be read ({error}). docs/prompts.md says what belongs there.") from error


def _number(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1


def _refuse(file: Path, number: int, what: str) -> NoReturn:
    raise ExpungeError(f"{file}:{number}: this line {what} (see docs/prompts.md).")
