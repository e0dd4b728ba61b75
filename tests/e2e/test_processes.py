"""Two processes on one run, through `accelerate launch` on the CPU (gloo)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from expunge import Run
from expunge.files import load_tensors, read_json, read_lines
from expunge.stream import verify
from runs import BARELY, FAST, count_lines, expunge

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the processes of a launch in /proc"),
]


def launch(*arguments: str | Path) -> list[str]:
    port = ("--main_process_port", "0")  # any that is free
    options = ("--multi_gpu", "--num_processes", "2", *port, "--num_machines", "1", "--mixed_precision", "no")
    command = (*options, "--dynamo_backend", "no", "-m", "expunge.cli", *map(str, arguments))
    return [sys.executable, "-m", "accelerate.commands.launch", *command]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that two processes served with batches of two."""
    run = tmp_path_factory.mktemp("runs") / "together"
    done = subprocess.run(launch("run", run, "panda", "mosaic", *FAST), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step 2: evaluate") == 1  # one of them speaks
    return run


def apart(one: Path, other: Path) -> float:
    """How far two runs' weights lie apart, as a share of how far their last step moved them."""
    before, first = (weights(one, step) for step in ("0001", "0002"))
    return distance(first, weights(other, "0002")) / distance(first, before)


def weights(run: Path, step: str) -> dict[str, torch.Tensor]:
    return load_tensors(run / "steps" / step / "weights.safetensors")


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return float(torch.stack([(one[n].double() - other[n].double()).square().sum() for n in one]).sum().sqrt())


def test_two_processes_do_what_one_does_with_their_batches_joined(
    together: Path, finished_run: Path, tmp_path: Path
) -> None:
    joined = tmp_path / "joined"
    expunge("run", joined, "panda", "mosaic", *FAST, "--set", "train.batch_size=4")
    assert apart(joined, together) < 0.0005 < 0.005 < apart(joined, finished_run)
    assert [len(read_lines(run / "steps/0002/train.jsonl")) for run in (joined, together)] == [6, 6]
    counted = [[record.evaluations for record in Run(run).records] for run in (joined, together)]
    assert counted[0] == counted[1]
    assert not verify(together).problems


def test_two_processes_train_a_retry_in_half_precision_as_one_does(tmp_path: Path) -> None:
    settings = (*BARELY, "--set", "train.precision=bf16")
    together, joined, alone = (tmp_path / name for name in ("together", "joined", "alone"))
    done = subprocess.run(launch("run", together, "panda", *settings), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    expunge("run", joined, "panda", *settings, "--set", "train.batch_size=4")
    expunge("run", alone, "panda", *settings)
    for run in (together, joined, alone):
        (record,) = Run(run).records
        assert [attempt.strength for attempt in record.attempts] == [1.0, 1.5]
        assert not verify(run).problems
    for folder in ("0001.replaced-1", "0001"):
        by_two, by_one, by_half = (weights(run, folder) for run in (together, joined, alone))
        assert distance(by_two, by_one) < 0.25 * distance(by_half, by_one)  # rounding, and not other rows


def test_a_process_that_is_killed_ends_the_launch_and_the_run_goes_on(together: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for rank, step, arguments in ((0, "0001", ("run", run, "panda", "mosaic", *FAST)), (1, "0002", ("resume", run))):
        process = subprocess.Popen(launch(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 200
        while count_lines(run / "steps" / step / "train.jsonl") < 3:
            assert process.poll() is None, "the launch ended before the moment came"
            assert time.monotonic() < deadline, "the moment never came"
            time.sleep(0.005)
        os.kill(process_of(rank, process.pid), signal.SIGKILL)
        _, errors = process.communicate(timeout=120)
        assert process.returncode != 0
        assert "SIGKILL" in errors
    # The first process was left alone, and says how to go on; above the launcher may have ended the second one unheard.
    assert "expunge resume" in " ".join(errors.split()), errors
    done = subprocess.run(launch("resume", run), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    for step in ("0001", "0002"):
        assert distance(weights(run, step), weights(together, step)) == 0
    assert read_json(run / "summary.json")["concepts"] == ["panda", "mosaic"]


def process_of(rank: int, launcher: int) -> int:
    """The process of a rank among those that a launcher started."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = path.read_bytes().split(b"\0")
            parent = int(path.with_name("stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == launcher and b"RANK=%d" % rank in variables:
            return int(path.parent.name)
    raise AssertionError("the launch has no such process")
