"""The model card of an export: what was done to the model, what was measured, and the head of the run's events."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from expunge.concepts import Concept, Request
from expunge.evaluation import Value
from expunge.privacy import Names
from expunge.stream.config import RunConfig
from expunge.stream.summary import ModelSummary, StepRecord


def model_card(
    config: RunConfig,
    model: ModelSummary,
    protocol: str,
    requests: Sequence[Request],
    records: Sequence[StepRecord],
    accuracies: Mapping[str, Value | None],
    by_hand: Collection[str],
    names: Names,
    head: str,
) -> str:
    """
    Args:
        requests: those that led to the model, in order.
        records: their steps, in the same order.
        accuracies: UA after the last one, of each concept.
        by_hand: ids of the requests whose step a person accepted, because the gate did not let it pass.
        names: what may be said of whom.
        head: digest of the run's last event.
    """
    metrics = records[-1].metrics
    rows = [
        ("Unlearning accuracy (UA), all concepts", metrics.ua),
        *((f"UA of {_plain(names.label(concept))}", value) for concept, value in accuracies.items()),
        ("Context kept", metrics.context),
        ("Accuracy on neighbours (IRA)", metrics.ira),
        ("IRA minus the base model's", metrics.ira_difference),
        ("Accuracy on the rest (CRA)", metrics.cra),
        ("CRA minus the base model's", metrics.cra_difference),
        ("Collapsed pictures", metrics.collapsed),
    ]
    served = "\n".join(
        f"- request {r.id}: {', '.join(_said(c, names) for c in r.concepts)}{_tried(record)}"
        + (" (accepted by hand: the gate did not let it pass)" if r.id in by_hand else "")
        for r, record in zip(requests, records, strict=True)
    )
    unnamed = any(names.private(c.name) for r in requests for c in r.concepts)
    table = "\n".join(f"| {name} | {_cells(value)} |" for name, value in rows)
    return f"""# {names.text(model.name)}, after {len(requests)} deletion request{"s" if len(requests) != 1 else ""}

Made with [Expunge](https://arxiv.org/abs/2512.02657): the weights of the base model were edited so that it no longer paints
what was asked to go. It loads with `DiffusionPipeline.from_pretrained`, without Expunge.

- Base model: {names.text(model.name)}, {model.digest}
- Method: {config.method_name}{"" if config.strength is None else f", strength {config.strength:g}"}
- Trained weights: {config.train.parameters}
- Head of the run's events: {head}

## Requests served: {len(requests)}

{served}
{_UNNAMED if unnamed else ""}
## Measured after the last step

Protocol {names.text(protocol)}. Ranges are 95 % intervals; n counts pictures.

| | value | from | to | n |
|---|---|---|---|---|
{table}

## What is not claimed

No proof that a concept is gone: other prompts, other samplers, fine-tuning or an attack may bring it back. The judge that
counted errs too. The numbers hold for the prompts and seeds of the protocol, and an interval says only how far a number may be
off for lack of pictures; some of these pictures also decided which steps were let pass. Only the denoiser was trained: the
text encoder and the tokenizer are the base model's, and know the words that they knew.

Whoever has the run can check this card. The command recomputes every digest of the run, and whether its events go through the
head above:

    expunge verify RUN --head {head}
"""


_UNNAMED = """
A person is called by the number of the request, and nothing here says who it is.
"""


def _tried(record: StepRecord) -> str:
    return f", in a second attempt with strength {record.attempts[-1].strength:g}" if len(record.attempts) > 1 else ""


def _said(concept: Concept, names: Names) -> str:
    return "a person" if names.private(concept.name) else _plain(names.label(concept.name))


def _plain(name: str) -> str:
    """A name that Markdown prints as it is."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", name)


def _cells(value: Value | None) -> str:
    if value is None:
        return "not measured | | |"
    return f"{value.value:.3f} | {value.low:.3f} | {value.high:.3f} | {value.n}"
