"""Low-rank adapters on every backbone: known answers for the merge and for constraints on the effective weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from expunge import backbones
from expunge.backbones import Backbone
from expunge.constraints import L2, Anchors, L2Config
from expunge.files import load_tensors
from expunge.trainable import LoraConfig, LowRank, trainable
from steps import example_prediction, in_fixed_order, run_step

CONFIG = LoraConfig(rank=3, alpha=6.0)


def _with_update(adapters: LowRank) -> dict[str, tuple[Tensor, Tensor]]:
    """Factors drawn anew, none of them zero: {name of the weight: (A, B)}."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapters.parameters.values():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    factors = {n: p.detach().clone() for n, p in adapters.parameters.items()}
    names = [name.removesuffix(".weight") for name in adapters.weights]
    return {f"{n}.weight": (factors[f"{n}.lora_A"], factors[f"{n}.lora_B"]) for n in names}


@in_fixed_order
def test_merged_weights_are_w_plus_scale_b_a_and_nothing_else_changes(
    fresh_backbone: Callable[[], Backbone],
) -> None:
    backbone = fresh_backbone()
    before = {n: v.clone() for n, v in backbone.denoiser.state_dict().items()}
    untouched = example_prediction(backbone)
    with trainable(backbone, "lora", CONFIG, seed=0) as adapters:
        assert isinstance(adapters, LowRank)
        assert torch.equal(example_prediction(backbone), untouched)  # B is zero
        factors = _with_update(adapters)
        adapted = example_prediction(backbone)
    after = backbone.denoiser.state_dict()
    assert list(after) == list(before)
    assert set(factors) == set(backbone.parameters_of("lora"))
    for name, value in after.items():
        if name in factors:
            a, b = factors[name]
            assert torch.equal(value, before[name] + 2.0 * (b @ a))
            assert not torch.equal(value, before[name])
        else:
            assert torch.equal(value, before[name])
    torch.testing.assert_close(example_prediction(backbone), adapted, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(adapted, untouched, atol=1e-2)


def test_adapters_are_gone_without_a_trace_where_training_fails(fresh_backbone: Callable[[], Backbone]) -> None:
    backbone = fresh_backbone()
    before = {n: v.clone() for n, v in backbone.denoiser.state_dict().items()}

    def fail() -> None:
        with trainable(backbone, "lora", CONFIG, seed=0) as adapters:
            assert isinstance(adapters, LowRank)
            _with_update(adapters)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    after = backbone.denoiser.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[n], before[n]) for n in before)


def test_adapters_lie_on_every_projection_of_attention(backbone: Backbone) -> None:
    linear = {n for n, m in backbone.denoiser.named_modules() if isinstance(m, nn.Linear)}
    targets = {n.removesuffix(".weight") for n in backbone.parameters_of("lora")}
    projections = {n for n in linear if ".attn" in n}
    assert projections
    assert projections < targets <= linear


@pytest.mark.parametrize("toward", ["previous", "base"])
def test_l2_sees_the_effective_weights_and_its_gradient_reaches_the_factors(
    toward: str, fresh_backbone: Callable[[], Backbone]
) -> None:
    backbone = fresh_backbone()
    constraint = L2(L2Config.model_validate({"weight": 0.3, "toward": toward}))
    with trainable(backbone, "lora", CONFIG, seed=0) as adapters:
        assert isinstance(adapters, LowRank)
        previous = {n: w.detach().clone() for n, w in adapters.weights.items()}
        base = {n: w + 0.01 * torch.randn_like(w) for n, w in previous.items()}
        anchor = previous if toward == "previous" else base
        factors = _with_update(adapters)
        for parameter in adapters.parameters.values():
            parameter.grad = torch.ones_like(parameter)
        with adapters.constrained() as weights:
            penalty = constraint.regularize(weights, Anchors(previous, base))
        gradients = {n: p.grad for n, p in adapters.parameters.items()}
    # A student of full weights that are the merged ones.
    merged = {n: nn.Parameter(backbone.denoiser.get_parameter(n).detach().clone()) for n in factors}
    for parameter in merged.values():
        parameter.grad = torch.zeros_like(parameter)
    assert torch.equal(penalty, constraint.regularize(merged, Anchors(previous, base)))
    # Autograd through W + s B A.
    for name, (a, b) in factors.items():
        a.requires_grad_(True), b.requires_grad_(True)
        loss = 0.3 * (previous[name] + 2.0 * (b @ a) - anchor[name]).square().sum()
        for factor, expected in zip("AB", torch.autograd.grad(loss, [a, b]), strict=True):
            found = gradients[f"{name.removesuffix('.weight')}.lora_{factor}"]
            torch.testing.assert_close(found, 1.0 + expected, atol=1e-4, rtol=1e-4)
    on_factors = 0.3 * sum(float(f.square().sum()) for pair in factors.values() for f in pair)
    assert penalty.item() != pytest.approx(on_factors, rel=0.1)  # the comparison can fail


def test_a_saved_step_opens_in_stock_diffusers(
    model_folder: Path, fresh_backbone: Callable[[], Backbone], tmp_path: Path
) -> None:
    """What training leaves goes into a pipeline folder and comes out again as the same predictions, without adapters."""
    backbone = fresh_backbone()
    trained = run_step(backbone, tmp_path / "step", parameters="lora", lora={"rank": 2, "alpha": 2.0})
    backbone.pipeline.save_pretrained(tmp_path / "pipeline")
    stored = [load_tensors(p) for p in (tmp_path / "pipeline" / backbone.denoiser_name).glob("*.safetensors")]
    buffers = {n for n, _ in backbone.denoiser.named_buffers()}
    assert {n for part in stored for n in part} - buffers == set(trained)
    pipeline = type(backbone.pipeline).from_pretrained(tmp_path / "pipeline")
    denoiser = getattr(pipeline, backbone.denoiser_name)
    assert all(torch.equal(trained[n], p) for n, p in denoiser.named_parameters())
    assert not torch.equal(example_prediction(backbone), example_prediction(backbones.load(model_folder)))


def test_the_global_generator_is_left_alone(fresh_backbone: Callable[[], Backbone]) -> None:
    backbone = fresh_backbone()
    state = torch.random.get_rng_state()
    with trainable(backbone, "lora", CONFIG, seed=0):
        pass
    assert torch.equal(torch.random.get_rng_state(), state)
