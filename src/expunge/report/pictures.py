"""Stored pictures as data URIs, and the same row of the protocol painted by several models."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
from PIL import Image

from expunge.evaluation import metrics
from expunge.privacy import Names
from expunge.stream.judged import Shelf, image_path, read_image, read_table

_LARGEST = 256
"""Longest side of a picture on the page, in pixels; larger ones are scaled down."""
_CRISP = 128
"""Pictures of at most this many pixels a side are shown with hard pixel edges."""


@dataclass(frozen=True)
class Picture:
    """One picture on the page; `uri` is None where it was not kept. `bad`: it shows what it should not, or the reverse."""

    uri: str | None
    alt: str
    crisp: bool
    bad: bool = False


@dataclass(frozen=True)
class Column:
    """One row of the protocol, painted by the models of a strip in order; `answers` is what the judge said of each."""

    caption: str
    pictures: tuple[Picture, ...]
    answers: str
    heading: str = ""


@dataclass(frozen=True)
class Strip:
    """Columns under a title; `labels` name the models from top to bottom."""

    title: str
    labels: tuple[str, ...]
    columns: tuple[Column, ...]


PICTURES = 3
"""Columns of a strip."""


class Album:
    """Judgements of one model, and the pictures that were kept of them."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    @cached_property
    def table(self) -> pd.DataFrame | None:
        """The judgement table, None where it was not kept."""
        path = self._shelf.judgements
        return read_table(path) if path.exists() else None

    @cached_property
    def rows(self) -> dict[str, dict[str, Any]]:
        """{row id: judgement}, in the table's order."""
        if self.table is None:
            return {}
        return {str(r["row"]): {str(k): v for k, v in r.items()} for r in self.table.to_dict("records")}

    def has(self, row: str) -> bool:
        return row in self.rows and image_path(self._shelf.images, str(self.rows[row]["image"])).exists()

    def shown(self, row: str) -> bool | None:
        """What the judge said of the row; None where it could not tell, or was not asked."""
        answer = self.rows[row]["shown"] if row in self.rows else None
        return None if answer is None or pd.isna(answer) else bool(answer)

    def confidence(self, row: str) -> float:
        """The judge's probability that the row's concept shows; -1 where unknown."""
        value = self.rows[row]["confidence"] if row in self.rows else None
        return -1.0 if value is None or pd.isna(value) else float(value)

    def picture(self, row: str, alt: str, *, bad: bool = False) -> Picture:
        pixels = read_image(self._shelf.images, str(self.rows[row]["image"])) if row in self.rows else None
        if pixels is None:
            return Picture(None, alt, crisp=False, bad=bad)
        image = Image.fromarray(pixels)
        crisp = max(image.size) <= _CRISP
        if max(image.size) > _LARGEST:
            image.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        return Picture(f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}", alt, crisp, bad)


def column(row: str, albums: Sequence[tuple[str, Album]], *, wanted: bool, caption: str, heading: str = "") -> Column:
    """One row as each of `albums` (name of the model, album) has it.

    Args:
        wanted: whether the row's concept should show in every picture after the first.
        caption, heading: what to print beneath, and above that.
    """
    answers = [album.shown(row) for _, album in albums]
    # A retained concept that the base model did not draw either was not lost.
    wrong = [
        i > 0 and a is not None and a != wanted and not (wanted and answers[0] is False) for i, a in enumerate(answers)
    ]
    words = {True: "shown", False: "not shown", None: "unknown"}
    said = [words[a] if row in album.rows else "not judged" for (_, album), a in zip(albums, answers, strict=True)]
    return Column(
        caption=caption,
        pictures=tuple(
            album.picture(row, f"{name}: {caption} ({word})", bad=bad)
            for (name, album), word, bad in zip(albums, said, wrong, strict=True)
        ),
        answers=" \N{RIGHTWARDS ARROW} ".join(said),
        heading=heading,
    )


def columns(
    role: str,
    concept: str,
    albums: Sequence[tuple[str, Album]],
    names: Names,
    *,
    wanted: bool,
    free_of: Collection[str] = (),
    count: int = PICTURES,
) -> tuple[Column, ...]:
    """The first rows that were pictured by all models after the first; the first ones at all where no picture was kept.

    Args:
        wanted: whether the concept should show.
        free_of: names that no row may ask for.
    """
    rows = [
        key
        for key, row in albums[-1][1].rows.items()
        if row["role"] == role
        and row["concept"] == concept
        and all(key in album.rows for _, album in albums[1:])
        and not names_a_person(row, names)
        and not metrics.asked_for(str(row["asked"])) & {*free_of}
    ]
    kept = [key for key in rows if all(album.has(key) for _, album in albums[1:])]
    return tuple(
        column(key, albums, wanted=wanted, caption=str(albums[-1][1].rows[key]["prompt"]))
        for key in (kept or rows)[:count]
    )


def neighbour(group: Sequence[str], album: Album, names: Names, requested: Collection[str]) -> str | None:
    """A neighbour that was judged and nobody `requested` to go, one of `group`, with pictures, and one that training never saw
    if possible."""
    judged = [
        r
        for r in album.rows.values()
        if r["role"] == "neighbour" and r["concept"] not in requested and not names.private(str(r["concept"]))
    ]
    # A concept that the protocol does not know has no neighbours of its own; any neighbour says something.
    mine = [r for r in judged if r["concept"] in group] or judged
    if not mine:
        return None
    best = min(mine, key=lambda r: (not album.has(str(r["row"])), bool(r["replayed"])))
    return str(best["concept"])


def names_a_person(row: Mapping[str, Any], names: Names) -> bool:
    return names.speaks(f"{row['prompt']} | {row['asked']} | {row['concept']}")
