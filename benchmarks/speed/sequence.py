"""What the fast engine saves on a whole sequence, and whether it costs quality: benchmarks/speed/results/sequence.json.

    python benchmarks/speed/sequence.py --equal-steps FILE --equal-quality FILE

reads what was measured, and measures nothing: two files of `expunge bench speed` (both engines at the same number of
optimizer steps, and each at its own), and the sequences of `expunge bench benchmarks/speed/quality.toml`, whose variant
`fast` is compared seed by seed with `reference`, and with `reference-equal`, the reference at the steps of `fast`.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import pandas as pd

from expunge.benchmark.experiment import Experiment, outdated
from expunge.benchmark.speed import SpeedResults, settings_of
from expunge.benchmark.table import caveats, differences, last_steps
from expunge.files import write_json
from expunge.reference import EngineName
from expunge.stream import preset

HERE = Path(__file__).parent
SEEDS = 3
"""Seeds from which on a difference is quoted."""


def refusals(alike: SpeedResults, own: SpeedResults, quality: Experiment, sequences: Path) -> list[str]:
    """Why the files cannot be read beside each other."""
    found = []
    if len({*optimizer_steps(alike).values()}) > 1:
        found.append(f"--equal-steps has engines of different steps: {optimizer_steps(alike)}.")
    asked = {name: served(settings_of(preset(v.preset, v.changes))) for name, v in quality.variants.items()}
    for file, timed, reference in (("--equal-steps", alike, "reference-equal"), ("--equal-quality", own, "reference")):
        variants: dict[EngineName, str] = {"reference": reference, "fast": "fast"}
        for engine, name in variants.items():
            if served(timed.settings.engines[engine]) != asked[name]:
                found.append(
                    f"{file} timed {engine} with other settings than the quality sequences' variant {name} has."
                )
    for what in ("preset", "protocol", "model"):
        if getattr(alike.settings, what) != getattr(own.settings, what):
            found.append(f"The two timings are of another {what}.")
    if any(v.preset != alike.settings.preset for v in quality.variants.values()):
        found.append("The quality sequences are of another preset than the timings.")
    if alike.machine != own.machine:
        found.append("The two timings are of two machines.")
    if quality.protocol != alike.settings.protocol:
        found.append("The quality sequences are of another protocol than the timings.")
    asked_for = [(name, seed) for name in quality.variants for seed in quality.seeds]
    found += [
        f"{file} is of something else than the experiment asks for." for file in outdated(quality, asked_for, sequences)
    ]
    return found


def served(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without the precision, which is the machine's where it is "auto"."""
    return {**settings, "train": {k: v for k, v in settings["train"].items() if k != "precision"}}


def optimizer_steps(results: SpeedResults) -> dict[str, int]:
    return {engine: settings["train"]["steps"] for engine, settings in results.settings.engines.items()}


def compared(table: pd.DataFrame, baseline: str) -> tuple[dict[str, Any], list[int]]:
    """{metric_difference: of `fast` from `baseline`, None where nothing was measured}, and the seeds that both have."""
    both = table[table["variant"].isin(["fast", baseline])] if len(table) else table
    seeds = sorted(set.intersection(*(set(part["seed"]) for _, part in both.groupby("variant")))) if len(both) else []
    found: dict[str, Any] = {}
    for metric in ("ua", "ira", "cra", "context"):
        if not seeds or both["variant"].nunique() < 2:
            found[f"{metric}_difference"] = None
            continue
        value = differences(both, metric, baseline).loc["fast"].to_dict()
        known = {k: None if math.isnan(v) else v for k, v in value.items()}
        found[f"{metric}_difference"] = {**known, "n": int(value["n"])}
    return found, seeds if both["variant"].nunique() == 2 else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--equal-steps", type=Path, required=True)
    parser.add_argument("--equal-quality", type=Path, required=True)
    parser.add_argument("--quality", type=Path, default=HERE / "quality.toml", help="the experiment of the sequences")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "sequence.json")
    arguments = parser.parse_args()
    alike, own = SpeedResults.read(arguments.equal_steps), SpeedResults.read(arguments.equal_quality)
    quality = Experiment.read(arguments.quality)
    folder = arguments.quality.with_suffix("")
    if wrong := refusals(alike, own, quality, folder):
        parser.error(" ".join(wrong))
    table = last_steps(folder)
    found, seeds = compared(table, "reference")
    at_equal_steps, seeds_equal = compared(table, "reference-equal")
    ratios = {
        "wall_ratio": alike.wall_ratio,
        "wall_ratio_training": alike.wall_ratio_training,
        "wall_ratio_equal_quality": own.wall_ratio,
        "bytes_ratio": alike.bytes_ratio,
    }
    few = {"reference": seeds, "reference-equal": seeds_equal}
    doubts = [
        *alike.caveats,
        *own.caveats,
        *(f"Quality beside {n} is of {len(s)} seeds, not {SEEDS}." for n, s in few.items() if len(s) < SEEDS),
        *(f"Quality: {caveat}" for caveat in caveats(table)),
    ]
    results = {
        "schema": 1,
        **{name: ratio.model_dump() if ratio else None for name, ratio in ratios.items()},
        **found,
        "seeds": seeds,
        "at_equal_steps": {**at_equal_steps, "seeds": seeds_equal},
        "steps": {"equal_steps": optimizer_steps(alike), "equal_quality": optimizer_steps(own)},
        "machine": alike.machine.model_dump(),
        "caveats": doubts,
        "files": [arguments.equal_steps.name, arguments.equal_quality.name],
    }
    write_json(arguments.out, results)
    print({name: results[name] for name in (*ratios, *found, "caveats")})


if __name__ == "__main__":
    main()
