"""Serving one request: M(k-1) in, M(k) out, each part finished on disk before the next begins.

    choose and replay -> train -> weights.safetensors -> judgements.parquet -> gate -> step.json -> event

What is on disk is not done again, so a step that was interrupted anywhere goes on where it stood.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from expunge.concepts import Concept, Request
from expunge.evaluation import Images, Row, SamplerConfig, evaluate, metrics
from expunge.files import digest_file, load_tensors, write_json, write_text
from expunge.memory import at_once, peak_memory
from expunge.stream import gate
from expunge.stream.clock import Clock
from expunge.stream.directory import StepDirectory, now
from expunge.stream.drift import compare_with_base, pictured, weight_drift
from expunge.stream.judged import completed, digest_images, read_table, write_images, write_table
from expunge.stream.summary import Attempt, Check, Metrics, StepRecord, measure, read_record
from expunge.stream.training import how_it_ended, train_step
from expunge.stream.workshop import Forgotten, Progress, Workshop


def serve(
    shop: Workshop,
    request: Request,
    previous: Path | None,
    forgotten: Forgotten,
    known: Sequence[Concept],
    level: str,
) -> StepRecord | None:
    """Serve `request` on top of the weights `previous` (None: the base model) and judge the outcome.

    Args:
        forgotten: {accepted step before this one: its concepts}.
        known: all concepts of the run's requests, open ones too; each gets its row in the UA matrix.
        level: "between" or "final": which counts of the protocol.

    Returns:
        The record of the step; None where the gate asks for another attempt. The event that is written last says which.
    """
    step = shop.directory.step(request.step)
    step.state.mkdir(parents=True, exist_ok=True)
    clock = Clock(step)
    if not step.weights.exists():
        train_step(shop, request, step, previous, forgotten, clock)
    base = base_judgements(shop, known, level)
    # While a step is at work requests may come and go: it may be the last one no more, or only now.
    judged = step.level.read_text("utf-8") if step.judgements.exists() else None
    if judged is None or (judged, level) == ("between", "final"):
        with clock.measured("evaluate"):
            _evaluate(shop, step, known, level)
    after = read_table(step.judgements)
    result, checks = _measured(shop, request, step, base, after, forgotten, known)
    pictures = digest_images(step.images, after)
    record, stronger = _decided(shop, request, step, clock, previous, pictures, result, checks)
    _seal(shop, step, record, stronger)
    return record if stronger is None else None


def _measured(
    shop: Workshop,
    request: Request,
    step: StepDirectory,
    base: pd.DataFrame,
    after: pd.DataFrame,
    forgotten: Forgotten,
    known: Sequence[Concept],
) -> tuple[Metrics, list[Check]]:
    """What the judgements and the weights come to, and what the gate says of it."""
    now_forgotten = [c.name for concepts in (*forgotten.values(), request.concepts) for c in concepts]
    requested = [c.name for c in known]
    drift = {
        "image_drift": metrics.mean(after[after["role"] != "forget"], "drift"),
        "weight_drift": weight_drift(load_tensors(step.weights), shop.stored),
    }
    result = measure(base, after, now_forgotten, requested, drift)
    forget, before = (metrics.of_roles(table, now_forgotten, requested)["forget"] for table in (after, base))
    scenes, scenes_before = (metrics.beside(table, requested) for table in (forget, before))
    checks = gate.checks(
        shop.config.gate,
        result,
        {c: metrics.unlearning_accuracy(after, c) for c in now_forgotten},
        metrics.difference(scenes, scenes_before, "context"),
        scenes=not scenes.empty,
    )
    return result, checks


def _decided(
    shop: Workshop,
    request: Request,
    step: StepDirectory,
    clock: Clock,
    previous: Path | None,
    pictures: str,
    result: Metrics,
    checks: list[Check],
) -> tuple[StepRecord, float | None]:
    """The record of this attempt, and the strength of the next one, None where there is to be none."""
    earlier = _earlier(shop, step)
    attempts = list(earlier.attempts) if earlier else []
    strength, stronger, then = shop.config.strength, None, "accepted"
    taken = gate.passed(shop.config.gate, checks)
    if not taken:
        stronger, why = gate.next_attempt(shop.config.gate, checks, strength, len(attempts) + 1)
        if stronger is not None and not shop.config.takes(stronger):
            stronger, why = None, f"the method takes no strength of {stronger:g}"
        then = why if stronger is None else f"trained anew with strength {stronger:g}, because {why}"
    record = StepRecord(
        index=step.index,
        request=request.id,
        concepts=[c.name for c in request.concepts],
        status="accepted" if taken else "rejected",
        seconds=clock.seconds().plus(earlier.seconds) if earlier else clock.seconds(),
        peak_memory_bytes=peak_memory(),
        evaluations=clock.counts().plus(earlier.evaluations) if earlier else clock.counts(),
        metrics=result,
        level="final" if step.level.read_text("utf-8") == "final" else "between",
        previous=digest_file(previous) if previous else shop.config.model.digest,
        training=how_it_ended(step),
        gate=checks,
        attempts=[*attempts, Attempt(strength=strength, gate=checks, then=then)],
        files=step.digests(),
        pictures=pictures,
        finished_at=now(),
    )
    return record, stronger


def _seal(shop: Workshop, step: StepDirectory, record: StepRecord, stronger: float | None) -> None:
    """The event is what makes it so: a process that is killed between record and event writes the record again."""
    path = step.record if stronger is None else step.attempt
    write_json(path, record.model_dump(mode="json", by_alias=True))
    details = {"step": step.index, "record": digest_file(path), "prompts": shop.source.digest}
    if painted := shop.directory.newly_remembered():
        details["memory"] = painted
    if stronger is None:
        shop.directory.add_event(record.status, **details)
    else:
        about = sorted(gate.concerned(record.attempts[-1].gate, record.concepts))
        shop.directory.add_event("retried", strength=stronger, about=about, **details)
    step.forget_state()


def _earlier(shop: Workshop, step: StepDirectory) -> StepRecord | None:
    """The record of the attempt before this one, None in the first."""
    if not shop.retrying:
        return None
    return read_record(shop.directory.replaced(step.index)[-1].attempt)


def base_judgements(shop: Workshop, concepts: Sequence[Concept], level: str) -> pd.DataFrame:
    """Judgements of M(0) for all rows that are needed, painted once and kept."""
    directory = shop.directory

    def judge(missing: Sequence[Row]) -> pd.DataFrame:
        shop.put(None)
        table, images = _judge(shop, 0, missing)
        write_images(directory.base_images, images, table, list(images))
        return table

    def announce(digest: str, table: pd.DataFrame) -> None:
        pictures = digest_images(directory.base_images, table)
        directory.add_event("measured", judgements=digest, images=pictures)

    return completed(directory.base_judgements, shop.rows(concepts, level), judge, announce)


def _evaluate(shop: Workshop, step: StepDirectory, known: Sequence[Concept], level: str) -> None:
    shop.put(step.weights)
    table, images = _judge(shop, step.index, shop.rows(known, level), shop.protocol.enough)
    write_images(step.images, images, table, pictured(table))
    requested, at_most = [c.name for c in known], shop.protocol.sampler.batch_size
    compare_with_base(table, images, shop.directory.base, shop.judge, requested, at_most)
    step.judgements.unlink(missing_ok=True)  # which may be of another level
    write_text(step.level, level)
    write_table(step.judgements, table)


def _judge(shop: Workshop, index: int, rows: Sequence[Row], enough: float | None = None) -> tuple[pd.DataFrame, Images]:
    phase = "evaluate" if index else "evaluate base"

    def judged(
        some: Sequence[Row], sampler: SamplerConfig, progress: Callable[[int, int], None] = lambda done, of: None
    ) -> tuple[pd.DataFrame, Images]:
        return evaluate(shop.backbone, some, sampler, shop.judge, progress, shop.config.evaluate.precision, enough)

    sampler = shop.protocol.sampler
    short = sampler.model_copy(update={"steps": 1})
    with at_once(sampler.batch_size, "painting pictures", lambda n: judged(rows[:n], short)):
        return judged(rows, sampler, lambda done, of: shop.progress(Progress(index, phase, done, of)))
