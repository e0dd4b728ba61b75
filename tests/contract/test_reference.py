"""The reference engine: the losses and gradients of the fast one, at the published cost."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from expunge.backbones import Backbone, Evaluations, Predictor, load
from expunge.constraints import L2, Anchors, Constraint, L2Config
from expunge.engine import StepLog, TrainConfig, frozen_teacher, train
from expunge.errors import ExpungeError
from expunge.hardware import PLAIN_ATTENTION_POSITIONS, trained_attention
from expunge.methods import METHODS, Position, StepContext
from expunge.methods.resteering import State
from expunge.reference import PREDICTORS, SETTINGS, EngineName
from expunge.replay import ReplayConfig
from expunge.trainable import LoraConfig, trainable
from steps import SMALL, built, context, run_step

FRESH = ReplayConfig(source="fresh", steps=3, batch_size=32)
AS_PUBLISHED = FRESH.model_copy(update={"batch_size": 1})
ENGINES: dict[EngineName, ReplayConfig] = {"fast": FRESH, "reference": AS_PUBLISHED}
NAMED = {"neighbours": "source"}
"""For tests of what comes after the choice: ranking ninety names one at a time takes longer than all the rest."""


@pytest.mark.parametrize("method", METHODS)
def test_both_engines_see_the_same_rows_and_lose_the_same(method: str, backbone: Backbone) -> None:
    fast, reference = (_losses(method, _step(backbone, engine)) for engine in ENGINES)
    other = _losses(method, _step(backbone, "reference", seed=1))
    assert fast[0] == reference[0]  # what was chosen
    for role, rows in fast[1].items():
        same = reference[1][role]
        torch.testing.assert_close(rows.latents, same.latents, atol=1e-4, rtol=1e-4)
        assert torch.equal(rows.t, same.t)
        assert torch.equal(rows.prompts, same.prompts)
        assert not torch.equal(rows.latents, other[1][role].latents)
    assert fast[2].keys() == reference[2].keys()
    for name, loss in fast[2].items():
        torch.testing.assert_close(loss, reference[2][name], atol=1e-7, rtol=1e-3)
    assert fast[2]["unlearn"] != pytest.approx(other[2]["unlearn"].item(), rel=1e-2)  # the comparison can fail


@pytest.mark.parametrize("parameters", ["full", "lora"])
def test_both_engines_train_alike(parameters: str, fresh_backbone: Callable[[], Backbone], tmp_path: Path) -> None:
    """Losses, the penalty and the norm of the whole gradient, step by step."""

    def log(engine: EngineName, seed: int = 0) -> list[dict[str, Any]]:
        folder = tmp_path / f"{engine}-{seed}"
        settings = {"engine": engine, "parameters": parameters, "learning_rate": 3e-4, "accumulation": 2}
        served = {"served": {"replay": ENGINES[engine]}, "changes": NAMED}
        run_step(fresh_backbone(), folder, seed=seed, **served, **settings)
        return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]

    def apart(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> float:
        """Largest relative difference of a value that both logs hold."""
        pairs = [
            (x, y)
            for ours, theirs in zip(a, b, strict=True)
            for x, y in [
                (ours["gradient_norm"], theirs["gradient_norm"]),
                *((value, theirs["losses"][name]) for name, value in ours["losses"].items()),
            ]
            if max(x, y) > 1e-8
        ]
        return max(abs(x - y) / max(x, y) for x, y in pairs)

    fast, reference = log("fast"), log("reference")
    assert fast[-1]["losses"].keys() == {"unlearn", "preserve", "regularize"}
    assert fast[-1]["losses"]["regularize"] > 0
    assert apart(fast, reference) < 0.02
    assert apart(fast, log("reference", seed=1)) > 0.1


def test_an_interrupted_reference_step_ends_with_the_same_bits(
    fresh_backbone: Callable[[], Backbone], tmp_path: Path
) -> None:
    def step(folder: str, **changes: Any) -> dict[str, Tensor]:
        served = {"served": {"replay": AS_PUBLISHED}, "changes": NAMED}
        return run_step(fresh_backbone(), tmp_path / folder, engine="reference", **served, **changes)

    def interrupt(entry: StepLog) -> None:
        if entry.step == 3:
            raise KeyboardInterrupt

    whole = step("whole")
    with pytest.raises(KeyboardInterrupt):
        step("broken", on_step=interrupt)
    resumed = step("broken")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("parameters", ["full", "lora"])
@pytest.mark.parametrize("toward", ["previous", "base", "both"])
def test_the_l2_gradient_by_autograd_is_the_analytic_one(
    parameters: str, toward: str, fresh_backbone: Callable[[], Backbone]
) -> None:
    backbone, l2 = fresh_backbone(), L2(L2Config.model_validate({"weight": 0.3, "toward": toward}))
    before = {n: p.detach().clone() for n, p in backbone.denoiser.named_parameters()}
    with trainable(backbone, parameters, LoraConfig(), 0) as trained:
        with torch.no_grad():
            for parameter in trained.parameters.values():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        anchors = Anchors(before, {n: (2 * p).half() for n, p in before.items()})
        autograd = torch.autograd.grad(
            l2.penalty(trained.effective(), anchors), list(trained.parameters.values()), allow_unused=True
        )
        for parameter in trained.parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        with trained.constrained() as weights:
            l2.regularize(weights, anchors)
        for parameter, gradient in zip(trained.parameters.values(), autograd, strict=True):
            assert parameter.grad is not None
            assert gradient is not None
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)
        assert max(gradient.abs().max() for gradient in autograd if gradient is not None) > 0.01


def test_a_reference_step_costs_what_the_published_one_does(
    fresh_backbone: Callable[[], Backbone], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """48 units for a retain and a forget row with 20 solver steps, a backward counted as two; scoring one row at a time;
    five passes of the text encoder in every micro-batch."""
    backbone, counts = fresh_backbone(), Evaluations()
    calls: list[int] = []
    encoded: list[int] = []
    predict, encode = backbone.predict, backbone.conditioning
    monkeypatch.setattr(backbone, "predict", lambda d, x, t, c: calls.append(len(x)) or predict(d, x, t, c))
    monkeypatch.setattr(backbone, "conditioning", lambda prompts: encoded.append(len(prompts)) or encode(prompts))
    config = TrainConfig(engine="reference", steps=2, batch_size=3, accumulation=2, warmup_steps=0)
    step = _step(backbone, "reference", counts, batch_size=3, replay=ReplayConfig(**SETTINGS["replay"]))
    method = built("lacu")
    state, record = method.prepare(step)

    draws, retain_draws = SMALL["lacu"]["mapping_draws"], SMALL["lacu"]["retain_draws"]
    ranked = len(record.choices["neighbours"]["fox"])
    scored = sum(1 + len(choice["distances"]) for choice in record.choices["mapping"])
    assert calls == [1] * (retain_draws * (1 + ranked) + draws * scored)
    assert counts == Evaluations(forward=len(calls))
    calls.clear()
    encoded.clear()

    _train(backbone, step, method, state, [L2(L2Config())], config, counts, tmp_path)
    assert encoded == [3] * 5 * 2 * 2
    assert calls == [3] * (20 + 20 + 2 + 2) * 2 * 2
    pairs = 2 * 2 * 3
    trained = counts.forward - retain_draws * (1 + ranked) - draws * scored
    assert (trained, counts.backward) == (44 * pairs, 2 * pairs)
    assert trained + 2 * counts.backward == 48 * pairs


def test_the_fast_engine_joins_passes_and_encodes_once(
    fresh_backbone: Callable[[], Backbone], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = fresh_backbone()
    step = _step(backbone, "fast")
    method = built("lacu")
    state, _ = method.prepare(step)
    batch = method.batch(state, Position(0), step.teacher)
    monkeypatch.setattr(backbone, "conditioning", lambda prompts: pytest.fail("encoded again"))
    calls: list[int] = []
    predict = backbone.predict
    monkeypatch.setattr(backbone, "predict", lambda d, x, t, c: calls.append(len(x)) or predict(d, x, t, c))
    method.losses(batch, step.teacher, step.teacher, state)
    assert calls == [8, 8]  # teacher, student: four rows of each of two losses


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU all lie as they are stored")
def test_networks_lie_as_they_are_quick_and_the_references_as_they_are_stored(sd_folder: Path) -> None:
    backbone = load(sd_folder)
    weight = backbone.denoiser.conv_in.weight
    asked = torch.randn(3, *backbone.latent_shape), torch.tensor([10.0, 500.0, 990.0]), backbone.encode(["a fox"] * 3)
    found = []
    for changes, last in (
        ({"precision": "fp32"}, True),
        ({"engine": "reference"}, False),
        ({"precision": "bf16"}, True),
    ):
        config = TrainConfig(**{"steps": 1, "learning_rate": 1e-3, "batch_size": 1, "precision": "fp32", **changes})
        teacher = frozen_teacher(backbone, config, Evaluations())
        for of in (weight, teacher.denoiser.conv_in.weight):
            assert of.is_contiguous(memory_format=torch.channels_last) == last
        found.append(teacher(*asked))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU all lie as they are stored")
def test_in_bfloat16_group_norms_are_computed_in_the_usual_layout(
    sd_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load(sd_folder)
    asked = torch.randn(3, *backbone.latent_shape), torch.tensor([10.0, 500.0, 990.0]), backbone.encode(["a fox"] * 3)
    usual: list[bool] = []
    norm = torch.nn.functional.group_norm

    def spied(x: Tensor, *rest: Any) -> Tensor:
        usual.append(x.is_contiguous())
        return norm(x, *rest)

    monkeypatch.setattr(torch.nn.functional, "group_norm", spied)
    predictions = {}
    for precision in ("fp32", "bf16"):
        config = TrainConfig.model_validate({"precision": precision})
        predictions[precision] = frozen_teacher(backbone, config, Evaluations())(*asked)
        assert all(usual) == (precision == "bf16")
        usual.clear()
    backbone.lay_out(torch.contiguous_format)
    stored = Predictor(backbone, backbone.copy_denoiser(torch.bfloat16), Evaluations())(*asked)
    torch.testing.assert_close(predictions["bf16"], stored, atol=2e-2, rtol=2e-2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the fused kernel is quick to train too")
def test_small_latents_are_trained_with_plain_attention_and_large_ones_are_not(
    fresh_backbone: Callable[[], Backbone], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = fresh_backbone()
    asked = torch.randn(2, *backbone.latent_shape), torch.tensor([10.0, 900.0]), backbone.encode(["a fox", "a hill"])
    fused: list[bool] = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def spied(*given: Any, **named: Any) -> Tensor:
        fused.append(torch.backends.cuda.flash_sdp_enabled())
        return attention(*given, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spied)
    student = Predictor(backbone, backbone.denoiser, Evaluations())
    expected = student(*asked)
    assert fused
    assert all(fused)
    for positions, plain in ((PLAIN_ATTENTION_POSITIONS, True), (PLAIN_ATTENTION_POSITIONS + 1, False)):
        fused.clear()
        with trained_attention(backbone.denoiser, positions):
            torch.testing.assert_close(student(*asked), expected, atol=1e-5, rtol=1e-4)
        assert any(fused) != plain
    fused.clear()
    student(*asked)
    assert fused
    assert all(fused)


def test_the_denoiser_is_alone_while_the_fast_engine_trains(
    sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone: list[str] = []

    @contextmanager
    def spied(backbone: Backbone) -> Iterator[None]:
        alone.append("begins")
        yield
        alone.append("ends")

    monkeypatch.setattr(Backbone, "denoiser_alone", spied)
    step = {"method": "naive", "steps": 2, "on_step": lambda entry: alone.append(f"step {entry.step}")}
    run_step(load(sd_folder), tmp_path / "fast", **step)
    assert alone == ["begins", "step 1", "step 2", "ends"]
    alone.clear()
    run_step(load(sd_folder), tmp_path / "reference", engine="reference", **step)
    assert alone == ["step 1", "step 2"]


def test_a_constraint_that_is_no_term_of_a_loss_is_refused(
    fresh_backbone: Callable[[], Backbone], tmp_path: Path
) -> None:
    class Mask(Constraint):
        def regularize(self, parameters: Any, anchors: Anchors) -> Tensor:
            return torch.zeros(())

    backbone = fresh_backbone()
    step = _step(backbone, "reference")
    method = built("naive", **NAMED)
    state, _ = method.prepare(step)
    config = TrainConfig(engine="reference", steps=1, batch_size=1, accumulation=1)
    with pytest.raises(ExpungeError, match="Mask is no term of a loss"):
        _train(backbone, step, method, state, [Mask(None)], config, Evaluations(), tmp_path)


def _step(backbone: Backbone, engine: EngineName, counts: Evaluations | None = None, **changes: Any) -> StepContext:
    teacher = PREDICTORS[engine](backbone, backbone.copy_denoiser(torch.float32), counts or Evaluations())
    return context(backbone, **{"teacher": teacher, "replay": ENGINES[engine], **changes})


def _losses(name: str, step: StepContext) -> tuple[Any, Any, dict[str, Tensor]]:
    """What was chosen, the rows of a micro-batch, and its losses for a student that has moved away from the teacher."""
    method = built(name)
    state, record = method.prepare(step)
    student = type(step.teacher)(step.backbone, _moved(step.teacher.denoiser), Evaluations())
    batch = method.batch(state, Position(5, 1, 2), student)
    with torch.no_grad():
        losses = dict(method.losses(batch, student, step.teacher, state))
    return record.prompts, batch, losses


@torch.no_grad()
def _moved(denoiser: nn.Module) -> nn.Module:
    moved, generator = copy.deepcopy(denoiser), torch.Generator().manual_seed(7)
    for parameter in moved.parameters():
        parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return moved


def _train(
    backbone: Backbone,
    step: StepContext,
    method: Any,
    state: State,
    constraints: list[Constraint],
    config: TrainConfig,
    counts: Evaluations,
    folder: Path,
) -> None:
    base = {n: p.detach() for n, p in step.teacher.denoiser.named_parameters()}
    train(
        backbone,
        step.teacher,
        method,
        state,
        constraints,
        base,
        config,
        seed=step.seed,
        checkpoint=folder,
        log=folder / "train.jsonl",
        evaluations=counts,
    )
