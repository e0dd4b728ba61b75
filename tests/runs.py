"""The commands, run as a user runs them: real processes on the built-in model, with settings that take seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PROTOCOL = Path(__file__).parents[0] / "data" / "tiny.toml"
FAST = (
    "--protocol", str(PROTOCOL),
    "--set", "method.forget_prompts=4", "--set", "method.mapping_candidates=2", "--set", "method.mapping_draws=1",
    "--set", "method.retain_prompts=8", "--set", "method.retain_draws=1",
    "--set", "replay.forget_latents=8", "--set", "replay.retain_latents=8", "--set", "replay.steps=2",
    "--set", "train.steps=6", "--set", "train.batch_size=2", "--set", "train.checkpoint_steps=2",
    "--set", "gate.forget=0", "--set", "gate.max_ira_drop=1", "--set", "gate.max_cra_drop=1",
)  # fmt: skip
"""Options of `expunge run` that make it fast, and let every step pass its gate: six steps forget nothing."""


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "expunge.cli", *(str(a) for a in arguments)]


def expunge(*arguments: str | Path, code: int = 0) -> str:
    """Run a command to its end; what it printed, on both streams."""
    environment = os.environ | {"COLUMNS": "200"}
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=280, env=environment)
    output = done.stdout + done.stderr
    assert done.returncode == code, f"exit code {done.returncode}, not {code}:\n{output}"
    assert "Traceback" not in output
    return output


def make_run(path: Path, concepts: Sequence[str], *more: str, code: int = 0) -> str:
    return expunge("run", path, *concepts, *FAST, *more, code=code)
