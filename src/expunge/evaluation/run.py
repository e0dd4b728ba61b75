"""Paint the rows of a protocol with a model and have them judged: one table row per picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from expunge.backbones import Backbone
from expunge.evaluation.collapse import collapse
from expunge.evaluation.judge import UNSURE, Answer, Judge, Question, Seen
from expunge.evaluation.metrics import mean, unlearning_accuracy
from expunge.evaluation.pixels import pixels
from expunge.evaluation.protocol import Row, SamplerConfig, batches
from expunge.files import canonical_json, digest_bytes
from expunge.hardware import Precision, autocast, compute_dtype, quick_layout

Images = dict[str, np.ndarray]
"""{row id: picture `(h w 3)` uint8}"""


def paint(
    backbone: Backbone,
    denoiser: nn.Module,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampler: SamplerConfig,
    precision: Precision = "fp32",
) -> Tensor:
    """Pictures `(b 3 h w)` in [0, 1], one prompt and one seed each."""
    conditioning, unconditional = backbone.encode_each(prompts), backbone.encode([""])
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    with autocast(backbone.device, precision):
        latents = backbone.sample(
            denoiser,
            conditioning,
            generators,
            steps=sampler.steps,
            guidance=sampler.guidance,
            unconditional=unconditional,
            solver=sampler.solver,
        )
        return backbone.decode(latents)


def evaluate(
    backbone: Backbone,
    rows: Sequence[Row],
    sampler: SamplerConfig,
    judge: Judge,
    progress: Callable[[int, int], None] = lambda done, of: None,
    precision: Precision = "fp32",
    enough: float | None = None,
) -> tuple[pd.DataFrame, Images]:
    """Judgements of the backbone's pictures in the order of `rows`, and the pictures.

    Args:
        enough: see `Protocol`; rows that are not painted because of it are not in the table.
    """
    tables, images = evaluate_each(backbone, rows, sampler, [judge], progress, precision, enough)
    return tables[0], images


def evaluate_each(
    backbone: Backbone,
    rows: Sequence[Row],
    sampler: SamplerConfig,
    judges: Sequence[Judge],
    progress: Callable[[int, int], None] = lambda done, of: None,
    precision: Precision = "fp32",
    enough: float | None = None,
) -> tuple[list[pd.DataFrame], Images]:
    """As `evaluate`, with a table for each of several judges of the same pictures; the first says what is `enough`."""
    dtype = compute_dtype(precision)
    backbone.lay_out(quick_layout(backbone.device))
    # Autocast alone would convert the weights at every one of thousands of passes.
    denoiser = backbone.denoiser if dtype == torch.float32 else backbone.copy_denoiser(dtype)
    tables: list[dict[str, dict[str, object]]] = [{} for _ in judges]
    images: Images = {}
    for batch in until_enough(rows, sampler.batch_size, enough, tables[0]):
        pictures = paint(backbone, denoiser, [r.prompt for r in batch], [r.seed for r in batch], sampler, precision)
        readable = pictures.isfinite().flatten(1).all(1).tolist()
        pictures = pictures.nan_to_num(0.0)
        images.update(zip((row.id for row in batch), pixels(pictures), strict=True))
        for judge, table in zip(judges, tables, strict=True):
            answers = judge.judge(pictures, [r.question for r in batch])
            for row, told, whole in zip(batch, answers, readable, strict=True):
                answer = told if whole else _unreadable(row.question)
                table[row.id] = _judgement(row, images[row.id], answer, judge.name, whole)
        progress(len(images), len(rows))
    return [_frame([table[row.id] for row in rows if row.id in table]) for table in tables], images


def until_enough(
    rows: Sequence[Row], size: int, enough: float | None, judged: Mapping[str, Mapping[str, object]]
) -> Iterator[Sequence[Row]]:
    """Batches of the rows, without those that measure what is known well `enough` (`Protocol`) by then.

    Args:
        judged: judgements by row id. Those of a batch are to be there when the next one is asked for.
    """
    known: set[tuple[str, str]] = set()
    for batch in batches(rows, size):
        measured = batch[0].measures
        if measured in known:
            continue
        yield batch
        if enough and _half_width([row for row in rows if row.measures == measured], judged) <= enough:
            known.add(measured)


def _half_width(rows: Sequence[Row], judged: Mapping[str, Mapping[str, object]]) -> float:
    """Half the width of the interval of what `rows` measure, as far as they are judged; 1 where nothing is known."""
    frame = pd.DataFrame([judged[row.id] for row in rows if row.id in judged]).astype({"shown": "boolean"})
    role, concept = rows[0].measures
    value = unlearning_accuracy(frame, concept) if role == "forget" else mean(frame, "shown", missing=False)
    return (value.high - value.low) / 2 if value else 1.0


def _judgement(row: Row, picture: np.ndarray, answer: Answer, judge: str, whole: bool) -> dict[str, object]:
    return {
        "row": row.id,
        "role": row.role,
        "concept": row.concept,
        "replayed": row.replayed,
        "level": row.level,
        "prompt": row.prompt,
        "seed": row.seed,
        "asked": canonical_json(dict(row.scene)),
        "judge": judge,
        "shown": answer.shown,
        "confidence": answer.confidence,
        "recognisable": answer.recognisable,
        "context": answer.context,
        "collapsed": not whole or collapse(picture) is not None,
        **{f"seen_{slot}": seen.value for slot, seen in answer.seen.items()},
        **{f"seen_{slot}_confidence": seen.confidence for slot, seen in answer.seen.items()},
        "image": digest_bytes(picture.tobytes()),
    }


def _frame(judgements: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    frame = pd.DataFrame(judgements)
    kinds = {c: "boolean" for c in ("shown", "recognisable", "context")}
    kinds |= {c: "float64" for c in map(str, frame) if c.endswith("confidence")}  # a judge may have none for any row
    return frame.astype(kinds)


def _unreadable(question: Question) -> Answer:
    """Of a picture with NaN in it, which any judge would take for a black one: nothing can be recognised, and whether what is
    asked about shows is not known."""
    context = False if question.scene.keys() - {question.slot} else None
    return Answer(None, None, False, context, {slot: Seen(UNSURE, None) for slot in question.scene})
