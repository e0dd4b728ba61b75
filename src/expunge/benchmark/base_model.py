"""Pictures of M(0), painted once for all sequences of an experiment that would paint the same.

They, and what is said of them, depend on the model, the protocol, the judge, the prompts and the arithmetic, and on nothing
that a variant usually changes.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from filelock import FileLock

from expunge.files import canonical_json, digest_bytes, digest_file, replacing_folder
from expunge.stream import Run
from expunge.stream.judged import digest_images, read_table
from expunge.stream.named import judge_called


def lend(run: Run, shelf: Path) -> None:
    """Give a run that has none yet the base model's judgements and pictures, where an earlier one left the same."""
    if run.directory.base_judgements.exists() or not (kept := _place(run, shelf)).exists():
        return
    directory = run.directory
    with replacing_folder(directory.base_judgements.parent) as folder:
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        judgements = folder / directory.base_judgements.name
        pictures = digest_images(folder / directory.base_images.name, read_table(judgements))
        directory.add_event("measured", judgements=digest_file(judgements), images=pictures)


def keep(run: Run, shelf: Path) -> None:
    """Put a finished run's judgements and pictures of the base model on the shelf."""
    kept = _place(run, shelf)
    shelf.mkdir(parents=True, exist_ok=True)
    with FileLock(shelf / "lock"):
        if not kept.exists():
            with replacing_folder(kept) as folder:
                shutil.copytree(run.directory.base_judgements.parent, folder, dirs_exist_ok=True)


def _place(run: Run, shelf: Path) -> Path:
    told = [
        run.config.model.digest,
        run.protocol.model_dump(mode="json", by_alias=True),
        judge_called(run.protocol.judge).digest,
        run.source.digest,
        run.config.evaluate.precision,
    ]
    return shelf / digest_bytes(canonical_json(told).encode()).removeprefix("sha256:")[:24]
