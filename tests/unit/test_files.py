"""Files are whole or absent."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from expunge import files
from expunge.errors import DiskFull, ExpungeError
from expunge.files import (
    append_line,
    digest_file,
    load_tensors,
    read_lines,
    replacing,
    replacing_folder,
    save_tensors,
    write_text,
    writing,
)


def test_text_is_read_as_it_is_written_whatever_the_locale_says() -> None:
    """A name with an accent is another name in Latin-1."""
    source = Path(files.__file__).parent
    bare = re.compile(r"\.read_text\(\)|\bopen\([^)]*\"[rwa]\+?\"\)")
    assert not [path for path in source.rglob("*.py") if bare.search(path.read_text("utf-8"))]
    assert bare.search('open(path, "r")')


def test_a_write_that_fails_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_text(path, "old")

    def fail_half_way() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail_half_way()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def write_folder(folder: Path, text: str) -> None:
    with replacing_folder(folder) as new:
        for name in ("a", "b"):
            (new / name).write_text(text)


def test_a_folder_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", "old")
    with pytest.raises(UnicodeEncodeError):
        write_folder(tmp_path / "folder", "\udcff")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
    assert [(tmp_path / "folder" / name).read_text() for name in "ab"] == ["old", "old"]


@pytest.mark.parametrize("moment", range(7))
@pytest.mark.parametrize("exchanges", [True, False])
def test_a_process_that_dies_leaves_the_old_folder_or_the_new_one_whole(
    tmp_path: Path, moment: int, exchanges: bool
) -> None:
    """Killed before each rename or removal in turn; after the last of them all is done."""
    folder = tmp_path / "folder"
    write_folder(folder, "old")
    if not (child := os.fork()):
        calls = iter(range(7))

        def dying(call: Callable[..., None]) -> Callable[..., None]:
            return lambda *a, **k: os._exit(9) if next(calls) == moment else call(*a, **k)

        os.rename, shutil.rmtree = dying(os.rename), dying(shutil.rmtree)  # type: ignore[assignment]
        files._exchange = dying(files._exchange) if exchanges else lambda *_: False  # type: ignore[assignment]
        try:
            write_folder(folder, "new")
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    calls_in_all = 5 if exchanges else 6
    assert os.waitstatus_to_exitcode(status) == (9 if moment < calls_in_all else 0)
    assert folder.exists() or not exchanges
    left = folder if folder.exists() else tmp_path / ".folder.old"
    assert {(left / name).read_text() for name in "ab"} in ({"old"}, {"new"})
    write_folder(folder, "newer")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
    assert {(folder / name).read_text() for name in "ab"} == {"newer"}


def test_a_half_written_last_line_does_not_count_and_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    append_line(path, "one")
    with open(path, "a") as file:
        file.write('{"tw')
    assert read_lines(path) == ["one"]
    append_line(path, "two")
    assert read_lines(path) == ["one", "two"]


def test_the_same_tensors_give_the_same_bytes(tmp_path: Path) -> None:
    a, b = torch.arange(6.0).view(2, 3), torch.ones(2, dtype=torch.float16)
    save_tensors(tmp_path / "x.safetensors", {"a": a, "b": b}, ("base", "sha256:0"))
    save_tensors(tmp_path / "y.safetensors", {"b": b, "a": a}, ("base", "sha256:0"))
    save_tensors(tmp_path / "z.safetensors", {"a": a + 1, "b": b}, ("base", "sha256:0"))
    x, y, z = (digest_file(tmp_path / f"{n}.safetensors") for n in "xyz")
    assert x == y != z


def test_pickles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExpungeError, match="pickle"):
        load_tensors(tmp_path / "weights.pt")


def test_a_folder_that_did_not_fit_as_it_was_copied_is_a_full_disk(tmp_path: Path) -> None:
    """shutil collects what went wrong with single files, in words."""
    found = [(str(tmp_path / "a"), str(tmp_path / "b"), "[Errno 28] No space left on device: 'b'")]
    with pytest.raises(DiskFull, match="does not fit on its disk"), writing(tmp_path):
        raise shutil.Error(found)
    with pytest.raises(shutil.Error), writing(tmp_path):
        raise shutil.Error([(*found[0][:2], "cannot say")])
