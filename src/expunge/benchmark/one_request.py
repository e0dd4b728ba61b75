"""One request under one engine, in a process of its own: its peak memory is then its own.

    python -m expunge.benchmark.one_request RUN REQUEST PREVIOUS COST

PREVIOUS is the weights file that the request starts from, or `-` for the base model. COST is written: what `Cost` holds,
and `peak_memory`.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

from expunge import files
from expunge.errors import ExpungeError
from expunge.memory import peak_memory
from expunge.stream import Run


def main(path: str, number: str, previous: str, out: str) -> None:
    run = Run(path)
    cost = run.train(run.requests[int(number) - 1], None if previous == "-" else Path(previous))
    taken = {"seconds": cost.seconds.model_dump(), "evaluations": cost.evaluations.model_dump()}
    files.write_json(Path(out), {**asdict(cost), **taken, "peak_memory": peak_memory()})


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except ExpungeError as error:
        sys.exit(str(error))
