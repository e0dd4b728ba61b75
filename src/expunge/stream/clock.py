"""Time and counts of a step that outlive the process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from expunge.backbones import Evaluations
from expunge.files import read_json, write_json
from expunge.stream.directory import StepDirectory
from expunge.stream.summary import EvaluationCounts, Seconds


class Clock:
    """Seconds by phase and denoiser evaluations of a step, kept in its state folder over interruptions."""

    def __init__(self, step: StepDirectory) -> None:
        self._path = step.timings
        kept = read_json(step.timings) if step.timings.exists() else {}
        self._seconds: dict[str, float] = kept.get("seconds", {})
        self._counts = Evaluations(**kept.get("evaluations", {}))

    @contextmanager
    def measured(self, phase: str, counts: Evaluations | None = None) -> Iterator[None]:
        start = time.perf_counter()
        before = Evaluations(counts.forward, counts.backward) if counts else Evaluations()
        try:
            yield
        finally:
            spent = counts or Evaluations()
            self.add(
                {phase: time.perf_counter() - start},
                Evaluations(spent.forward - before.forward, spent.backward - before.backward),
            )

    def add(self, seconds: Mapping[str, float], counts: Evaluations) -> None:
        for phase, value in seconds.items():
            self._seconds[phase] = self._seconds.get(phase, 0.0) + value
        self._counts.forward += counts.forward
        self._counts.backward += counts.backward
        write_json(self._path, {"seconds": self._seconds, "evaluations": vars(self._counts)})

    def seconds(self) -> Seconds:
        return Seconds(**self._seconds, total=sum(self._seconds.values()))

    def counts(self) -> EvaluationCounts:
        return EvaluationCounts(**vars(self._counts))
