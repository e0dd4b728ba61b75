"""Does a stream that never closes get slower? Fifty requests in one run on tiny settings, each with what it took.

    python benchmarks/faults/growth.py

serves them in runs/growth, and writes benchmarks/faults/results/growth.json and docs/growth.png. All requests are known from
the start, so every step paints the same number of pictures. Run it alone: it takes times (eleven minutes on two CPU cores).
The same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from expunge import Run, iconworld, report
from expunge.benchmark.machine import Machine
from expunge.cli.tables import status_table
from expunge.evaluation import Protocol
from expunge.files import append_line, read_lines, write_json

HERE = Path(__file__).parent
PROTOCOL = HERE.parents[1] / "tests" / "data" / "tiny.toml"
KEEP = 3
SETTINGS = {
    "keep": KEEP,
    "method": {
        "forget_prompts": 4,
        "mapping_candidates": 1,
        "retain_prompts": 8,
        "retain_draws": 1,
        "again_prompts": 8,
    },
    "replay": {"steps": 2},
    "train": {"steps": 6, "batch_size": 2},
    "evaluate": {"protocol": str(PROTOCOL)},
    "gate": {"enforce": False},
}


def resident() -> int:
    """Bytes of this process that are in memory now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) * 1024


def seconds_of(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def names(count: int) -> list[str]:
    """Things that the protocol does not retain."""
    protocol = Protocol.read(PROTOCOL)
    near = [name for group in protocol.neighbours.values() for name in group.names]
    retained = {*protocol.others, *near}
    return [name for name in iconworld.vocabulary().names("thing") if name not in retained][:count]


def serve(path: Path, count: int) -> list[dict[str, Any]]:
    run = Run.create(path, requests=names(count), changes=SETTINGS)
    kept = path.with_name(f"{path.name}.jsonl")
    for record in run.serve():
        files = [p for p in path.rglob("*") if p.is_file()]
        took = record.seconds
        row: dict[str, Any] = {
            "request": record.index,
            "seconds": {name: getattr(took, name) for name in ("choose", "replay", "train", "save", "evaluate")},
            "status": seconds_of(lambda: status_table(run)),
            "report": seconds_of(lambda: report.write(run)),
            "resident": resident(),
            "peak": record.peak_memory_bytes,
            "disk": sum(p.stat().st_size for p in files),
            "weights": sum(p.stat().st_size for p in files if p.name == "weights.safetensors"),
        }
        append_line(kept, json.dumps(row))
        print(record.index, {k: round(v, 2) for k, v in row["seconds"].items()}, f"{row['resident'] / 1e6:.0f} MB")
    return [json.loads(line) for line in read_lines(kept)]


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    x = [row["request"] for row in rows]
    for phase in ("choose", "replay", "train", "evaluate"):
        left.plot(x, [row["seconds"][phase] for row in rows], label=phase)
    left.set(title="Seconds of a request", xlabel="request", ylim=(0, None))
    left.legend(frameon=False)
    middle.plot(x, [row["resident"] / 1e6 for row in rows], label="memory")
    middle.plot(x, [row["disk"] / 1e6 for row in rows], label="run on disk")
    middle.plot(x, [row["weights"] / 1e6 for row in rows], label=f"of that weights (keep = {KEEP})")
    middle.set(title="MB", xlabel="request", ylim=(0, None))
    middle.legend(frameon=False)
    for name in ("status", "report"):
        right.plot(x, [row[name] for row in rows], label=f"expunge {name}")
    right.set(title="Seconds to look at the run", xlabel="request", ylim=(0, None))
    right.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--work", type=Path, default=Path("runs/growth"))
    parser.add_argument("--out", type=Path, default=HERE / "results" / "growth.json")
    parser.add_argument("--figure", type=Path, default=HERE.parents[1] / "docs" / "growth.png")
    arguments = parser.parse_args()
    rows = serve(arguments.work, arguments.requests)
    write_json(arguments.out, {"schema": 1, "machine": Machine.here().model_dump(), "requests": rows})
    draw(rows, arguments.figure)


if __name__ == "__main__":
    main()
