"""What the fast engine saves on a whole sequence, and whether it costs quality: benchmarks/speed/results/sequence.json.

    python benchmarks/speed/sequence.py --equal-steps FILE --equal-quality FILE [--published FILE]

reads what was measured, and measures nothing: files of `expunge bench speed` (the default's objective with both engines at the
same number of optimizer steps, and with each at its own; and LACU with the published choice of mapping prompts, at the same
number), and the sequences of `expunge bench benchmarks/speed/quality.toml`, whose variant `fast` is compared seed by seed with
`reference`, and with `reference-equal`, the reference at the steps of `fast`; and of `published.toml`.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import pandas as pd

from expunge.benchmark.experiment import Experiment, outdated
from expunge.benchmark.speed import Ratio, SpeedResults, settings_of
from expunge.benchmark.table import caveats, differences, last_steps
from expunge.files import write_json
from expunge.reference import EngineName
from expunge.stream import preset

HERE = Path(__file__).parent
IN_BATCHES = "reference-in-batches"
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
    return found + of_something_else(quality, sequences)


def refusals_published(timed: SpeedResults, quality: Experiment, sequences: Path) -> list[str]:
    """Why the timings of the published choice cannot be read beside its sequences, of which those of the reference were served
    by the engine `fast`, with the reference's settings but in batches."""
    found = []
    if len({*optimizer_steps(timed).values()}) > 1:
        found.append(f"--published has engines of different steps: {optimizer_steps(timed)}.")
    variants: dict[EngineName, str] = {"reference": IN_BATCHES, "fast": "fast"}
    for engine, name in variants.items():
        variant = quality.variants[name]
        asked, did = settings_of(preset(variant.preset, variant.changes)), timed.settings.engines[engine]
        if in_batches(asked) != in_batches(did) or variant.preset != timed.settings.preset:
            found.append(f"--published timed {engine} with other settings than the sequences' variant {name} has.")
    if quality.protocol != timed.settings.protocol:
        found.append("The sequences are of another protocol than --published.")
    return found + of_something_else(quality, sequences)


def of_something_else(quality: Experiment, sequences: Path) -> list[str]:
    asked_for = [(name, seed) for name in quality.variants for seed in quality.seeds]
    wrong = outdated(quality, asked_for, sequences)
    return [f"{file} is of something else than the experiment asks for." for file in wrong]


def served(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without the precision, which is the machine's where it is "auto"."""
    return {**settings, "train": {k: v for k, v in settings["train"].items() if k != "precision"}}


def in_batches(settings: dict[str, Any]) -> dict[str, Any]:
    """The same, however many latents are sampled and prompts scored at once, and without the name of the engine."""
    train = {k: v for k, v in served(settings)["train"].items() if k != "engine"}
    return {**settings, "train": train, "replay": {k: v for k, v in settings["replay"].items() if k != "batch_size"}}


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


def published_choice(timed: SpeedResults, table: pd.DataFrame) -> tuple[dict[str, Any], list[str]]:
    """What is said of the published choice at equal steps, and what must be said to it."""
    found, seeds = compared(table, IN_BATCHES)
    ratios = {name: dumped(getattr(timed, name)) for name in ("wall_ratio", "wall_ratio_training", "bytes_ratio")}
    few = [f"Quality is of {len(seeds)} seeds, not {SEEDS}."] if len(seeds) < SEEDS else []
    said = {**ratios, **found, "seeds": seeds, "steps": optimizer_steps(timed), "machine": timed.machine.model_dump()}
    return said, [*timed.caveats, *few, *caveats(table)]


def dumped(ratio: Ratio | None) -> dict[str, Any] | None:
    return ratio.model_dump() if ratio else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--equal-steps", type=Path, required=True)
    parser.add_argument("--equal-quality", type=Path, required=True)
    parser.add_argument("--published", type=Path)
    parser.add_argument(
        "--published-quality", type=Path, default=HERE / "published.toml", help="the experiment of its sequences"
    )
    parser.add_argument("--quality", type=Path, default=HERE / "quality.toml", help="the experiment of the sequences")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "sequence.json")
    arguments = parser.parse_args()
    alike, own = SpeedResults.read(arguments.equal_steps), SpeedResults.read(arguments.equal_quality)
    quality, folder = Experiment.read(arguments.quality), arguments.quality.with_suffix("")
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
    files = [arguments.equal_steps.name, arguments.equal_quality.name]
    choice = None
    if arguments.published:
        timed, asked = SpeedResults.read(arguments.published), Experiment.read(arguments.published_quality)
        chosen = arguments.published_quality.with_suffix("")
        if wrong := refusals_published(timed, asked, chosen):
            parser.error(" ".join(wrong))
        choice, more = published_choice(timed, last_steps(chosen))
        doubts += [f"Published choice: {caveat}" for caveat in more]
        files.append(arguments.published.name)
    results = {
        "schema": 1,
        **{name: dumped(ratio) for name, ratio in ratios.items()},
        **found,
        "seeds": seeds,
        "at_equal_steps": {**at_equal_steps, "seeds": seeds_equal},
        "published_choice": choice,
        "steps": {"equal_steps": optimizer_steps(alike), "equal_quality": optimizer_steps(own)},
        "machine": alike.machine.model_dump(),
        "caveats": doubts,
        "files": files,
    }
    write_json(arguments.out, results)
    print({name: results[name] for name in (*ratios, *found, "published_choice", "caveats")})


if __name__ == "__main__":
    main()
