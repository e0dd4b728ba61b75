"""Does `expunge verify` notice? Random edits, deletions and reorderings, each in a copy of a small run.

    python benchmarks/faults/tamper.py

makes the run in runs/tamper, damages 1,000 copies of it, and writes benchmarks/faults/results/tamper.json.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from expunge import Run
from expunge.errors import ExpungeError
from expunge.files import write_json
from expunge.stream import verify

HERE = Path(__file__).parent
NOT_AUDITED = ("report.html", "lock", "lock.owner", "append.lock")
"""The page, which `expunge report` writes anew, and locks."""
SETTINGS: dict[str, Any] = {
    "method": {
        "forget_prompts": 4,
        "mapping_candidates": 2,
        "mapping_draws": 1,
        "retain_prompts": 8,
        "retain_draws": 1,
    },
    "replay": {"forget_latents": 2, "retain_latents": 1, "steps": 2},
    "train": {"steps": 6, "batch_size": 2},
    "evaluate": {"protocol": "tests/data/tiny.toml"},
    "gate": {"forget": 1.0, "max_ira_drop": 1.0, "max_cra_drop": 1.0, "max_context_drop": 1.0, "max_collapsed": 1.0},
}
"""Six optimizer steps forget nothing, so every step is tried twice and rejected."""


def make_run(path: Path) -> Run:
    """A run that has seen everything: retries, steps accepted by hand, a withdrawn request, an export."""
    run = Run.create(path, requests=["panda", "mosaic", "pumpkin"], changes=SETTINGS)
    while run.open_requests:
        for record in run.resume():
            run.accept(record.index, by="tamper.py", reason="to have an accepted step")
    run.withdraw(2, by="tamper.py", reason="to have a withdrawn one")
    for record in run.resume():
        run.accept(record.index, by="tamper.py", reason="to have one that was served again")
    run.export(path.with_name(f"{path.name}-export"))
    return run


# -- damage ---------------------------------------------------------------------------------------------------------------


def audited(run: Path) -> list[Path]:
    return sorted(p for p in run.rglob("*") if p.is_file() and p.name not in NOT_AUDITED)


def draw(rng: random.Random, files: Sequence[Path]) -> Path:
    """A file; each kind of file is as likely as any other, however many there are. A kind is a name; all pictures are one, and
    so are the tensors and the digests in `memory`."""
    kinds: dict[str, list[Path]] = {}
    for path in files:
        several = path.suffix == ".png" or path.parent.name == "memory"
        kinds.setdefault(path.suffix if several else path.name, []).append(path)
    return rng.choice(kinds[rng.choice(sorted(kinds))])


def byte_edited(rng: random.Random, run: Path) -> Path:
    path = draw(rng, audited(run))
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
    return put(path, bytes(data))


def truncated(rng: random.Random, run: Path) -> Path:
    path = draw(rng, audited(run))
    data = path.read_bytes()
    return put(path, data[: rng.randrange(len(data))])


def deleted(rng: random.Random, run: Path) -> Path:
    path = draw(rng, audited(run))
    path.unlink()
    return path


def exchanged(rng: random.Random, run: Path) -> Path:
    """Two files of one name change places, e.g. the weights of two steps."""
    path = draw(rng, [p for p in audited(run) if len(list(run.rglob(p.name))) > 1 and p.suffix != ".png"])
    other = rng.choice([p for p in run.rglob(path.name) if p != path])
    data = path.read_bytes()
    put(path, other.read_bytes())
    return put(other, data)


def folder_deleted(rng: random.Random, run: Path) -> Path:
    folder = rng.choice(sorted((run / "steps").iterdir()))
    shutil.rmtree(folder)
    return folder


def folders_exchanged(rng: random.Random, run: Path) -> Path:
    one, other = rng.sample(sorted((run / "steps").iterdir()), 2)
    aside = run / "aside"
    one.rename(aside)
    other.rename(one)
    aside.rename(other)
    return one


def on_lines(change: Callable[[random.Random, list[bytes]], None]) -> Callable[[random.Random, Path], Path]:
    """Damage to the lines of a .jsonl file."""

    def damage(rng: random.Random, run: Path) -> Path:
        path = draw(rng, [p for p in audited(run) if p.suffix == ".jsonl"])
        lines = path.read_bytes().splitlines(keepends=True)
        change(rng, lines)
        return put(path, b"".join(lines))

    return damage


def line_deleted(rng: random.Random, lines: list[bytes]) -> None:
    del lines[rng.randrange(len(lines))]


def line_duplicated(rng: random.Random, lines: list[bytes]) -> None:
    lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))


def line_edited(rng: random.Random, lines: list[bytes]) -> None:
    """One digit becomes another one, so that the line still reads well."""
    i = rng.randrange(len(lines))
    place = rng.choice([n for n, byte in enumerate(lines[i]) if chr(byte).isdigit()])
    digit = rng.choice([d for d in b"0123456789" if d != lines[i][place]])
    lines[i] = lines[i][:place] + bytes([digit]) + lines[i][place + 1 :]


def lines_exchanged(rng: random.Random, lines: list[bytes]) -> None:
    i, j = rng.sample(range(len(lines)), 2)
    lines[i], lines[j] = lines[j], lines[i]


def end_cut_off(rng: random.Random, lines: list[bytes]) -> None:
    del lines[rng.randrange(len(lines)) :]


DAMAGES: dict[str, Callable[[random.Random, Path], Path]] = {
    "byte edited": byte_edited,
    "file truncated": truncated,
    "file deleted": deleted,
    "two files exchanged": exchanged,
    "folder of a step deleted": folder_deleted,
    "folders of two steps exchanged": folders_exchanged,
    "line edited": on_lines(line_edited),
    "line deleted": on_lines(line_deleted),
    "line duplicated": on_lines(line_duplicated),
    "two lines exchanged": on_lines(lines_exchanged),
    "last lines cut off": on_lines(end_cut_off),
}


def put(path: Path, data: bytes) -> Path:
    """Write a file anew: the copy is made of hard links, and the original must stay as it is."""
    path.unlink()
    path.write_bytes(data)
    return path


def damaged(rng: random.Random, run: Path, copy: Path, kind: str) -> str:
    """Make a copy with one damage; the name of what was damaged. A damage that changes nothing is drawn again."""
    before = state(run)
    while True:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(run, copy, copy_function=os.link)
        path = DAMAGES[kind](rng, copy)
        if state(copy) != before:
            return str(path.relative_to(copy))


def state(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in audited(run)}


def last_event_cut_off(run: Path, copy: Path) -> None:
    """Its last event, which is the export, is gone."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy, copy_function=os.link)
    events = copy / "events.jsonl"
    put(events, b"".join(events.read_bytes().splitlines(keepends=True)[:-1]))


def noticed(copy: Path, head: str | None = None) -> bool:
    try:
        return bool(verify(copy, head).problems)
    except ExpungeError:  # nothing of a run is left to verify, which is said too
        return True


# -- counting -------------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/tamper"))
    parser.add_argument("--edits", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "tamper.json")
    options = parser.parse_args()
    if not options.run.exists():
        make_run(options.run)
    whole = verify(options.run)
    assert not whole.problems, whole.problems
    rng = random.Random(options.seed)
    tried: Counter[str] = Counter()
    found: Counter[str] = Counter()
    missed = []
    with_head = 0
    with tempfile.TemporaryDirectory(dir=options.run.parent) as folder:
        copy = Path(folder) / "copy"
        for _ in range(options.edits):
            kind = rng.choice(list(DAMAGES))
            what = damaged(rng, options.run, copy, kind)
            tried[kind] += 1
            if noticed(copy):
                found[kind] += 1
                with_head += 1
            else:
                helped = noticed(copy, whole.head)
                with_head += helped
                missed.append({"kind": kind, "where": what, "detected_with_head": helped})
        last_event_cut_off(options.run, copy)
        limit = {"detected": noticed(copy), "detected_with_head": noticed(copy, whole.head)}
    result = {
        "schema": 1,
        "seed": options.seed,
        "run": {"events": whole.events, "steps": whole.steps, "files": len(audited(options.run))},
        "edits": options.edits,
        "detected": found.total(),
        "detected_with_head": with_head,
        "kinds": {kind: {"edits": tried[kind], "detected": found[kind]} for kind in sorted(tried)},
        "missed": missed,
        "last_event_cut_off": limit,
    }
    write_json(options.out, result)
    print(f"{found.total()} of {options.edits} detected, {with_head} with the head of the chain. {options.out}")


if __name__ == "__main__":
    main()
