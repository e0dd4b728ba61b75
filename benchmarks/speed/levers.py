"""What each lever is worth alone: one request with all of them, and the same request with one of them turned off (or on).

    python benchmarks/speed/levers.py

serves the first request of iconworld-dev-a (or `--request K`, on what the preset left of those before it) with the default
preset, from choosing prompts to the saved weights, once for every lever and round, in an order that turns with every round. A
lever's ratio is taken within a round and a session (a call of this script): seconds of the request with the lever changed / as
the preset is. Run it alone: it takes times (20 minutes on two CPU cores). It writes benchmarks/speed/results/levers.json after
every request, and the same call, or one for further levers, goes on from there.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from expunge import Run, engine, iconworld, locality
from expunge.backbones import Backbone, Predictor
from expunge.benchmark.experiment import OPEN_GATE
from expunge.benchmark.machine import Machine, Session, load_average
from expunge.benchmark.speed import settings_of
from expunge.constraints import Anchors
from expunge.constraints.l2 import L2
from expunge.files import read_json, write_json
from expunge.locality import Compared, Draws
from expunge.methods import painted
from expunge.methods.base import StepContext
from expunge.reference import SeparatePasses
from expunge.stream import preset, training

PROTOCOL = "iconworld-dev-a"
PRESET = "anchored-iconworld"
UNCHANGED = "as the preset is"


@dataclass(frozen=True)
class Lever:
    """How the request differs from the preset: by settings, or by a piece of the engine that is put in another's place."""

    changes: Mapping[str, Any] = field(default_factory=dict)
    piece: Callable[[], AbstractContextManager[Any]] = nullcontext


def one_at_a_time() -> AbstractContextManager[Any]:
    """Score distances from one prediction at a time."""
    batched = locality.distances_by_draw

    def single(predict: Predictor, compared: Sequence[Compared], draws: Draws, _: int) -> list[Tensor]:
        return batched(predict, compared, draws, batch_size=1)

    return patch.object(locality, "distances_by_draw", single)


@contextmanager
def compiled(*kinds: str) -> Iterator[None]:
    """The blocks of student and teacher that repeat, compiled."""
    copied = Backbone.copy_denoiser

    def compile_blocks(denoiser: torch.nn.Module) -> torch.nn.Module:
        for module in denoiser.modules():
            if type(module).__name__ in kinds:
                module.compile()
        return denoiser

    def copy(backbone: Backbone, *how: Any) -> torch.nn.Module:
        found = compile_blocks(copied(backbone, *how))
        compile_blocks(backbone.denoiser)
        return found

    with patch.object(Backbone, "copy_denoiser", copy):
        yield


def asked_anew() -> AbstractContextManager[Any]:
    """Targets evaluated once more where painting evaluated them on its way."""
    return patch.object(painted, "_not_painted", lambda aim: torch.ones(len(aim.targets), dtype=torch.bool))


def by_autograd() -> AbstractContextManager[Any]:
    """The gradient of the L2 term by a backward pass of its own."""

    def regularize(term: L2, parameters: Mapping[str, torch.nn.Parameter], anchors: Anchors) -> Tensor:
        penalty = term.penalty(parameters, anchors)
        penalty.backward()
        return penalty.detach()

    return patch.object(L2, "regularize", regularize)


def without_memory() -> AbstractContextManager[Any]:
    """What M(0) painted in earlier steps painted anew, as far as it is used."""
    return patch.object(training, "StepContext", lambda **given: StepContext(**{**given, "memory": None}))


def as_stored() -> AbstractContextManager[Any]:
    """The denoiser in the memory layout that it is stored in."""
    return patch.object(engine, "quick_layout", lambda _: torch.contiguous_format)


COLD: dict[str, Any] = {"method": {"warm_start": False}}
AMONG_TEN: dict[str, Any] = {"mapping_candidates": 10, "mapping_draws": 32}
LEVERS = {
    UNCHANGED: Lever(),
    "without a warm start, 80 steps": Lever({**COLD, "train": {"steps": 80}}),
    "without a warm start, 20 steps": Lever(COLD),
    "replay afresh for every row": Lever({"replay": {"source": "fresh"}}),
    "a bank in place of trajectories": Lever({"replay": {"source": "bank"}}),
    "10 solver steps": Lever({"replay": {"steps": 10}}),
    "20 DDIM steps": Lever({"replay": {"steps": 20, "solver": "published"}}),
    "fp32": Lever({"train": {"precision": "fp32"}}),
    "a pass for each loss": Lever(piece=lambda: patch.object(Predictor, "each", SeparatePasses.each)),
    "prompts encoded where they are used": Lever(
        piece=lambda: patch.object(Predictor, "encode", SeparatePasses.encode)
    ),
    "scoring on all draws": Lever({"method": {"scoring": "all"}}),
    "scoring one at a time": Lever(piece=one_at_a_time),
    "mapping chosen among ten": Lever({"method": AMONG_TEN}),
    "mapping chosen among ten, as published": Lever({"method": {**AMONG_TEN, "scoring": "all"}}, one_at_a_time),
    "targets of trajectories evaluated once more": Lever(piece=asked_anew),
    "what M(0) painted painted anew": Lever(piece=without_memory),
    "L2 by autograd": Lever(piece=by_autograd),
    "batches of 8 in choosing and replay": Lever({"replay": {"batch_size": 8}}),
    "batches of 16 in choosing and replay": Lever({"replay": {"batch_size": 16}}),
    "batches of 128 in choosing and replay": Lever({"replay": {"batch_size": 128}}),
    "a bank, and a stopping rule that looks every five steps": Lever(
        {"replay": {"source": "bank"}, "train": {"stop": {"check_every": 5, "batches": 2}}}
    ),
    "denoiser as it is stored": Lever(piece=as_stored),
    "fused attention in training": Lever(
        piece=lambda: patch.object(engine, "trained_attention", lambda *_: nullcontext())
    ),
    "fused optimizer": Lever(piece=lambda: patch.object(torch.optim, "AdamW", partial(torch.optim.AdamW, fused=True))),
    "keys and values alone": Lever({"train": {"parameters": "cross-attention-kv"}}),
    "all parameters": Lever({"train": {"parameters": "full"}}),
    "transformer blocks compiled": Lever(piece=lambda: compiled("BasicTransformerBlock")),
}


def begun_run(folder: Path, lever: Lever, request: int) -> Run:
    requests = iconworld.protocol(PROTOCOL).requests[:request]
    changes = {**lever.changes, "evaluate": {"protocol": PROTOCOL}, "gate": OPEN_GATE}
    return Run.create(folder, requests=requests, preset_name=PRESET, changes=changes)


def trained_before(folder: Path, request: int) -> Run:
    """A run with the preset, as it is when `request` begins."""
    run, previous = begun_run(folder, LEVERS[UNCHANGED], request), None
    for earlier in run.requests[:-1]:
        run.train(earlier, previous)
        previous = run.directory.step(earlier.step).weights
    return run


def timed(lever: Lever, before: Run) -> dict[str, Any]:
    """What the last request of `before` costs with `lever`, on what the others left."""
    with tempfile.TemporaryDirectory() as folder, lever.piece():
        run = begun_run(Path(folder) / "run", lever, len(before.requests))
        for part in ("memory", "steps"):
            if (made := before.directory.path / part).exists():  # there is none before the first request
                shutil.copytree(made, run.directory.path / part, dirs_exist_ok=True)
        last = run.requests[-1]
        cost = run.train(last, run.directory.step(last.step - 1).weights if last.step > 1 else None)
    return {
        "seconds": cost.seconds.model_dump(),
        "evaluations": cost.evaluations.model_dump(),
        "held": sum(cost.held.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--request", type=int, default=1, help="which request of the protocol is served")
    parser.add_argument("--only", action="append", choices=list(LEVERS), help="beside the preset itself (repeatable)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "levers.json")
    parser.add_argument("--force", action="store_true", help="beside other work too")
    arguments = parser.parse_args()
    session = Session.begin(load_average(), arguments.force).model_dump()
    names = [n for n in LEVERS if not arguments.only or n in (*arguments.only, UNCHANGED)]
    begun: dict[str, Any] = {
        "schema": 1,
        "machine": Machine.here().model_dump(),
        "preset": PRESET,
        "request": arguments.request,
        "settings": settings_of(preset(PRESET)),
        "rows": [],
    }
    results = read_json(arguments.out) if arguments.out.exists() else begun
    if {**results, "rows": []} != begun:
        parser.error(
            f"{arguments.out} is of another machine, preset, request or settings, or does not say of which. Give another file "
            "(--out)."
        )
    rows: list[dict[str, Any]] = results["rows"]
    beside = [(row["round"], row["session"]) for row in rows if row["lever"] == UNCHANGED]
    done = {(row["round"], row["lever"]) for row in rows if (row["round"], row["session"]) in beside}
    with tempfile.TemporaryDirectory() as folder:
        before = trained_before(Path(folder) / "before", arguments.request)
        timed(LEVERS[UNCHANGED], before)  # kernels are compiled for every size that they meet first
        for number in range(arguments.rounds):
            first = number * len(names) // arguments.rounds
            left = {name for name in names if (number, name) not in done}
            for name in names[first:] + names[:first]:
                if name in left or (left and name == UNCHANGED):  # which each session times anew beside what it adds
                    rows.append({"round": number, "lever": name, "session": session, **timed(LEVERS[name], before)})
                    write_json(arguments.out, results)
                    print(number, name, {k: round(v, 2) for k, v in rows[-1]["seconds"].items()}, flush=True)


if __name__ == "__main__":
    main()
