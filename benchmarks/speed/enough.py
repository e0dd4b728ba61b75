"""How many pictures would have been enough? A finished run's judgements, taken in the order in which they were painted.

    python benchmarks/speed/enough.py RUN...

For some widths of `enough` (docs/protocol.md): the share of all pictures of RUN's steps that would not have been painted, and
after the last step what would have been said instead of what was. Nothing is painted. It writes
benchmarks/speed/results/enough.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from expunge import Run
from expunge.evaluation import Row, metrics, protocol_rows
from expunge.evaluation.run import until_enough
from expunge.files import write_json
from expunge.stream.judged import read_table

WIDTHS = (0.06, 0.05, 0.04, 0.03)


def painted(rows: list[Row], table: pd.DataFrame, size: int, enough: float) -> Iterator[str]:
    """Ids of the rows that would have been painted."""
    answers: dict[str, Any] = {r["row"]: r for r in table.to_dict("records")}
    seen: dict[str, Any] = {}
    for batch in until_enough(rows, size, enough, seen):
        seen |= {row.id: answers[row.id] for row in batch}
        yield from (row.id for row in batch)


def said(table: pd.DataFrame, forgotten: list[str]) -> dict[str, Any]:
    """UA, IRA and CRA of a table, each with its interval."""
    parts = metrics.of_roles(table, forgotten, forgotten)
    forget = parts["forget"].assign(gone=~parts["forget"]["shown"].astype("boolean"))
    values = {
        "ua": metrics.mean(forget, "gone", missing=False),
        "ira": metrics.mean(parts["neighbour"], "shown", missing=False),
        "cra": metrics.mean(parts["other"], "shown", missing=False),
    }
    return {name: value.model_dump() if value else None for name, value in values.items()}


def replayed(run: Run, enough: float) -> dict[str, Any]:
    concepts = [c for request in run.requests for c in request.concepts]
    rows = protocol_rows(run.protocol, run.source, concepts)
    pictures = all_pictures = 0
    for request in run.requests:
        table = read_table(run.directory.step(request.step).judgements)
        had = [row for row in rows if row.id in set(table["row"])]
        kept = set(painted(had, table, run.protocol.sampler.batch_size, enough))
        pictures += len(kept)
        all_pictures += len(table)
    names = [c.name for c in concepts]
    return {
        "enough": enough,
        "pictures": pictures,
        "of": all_pictures,
        "last step": {"whole": said(table, names), "enough": said(table[table["row"].isin(kept)], names)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "enough.json")
    arguments = parser.parse_args()
    found = []
    for path in arguments.runs:
        run = Run(path)
        for enough in WIDTHS:
            found.append({"run": path.name, "protocol": run.protocol.name, **replayed(run, enough)})
            row = found[-1]
            print(row["run"], enough, f"{row['pictures']} of {row['of']}")
            for name, value in row["last step"]["enough"].items():
                whole = row["last step"]["whole"][name]
                print(f"  {name} {whole['value']:.3f} ({whole['n']}) {value['value']:.3f} ({value['n']})")
    write_json(arguments.out, {"schema": 1, "rows": found})


if __name__ == "__main__":
    main()
