"""Several sequences of an experiment at once, each served by a process of its own.

One sequence cannot keep many cores or a GPU busy: its networks are small, or its passes wait for Python.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from expunge.benchmark.experiment import Served
from expunge.benchmark.machine import cores
from expunge.errors import ExpungeError, Interrupted

PAUSE = 0.2
"""Seconds between two looks at what is running."""


def serve_at_once(
    file: Path,
    todo: Sequence[Served],
    work: Path,
    jobs: int,
    told: Callable[[Served, Literal["begun", "done", "failed"], Path | None], None],
) -> None:
    """Serve the sequences `todo` of the experiment `file`, no more than `jobs` at once. One that fails stops no other.

    The cores are shared out, unless OMP_NUM_THREADS says how many threads each is to have.

    Args:
        work: folder of unfinished runs, and of the log of each sequence until it is done.
        told: what became of a sequence, and its log where there is one.

    Raises:
        Interrupted: in the end, where sequences were, each with a sentence in its log.
        ExpungeError: in the end, where a sequence could not be served.
    """
    folder = work / file.stem
    folder.mkdir(parents=True, exist_ok=True)
    together = max(1, min(jobs, len(todo)))
    threads = {"OMP_NUM_THREADS": str(max(1, cores() // together)), **os.environ}
    waiting, running, failed = list(todo), dict[Served, subprocess.Popen[bytes]](), dict[Served, int]()

    def log(sequence: Served) -> Path:
        return folder / "{}-{}.log".format(*sequence)

    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name, seed = sequence = waiting.pop(0)
                own = ["--only", name, "--seed", str(seed), "--work", str(work)]
                with log(sequence).open("wb") as out:
                    running[sequence] = subprocess.Popen(
                        [sys.executable, "-m", "expunge.cli", "bench", str(file), *own],
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        env=threads,
                    )
                told(sequence, "begun", log(sequence))
            time.sleep(PAUSE)
            for sequence in [s for s, process in running.items() if process.poll() is not None]:
                if code := running.pop(sequence).returncode:
                    failed[sequence] = code
                    told(sequence, "failed", log(sequence))
                else:
                    log(sequence).unlink()
                    told(sequence, "done", None)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    if failed:
        names = ", ".join(f"{name} with seed {seed}" for name, seed in failed)
        interrupted = {*failed.values()} == {Interrupted.exit_code}
        raise (Interrupted if interrupted else ExpungeError)(
            f"Not served: {names}. {log(next(iter(failed)))} says why. The same command tries them again."
        )
