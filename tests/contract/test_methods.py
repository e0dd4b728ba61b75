"""Every registered method, on every backbone, keeps the same promises."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from expunge import backbones
from expunge.backbones import Backbone, Evaluations, Predictor
from expunge.concepts import mentions
from expunge.engine import StepLog
from expunge.errors import ExpungeError
from expunge.hardware import Precision, compute_dtype
from expunge.methods import METHODS, Position
from steps import SMALL, built, context, in_fixed_order, log, run_step
from tiny import PIPELINES

FIRST, *OTHERS = METHODS
every_method = pytest.mark.parametrize("method", METHODS)
each_once = pytest.mark.parametrize(
    ("method", "model_folder"),
    [*((FIRST, model) for model in PIPELINES), *((method, "sd-epsilon") for method in OTHERS)],
    indirect=["model_folder"],
)
"""Every method on one backbone, and every backbone under one method: where the two have nothing to do with each other."""
one_of_each = pytest.mark.parametrize(("method", "model_folder"), [(FIRST, "sd-epsilon")], indirect=["model_folder"])
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
weights_and_adapters = pytest.mark.parametrize("parameters", ["full", "lora"])


@pytest.fixture(scope="module")
def uninterrupted(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, str, Path], tuple[dict[str, Tensor], Path]]:
    """`uninterrupted(method, parameters, model)`: weights after a step that was trained in one go, and its folder."""

    @cache
    def trained(method: str, parameters: str, model: Path) -> tuple[dict[str, Tensor], Path]:
        folder = tmp_path_factory.mktemp("whole")
        return run_step(backbones.load(model), folder, method=method, parameters=parameters), folder

    return trained


@pytest.fixture
def whole(
    method: str,
    parameters: str,
    model_folder: Path,
    uninterrupted: Callable[[str, str, Path], tuple[dict[str, Tensor], Path]],
) -> tuple[dict[str, Tensor], Path]:
    """What `uninterrupted` has for the test's own method, parameters and model."""
    return uninterrupted(method, parameters, model_folder)


@every_method
def test_unknown_fields_are_errors(method: str) -> None:
    with pytest.raises(ValidationError, match="no_such_field"):
        METHODS[method].Config(no_such_field=1)


@every_method
def test_prompts_leave_out_what_is_forgotten_or_held_out(method: str, backbone: Backbone) -> None:
    step = context(backbone)
    _, record = built(method).prepare(step)
    off_limits = [step.source.concept(name) for name in ("fox", "neon", "cat")]
    assert [p["id"] for p in record.prompts["forget"]] == [p["id"] for p in record.prompts["mapping"]]
    for prompt in [p["prompt"] for p in record.prompts["mapping"]] + record.prompts["retain"]:
        assert not [c.name for c in off_limits if mentions(prompt, c)]
    assert all(mentions(p["prompt"], off_limits[0]) for p in record.prompts["forget"])


@every_method
def test_a_request_for_two_concepts_pairs_the_prompts_of_both(method: str, backbone: Backbone) -> None:
    concepts = tuple(context(backbone).source.concept(name) for name in ("fox", "mosaic"))
    _, record = built(method).prepare(context(backbone, concepts=concepts))
    ids = [p["id"] for p in record.prompts["forget"]]
    assert ids == [p["id"] for p in record.prompts["mapping"]]
    assert len(set(ids)) == 2 * SMALL[method]["forget_prompts"]
    for concept in concepts:
        assert any(mentions(p["prompt"], concept) for p in record.prompts["forget"])
        assert not any(mentions(p, concept) for p in record.prompts["retain"])


@every_method
def test_losses_are_finite_scalars_with_a_weight_each(method: str, backbone: Backbone) -> None:
    using = built(method)
    step = context(backbone)
    state, _ = using.prepare(step)
    student = Predictor(backbone, backbone.denoiser, Evaluations())
    losses = using.losses(using.batch(state, Position(0), student), student, step.teacher, state)
    assert losses.keys() == using.weights.keys()
    assert all(loss.shape == () and loss.isfinite() for loss in losses.values())


@every_method
def test_only_the_declared_parameters_move_and_the_teacher_stays(
    method: str, fresh_backbone: Callable[[], Backbone], tmp_path: Path
) -> None:
    for group in ("cross-attention-kv", "cross-attention", "lora", "full"):
        backbone = fresh_backbone()
        before = {n: p.detach().cpu().clone() for n, p in backbone.denoiser.named_parameters()}
        after = run_step(backbone, tmp_path / group, method=method, parameters=group)
        moved = {n for n in before if not torch.equal(before[n], after[n])}
        assert moved <= set(backbone.parameters_of(group))
        assert len(moved) > 0.8 * len(backbone.parameters_of(group))


@in_fixed_order
@weights_and_adapters
@every_method
def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(
    method: str,
    parameters: str,
    whole: tuple[dict[str, Tensor], Path],
    fresh_backbone: Callable[[], Backbone],
    tmp_path: Path,
) -> None:
    first, _ = whole
    again, other = (
        run_step(fresh_backbone(), tmp_path / str(seed), method=method, parameters=parameters, seed=seed)
        for seed in (0, 2)
    )
    assert _equal(first, again)
    assert not _equal(first, other)


@in_fixed_order
@weights_and_adapters
@every_method
def test_training_interrupted_between_checkpoints_ends_with_the_same_bits(
    method: str,
    parameters: str,
    whole: tuple[dict[str, Tensor], Path],
    fresh_backbone: Callable[[], Backbone],
    tmp_path: Path,
) -> None:
    weights, folder = whole

    def interrupt(entry: StepLog) -> None:
        if entry.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_step(fresh_backbone(), tmp_path / "broken", method=method, parameters=parameters, on_step=interrupt)
    steps: list[int] = []
    resumed = run_step(
        fresh_backbone(),
        tmp_path / "broken",
        method=method,
        parameters=parameters,
        on_step=lambda e: steps.append(e.step),
    )
    assert steps == [3, 4]
    assert _equal(weights, resumed)
    assert log(folder) == log(tmp_path / "broken")


@weights_and_adapters
@one_of_each
def test_the_comparison_of_resumed_bits_can_fail(
    method: str,
    parameters: str,
    whole: tuple[dict[str, Tensor], Path],
    fresh_backbone: Callable[[], Backbone],
    tmp_path: Path,
) -> None:
    """Without its optimizer moments a checkpoint is not enough."""
    from expunge.files import load_tensors, save_tensors

    weights, _ = whole
    run_step(fresh_backbone(), tmp_path / "half", method=method, parameters=parameters, steps=2)
    path = tmp_path / "half" / "train-000002.safetensors"
    tensors = {n: torch.zeros_like(v) if n.startswith("exp_avg.") else v for n, v in load_tensors(path).items()}
    save_tensors(path, tensors)
    assert not _equal(weights, run_step(fresh_backbone(), tmp_path / "half", method=method, parameters=parameters))


@in_fixed_order
@weights_and_adapters
@each_once
def test_accumulation_is_a_larger_batch(
    method: str, parameters: str, fresh_backbone: Callable[[], Backbone], tmp_path: Path
) -> None:
    joined = run_step(
        fresh_backbone(), tmp_path / "a", method=method, parameters=parameters, batch_size=4, accumulation=1, steps=2
    )
    split = run_step(
        fresh_backbone(), tmp_path / "b", method=method, parameters=parameters, batch_size=2, accumulation=2, steps=2
    )
    other = run_step(
        fresh_backbone(), tmp_path / "c", method=method, parameters=parameters, batch_size=2, accumulation=1, steps=2
    )
    assert _distance(joined, split) < 0.02 * _distance(joined, other)


@pytest.mark.parametrize("half", ["bf16", pytest.param("fp16", marks=on_a_gpu)])
@weights_and_adapters
@every_method
def test_half_precision_trains_close_to_fp32(
    method: str, parameters: str, half: Precision, fresh_backbone: Callable[[], Backbone], tmp_path: Path
) -> None:
    """Teacher, replay and student. Of losses as small as these AdamW's first steps follow signs, so weights stray further."""
    logs = {}
    for precision in ("fp32", half):
        backbone = fresh_backbone()
        teacher = Predictor(backbone, backbone.copy_denoiser(compute_dtype(precision)), Evaluations())
        run_step(
            backbone,
            tmp_path / precision,
            method=method,
            parameters=parameters,
            precision=precision,
            steps=2,
            learning_rate=1e-4,
            served={"teacher": teacher},
        )
        logs[precision] = [e["losses"] for e in log(tmp_path / precision)]
    for exact, rounded in zip(logs["fp32"], logs[half], strict=True):
        assert exact["unlearn"] == pytest.approx(rounded["unlearn"], rel=0.05)


@pytest.mark.parametrize("parameters", ["cross-attention", "lora"])
def test_in_half_precision_the_student_borrows_what_it_does_not_change_and_learns_the_same(
    parameters: str, fresh_backbone: Callable[[], Backbone], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(name: str) -> dict[str, Tensor]:
        backbone = fresh_backbone()
        teacher = Predictor(backbone, backbone.copy_denoiser(torch.bfloat16), Evaluations())
        settings: dict[str, Any] = {"parameters": parameters, "precision": "bf16", "served": {"teacher": teacher}}

        def look(_: StepLog) -> None:
            theirs = {p.data_ptr() for p in teacher.denoiser.parameters()}
            shared.append(sum(p.data_ptr() in theirs for p in backbone.denoiser.parameters()))

        weights = run_step(backbone, tmp_path / name, on_step=look, **settings)
        return {n: weights[n] for n in backbone.parameters_of(parameters)}

    shared: list[int] = []
    lean = trained("lean")
    assert min(shared) > 0
    shared.clear()
    monkeypatch.setattr(Backbone, "borrowing", lambda *_: nullcontext())
    whole = trained("whole")
    assert max(shared) == 0
    assert _equal(lean, whole)


@weights_and_adapters
@each_once
def test_a_loss_that_is_not_finite_stops_with_a_sentence(
    method: str, parameters: str, fresh_backbone: Callable[[], Backbone], tmp_path: Path
) -> None:
    backbone = fresh_backbone()

    def spoil(entry: StepLog) -> None:
        next(backbone.denoiser.parameters()).data.fill_(torch.inf)

    with pytest.raises(ExpungeError, match="is not finite at optimizer step 2"):
        run_step(backbone, tmp_path, method=method, parameters=parameters, on_step=spoil)


def _equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[n], b[n]) for n in a)


def _distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return float(sum((a[n] - b[n]).square().sum() for n in a)) ** 0.5
