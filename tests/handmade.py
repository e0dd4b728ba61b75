"""Runs whose files are written by hand with the real classes: no model is loaded, nothing is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from expunge import iconworld
from expunge.concepts import Concept, Request
from expunge.evaluation import Value
from expunge.files import append_line, canonical_json, digest_bytes, digest_file, save_tensors, write_json, write_text
from expunge.replay import kept_tensors
from expunge.stream import preset
from expunge.stream.directory import RunDirectory
from expunge.stream.judged import digest_images, write_images, write_table
from expunge.stream.named import read_protocol
from expunge.stream.summary import Attempt, Check, EvaluationCounts, Seconds, StepRecord, Training, measure

FOX = Concept(name="fox")
PERSON = Concept(name="Zelda Quixote", kind="person", aliases=("Quixotina",))
NEON = Concept(name="neon", kind="style")
SANTA = Concept(name="santa", kind="character")
KNOWN = [FOX.name, PERSON.name, NEON.name, SANTA.name]
MODEL = "sha256:0123456789abcdef"
DRIFT = {"image_drift": None, "weight_drift": Value(value=0.01, low=0.01, high=0.01, n=1000)}


def judgements(model: int, gone: Sequence[str], side: int = 0) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Judgements and pictures of M(`model`) that shows everything but `gone`. One fox prompt speaks of the person too.

    Runs of another `side` have other pictures of the same rows."""
    rows = [("forget", name, False) for name in KNOWN] + [
        ("neighbour", "cat", False),
        ("neighbour", "dog", True),
        ("neighbour", "clown", False),
        ("neighbour", "pencil sketch", False),
        ("other", "house", False),
    ]
    table, images = [], {}
    for role, concept, replayed in rows:
        for i in range(4):
            row = f"{role}/{concept}/by hand {i}"
            beside = {"subject": "Zelda Quixote"} if (concept, i) == ("fox", 0) else {}
            pixels = np.random.default_rng([side, model, len(images)]).integers(0, 255, (8, 8, 3), dtype=np.uint8)
            images[row] = pixels
            table.append(
                {
                    "row": row,
                    "role": role,
                    "concept": concept,
                    "replayed": replayed,
                    "level": "between",
                    "prompt": f"a drawing of a {concept}{' beside zelda quixote' if beside else ''}, number {i}",
                    "seed": i,
                    "asked": canonical_json({"thing": concept, "background": "white", **beside}),
                    "judge": "a-test-judge",
                    "shown": concept not in gone,
                    "confidence": 0.1 * i if concept in gone else 0.9,
                    "recognisable": True,
                    "context": None if i else True,
                    "collapsed": False,
                    "image": digest_bytes(pixels.tobytes()),
                }
            )
    frame = pd.DataFrame(table)
    return frame.astype({c: "boolean" for c in ("shown", "recognisable", "context")}), images


def add_step(
    directory: RunDirectory,
    request: Request,
    base: pd.DataFrame,
    gone: list[str],
    checks: list[Check],
    side: int = 0,
    previous: int = 0,
) -> None:
    """A step that began with the model of step `previous`, and shows everything but what is in `gone`."""
    step = directory.step(request.step)
    directory.add_event("started", step=step.index)
    table, images = judgements(step.index, gone, side)
    write_images(step.images, images, table, [row for row in images if row[-1] in "012"])
    write_table(step.judgements, table)
    write_json(step.choices, {"neighbours": {}, "mapping": []})
    for i in range(1, 6):
        append_line(step.log, f'{{"step": {i}, "losses": {{"unlearn": {1 / i}, "preserve": {0.1 if i > 1 else 0}}}}}')
    weights = directory.step(previous).weights if previous else None
    save_tensors(step.weights, {"w": torch.tensor([float(step.index), side])})
    record = StepRecord(
        index=step.index,
        request=request.id,
        concepts=[c.name for c in request.concepts],
        status="accepted" if all(c.passed for c in checks) else "rejected",
        seconds=Seconds(choose=1, replay=2, train=30, save=0.1, evaluate=40, total=73.1),
        peak_memory_bytes=3 * 2**30,
        evaluations=EvaluationCounts(forward=1234, backward=567),
        metrics=measure(base, table, gone, KNOWN, DRIFT),
        level="between",
        previous=digest_file(weights) if weights else MODEL,
        training=Training(steps=5, stopped="steps", forget=None, retain=None),
        gate=checks,
        attempts=[Attempt(strength=1.0, gate=checks, then="no attempt is left")],
        files=step.digests(),
        pictures=digest_images(step.images, table),
        finished_at="2026-02-03T04:05:06+00:00",
    )
    write_json(step.record, record.model_dump(mode="json", by_alias=True))
    kept_tensors(directory.memory / f"{request.id}.safetensors", lambda: {"x": torch.tensor([float(step.index)])})
    directory.add_event(
        record.status, step=step.index, record=digest_file(step.record), memory=directory.newly_remembered()
    )


def begin(
    path: Path, *concepts: Concept, changes: Mapping[str, Any] = {}, model: str = MODEL
) -> tuple[RunDirectory, pd.DataFrame]:
    """A run of the preset lacu-iconworld that was asked to forget `concepts`, one request each; judgements of its base."""
    directory = RunDirectory(path)
    config = preset("lacu-iconworld", changes).frozen(model)
    write_text(directory.config, config.to_toml())
    told = (read_protocol(config.evaluate.protocol).digest, iconworld.judge().digest)
    directory.announce(config, "iconworld-1", *told)
    for i, concept in enumerate(concepts, 1):
        directory.add_request(Request(id=f"{i:04d}", concepts=(concept,), received_at="2026-02-03T04:05:06+00:00"))
    base, images = judgements(0, [])
    write_images(directory.base_images, images, base, list(images))
    pictures = digest_images(directory.base_images, base)
    write_table(
        directory.base_judgements,
        base,
        lambda digest: directory.add_event("measured", judgements=digest, images=pictures),
    )
    return directory, base


def check(name: str, value: float | None, limit: float) -> Check:
    """One check of the gate; `name` is that of a check, or "ua of CONCEPT"."""
    name, _, concept = name.partition(" of ")
    at_least = name == "ua"
    passed = value is not None and (value >= limit if at_least else value <= limit)
    fields = {"name": name, "concept": concept or None, "value": value, "threshold": limit}
    return Check.model_validate({**fields, "at_least": at_least, "passed": passed})
