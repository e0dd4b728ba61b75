"""What the page says, gathered from a run: plain data, ready to print, with every person's name already taken out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from expunge.concepts import PERSON, Request
from expunge.errors import ExpungeError
from expunge.privacy import Names, prompted
from expunge.report import charts, course, wording
from expunge.report.course import Chart, TimingRow
from expunge.report.matrix import MatrixRow, matrix, ua_after
from expunge.report.measures import MAIN, METRICS, MORE, TILES, MetricRow, Tile, Unmeasured, metric_rows, tiles
from expunge.report.pictures import Album, Strip, column, columns, names_a_person, neighbour
from expunge.stream import Check, Run, StepRecord, Summary
from expunge.stream.gate import CHECKS
from expunge.stream.history import Decision

_LOSS_CHARTS = 12
"""Steps whose losses are drawn; the latest ones where there are more."""


# -- the page ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CheckRow:
    """One threshold of the gate."""

    name: str
    value: str
    limit: str
    passed: bool


@dataclass(frozen=True)
class RequestSection:
    """One request. `status` is "accepted", "rejected", "withdrawn" or "waiting"; what follows it is empty while it waits."""

    id: str
    title: str
    status: str
    facts: str
    notes: tuple[str, ...] = ()
    strips: tuple[Strip, ...] = ()
    checks: tuple[CheckRow, ...] = ()
    metrics: tuple[MetricRow, ...] = ()
    more_metrics: tuple[MetricRow, ...] = ()


@dataclass(frozen=True)
class Page:
    eyebrow: str
    title: str
    facts: tuple[tuple[str, str], ...]
    verdict: str
    tiles_caption: str
    tiles: tuple[Tile, ...]
    requests: tuple[RequestSection, ...]
    resurgence: Strip | None
    resurgence_note: str
    matrix_columns: tuple[tuple[str, str], ...]
    matrix: tuple[MatrixRow, ...]
    curves: tuple[Chart, ...]
    losses: tuple[Chart, ...]
    losses_left_out: int
    timings: str
    phases: tuple[str, ...]
    timing_rows: tuple[TimingRow, ...]
    judged: str
    unmeasured: tuple[Unmeasured, ...]
    glossary: tuple[tuple[str, str], ...]


# -- gathering --------------------------------------------------------------------------------------------------------------


def gather(run: Run) -> Page:
    """The page of a run.

    Raises:
        ExpungeError: before the first step is finished.
    """
    return _Gathering(run).page()


class _Gathering:
    """The run's files, read once."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.summary: Summary = run.summary()
        # The summary is the list of finished steps: a step that is finished while this runs is on the next page.
        finished = {s.index for s in self.summary.steps}
        self.records = [r for r in run.records if r.index in finished]
        self.by_request = {r.request: r for r in self.records}
        self.accepted = [r for r in self.records if r.status == "accepted"]
        self.requests = run.requests
        self.history = run.history
        directory = run.directory
        self.base = Album(directory.base)
        self.albums = {r.index: Album(directory.step(r.index).shelf) for r in self.records}
        self.neighbours: Mapping[str, Sequence[str]] | None
        self.setting_problem = ""
        try:
            protocol, source = run.protocol, run.source
            groups = protocol.neighbours
            self.neighbours = {name: g.names for name, g in groups.items()}
            others = prompted(protocol, source)
        except ExpungeError:
            # Who is a neighbour, and whether it is a person, cannot be known: none is shown, and the page says why.
            self.neighbours, others = None, []
            self.setting_problem = (
                "The run's protocol or vocabulary cannot be read any more, so no neighbour is pictured."
            )
        self.names = Names(self.requests, others)
        self.turn = {name: r.index for r in self.accepted for name in r.concepts}
        """The accepted step at which each concept was forgotten."""

    @property
    def last(self) -> StepRecord | None:
        """The last accepted step."""
        return self.accepted[-1] if self.accepted else None

    def page(self) -> Page:
        strip, note = self._resurgence()
        logs = {r.index: self.run.directory.step(r.index).log for r in self.records[-_LOSS_CHARTS:]}
        return Page(
            eyebrow="Expunge report",
            title=self.names.text(self.run.directory.path.resolve().name),
            facts=self._facts(),
            verdict=self._verdict(),
            tiles_caption=self._tiles_caption(),
            tiles=self._tiles(),
            requests=tuple(self._request(request) for request in self.requests),
            resurgence=strip,
            resurgence_note=note,
            matrix_columns=tuple((f"step {r.index}", r.status) for r in self.records),
            matrix=matrix(self.summary, self.records, self.turn, self.names),
            curves=course.curves(self.summary, self.records, self.base),
            losses=course.losses(logs, {request.step: self._title(request) for request in self.requests}),
            losses_left_out=len(self.records) - len(logs),
            timings=course.timing_chart(self.records),
            phases=charts.PHASES,
            timing_rows=tuple(course.timing_row(r) for r in self.records),
            judged=self._judged(),
            unmeasured=self._unmeasured(),
            glossary=tuple((kind.name, kind.meaning) for kind in METRICS.values()),
        )

    # -- head -------------------------------------------------------------------------------------------------------

    def _facts(self) -> tuple[tuple[str, str], ...]:
        config, model = self.run.config, self.summary.model
        began = self.run.directory.events()[0]["at"]
        ended = max(r.finished_at for r in self.records)
        method, strength = config.method_name, config.strength
        return (
            ("Model", f"{self.names.text(wording.bare(model.name))} ({wording.short_digest(model.digest)})"),
            ("Method", method if strength is None else f"{method}, strength {strength:g}"),
            ("Protocol", self.names.text(wording.bare(config.evaluate.protocol))),
            ("Began", wording.moment(began)),
            ("Last step finished", wording.moment(ended)),
        )

    def _verdict(self) -> str:
        last = self.last
        return wording.verdict(
            served=len(self.accepted),
            rejected=sum(r.status == "rejected" for r in self.records),
            withdrawn=sum(status == "withdrawn" for status in self.history.status.values()),
            waiting=sum(r.step not in self.history.status for r in self.requests),
            forgotten=[(self.names.label(c), ua_after(self.summary, c, last.index)) for c in self.turn] if last else [],
            ira=last.metrics.ira_difference if last else None,
            cra=last.metrics.cra_difference if last else None,
        )

    def _tiles_caption(self) -> str:
        if self.last is None:
            return "The base model: no step was accepted"
        return f"After step {self.last.index}, the last accepted one. Ranges are 95% intervals."

    def _tiles(self) -> tuple[Tile, ...]:
        total = Tile(
            "Total time",
            wording.duration(self.summary.seconds_total),
            f"{wording.count(len(self.records), 'step')}, without painting the base model",
        )
        if self.last is None:
            base = self.summary.base
            shares = (("IRA", base.ira), ("CRA", base.cra))
            return (*(Tile(n, wording.share(v), wording.share_interval(v)) for n, v in shares), total)
        return (*tiles(TILES, self.last.metrics), total)

    # -- requests ---------------------------------------------------------------------------------------------------

    def _title(self, request: Request) -> str:
        public = [self.names.label(c.name) for c in request.concepts if c.kind != PERSON]
        persons = len(request.concepts) - len(public)
        if persons:
            public.append("a person" if persons == 1 else f"{persons} persons")
        return wording.listed(public)

    def _request(self, request: Request) -> RequestSection:
        record = self.by_request.get(request.id)
        title = self._title(request)
        index = request.step
        decision = self.history.decisions.get(index)
        said = [self._decided(index, decision)] if decision else []
        if record is None:
            status = "withdrawn" if self.history.status.get(index) == "withdrawn" else "waiting"
            received = f"received {wording.moment(request.received_at)}"
            return RequestSection(request.id, title, status, received, notes=tuple(said))
        n = len(self.albums[record.index].rows)
        notes = said
        if any(self.names.private(c.name) for c in request.concepts):
            notes.append("Prompts and pictures of a person are not shown.")
        if record.status == "rejected":
            notes.append("The gate did not let this step pass: its model was not taken, and the one before it stays.")
        if len(record.attempts) > 1:
            notes.append(self._attempts(record))
        if record.status == "accepted" and not decision and not all(c.passed for c in record.gate):
            notes.append("The gate of this run only records: it lets every step pass.")
        if self.setting_problem and not notes:
            notes.append(self.setting_problem)
        return RequestSection(
            id=request.id,
            title=title,
            status=record.status,
            facts=f"step {record.index}, {wording.count(n, 'picture')} judged, {wording.duration(record.seconds.total)}",
            notes=tuple(notes),
            strips=tuple(s for c in request.concepts for s in self._strips(c.name, record)),
            checks=tuple(self._check(c) for c in record.gate),
            metrics=metric_rows(MAIN, record.metrics),
            more_metrics=metric_rows(MORE, record.metrics),
        )

    def _decided(self, index: int, decision: Decision) -> str:
        """What a person decided about a step."""
        if self.history.status.get(index) == "accepted":
            what = "The gate did not let this step pass; it was accepted by hand"
        elif decision.undone:
            what = f"Withdrawn: the run was rolled back to {decision.undone}"
        else:
            what = "The request was taken back"
        why = f": {self.names.text(decision.reason.rstrip('.'))}." if decision.reason else "."
        return f"{what}, {wording.moment(decision.at)}{why}"

    def _attempts(self, record: StepRecord) -> str:
        """What was tried before the attempt that is shown. The attempts before the last say why they were not the last."""
        first = record.attempts[0]
        missed = [self._check(c) for c in first.gate if not c.passed]
        failed = wording.listed([f"{row.name} ({row.value}, {row.limit})" for row in missed])
        return f"A first attempt with strength {first.strength:g} missed {failed}; it was {first.then}."

    def _check(self, check: Check) -> CheckRow:
        of = f" of {self.names.label(check.concept)}" if check.concept else ""
        unit = " pt" if check.name.endswith("drop") else "%"
        return CheckRow(
            wording.capital(CHECKS[check.name]) + of,
            wording.UNMEASURED
            if check.value is None
            else f"{wording.percent(check.value, beside=check.threshold)}{unit}",
            f"{'at least' if check.at_least else 'at most'} {wording.percent(check.threshold)}{unit}",
            check.passed,
        )

    def _strips(self, concept: str, record: StepRecord) -> list[Strip]:
        """Base and step for the concept's forget prompts, and for one neighbour."""
        if self.names.private(concept):
            return []
        album = self.albums[record.index]
        outcome = {"accepted": "", "rejected": ", not taken", "withdrawn": ", withdrawn"}[record.status]
        after = f"after, step {record.index}{outcome}"
        albums = [("before, base model", self.base), (after, album)]
        labels = ("before", f"after step {record.index}")
        strips = [
            Strip(
                f"Forget: {self.names.label(concept)}",
                labels,
                columns("forget", concept, albums, self.names, wanted=False),
            )
        ]
        gone, near = {c.name for r in self.requests for c in r.concepts}, None
        if self.neighbours is not None:
            near = neighbour(self.neighbours.get(concept, ()), album, self.names, gone)
        if near:
            replayed = next(bool(r["replayed"]) for r in album.rows.values() if r["concept"] == near)
            kind = "Neighbour, replayed in training" if replayed else "Neighbour, never seen in training"
            pictured = columns("neighbour", near, albums, self.names, wanted=True, free_of=gone)
            strips.append(Strip(f"{kind}: {self.names.label(near)}", labels, pictured))
        return [s for s in strips if s.columns]

    # -- resurgence -------------------------------------------------------------------------------------------------

    def _resurgence(self) -> tuple[Strip | None, str]:
        """For each concept forgotten before the last accepted step: base, after its own step, after the last one."""
        last = self.last
        earlier = [c for c, step in self.turn.items() if last and step < last.index]
        if last is None or not earlier:
            return None, ""
        final = self.albums[last.index]
        shown = []
        for concept in earlier:
            rows = [
                key
                for key, row in final.rows.items()
                if row["role"] == "forget" and row["concept"] == concept and not names_a_person(row, self.names)
            ]
            if self.names.private(concept) or not rows:
                continue
            worst = max(rows, key=lambda key: (final.has(key), final.shown(key) is True, final.confidence(key)))
            own = self.turn[concept]
            albums = [
                ("base model", self.base),
                (f"after step {own}", self.albums[own]),
                (f"after step {last.index}", final),
            ]
            value = ua_after(self.summary, concept, last.index)
            shows = (
                f"now shows in {wording.showing(value)} of {wording.counted(value)}" if value else wording.UNMEASURED
            )
            heading = f"{self.names.label(concept)}: forgotten at step {own}, {shows}"
            prompt = str(final.rows[worst]["prompt"])
            shown.append(column(worst, albums, wanted=False, caption=prompt, heading=heading))
        hidden = [self.names.label(c) for c in earlier if self.names.private(c)]
        note = f"Not pictured, because a person is concerned: {wording.listed(hidden)}." if hidden else ""
        labels = ("base", "own step", f"step {last.index}")
        return (Strip("Forgotten earlier", labels, tuple(shown)) if shown else None), note

    # -- what is not claimed ----------------------------------------------------------------------------------------

    def _judged(self) -> str:
        record = self.last or self.records[-1]
        rows = self.albums[record.index].rows.values()
        judges = sorted({self.names.text(str(r["judge"])) for r in rows})
        who = f"the judge {wording.listed(judges)}" if judges else "a judge that is not recorded any more"
        return f"{who} over {wording.count(len(rows), 'picture')} after step {record.index}"

    def _unmeasured(self) -> tuple[Unmeasured, ...]:
        found: dict[tuple[str, str], list[str]] = {}
        for record in self.records:
            for field, kind in METRICS.items():
                if getattr(record.metrics, field) is None:
                    reason = self.names.text(record.metrics.reasons.get(field, "no reason was recorded"))
                    found.setdefault((kind.name, reason), []).append(str(record.index))
        return tuple(
            Unmeasured(name, reason, "all steps" if len(steps) == len(self.records) else f"step {', '.join(steps)}")
            for (name, reason), steps in found.items()
        )
