"""Files that are either whole or absent: every write goes to a temporary name, is flushed, and is renamed."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from expunge.errors import DiskFull, ExpungeError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in a sentence why `path` cannot be written, where it is for its disk to blame.

    Raises:
        DiskFull: when its disk is full.
        ExpungeError: when it may not be written.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        match _error_number(error):
            case errno.ENOSPC | errno.EDQUOT:
                raise _disk_full(path) from error
            case errno.EROFS | errno.EACCES | errno.EPERM as number:
                raise ExpungeError(
                    f"{path} cannot be written ({os.strerror(number)}). Make its folder writable, or choose another one."
                ) from error
        raise


def _error_number(error: OSError | SafetensorError) -> int | None:
    """The system's number of what went wrong; safetensors and the copying of a folder hand it on in words."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = re.search(r"\(os error (\d+)\)|\[Errno (\d+)\]", str(error))
    return int(found[1] or found[2]) if found else None


def _disk_full(path: Path, needed: int | None = None) -> DiskFull:
    wanted = f"{_megabytes(needed)} are needed, and " if needed else ""
    return DiskFull(
        f"{path} does not fit on its disk: {wanted}{_megabytes(_free(path))} are free. "
        "Make room and run the same command again; what was done is kept."
    )


def check_room(path: Path, needed: int) -> None:
    """Whether `needed` bytes more fit on the disk of `path`, which need not exist yet.

    Raises:
        DiskFull: when they do not.
    """
    if _free(path) < needed:
        raise _disk_full(path, needed)


def _free(path: Path) -> int:
    """Bytes that are free on the disk of `path`."""
    return shutil.disk_usage(next(p for p in (path, *path.absolute().parents) if p.exists())).free


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well, flush it to disk and rename it to `path`.

    Raises:
        ExpungeError: as `writing` does.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync(path.parent)


def sweep(folder: Path) -> None:
    """Delete what a process that was killed had not written to its end. Nobody else may be writing in `folder`."""
    for leftover in folder.rglob(".*tmp*"):
        leftover.unlink()


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder beside `folder`; when the block ends well, flush it to disk and put it in the place of `folder`.

    On Linux the two change places in one step, so that there is always a whole folder in the place. Elsewhere a process that
    is killed between two renames leaves the old one as `.NAME.old`, which the next call puts back first.

    Raises:
        ExpungeError: as `writing` does.
    """
    new, old = (folder.with_name(f".{folder.name}.{which}") for which in ("new", "old"))
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        if old.exists() and not folder.exists():
            old.rename(folder)
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)
        new.mkdir()
        try:
            yield new
            _sync_all(new)
            if not folder.exists():
                new.rename(folder)
            elif not _exchange(new, folder):
                folder.rename(old)
                new.rename(folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        _sync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step; False where the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2 is not None and renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def write_bytes(path: Path, data: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def json_text(value: Any) -> str:
    """JSON for people: what `write_json` writes."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    write_text(path, json_text(value))


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ExpungeError(f"{path} cannot be read as JSON ({error}). Restore it from a copy.") from error


def append_line(path: Path, line: str) -> None:
    """Append one line and flush it; a half-written last line left by a crash is cut off first."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _append(path, line)


def _append(path: Path, line: str) -> None:
    with open(path, "a+b") as file:
        end = file.tell()
        if end:
            file.seek(0)
            complete = file.read().rfind(b"\n") + 1
            if complete != end:
                file.truncate(complete)
        file.seek(0, os.SEEK_END)
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[str]:
    """The complete lines of an append-only file (a half-written last line does not count)."""
    if not path.exists():
        return []
    data = path.read_bytes()
    return data[: data.rfind(b"\n") + 1].decode().split("\n")[:-1]


def write_figure(path: Path, figure: Figure) -> None:
    """A figure as a PNG file."""
    figure.tight_layout()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)


def canonical_json(value: Any) -> str:
    """One spelling per value: sorted keys, no blanks. What is hashed is written this way."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_bytes(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest_file(path: Path) -> str:
    with open(path, "rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def digest_folder(folder: Path, suffixes: tuple[str, ...]) -> str:
    """Digest of the names and contents of all files below `folder` that end in one of `suffixes`."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in suffixes)
    return digest_bytes(canonical_json([[str(p.relative_to(folder)), digest_file(p)] for p in files]).encode())


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: tuple[str, str] | None = None) -> None:
    """Write a safetensors file atomically, with one (name, text) of metadata. The same tensors give the same bytes, which is
    why there is one: safetensors writes several in random order."""
    check_room(path, sum(tensor.nbytes for tensor in tensors.values()))
    with replacing(path) as temporary:
        contiguous = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
        save_file(contiguous, temporary, dict([metadata]) if metadata else None)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        ExpungeError: when the file is missing, or no whole safetensors file.
    """
    with _reading(path):
        return load_file(path)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    refuse_pickle(path)
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ExpungeError(f"{path} cannot be read as a safetensors file ({error}). Is it whole?") from error


PICKLES = {".pt", ".pth", ".bin", ".ckpt", ".pkl"}
"""Endings of files that can run code when they are opened."""


def refuse_pickle(path: Path) -> None:
    if path.suffix.lower() in PICKLES:
        raise ExpungeError(f"{path} is a pickle, which can run code when it is opened. Convert it to .safetensors.")


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a safetensors file by name. Reads no tensor, and raises as `load_tensors` does."""
    with _reading(path), safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a dict


def metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file. Reads no tensor, and raises as `load_tensors` does."""
    with _reading(path), safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def _sync_all(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        _sync(path)


def _sync(path: Path) -> None:
    """Flush a file or a folder's list of names to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
