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

A seed other than 0 also shuffles the order of the requests. Each variant and seed gives one results file: the run's
`summary.json`, and in it `made`, what it was made with. What has one is not served again, so an experiment that was
interrupted goes on; one that was made with something else than the experiment now asks for is refused.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field

from expunge import backbones, files, seeds
from expunge.benchmark import base_model
from expunge.benchmark.machine import Machine
from expunge.errors import ExpungeError, suggestion
from expunge.evaluation import Protocol
from expunge.schema import Result, Strict, read_toml, validated
from expunge.stream import PRESETS, Run, RunConfig, preset
from expunge.stream.config import PromptsConfig
from expunge.stream.directory import changed
from expunge.stream.named import model_folder, prompt_source, read_protocol
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

Served = tuple[str, int]
"""A variant and a seed."""


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
                    f"The variant {name!r} in {path} names the preset {variant.preset!r}, which does not exist: "
                    f"neither a preset nor a file from {Path.cwd()}. {suggestion(variant.preset, PRESETS)}"
                )
        return experiment

    def variant(self, name: str) -> Variant:
        if name not in self.variants:
            raise ExpungeError(f"The experiment has no variant {name!r}. {suggestion(name, self.variants)}")
        return self.variants[name]


class Made(Result):
    """What a results file was made with.

    Attributes:
        config: the run's `run.toml`, with the model and the precision that the machine decided.
        prompts: digest of what prompts were written from; "" where it is not known, or grows (a model's answers).
        code: {file of a method or a constraint of one's own: its digest}
        together: as the variant had it.
        machine: the one that served the last of it.
    """

    config: RunConfig
    prompts: str = ""
    code: dict[str, str] = {}
    protocol: Protocol
    together: int
    machine: Machine


def serve_variant(
    experiment: Experiment, name: str, seed: int, results: Path, work: Path, progress: ProgressCallback = lambda _: None
) -> Path:
    """Serve the sequence with one variant and seed; its results file.

    Args:
        work: folder of unfinished runs. One that is there already is gone on with; it is deleted once it has its results,
            but for its pictures of the base model, which later sequences take over.
    """
    target, folder = results_file(results, name, seed), work / f"{name}-{seed}"
    if not unserved(experiment, [(name, seed)], results):
        return target
    variant = experiment.variant(name)
    run = _run(experiment, variant, seed, folder)
    base_model.lend(run, work / "base")
    run.resume(progress)
    base_model.keep(run, work / "base")
    made = Made(
        config=run.config,
        prompts=_prompts(run.config.prompts),
        code=_code(run.config),
        protocol=run.protocol,
        together=variant.together,
        machine=Machine.here(),
    )
    told = {**run.summary().model_dump(mode="json", by_alias=True), "made": made.model_dump(mode="json", by_alias=True)}
    files.write_json(target, told)
    shutil.rmtree(folder)
    return target


def results_file(results: Path, name: str, seed: int) -> Path:
    return results / f"{name}-{seed}.json"


def unserved(experiment: Experiment, sequences: Iterable[Served], results: Path) -> list[Served]:
    """Those of `sequences` that have no results yet.

    Raises:
        ExpungeError: where others have results of something else than the experiment asks for.
    """
    sequences = list(sequences)
    if found := outdated(experiment, sequences, results):
        raise ExpungeError(
            f"The experiment now asks for something else than what it has results of: {'; '.join(found)}. Go back to what it "
            "asked for, or move these files away to serve their sequences anew."
        )
    return [sequence for sequence in sequences if not results_file(results, *sequence).exists()]


def outdated(experiment: Experiment, sequences: Iterable[Served], results: Path) -> list[str]:
    """Results files of `sequences` that were made with something else than the experiment asks for, each with what changed.

    Where "auto" is asked for, any precision will do. Of a file that does not say what it was made with, nothing is known.
    """
    digest, prompts = cache(lambda source: backbones.model_digest(model_folder(source))), cache(_prompts)
    found = []
    for name, seed in sequences:
        path = results_file(results, name, seed)
        if not path.exists() or "made" not in (stored := files.read_json(path)):
            continue
        made, variant = validated(Made, stored["made"], f"What {path} was made with"), experiment.variant(name)
        asked = preset(variant.preset, _changes(experiment, variant, seed))
        then = _decided(made.config, made.protocol, made.together, made.prompts, made.code)
        now = _decided(
            asked,
            read_protocol(experiment.protocol),
            variant.together,
            prompts(asked.prompts) if made.prompts else "",
            _code(asked) if made.code else {},
        )
        now["model"]["digest"] = digest(asked.model.source)
        for section in ("train", "evaluate"):
            if now[section]["precision"] == "auto":
                now[section]["precision"] = then[section]["precision"]
        if differences := changed(then, now):
            found.append(f"{path} ({', '.join(differences)})")
    return found


def _decided(
    config: RunConfig, protocol: Protocol, together: int, prompts: str, code: Mapping[str, str]
) -> dict[str, Any]:
    """All that decides what comes of a sequence, as nested tables: not where files lie whose contents are known."""
    data = config.to_data()
    del data["evaluate"]["protocol"], data["model"]["source"]
    if prompts:
        data["prompts"] = {"source": config.prompts.source, "digest": prompts}
    for section in (data["method"], *data["constraints"]):
        section["name"] = str(section["name"]).rpartition(":")[2]
    told = {"protocol": protocol.model_dump(mode="json", by_alias=True), "together": together, "code": code}
    return {**data, **told}


def _prompts(config: PromptsConfig) -> str:
    return "" if config.source == "llm" else prompt_source(config).digest


def _code(config: RunConfig) -> dict[str, str]:
    return {Path(file).name: digest for file, digest in config.own_code.items()}


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
    return begun_or_made(
        folder,
        f"The sequence that was begun in {folder} cannot go on. If its settings have changed since, or the machine (auto "
        "means another precision there), go back to what they were, or delete that folder.",
        requests=joined(order(read_protocol(experiment.protocol), seed), variant.together),
        preset_name=variant.preset,
        changes=_changes(experiment, variant, seed),
    )


def _changes(experiment: Experiment, variant: Variant, seed: int) -> dict[str, Any]:
    """What is laid over the variant's preset."""
    evaluate = {**variant.changes.get("evaluate", {}), "protocol": experiment.protocol}
    return {**variant.changes, "seed": seed, "evaluate": evaluate, "gate": OPEN_GATE}


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
