"""What goes wrong outside of Expunge: each time a sentence, nothing lost, and a way on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from statistics import median

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import expunge as package
from expunge import backbones, iconworld
from expunge.backbones import StableDiffusion
from expunge.cli.progress import RunProgress
from expunge.errors import DiskFull
from expunge.evaluation import run as evaluation
from expunge.files import digest_bytes, digest_file, load_tensors, writing
from expunge.iconworld.classifier import CalibratedJudge
from expunge.prompts import Vocabulary
from expunge.stream import Progress, directory, step, verify
from expunge.stream import run as stream
from expunge.stream.directory import RunDirectory
from expunge.stream.intact import check_events, check_measured, check_model
from expunge.stream.judged import write_table
from runs import FAST, PROTOCOL, STAND_IN, expunge

WEIGHTS = "steps/0001/weights.safetensors"


def same_weights(run: Path, other: Path) -> bool:
    return digest_file(run / WEIGHTS) == digest_file(other / WEIGHTS)


def state(run: Path) -> dict[str, str]:
    """{file: digest}, without locks."""
    files = (p for p in sorted(run.rglob("*")) if p.is_file() and "lock" not in p.name)
    return {str(p.relative_to(run)): digest_file(p) for p in files}


@pytest.fixture
def waiting(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run with a third request, which waits."""
    run = shutil.copytree(finished_run, tmp_path / "waiting")
    expunge("request", run, "pumpkin")
    return run


@pytest.fixture
def when(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Progress], bool], Callable[[], None]], None]:
    """`when(reached, act)`: do something in the middle of a run, the first time that its progress has reached a moment."""

    def when(reached: Callable[[Progress], bool], act: Callable[[], None]) -> None:
        acted = False

        def told(self: RunProgress, progress: Progress) -> None:
            nonlocal acted
            if not acted and reached(progress):
                acted = True
                act()

        monkeypatch.setattr(RunProgress, "__call__", told)

    return when


# -- the making of a run --------------------------------------------------------------------------------------------------


OPEN = {"gate": {"enforce": False}, "evaluate": {"protocol": str(PROTOCOL)}}
"""The small protocol has too few prompts for a gate."""
OPEN_TOML = f'[evaluate]\nprotocol = "{PROTOCOL}"\n[gate]\nenforce = false\n'


def make(path: Path, *requests: str) -> package.Run:
    return package.Run.create(path, requests=requests, changes=OPEN)


@pytest.mark.parametrize(("events", "requests"), [(None, 0), (0, 0), (1, 0), (1, 1), (2, 1), (2, 2), (3, 2)])
def test_a_run_whose_making_was_killed_is_made_by_the_same_call(
    tmp_path: Path, events: int | None, requests: int
) -> None:
    """events: how many were written; None where not even run.toml was."""
    path = tmp_path / "run"
    run = make(path, "panda", "mosaic").directory
    for lines, kept in ((run.event_lines, events or 0), (run.request_lines, requests)):
        lines.write_bytes(b"".join(lines.read_bytes().splitlines(keepends=True)[:kept]))
    if not events:
        run.last_event.unlink()
    if events is None:
        shutil.rmtree(path)
        path.mkdir()
        (path / ".run.toml.1234.tmp").write_text("schema")
    made = make(path, "panda", "mosaic")
    assert [[c.name for c in r.concepts] for r in made.requests] == [["panda"], ["mosaic"]]
    assert verify(path).problems == ()
    assert state(path) == state(make(path, "panda", "mosaic").directory.path)


def test_another_call_does_not_take_a_run_for_its_own(tmp_path: Path) -> None:
    make(tmp_path / "run", "panda", "mosaic")
    before = state(tmp_path / "run")
    for requests, changes in ((["mosaic"], {}), (["panda", "mosaic"], {"train": {"steps": 3}})):
        with pytest.raises(package.ExpungeError, match="other settings or requests"):
            package.Run.create(tmp_path / "run", requests=requests, changes={**OPEN, **changes})
    assert state(tmp_path / "run") == before


def test_a_configuration_written_by_hand_is_told_to_be_a_preset(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.toml").write_text(package.stream.preset("lacu-iconworld").to_toml())
    before = state(tmp_path / "run")
    with pytest.raises(package.ExpungeError, match="given as a preset"):
        make(tmp_path / "run", "panda")
    assert state(tmp_path / "run") == before


def test_what_a_killed_process_had_half_written_is_swept_away(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    before = state(run)
    for name in ("memory/.tmpAbCd", "steps/0002/.weights.safetensors.1234.tmp", "base/images/.x.png.1234.tmp"):
        (run / name).write_bytes(b"half")
    expunge("resume", run)
    assert not list(run.rglob(".*"))
    assert state(run).keys() == before.keys()


# -- disks ----------------------------------------------------------------------------------------------------------------


def mount(*arguments: str | Path) -> None:
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 128 KB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount("-t", "tmpfs", "-o", "size=128k", "tmpfs", path)
    yield path
    subprocess.run(["umount", str(path)], check=True)


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with open(path, "wb", buffering=0) as file:
        for size in (2**16, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                continue


def test_a_full_disk_ends_a_run_that_can_go_on(finished_run: Path, small_disk: Path, when: Callable[..., None]) -> None:
    arguments = ("run", small_disk / "run", "panda", *FAST)
    said = expunge(*arguments, code=3)
    assert "steps/0001 does not fit on its disk: " in said
    assert "MB are needed, and " in said
    assert "run the same command again" in said
    assert not (small_disk / "run" / "base").exists()  # said before any work

    mount("-o", "remount,size=64m", small_disk)
    when(lambda p: p.phase == "train" and p.done == 3, lambda: fill(small_disk / "ballast"))
    assert "does not fit on its disk: 0.0 MB are free" in expunge(*arguments, code=3)
    assert not (small_disk / "run" / WEIGHTS).exists()

    (small_disk / "ballast").unlink()
    expunge(*arguments)
    assert same_weights(small_disk / "run", finished_run)
    assert verify(small_disk / "run").problems == ()


def test_an_export_that_does_not_fit_says_so_before_it_copies(finished_run: Path, small_disk: Path) -> None:
    said = expunge("export", finished_run, small_disk / "clean", code=3)
    assert "MB are needed, and" in said
    assert not list(small_disk.iterdir())


def test_every_kind_of_file_says_that_its_disk_is_full(small_disk: Path) -> None:
    fill(small_disk / "ballast")
    for write in (
        lambda path: save_file({"a": torch.zeros(1000)}, path),
        lambda path: path.write_text("a" * 10000),
        lambda path: pd.DataFrame({"a": range(1000)}).to_parquet(path),
    ):
        with (
            pytest.raises(DiskFull, match=r"file does not fit on its disk: 0\.0 MB are free"),
            writing(small_disk / "file"),
        ):
            write(small_disk / "file")
    with pytest.raises(DiskFull):
        write_table(small_disk / "table", pd.DataFrame({"a": range(1000)}))
    assert not (small_disk / "table").exists()


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Modes bind everyone but root, for whom the folder is mounted over itself."""
    if os.geteuid() == 0:
        mount("--bind", folder, folder)
        mount("-o", "remount,ro,bind", folder)
    else:
        change_modes(folder, lambda mode: mode & ~0o222)
    try:
        yield
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", str(folder)], check=True)
        else:
            change_modes(folder, lambda mode: mode | 0o200)


def change_modes(folder: Path, change: Callable[[int], int]) -> None:
    for path in (folder, *folder.rglob("*")):
        path.chmod(change(path.stat().st_mode))


def test_a_folder_that_may_not_be_written_is_told_and_can_still_be_looked_at(waiting: Path) -> None:
    before = state(waiting)
    with read_only(waiting):
        for arguments in (["resume"], ["request", "fox"], ["rollback", "1"]):
            command, *more = arguments
            said = expunge(command, waiting, *more, code=2)
            assert "cannot be written (" in said
            assert "Make its folder writable" in said
        assert "cannot be written (" in expunge("run", waiting / "new", "panda", *FAST, code=2)
        assert "0003 pumpkin open" in expunge("status", waiting)
        expunge("verify", waiting)
    assert state(waiting) == before
    expunge("rollback", waiting, "1")


# -- processes and clocks -------------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from expunge.stream.directory import RunDirectory
with RunDirectory(Path(sys.argv[1])).locked():
    print("held", flush=True)
    time.sleep(300)
"""


def test_a_lock_names_its_process_and_dies_with_it(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    assert f"is in use by process {other.pid} on " in expunge("resume", run, code=2)
    other.kill()
    other.wait()
    assert f"process {other.pid} " in (run / "lock.owner").read_text()
    expunge("resume", run)
    assert f"process {os.getpid()} " in (run / "lock.owner").read_text()


def test_a_clock_that_goes_backwards_changes_no_order_and_no_duration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hours = count()

    def backwards() -> str:
        return (datetime(2030, 1, 1, tzinfo=UTC) - timedelta(hours=next(hours))).isoformat()

    for module in (directory, step, stream):
        monkeypatch.setattr(module, "now", backwards)
    monkeypatch.setattr(time, "time", lambda: 2e9 - 3600 * next(hours))  # the clock of the day, for whoever asks it
    run = tmp_path / "run"
    expunge("run", run, "panda", *FAST)
    events = RunDirectory(run).events()
    assert [e["event"] for e in events] == ["created", "requested", "started", "measured", "accepted"]
    times = [e["at"] for e in events]
    assert times == sorted(times, reverse=True)
    assert verify(run).problems == ()
    assert min(json.loads((run / "steps/0001/step.json").read_text())["seconds"].values()) >= 0
    assert all(json.loads(line)["seconds"] >= 0 for line in (run / "steps/0001/train.jsonl").read_text().splitlines())


def test_an_interrupt_in_any_phase_leaves_a_run_that_goes_on(
    finished_run: Path, tmp_path: Path, when: Callable[..., None]
) -> None:
    arguments = ("run", tmp_path / "run", "panda", *FAST)
    for phase in ("load", "choose", "replay forget", "train", "evaluate base", "evaluate"):
        when(lambda p, phase=phase: p.phase == phase, lambda: signal.raise_signal(signal.SIGINT))
        assert "Interrupted. Nothing is lost" in expunge(*arguments, code=3)
        assert "panda accepted" not in expunge("status", tmp_path / "run")
    expunge(*arguments)
    assert same_weights(tmp_path / "run", finished_run)
    assert verify(tmp_path / "run").problems == ()


# -- damaged files --------------------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def alter(path: Path) -> None:
    """Change the last byte but two: the file still reads well."""
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [truncate, alter])
@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("steps/0002/weights.safetensors", "`expunge rollback RUN 1`"),
        ("steps/0001/choices.json", "`expunge rollback RUN 0`"),
        ("steps/0001/judgements.parquet", "Restore it from a copy"),
        ("steps/0002/step.json", "Restore it from a copy"),
        ("base/judgements.parquet", "Restore it from a copy"),
    ],
)
def test_a_damaged_file_is_told_before_anything_is_built_on_it(
    waiting: Path, name: str, way: str, damage: Callable[[Path], None]
) -> None:
    whole = (waiting / name).read_bytes()
    damage(waiting / name)
    before = state(waiting)
    said = expunge("resume", waiting, code=2)
    if name.endswith(("weights.safetensors", "choices.json")):
        assert said in expunge("export", waiting, waiting.parent / "clean", code=2)
        assert not (waiting.parent / "clean").exists()
    assert name in said
    assert digest_bytes(whole) in said
    assert digest_file(waiting / name) in said
    assert way in said
    assert state(waiting) == before
    (waiting / name).write_bytes(whole)
    check_measured(RunDirectory(waiting))
    check_model(RunDirectory(waiting))


def test_a_missing_file_and_a_damaged_picture_are_told_too(waiting: Path) -> None:
    (waiting / "steps/0002/weights.safetensors").unlink()
    assert "weights.safetensors is missing" in expunge("resume", waiting, code=2)
    truncate(next((waiting / "base/images").iterdir()))
    assert "a picture of the base model was damaged" in expunge("resume", waiting, code=2)


def test_a_rollback_leads_away_from_damaged_weights(waiting: Path) -> None:
    truncate(waiting / "steps/0002/weights.safetensors")
    expunge("rollback", waiting, "1")
    check_model(RunDirectory(waiting))
    expunge("request", waiting, "mosaic")
    assert [c.name for r in package.Run(waiting).open_requests for c in r.concepts] == ["pumpkin", "mosaic"]


def test_what_the_base_model_painted_is_painted_anew_where_it_is_damaged(
    finished_run: Path, tmp_path: Path, when: Callable[..., None]
) -> None:
    run = tmp_path / "run"
    when(lambda p: p.phase == "train", lambda: signal.raise_signal(signal.SIGINT))
    expunge("run", run, "panda", *FAST, code=3)
    whole = state(run / "memory")
    one, other, *_ = sorted((run / "memory").glob("*.safetensors"))
    truncate(one)
    alter(other)
    assert load_tensors(other)
    assert state(run / "memory") != whole
    expunge("resume", run)
    assert same_weights(run, finished_run)
    assert state(run / "memory") == whole


def test_what_was_painted_and_edited_with_its_digest_is_told_and_painted_anew(waiting: Path) -> None:
    whole = state(waiting / "memory")
    path = min((waiting / "memory").glob("*.safetensors"))
    alter(path)
    path.with_suffix(".digest").write_text(digest_file(path))
    assert f"memory/{path.name} was edited" in expunge("verify", waiting, code=1)
    expunge("resume", waiting)
    assert {n: d for n, d in state(waiting / "memory").items() if n in whole} == whole
    assert verify(waiting).problems == ()


@pytest.mark.parametrize("name", ["events.jsonl", "requests.jsonl"])
@pytest.mark.parametrize("line", [b"{}", b"nonsense", b"\xff\xfe"])
def test_a_line_that_cannot_be_read_is_told(waiting: Path, name: str, line: bytes) -> None:
    lines = (waiting / name).read_bytes().splitlines()
    (waiting / name).write_bytes(b"\n".join([lines[0], line, *lines[2:], b""]))
    before = state(waiting)
    for command in (("status",), ("resume",), ("request", "owl")):
        said = expunge(command[0], waiting, *command[1:], code=2)
        assert f"{waiting / name} was damaged or edited" in said
        assert "Restore the file from a copy" in said
    assert state(waiting) == before


@pytest.mark.parametrize("cut", ["all", "the last"])
def test_events_that_are_missing_are_told_before_finished_work_is_done_again(waiting: Path, cut: str) -> None:
    events = waiting / "events.jsonl"
    whole = events.read_bytes()
    if cut == "all":
        events.unlink()
    else:  # an older copy of the file
        events.write_bytes(b"".join(whole.splitlines(keepends=True)[:-2]))
    before = state(waiting)
    said = "does not say how this run was made" if cut == "all" else "events were cut off its end"
    assert said in expunge("resume", waiting, code=2)
    assert said in expunge("rollback", waiting, 0, code=2)
    if cut == "all":  # nor is it taken for a run whose making was interrupted
        assert "events.jsonl is missing" in expunge("run", waiting, "panda", "mosaic", *FAST, code=2)
    assert state(waiting) == before
    events.write_bytes(whole)
    check_events(RunDirectory(waiting))


def test_requests_that_came_while_the_disk_was_full_take_nothing_away(
    waiting: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last block of a disk may take a line, and no new file."""

    def full(path: Path, text: str) -> None:
        raise DiskFull(f"{path} does not fit on its disk")

    with monkeypatch.context() as patched:
        patched.setattr(directory, "write_text", full)
        expunge("request", waiting, "owl", code=3)
        assert "'owl' is already requested" in expunge("request", waiting, "owl", code=2)
        expunge("request", waiting, "bear", code=3)
    check_events(RunDirectory(waiting))
    expunge("rollback", waiting, 1)
    assert [c.name for r in package.Run(waiting).open_requests for c in r.concepts][-2:] == ["owl", "bear"]


def test_words_that_change_what_models_are_compared_by_are_told_before_training(
    waiting: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (iconworld.HERE / "vocabulary.toml").read_text()
    mine = waiting.parent / "words.toml"
    mine.write_text(f'{text}\n[[groups]]\nname = "more"\nslot = "thing"\nconcepts = ["samovar"]\n')
    own = iconworld.vocabulary
    monkeypatch.setattr(iconworld, "vocabulary", lambda: Vocabulary.read(mine))
    before = state(waiting)
    said = expunge("resume", waiting, code=2)
    assert "The base model was judged by '" in said
    assert "the words that the prompt source offers were changed since" in said
    assert state(waiting) == before
    monkeypatch.setattr(iconworld, "vocabulary", own)
    package.Run(waiting)._check_unchanged()


def test_a_step_that_goes_on_with_other_words_is_trained_anew_on_these(
    tmp_path: Path, when: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = iconworld.vocabulary()
    first, *others = own.groups
    fewer = own.model_copy(update={"groups": (first.model_copy(update={"concepts": first.concepts[:-2]}), *others)})
    when(lambda p: p.phase == "train" and p.done == 5, lambda: signal.raise_signal(signal.SIGINT))
    expunge("run", tmp_path / "run", "panda", *FAST, code=3)
    before = (tmp_path / "run/steps/0001/prompts.json").read_text()
    monkeypatch.setattr(iconworld, "vocabulary", lambda: fewer)
    expunge("resume", tmp_path / "run")
    expunge("run", tmp_path / "whole", "panda", *FAST)
    assert (tmp_path / "run/steps/0001/prompts.json").read_text() != before
    assert same_weights(tmp_path / "run", tmp_path / "whole")


def test_a_protocol_that_was_edited_is_told_before_training(tmp_path: Path) -> None:
    protocol = tmp_path / "mine.toml"
    text = PROTOCOL.read_text()
    protocol.write_text(text)
    changes = {**OPEN, "evaluate": {"protocol": str(protocol)}}
    package.Run.create(tmp_path / "run", requests=["panda"], changes=changes)._check_unchanged()
    protocol.write_text(text.replace("guidance = ", "guidance = 1"))
    assert f"The protocol {protocol} is not what this run was made with" in expunge("resume", tmp_path / "run", code=2)


def test_another_judge_of_the_same_name_is_told_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "run", "panda")._check_unchanged()
    monkeypatch.setattr(CalibratedJudge, "digest", "sha256:1")
    assert "The judge iconworld is not the one that this run was made with" in expunge(
        "resume", tmp_path / "run", code=2
    )


def test_code_of_ones_own_that_was_edited_is_told_before_training(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    text = "from expunge.methods.naive import Naive\n\n\nclass Mine(Naive):\n    pass\n"
    file.write_text(text)
    (tmp_path / "mine.toml").write_text(f'[method]\nname = "{file}:Mine"\n{OPEN_TOML}')
    run = package.Run.create(tmp_path / "run", requests=["panda"], preset_name=str(tmp_path / "mine.toml"))
    run._check_unchanged()
    file.write_text(text.replace("pass", "weights = {}"))
    assert f"{file} is not the code that this run was made with" in expunge("resume", tmp_path / "run", code=2)
    file.write_text(text)
    run._check_unchanged()


def test_a_run_can_be_looked_at_without_the_code_that_made_it(tmp_path: Path) -> None:
    """`verify` and `status` run no code of the run's owner, which may be broken or gone by then."""
    file = tmp_path / "mine.py"
    file.write_text(
        "from expunge.constraints import L2, ConstraintConfig\nfrom expunge.methods.naive import Naive\n\n\n"
        "class Mine(Naive):\n    pass\n\n\nclass Near(L2):\n    Config = ConstraintConfig\n"
    )
    (tmp_path / "mine.toml").write_text(
        f'[method]\nname = "{file}:Mine"\n[[constraints]]\nname = "{file}:Near"\n{OPEN_TOML}'
    )
    run = package.Run.create(tmp_path / "run", requests=["panda"], preset_name=str(tmp_path / "mine.toml"))
    for spoil in (lambda: file.write_text("raise SystemExit(9)"), file.unlink):
        spoil()
        assert package.Run(tmp_path / "run").config == run.config
        assert "panda" in expunge("status", tmp_path / "run")
        expunge("verify", tmp_path / "run")
        assert f"{file} is not the code that this run was made with" in expunge("resume", tmp_path / "run", code=2)


def test_settings_alone_are_no_run(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    shutil.copy(finished_run / "run.toml", tmp_path / "run")
    for command in (("request", tmp_path / "run", "owl"), ("resume", tmp_path / "run")):
        assert "the same `expunge run` completes it" in expunge(*command, code=2)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.toml"]


def test_the_results_files_of_kills_and_growth_say_what_the_docs_say() -> None:
    results = Path(__file__).parents[2] / "benchmarks" / "faults" / "results"
    kills = json.loads((results / "sigkill.json").read_text())
    assert kills["kills"] == kills["identical"] == len(kills["where"]) == 50
    requests = json.loads((results / "growth.json").read_text())["requests"]
    assert [r["request"] for r in requests] == list(range(1, 51))
    early, late = requests[10:20], requests[-10:]
    for phase in ("choose", "train"):
        assert median(r["seconds"][phase] for r in late) < 1.25 * median(r["seconds"][phase] for r in early)
    assert median(r["resident"] for r in late) < 1.05 * median(r["resident"] for r in early)
    assert max(r["weights"] for r in requests) == requests[-1]["weights"]


def test_a_truncated_base_model_is_told_and_nothing_is_lost(tmp_path: Path) -> None:
    source = iconworld.model_folder("iconworld")
    assert source is not None
    model = shutil.copytree(source, tmp_path / source.name)
    run = package.Run.create(tmp_path / "run", requests=["panda"], changes={**OPEN, "model": {"source": str(model)}})
    before = state(tmp_path / "run")
    shard = max((model / "unet").glob("*.safetensors"))
    whole = shard.read_bytes()
    truncate(shard)
    assert "is not the model that this run began with" in expunge("resume", tmp_path / "run", code=2)
    assert state(tmp_path / "run") == before
    said = expunge("run", tmp_path / "new", "panda", *FAST, "--model", model, code=2)
    assert f"{shard} cannot be read as a safetensors file" in said
    assert not (tmp_path / "new").exists()
    shard.write_bytes(whole)
    assert run.backbone().parameters_of("full")


# -- memory ---------------------------------------------------------------------------------------------------------------


def allocate_too_much() -> None:
    torch.empty(10**15)


def test_training_that_runs_out_of_memory_goes_on_with_a_smaller_batch(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass of training holds two rows of each of two roles; there is room for one of each."""
    predict = StableDiffusion.predict

    def limited(self: StableDiffusion, denoiser: torch.nn.Module, latents: torch.Tensor, *more: object) -> torch.Tensor:
        if torch.is_grad_enabled() and len(latents) > 2:
            allocate_too_much()
        return predict(self, denoiser, latents, *more)

    monkeypatch.setattr(StableDiffusion, "predict", limited)
    run = tmp_path / "run"
    said = expunge("run", run, "panda", *FAST, code=3)
    assert "Memory ran out in training, with 2 at once. Nothing is lost." in said
    assert "`expunge resume RUN --batch 1`" in said
    expunge("resume", run, "--batch", "1")
    assert [e["batch"] for e in RunDirectory(run).events() if e["event"] == "resumed"] == [1]
    assert verify(run).problems == ()
    ours, theirs = (load_tensors(path / WEIGHTS) for path in (run, finished_run))
    base = backbones.stored_denoiser(STAND_IN)
    apart = sum((ours[n].double() - theirs[n].double()).square().sum() for n in ours)
    moved = sum((ours[n].double() - base[n].double()).square().sum() for n in ours)
    assert apart < 1e-4 * moved


def test_painting_that_runs_out_of_memory_goes_on_with_a_smaller_batch(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint = evaluation.paint

    def limited(model: object, denoiser: object, prompts: list[str], *more: object) -> torch.Tensor:
        if len(prompts) > 4:
            allocate_too_much()
        return paint(model, denoiser, prompts, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluation, "paint", limited)
    run = tmp_path / "run"
    said = expunge("run", run, "panda", *FAST, code=3)
    assert "Memory ran out in painting pictures, with 8 at once" in said
    assert "--batch 4" in said
    expunge("resume", run, "--batch", "4")
    assert same_weights(run, finished_run)
    ours, theirs = (pd.read_parquet(p / "steps/0001/judgements.parquet").set_index("row") for p in (run, finished_run))
    both = ours.index[ours["level"] == "between"]
    assert len(both) == 10
    assert (ours.loc[both, "shown"] == theirs.loc[both, "shown"]).all()
    assert (ours.loc[both, "confidence"] - theirs.loc[both, "confidence"]).abs().max() < 1e-2
