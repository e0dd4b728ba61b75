"""Was `expunge estimate` right? A finished run beside what would have been said of it.

    python benchmarks/speed/estimate.py RUN

rehearses the requests of RUN with its own settings on this machine, and writes benchmarks/speed/results/estimate-NAME.json.
Evaluations and bytes should be equal; steps that took more than one attempt are left out. Seconds mean something where RUN
was served on this machine, alone, as this is to run.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from expunge import Run, estimate
from expunge.benchmark.machine import Machine, check_idle, load_average
from expunge.files import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--force", action="store_true", help="beside other work too")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    load = load_average()
    check_idle(load, arguments.force)
    run = Run(arguments.run)
    records = [r for r in run.records if r.status == "accepted"]
    found = estimate(run.config, [r.concepts for r in records])
    rows: list[dict[str, Any]] = []
    for record, said in zip(records, found.requests, strict=True):
        if len(record.attempts) > 1:  # its numbers are those of all attempts
            continue
        took = record.seconds
        rows.append(
            {
                "concepts": record.concepts,
                "evaluations": {
                    "estimated": said.evaluations.model_dump(),
                    "counted": record.evaluations.model_dump(),
                },
                "seconds": {
                    "choose and replay": {"estimated": said.prepare, "measured": took.choose + took.replay},
                    "train": {"estimated": said.train, "measured": took.train},
                    "evaluate": {"estimated": said.evaluate, "measured": took.evaluate},
                },
            }
        )
    results = {
        "schema": 1,
        "machine": Machine.here().model_dump(),
        "load_average": load,
        "model": {**run.config.model.model_dump(), "source": Path(run.config.model.source).name},
        "artifact": {
            "estimated": found.artifact,
            "measured": run.directory.step(records[-1].index).weights.stat().st_size,
        },
        "peak_memory": {"estimated": found.peak, "measured": max(r.peak_memory_bytes for r in records)},
        "requests": rows,
    }
    out = arguments.out or Path(__file__).parent / "results" / f"estimate-{arguments.run.name}.json"
    write_json(out, results)
    for row in rows:
        shown = {k: f"{v['estimated']:.0f} / {v['measured']:.0f}" for k, v in row["seconds"].items()}
        print(", ".join(row["concepts"]), shown)


if __name__ == "__main__":
    main()
