"""The page of an evaluation: a model beside the base model that it was made from."""

from __future__ import annotations

from expunge.audit import Audit
from expunge.concepts import PERSON
from expunge.privacy import Names, prompted
from expunge.report import wording
from expunge.report.measures import MAIN, METRICS, MORE, TILES, Unmeasured, metric_rows, tiles
from expunge.report.pictures import Album
from expunge.report.side_by_side import SidePage, cards, concept_pairs, metric_pairs, rest, unmeasured


def gather(audit: Audit) -> SidePage:
    """
    Raises:
        ExpungeError: before the evaluation has ended.
    """
    summary, protocol = audit.summary(), audit.protocol
    persons = [c.name for q in audit.requests for c in q.concepts if c.kind == PERSON]
    labels = {name: f"person {i}" for i, name in enumerate(persons, 1)}
    names = Names(audit.requests, prompted(protocol, audit.source), labels)
    paired, measured = summary.against_base, summary.metrics
    albums = [(n, Album(s)) for n, s in (("base", audit.base), ("model", audit.model))]
    groups = {name: g.names for name, g in protocol.neighbours.items()}
    changed = wording.listed([part.replace("_", " ") for part in summary.model.changed])
    forgotten = [(names.label(c), pair.second) for c, pair in paired.concepts.items()]
    found = f"{wording.forgetting(forgotten)}; {wording.retention(measured.ira_difference, measured.cra_difference)}."
    verdict = wording.capital(found)
    if not changed:
        verdict = f"The model's weights are the base model's. {verdict}"
    unknown = {field: reason for field, reason in measured.reasons.items() if getattr(measured, field) is None}
    return SidePage(
        eyebrow="Expunge evaluation",
        title=names.text(wording.bare(summary.model.name)),
        verdict=verdict,
        facts=(
            ("Model", f"{summary.model.kind} ({wording.short_digest(summary.model.digest)})"),
            (
                "Base model",
                f"{names.text(summary.base_model.name)} ({wording.short_digest(summary.base_model.digest)})",
            ),
            ("Differs in", changed or "nothing"),
            ("Protocol", names.text(summary.protocol)),
        ),
        tiles_caption="Ranges are 95% intervals.",
        tiles=tiles({**TILES, "weight_drift": "Weight drift"}, measured),
        names=("base", "model"),
        lead="Each column is one prompt with one seed: the base model above, the evaluated model below. An orange frame "
        "marks a picture that shows what it should not, or lost what it should keep.",
        rows=metric_pairs(paired),
        concepts=concept_pairs(paired, names),
        points=(),
        cards=cards(summary.forgotten, paired, names, groups, albums, summary.forgotten),
        rest=rest(protocol.others, names, albums, summary.forgotten),
        more=metric_rows({**MAIN, **MORE}, measured),
        unmeasured=(
            *unmeasured(paired),
            *(Unmeasured(METRICS[f].name, reason, "") for f, reason in unknown.items() if f not in ("ua", "context")),
        ),
        judged=f"the judge {names.text(summary.judge)} over {wording.count(summary.pictures, 'picture')} of each model",
        glossary=tuple((kind.name, kind.meaning) for kind in METRICS.values()),
        origin="the files of the evaluation",
    )
