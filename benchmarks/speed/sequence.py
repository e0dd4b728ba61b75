"""What the fast engine saves on a whole sequence, and whether it costs quality: benchmarks/speed/results/sequence.json.

    python benchmarks/speed/sequence.py --published FILE --equal-steps FILE --equal-quality FILE

reads what was measured, and measures nothing. Each FILE is one of `expunge bench speed`: LACU with the published choice of
mapping prompts, both engines at the same number of optimizer steps; the default's objective, the same; and the default's
objective, each engine at its own number. Beside each stand sequences that were served with the settings that it timed
(`published.toml`, `quality.toml`), whose UA, IRA, CRA and context are compared seed by seed: `fast` less the reference.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from functools import cached_property
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
METRICS = ("ua", "ira", "cra", "context")
RATIOS = ("wall_ratio", "wall_ratio_training", "bytes_ratio")
IN_BATCHES = "reference-in-batches"
"""The variant that has the reference's settings and is served by the engine `fast`, which scores and samples in batches."""
SERVED_IN_BATCHES = "The reference's sequences were served with its settings by the engine `fast`, in batches."
SEEDS = 3
"""Seeds from which on a difference is quoted."""


@dataclass(frozen=True)
class Comparison:
    """A timing of both engines, and the sequences that tell what the two lead to.

    Attributes:
        option: the option that named the timing's file.
        experiment: of the sequences; its results lie beside it, in a folder of its name.
        reference: the variant that was served with what `reference` was timed with; `fast` is the other's name.
        equal_steps: whether the two must have taken the same number of optimizer steps.
    """

    option: str
    file: Path
    experiment: Path
    reference: str
    equal_steps: bool

    @cached_property
    def timed(self) -> SpeedResults:
        return SpeedResults.read(self.file)

    @property
    def sequences(self) -> Path:
        return self.experiment.with_suffix("")

    def table(self) -> pd.DataFrame:
        """The last steps of the two variants."""
        table = last_steps(self.sequences)
        return table[table["variant"].isin(["fast", self.reference])] if len(table) else table


def refusals(compared: Comparison) -> list[str]:
    """Why timing and sequences cannot be read beside each other."""
    timed, quality = compared.timed, Experiment.read(compared.experiment)
    found = []
    if compared.equal_steps and len({*optimizer_steps(timed).values()}) > 1:
        found.append(f"{compared.option} has engines of different steps: {optimizer_steps(timed)}.")
    variants: dict[EngineName, str] = {"reference": compared.reference, "fast": "fast"}
    what_counts = in_batches if compared.reference == IN_BATCHES else served
    for engine, name in variants.items():
        variant = quality.variants[name]
        asked = settings_of(preset(variant.preset, variant.changes))
        if what_counts(asked) != what_counts(timed.settings.engines[engine]) or variant.preset != timed.settings.preset:
            found.append(
                f"{compared.option} timed {engine} with other settings than the sequences' variant {name} has."
            )
    if quality.protocol != timed.settings.protocol:
        found.append(f"The sequences are of another protocol than {compared.option}.")
    asked_for = [(name, seed) for name in quality.variants for seed in quality.seeds]
    wrong = outdated(quality, asked_for, compared.sequences)
    return found + [f"{file} is of something else than the experiment asks for." for file in wrong]


def served(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without the precision, which is the machine's where it is "auto"."""
    return {**settings, "train": {k: v for k, v in settings["train"].items() if k != "precision"}}


def in_batches(settings: dict[str, Any]) -> dict[str, Any]:
    """The same, however many latents are sampled and prompts scored at once, and without the name of the engine."""
    train = {k: v for k, v in served(settings)["train"].items() if k != "engine"}
    return {**settings, "train": train, "replay": {k: v for k, v in settings["replay"].items() if k != "batch_size"}}


def optimizer_steps(results: SpeedResults) -> dict[str, int]:
    return {engine: settings["train"]["steps"] for engine, settings in results.settings.engines.items()}


def seeds_of_both(table: pd.DataFrame) -> list[int]:
    """The seeds of which both variants have a sequence."""
    counts = table["seed"].value_counts() if len(table) else pd.Series(dtype=int)
    return sorted(counts[counts == 2].index.tolist())


def difference(table: pd.DataFrame, metric: str, reference: str) -> dict[str, Any]:
    """Of `fast` from the reference, paired by seed, with its interval."""
    value = differences(table, metric, reference).loc["fast"].to_dict()
    known: dict[str, Any] = {str(name): None if math.isnan(v) else v for name, v in value.items()}
    return {**known, "n": int(value["n"])}


def said_of(compared: Comparison) -> dict[str, Any]:
    """Ratios, differences in quality, and what must be said to both."""
    timed, table = compared.timed, compared.table()
    seeds = seeds_of_both(table)
    ratios = {name: getattr(timed, name) for name in RATIOS}
    doubts = [
        *timed.caveats,
        *([SERVED_IN_BATCHES] if compared.reference == IN_BATCHES else []),
        *([f"Quality is of {len(seeds)} seeds, not {SEEDS}."] if len(seeds) < SEEDS else []),
        *(f"Quality: {caveat}" for caveat in caveats(table)),
    ]
    return {
        **{name: ratio.model_dump() if ratio else None for name, ratio in ratios.items()},
        **{f"{m}_difference": difference(table, m, compared.reference) if seeds else None for m in METRICS},
        "seeds": seeds,
        "optimizer_steps": optimizer_steps(timed),
        "caveats": doubts,
        "files": [compared.file.name, f"{compared.sequences.name}/"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in ("--published", "--equal-steps", "--equal-quality"):
        parser.add_argument(option, type=Path, required=True)
    for experiment in ("published", "quality"):
        parser.add_argument(
            f"--{experiment}-sequences", type=Path, default=HERE / f"{experiment}.toml", help="the experiment"
        )
    parser.add_argument("--out", type=Path, default=HERE / "results" / "sequence.json")
    given = parser.parse_args()
    published = Comparison("--published", given.published, given.published_sequences, IN_BATCHES, equal_steps=True)
    alike = Comparison("--equal-steps", given.equal_steps, given.quality_sequences, "reference-equal", equal_steps=True)
    own = Comparison("--equal-quality", given.equal_quality, given.quality_sequences, "reference", equal_steps=False)
    compared = (published, alike, own)
    wrong = list(dict.fromkeys(reason for comparison in compared for reason in refusals(comparison)))
    for what, kinds in {
        "machine": {comparison.timed.machine.model_dump_json() for comparison in compared},
        "model": {comparison.timed.settings.model for comparison in compared},
    }.items():
        if len(kinds) > 1:
            wrong.append(f"The timings are not all of one {what}.")
    if wrong:
        parser.error(" ".join(wrong))
    default = {"equal_steps": said_of(alike), "equal_quality": said_of(own)}
    results = {
        "schema": 2,
        "what": "LACU with the published choice at equal steps; wall_ratio_equal_quality is the default's, as is `default`",
        **said_of(published),
        "wall_ratio_equal_quality": default["equal_quality"]["wall_ratio"],
        "default": default,
        "machine": published.timed.machine.model_dump(),
    }
    write_json(given.out, results)
    print(results)


if __name__ == "__main__":
    main()
