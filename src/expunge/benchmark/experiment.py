"""An experiment: variants of a configuration, each served the same sequence of requests under several seeds.

    schema = 1
    protocol = "iconworld-demo"
    seeds = [0, 1, 2]

    [variants.lacu]
    preset = "lacu-iconworld"

    [variants.no-replay]
    preset = "lacu-iconworld"
    note = "what replay with distillation is worth"
    changes = { method = { lambda_preserve = 0.0 } }

A seed other than 0 also shuffles the order of the requests. Each variant and seed gives one results file, the run's
`summary.json`; what has one is not served again, so an experiment that was interrupted goes on.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field

from expunge import files, seeds
from expunge.benchmark import base_model
from expunge.errors import ExpungeError, nearest
from expunge.evaluation import Protocol
from expunge.schema import Strict, read_toml
from expunge.stream import PRESETS, Run
from expunge.stream.named import read_protocol
from expunge.stream.workshop import ProgressCallback

OPEN_GATE = {
    "enforce": False,
    "forget": 0.0,
    "max_ira_drop": 1.0,
    "max_cra_drop": 1.0,
    "max_context_drop": 1.0,
    "max_collapsed": 1.0,
}
"""Nothing is rejected in an experiment, not even what could not be measured: what a variant does is what is measured."""


class Variant(Strict):
    """A preset, with changes laid over it section by section.

    Attributes:
        note: what the variant is there to show.
        together: requests that are served in one step, as one request for all their concepts.
    """

    preset: str
    changes: dict[str, Any] = {}
    note: str = ""
    together: int = Field(1, ge=1)


class Experiment(Strict):
    """An experiment file."""

    schema_: Literal[1] = Field(alias="schema")
    protocol: str
    seeds: tuple[int, ...] = Field(min_length=1)
    variants: dict[str, Variant] = Field(min_length=1)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and check a file.

        Raises:
            ExpungeError: when it cannot be used, or names a preset that does not exist.
        """
        experiment = read_toml(cls, path, f"The experiment file {path}")
        for name, variant in experiment.variants.items():
            if variant.preset not in PRESETS and not Path(variant.preset).is_file():
                raise ExpungeError(
                    f"The variant {name!r} in {path} names the preset {variant.preset!r}, which does not exist. "
                    f"{nearest(variant.preset, PRESETS)}"
                )
        return experiment

    def variant(self, name: str) -> Variant:
        if name not in self.variants:
            raise ExpungeError(f"The experiment has no variant {name!r}. {nearest(name, self.variants)}")
        return self.variants[name]


def serve_variant(
    experiment: Experiment, name: str, seed: int, results: Path, work: Path, progress: ProgressCallback = lambda _: None
) -> Path:
    """Serve the sequence with one variant and seed; its results file.

    Args:
        work: folder of unfinished runs. One that is there already is gone on with; it is deleted once it has its results,
            but for its pictures of the base model, which later sequences take over.
    """
    target, folder = results_file(results, name, seed), work / f"{name}-{seed}"
    if target.exists():
        return target
    run = _run(experiment, experiment.variant(name), seed, folder)
    base_model.lend(run, work / "base")
    run.resume(progress)
    base_model.keep(run, work / "base")
    files.write_json(target, run.summary().model_dump(mode="json", by_alias=True))
    shutil.rmtree(folder)
    return target


def results_file(results: Path, name: str, seed: int) -> Path:
    return results / f"{name}-{seed}.json"


def order(protocol: Protocol, seed: int) -> list[tuple[str, ...]]:
    """The protocol's requests: as they stand for seed 0, else shuffled."""
    requests = list(protocol.requests)
    if seed:
        random.Random(seeds.derive(seed, "order")).shuffle(requests)
    return requests


def joined(requests: Sequence[tuple[str, ...]], together: int) -> list[tuple[str, ...]]:
    """One request for the concepts of every `together` requests."""
    starts = range(0, len(requests), together)
    return [tuple(name for request in requests[i : i + together] for name in request) for i in starts]


def _run(experiment: Experiment, variant: Variant, seed: int, folder: Path) -> Run:
    evaluate = {**variant.changes.get("evaluate", {}), "protocol": experiment.protocol}
    fixed: Mapping[str, Any] = {"seed": seed, "evaluate": evaluate, "gate": OPEN_GATE}
    return begun_or_made(
        folder,
        f"The sequence that was begun in {folder} cannot go on. If its settings have changed since, or the machine (auto "
        "means another precision there), go back to what they were, or delete that folder.",
        requests=joined(order(read_protocol(experiment.protocol), seed), variant.together),
        preset_name=variant.preset,
        changes={**variant.changes, **fixed},
    )


def begun_or_made(folder: Path, otherwise: str, **made: Any) -> Run:
    """The run in `folder`, which `Run.create` makes of `made`, or completes where it was killed while it did.

    Args:
        otherwise: what to say where the one that is there was made of something else.

    Raises:
        ExpungeError: where it cannot be made or gone on with.
    """
    begun = (folder / "run.toml").exists()
    try:
        return Run.create(folder, **made)
    except ExpungeError as error:
        if not begun:
            raise
        raise ExpungeError(f"{otherwise} ({error})") from error
