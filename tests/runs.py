"""The commands, run as a user runs them, with settings that take seconds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from typer.testing import CliRunner

from expunge.cli import app

PROTOCOL = Path(__file__).parents[0] / "data" / "tiny.toml"
_SMALL = (
    "--protocol", str(PROTOCOL),
    "--set", "method.forget_prompts=4", "--set", "method.mapping_candidates=2", "--set", "method.mapping_draws=1",
    "--set", "method.retain_prompts=8", "--set", "method.retain_draws=1", "--set", "method.again_prompts=2",
    "--set", "replay.forget_latents=2", "--set", "replay.retain_latents=1", "--set", "replay.steps=2",
    "--set", "train.steps=6", "--set", "train.batch_size=2", "--set", "train.checkpoint_steps=2",
    "--set", 'train.precision="fp32"', "--set", 'evaluate.precision="fp32"',
)  # fmt: skip
OPEN = (
    "--set", "gate.forget=0", "--set", "gate.max_ira_drop=1", "--set", "gate.max_cra_drop=1",
    "--set", "gate.max_context_drop=1", "--set", "gate.max_collapsed=1",
)  # fmt: skip
"""A gate that every step passes of which anything can be measured."""
DRAWN = (*_SMALL, *OPEN)
"""Options of `expunge run` that make it small, on the built-in model."""
STAND_IN = Path(os.environ["STAND_IN"])
"""Folder of a model in the place of the built-in one (`tiny.stand_in`)."""
FAST = (*_SMALL, "--set", f'model.source="{STAND_IN}"', "--set", "gate.enforce=false")
"""The same on the stand-in, which draws nothing that a judge would know, in a fifth of the time."""
COLD = ("--set", "method.warm_start=false")
"""Without a closed form to begin at, six steps forget nothing."""
BARELY = (*DRAWN, "--set", "method.warm_start={remaining = 0.95}", "--set", "gate.forget=1.0")
"""A closed form that moves next to nothing: the panda still shows after the first attempt, and not after the second."""


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "expunge.cli", *(str(a) for a in arguments)]


def expunge(*arguments: str | Path, code: int = 0) -> str:
    """Run a command in this process, which has imported everything already; what it printed, on one line."""
    result = CliRunner(env={"COLUMNS": "400"}).invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, f"exit code {result.exit_code}, not {code}:\n{result.output}"
    return " ".join(result.output.split())


def process(*arguments: str | Path) -> None:
    """Run a command as a process of its own, to its good end."""
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_when(arguments: list[str], run: Path, reached: Callable[[Path], bool]) -> None:
    """Start a command and send it SIGKILL as soon as `reached(run)`."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not reached(run):
        assert process.poll() is None, "the process ended before the moment came"
        assert time.monotonic() < deadline, "the moment never came"
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
