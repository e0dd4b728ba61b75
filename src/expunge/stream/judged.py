"""Judgements and pictures of one model: where they lie, and how they are written and read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from expunge.errors import ExpungeError
from expunge.evaluation import Images, Row
from expunge.files import canonical_json, digest_bytes, digest_file, replacing


@dataclass(frozen=True)
class Shelf:
    """Where the judgements and the pictures of one model lie."""

    judgements: Path
    images: Path

    def further(self, judges: int) -> list[Path]:
        """Where the judgements of so many further judges lie."""
        return [self.judgements.with_name(f"judgements-{i + 2}.parquet") for i in range(judges)]


def write_table(path: Path, table: pd.DataFrame, announce: Callable[[str], None] = lambda digest: None) -> None:
    """Write a table. `announce` is told the file's digest before the file is put in place."""
    with replacing(path) as temporary:
        table.to_parquet(temporary, index=False)
        announce(digest_file(temporary))


def read_table(path: Path, columns: list[str] | None = None) -> pd.DataFrame:
    """A table that `write_table` wrote: all of its columns, or `columns`.

    Raises:
        ExpungeError: when it is missing or damaged.
    """
    try:
        return pd.read_parquet(path, columns=columns)
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError) as error:  # by which part is damaged
        raise ExpungeError(f"{path} cannot be read as a table ({error}). Restore it from a copy.") from error


def completed(
    path: Path,
    rows: Sequence[Row],
    judge: Callable[[Sequence[Row]], pd.DataFrame],
    announce: Callable[[str, pd.DataFrame], None] = lambda digest, table: None,
) -> pd.DataFrame:
    """The judgements stored at `path`, after those of `rows` that are not there yet were judged and stored with them.

    Args:
        announce: told the digest of the new file and what is in it, before the file is in its place.
    """
    have = read_table(path) if path.exists() else None
    done = set(have["row"]) if have is not None else set()
    if missing := [row for row in rows if row.id not in done]:
        table = judge(missing)
        whole = table if have is None else pd.concat([have, table], ignore_index=True)
        write_table(path, whole, lambda digest: announce(digest, whole))
        return whole
    assert have is not None
    return have


def write_images(folder: Path, images: Images, table: pd.DataFrame, rows: Sequence[str]) -> None:
    """Store the pictures of `rows`, named by their digest (a row's `image` column), so that no name leaks into a path."""
    for row, digest in table.loc[table["row"].isin(list(rows)), ["row", "image"]].itertuples(index=False):
        path = image_path(folder, digest)
        if not path.exists():
            with replacing(path) as temporary:
                Image.fromarray(images[row]).save(temporary, format="PNG")


def read_image(folder: Path, digest: str) -> np.ndarray | None:
    path = image_path(folder, digest)
    return np.asarray(Image.open(path).convert("RGB")) if path.exists() else None


def digest_images(folder: Path, table: pd.DataFrame) -> str:
    """Digest of the names and contents of all pictures of the table's rows that are kept in `folder`."""
    paths = {image_path(folder, digest) for digest in table["image"]}
    return digest_bytes(canonical_json([[p.name, digest_file(p)] for p in sorted(paths) if p.exists()]).encode())


def image_path(folder: Path, digest: str) -> Path:
    return folder / f"{digest.removeprefix('sha256:')[:24]}.png"
