"""What the fast engine saves on a whole sequence, and whether it costs quality: benchmarks/speed/results/sequence.json.

    python benchmarks/speed/sequence.py --equal-steps FILE --equal-quality FILE

reads what was measured, and measures nothing: two files of `expunge bench speed` (both engines at the same number of
optimizer steps, and each at its own), and the sequences of `expunge bench benchmarks/speed/quality.toml`, whose variants
`fast` and `reference` are compared seed by seed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from expunge.benchmark.speed import SpeedResults
from expunge.benchmark.table import differences, last_steps
from expunge.files import write_json

HERE = Path(__file__).parent


def optimizer_steps(results: SpeedResults) -> dict[str, int]:
    return {engine: settings["train"]["steps"] for engine, settings in results.settings.engines.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--equal-steps", type=Path, required=True)
    parser.add_argument("--equal-quality", type=Path, required=True)
    parser.add_argument("--quality", type=Path, default=HERE / "quality", help="folder of the sequences' results files")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "sequence.json")
    arguments = parser.parse_args()
    alike, own = SpeedResults.read(arguments.equal_steps), SpeedResults.read(arguments.equal_quality)
    table = last_steps(arguments.quality)
    table = table[table["variant"].isin(["fast", "reference"])]
    seeds = sorted(set.intersection(*(set(part["seed"]) for _, part in table.groupby("variant"))))
    found: dict[str, Any] = {
        f"{metric}_difference": differences(table, metric, "reference").loc["fast"].to_dict()
        for metric in ("ua", "ira", "cra", "context")
    }
    ratios = {
        "wall_ratio": alike.wall_ratio,
        "wall_ratio_training": alike.wall_ratio_training,
        "wall_ratio_equal_quality": own.wall_ratio,
        "bytes_ratio": alike.bytes_ratio,
    }
    results = {
        "schema": 1,
        **{name: ratio.model_dump() if ratio else None for name, ratio in ratios.items()},
        **found,
        "seeds": seeds,
        "steps": {"equal_steps": optimizer_steps(alike), "equal_quality": optimizer_steps(own)},
        "machine": alike.machine.model_dump(),
        "caveats": [*alike.caveats, *own.caveats],
        "files": [arguments.equal_steps.name, arguments.equal_quality.name],
    }
    write_json(arguments.out, results)
    print({name: results[name] for name in (*ratios, *found)})


if __name__ == "__main__":
    main()
