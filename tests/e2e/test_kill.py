"""SIGKILL anywhere, the same command again, the same bits."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from expunge import Run
from expunge.files import digest_file
from expunge.stream import verify
from runs import FAST, command, count_lines, expunge, kill_when, process

MOMENTS: dict[str, Callable[[Path], bool]] = {
    "while latents are replayed": lambda run: any((run / "memory").glob("*.safetensors")),
    "inside training, after a checkpoint": lambda run: count_lines(run / "steps/0001/train.jsonl") >= 3,
    "after the weights, before the judgements": lambda run: (run / "steps/0001/weights.safetensors").exists(),
    "between the steps": lambda run: (run / "steps/0001/step.json").exists(),
    "inside the second step": lambda run: count_lines(run / "steps/0002/train.jsonl") >= 5,
}


@pytest.mark.slow
def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "killed"
    arguments = command("run", run, "panda", "mosaic", *FAST)
    for reached in MOMENTS.values():
        kill_when(arguments, run, reached)
    process("run", run, "panda", "mosaic", *FAST)
    for step in ("0001", "0002"):
        for name in ("weights.safetensors", "prompts.json", "choices.json"):
            assert digest_file(run / "steps" / step / name) == digest_file(finished_run / "steps" / step / name), name
        tables = [pd.read_parquet(path / "steps" / step / "judgements.parquet") for path in (run, finished_run)]
        pd.testing.assert_frame_equal(*tables)


@pytest.mark.parametrize("said", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_a_run_to_resume(said: signal.Signals, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(command("run", run, "panda", *FAST), stderr=subprocess.PIPE, text=True)
    while count_lines(run / "steps/0001/train.jsonl") < 1:
        assert process.poll() is None, "the process ended too early"
        time.sleep(0.005)
    process.send_signal(said)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "Nothing is lost" in errors
    assert "Traceback" not in errors
    assert "begun" in expunge("status", run)


def test_the_comparison_can_fail(finished_run: Path, tmp_path: Path) -> None:
    """One optimizer step fewer is not the same bits."""
    expunge("run", tmp_path / "run", "panda", *FAST, "--set", "train.steps=5")
    name = "steps/0001/weights.safetensors"
    assert digest_file(tmp_path / "run" / name) != digest_file(finished_run / name)


def test_a_step_that_becomes_the_last_one_is_judged_as_the_last_one(tmp_path: Path) -> None:
    """Killed after its pictures were judged, before the gate; then the request after it is withdrawn."""
    run = tmp_path / "run"
    kill_when(
        command("run", run, "panda", "mosaic", *FAST), run, lambda r: (r / "steps/0001/judgements.parquet").exists()
    )
    assert not (run / "steps/0001/step.json").exists()
    expunge("withdraw", run, "2")
    (record,) = Run(run).records
    assert record.level == "final"
    assert record.metrics.ua is not None
    assert record.metrics.ua.n == 4
    assert not verify(run).problems
