"""What every backbone promises, checked against the stock Diffusers pipeline loaded from the same folder.

Each comparison comes with a control: the same comparison against something wrong has to fail.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    TCDScheduler,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import tiny
from expunge import backbones
from expunge.backbones import Backbone, Conditioning, Evaluations, Predictor
from expunge.errors import ExpungeError
from expunge.hardware import best_device
from expunge.replay import Sampler, trace
from expunge.seeds import generator

PROMPTS = ["a photo of a red apple on a wooden table", "a small dog"]
OTHERS = ["an oil painting of a blue car by the sea", "two golf balls and a tennis ball"]
STEPS = 4
GROUPS = ["full", "cross-attention", "cross-attention-kv"]
INDICES = torch.tensor([0, 1, 250, 500, 998, 999])


def load_stock(folder: Path) -> Any:
    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def stock(model_folder: Path) -> Any:
    return load_stock(model_folder)


@pytest.fixture(autouse=True)
def _no_gradients(request: pytest.FixtureRequest) -> Iterator[None]:
    with torch.set_grad_enabled("gradients" in request.node.name):
        yield


def generators(count: int) -> list[torch.Generator]:
    return [generator(7, "latents", row) for row in range(count)]


def close(actual: Tensor, expected: Tensor) -> bool:
    """Equal up to the rounding of float32 in another order of summation."""
    return actual.shape == expected.shape and distance(actual, expected) < 1e-4


def distance(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def far(actual: Tensor, expected: Tensor) -> bool:
    """Different in a way that nobody would put down to rounding."""
    return distance(actual, expected) > 0.05


def example(backbone: Backbone, prompts: Sequence[str] = PROMPTS) -> tuple[Tensor, Tensor, Conditioning]:
    """Noise, two network times and the conditioning of `prompts`."""
    return backbone.noise(generators(2)), backbone.network_time(torch.tensor([300, 700])), backbone.encode(prompts)


def run_stock(pipeline: Any, guidance: float, output_type: str = "latent", prompts: Sequence[str] = PROMPTS) -> Tensor:
    return pipeline(
        list(prompts),
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        generator=generators(len(prompts)),
        output_type=output_type,
    ).images


def run_ours(backbone: Backbone, guidance: float, solver: str = "default", prompts: Sequence[str] = PROMPTS) -> Tensor:
    return backbone.sample(
        backbone.denoiser,
        backbone.encode(prompts),
        generators(len(prompts)),
        steps=STEPS,
        guidance=guidance,
        unconditional=backbone.encode([""]),
        solver=solver,
    )


@dataclass
class Call:
    """What the stock pipeline fed to its denoiser at one step, what came back, and what its solver was given."""

    latents: Tensor
    t: Tensor
    output: Tensor
    prediction: Tensor


def record_calls(pipeline: Any, denoiser_name: str, guidance: float, monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    calls: list[Call] = []
    step = pipeline.scheduler.step

    def after_denoiser(_: Any, args: Any, kwargs: Any, output: Any) -> None:
        latents = args[0] if args else kwargs["hidden_states"]
        t = args[1] if args else kwargs["timestep"]
        calls.append(Call(latents, t.expand(len(latents)).float(), output[0], output[0]))

    @functools.wraps(step)
    def before_solver(prediction: Tensor, *args: Any, **kwargs: Any) -> Any:
        calls[-1].prediction = prediction
        return step(prediction, *args, **kwargs)

    monkeypatch.setattr(pipeline.scheduler, "step", before_solver)
    hook = getattr(pipeline, denoiser_name).register_forward_hook(after_denoiser, with_kwargs=True)
    run_stock(pipeline, guidance)
    hook.remove()
    return calls


# -- predictions ------------------------------------------------------------------------------------------------------


def test_predict_is_what_the_stock_loop_computes_at_every_step(
    backbone: Backbone, stock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    conditioning = backbone.encode(PROMPTS)
    calls = record_calls(stock, backbone.denoiser_name, 1.0, monkeypatch)
    assert len(calls) == STEPS
    for call in calls:
        ours = backbone.predict(backbone.denoiser, call.latents, call.t, conditioning)
        assert ours.dtype == torch.float32
        assert close(ours, call.prediction)
        assert far(-ours, call.prediction)


def test_predict_combines_to_the_guided_prediction_of_the_stock_loop(
    backbone: Backbone, stock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = Conditioning.cat([backbone.encode(["", ""]), backbone.encode(PROMPTS)])
    call = record_calls(stock, backbone.denoiser_name, 5.0, monkeypatch)[1]
    ours = backbone.predict(backbone.denoiser, call.latents, call.t, both)
    without, with_prompt = ours.chunk(2)
    assert close(ours, call.output)
    assert close(without + 5.0 * (with_prompt - without), call.prediction)
    assert far(with_prompt + 5.0 * (with_prompt - without), call.prediction)
    assert far(with_prompt + 5.0 * (without - with_prompt), call.prediction)


def test_predict_depends_on_prompt_time_and_latents(backbone: Backbone) -> None:
    latents, t, conditioning = example(backbone)
    right = backbone.predict(backbone.denoiser, latents, t, conditioning)
    for wrong in (
        backbone.predict(backbone.denoiser, latents, t, backbone.encode(OTHERS)),
        backbone.predict(backbone.denoiser, latents, t.flip(0), conditioning),
        backbone.predict(backbone.denoiser, -latents, t, conditioning),
    ):
        assert far(wrong, right)


def test_predict_treats_each_row_alone(backbone: Backbone) -> None:
    latents, t, conditioning = example(backbone)
    together = backbone.predict(backbone.denoiser, latents, t, conditioning)
    for row in (slice(0, 1), slice(1, 2)):
        alone = backbone.predict(backbone.denoiser, latents[row], t[row], conditioning[row])
        assert close(alone, together[row])
    assert far(together[:1], together[1:])


def test_a_copy_predicts_the_same_and_does_not_follow_the_original(model_folder: Path) -> None:
    backbone = backbones.load(model_folder)
    inputs = example(backbone)
    copied = backbone.copy_denoiser(torch.float32)
    before = backbone.predict(copied, *inputs)
    assert torch.equal(before, backbone.predict(backbone.denoiser, *inputs))
    for parameter in backbone.denoiser.parameters():
        parameter.mul_(0.5)
    assert torch.equal(before, backbone.predict(copied, *inputs))
    assert far(backbone.predict(backbone.denoiser, *inputs), before)


def test_a_copy_shares_what_does_not_change_and_follows_nothing(model_folder: Path) -> None:
    backbone = backbones.load(model_folder)
    inputs, changing = example(backbone), backbone.parameters_of("cross-attention")
    whole, shared = backbone.copy_denoiser(torch.float32), backbone.copy_denoiser(torch.float32, changing)
    before = backbone.predict(whole, *inputs)
    own = dict(backbone.denoiser.named_parameters())
    assert {n for n, p in shared.named_parameters() if p.data_ptr() != own[n].data_ptr()} == set(changing)
    for name in changing:
        own[name].mul_(0.5)
    assert torch.equal(before, backbone.predict(shared, *inputs))
    other = backbone.copy_denoiser(torch.bfloat16, changing)
    assert {p.dtype for p in other.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in own.values()} == {torch.float32}


def test_what_does_not_change_is_borrowed_and_computed_with_as_autocast_would(model_folder: Path) -> None:
    backbone = backbones.load(model_folder)
    inputs, changing = example(backbone), backbone.parameters_of("cross-attention")
    own = dict(backbone.denoiser.named_parameters())
    values = {name: p.detach().clone() for name, p in own.items()}
    lender = backbone.copy_denoiser(torch.bfloat16, changing)
    with torch.autocast("cpu", torch.bfloat16):
        alone = backbone.predict(backbone.denoiser, *inputs)
        with suppress(KeyboardInterrupt), backbone.borrowing(lender, changing, values):
            assert torch.equal(backbone.predict(backbone.denoiser, *inputs), alone)
            theirs = {p.data_ptr() for p in lender.parameters()}
            borrowed = {name for name, p in own.items() if p.data_ptr() in theirs}
            assert borrowed == {name for name, p in own.items() if name not in changing and p.ndim > 1}
            for name in borrowed:  # so that the comparison can fail
                own[name].data = own[name].data * 2
            assert far(backbone.predict(backbone.denoiser, *inputs), alone)
            raise KeyboardInterrupt
    assert all(torch.equal(p, values[name]) and p.dtype == torch.float32 for name, p in own.items())


def test_what_makes_prompts_and_pictures_waits_while_the_denoiser_is_alone(model_folder: Path) -> None:
    """On a CPU nothing can move; what is looked at is where each component is sent, also where the block ends in an error."""
    backbone = backbones.load(model_folder).to(best_device())
    sent: dict[str, list[str]] = {}
    for name, component in backbone.pipeline.components.items():
        if isinstance(component, nn.Module):
            sent[name] = []
            component.to = lambda place, said=sent[name], to=component.to: (said.append(str(place)), to(place))
    with suppress(KeyboardInterrupt), backbone.denoiser_alone():
        assert {name for name, places in sent.items() if places == ["cpu"]} == {*sent} - {backbone.denoiser_name}
        told = backbone.encode(PROMPTS)
        assert all(tensor.device == backbone.device for tensor in told.tensors.values())
        pictures = backbone.decode(backbone.noise([generator(0, "a")]).to(backbone.device))
        raise KeyboardInterrupt
    assert sent.pop(backbone.denoiser_name) == []
    assert all(places == ["cpu", str(backbone.device)] for places in sent.values())
    assert len(sent) > 1
    assert pictures.isfinite().all()
    again = backbone.encode(PROMPTS)
    for name, tensor in told.tensors.items():
        torch.testing.assert_close(tensor, again.tensors[name], atol=1e-4, rtol=1e-4)


def test_a_prompt_that_occurs_again_is_not_encoded_again(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, asked = ["a fox", "a red bird", "a fox"], []
    expected, encode = backbone.encode(prompts), backbone.encode
    monkeypatch.setattr(backbone, "encode", lambda some: asked.append(some) or encode(some))
    found = Predictor(backbone, backbone.denoiser, Evaluations()).encode(prompts)[torch.arange(3)]
    assert asked == [["a fox", "a red bird"]]
    for name, tensor in expected.tensors.items():
        torch.testing.assert_close(found.tensors[name], tensor, atol=1e-5, rtol=1e-4)


# -- noise and time ---------------------------------------------------------------------------------------------------


def test_add_noise_is_the_schedulers_own(backbone: Backbone, stock: Any) -> None:
    noise = torch.randn((len(INDICES), *backbone.latent_shape), generator=generator(1))
    clean = torch.randn(noise.shape, generator=generator(2))
    t = backbone.network_time(INDICES)
    ours = backbone.add_noise(clean, noise, t)
    if hasattr(stock.scheduler, "scale_noise"):
        scheduler = type(stock.scheduler).from_config(stock.scheduler.config)
        expected = scheduler.scale_noise(clean, t, noise)
    else:
        scheduler = DDPMScheduler.from_config(stock.scheduler.config)
        expected = scheduler.add_noise(clean, noise, INDICES)
    assert torch.allclose(ours, expected, atol=1e-6)
    assert far(backbone.add_noise(noise, clean, t), expected)
    assert far(backbone.add_noise(clean, noise, t.flip(0)), expected)


def test_index_0_is_the_cleanest_and_999_the_noisiest(backbone: Backbone) -> None:
    indices = torch.arange(1000)
    t = backbone.network_time(indices)
    assert t.shape == (1000,)
    assert t.dtype == torch.float32
    assert (t.diff() > 0).all()
    picture = torch.ones((1000, 1, 1, 1))
    signal = backbone.add_noise(picture, torch.zeros_like(picture), t).flatten()
    noise = backbone.add_noise(torch.zeros_like(picture), picture, t).flatten()
    assert (signal.diff() < 0).all()
    assert (noise.diff() > 0).all()
    assert signal[0] > 0.99
    assert noise[-1] > 0.99


def test_network_time_is_what_the_stock_loop_feeds(
    backbone: Backbone, stock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = backbone.network_time(torch.arange(1000))
    for call in record_calls(stock, backbone.denoiser_name, 1.0, monkeypatch):
        assert times.min() <= call.t[0] <= times.max()
    backwards = torch.tensor([999, 3, 3, 0])
    assert torch.equal(backbone.network_time(backwards), times[backwards])


def test_the_true_prediction_leads_back_to_the_clean_latents(backbone: Backbone) -> None:
    """One solver step from any noisy latents, given the exact answer, ends nearer to the clean ones than it began."""
    scheduler = backbone.scheduler()
    scheduler.set_timesteps(10)
    noise = backbone.noise(generators(1))
    clean = torch.randn(noise.shape, generator=generator(3))
    for t in scheduler.timesteps[:-1]:
        time = t.float().reshape(1)
        noisy = backbone.add_noise(clean, noise, time)
        kind = scheduler.config.get("prediction_type", "flow")
        signal = backbone.add_noise(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), time)
        strength = backbone.add_noise(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1), time)
        truth = {"epsilon": noise, "v_prediction": signal * noise - strength * clean, "flow": noise - clean}[kind]
        right = scheduler.step(truth, t, noisy, return_dict=False)[0]
        assert (right - clean).norm() < (noisy - clean).norm()


# -- sampling and decoding --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_sample_equals_the_stock_pipeline_at_equal_seeds(backbone: Backbone, stock: Any, guidance: float) -> None:
    expected = run_stock(stock, guidance)
    assert close(run_ours(backbone, guidance), expected)
    assert far(run_ours(backbone, 1.0 if guidance > 1 else 4.0), expected)
    assert far(run_ours(backbone, guidance, prompts=OTHERS), expected)
    assert far(run_ours(backbone, guidance).flip(0), expected)


def test_decode_equals_the_pictures_of_the_stock_pipeline(backbone: Backbone, stock: Any) -> None:
    latents = run_stock(stock, 4.0)
    expected = run_stock(stock, 4.0, "pt")
    pictures = backbone.decode(latents)
    assert pictures.dtype == torch.float32
    assert 0 <= pictures.min() <= pictures.max() <= 1
    assert close(pictures, expected)
    assert far(backbone.decode(latents / 30), expected)


def test_every_named_solver_equals_the_stock_pipeline_with_that_scheduler(
    model_folder: Path, backbone: Backbone
) -> None:
    assert backbone.replay_solver in backbone.solvers
    for solver, name in backbone.solvers.items():
        scheduler_class = backbones.diffusers_class(name)
        stock = load_stock(model_folder)
        stock.scheduler = scheduler_class.from_config(stock.scheduler.config)
        assert type(backbone.scheduler(solver)) is scheduler_class
        assert close(run_ours(backbone, 4.0, solver), run_stock(stock, 4.0)), solver


def test_solvers_differ(sd_folder: Path) -> None:
    backbone = backbones.load(sd_folder)
    assert far(run_ours(backbone, 4.0, "dpm++"), run_ours(backbone, 4.0, "ddim"))


def with_scheduler(folder: Path, kind: type[Any], target: Path) -> tuple[Backbone, Any]:
    """The pipeline in `folder`, saved with a scheduler of that kind: ours, and the stock one."""
    stock = load_stock(folder)
    told = {"skip_prk_steps": True} if kind is PNDMScheduler else {}
    stock.scheduler = kind.from_config(stock.scheduler.config, **told)
    stock.save_pretrained(target)
    return backbones.load(target), stock


def test_default_solver_follows_the_pipeline_that_was_saved(sd_folder: Path, tmp_path: Path) -> None:
    """Stable Diffusion 1.5 is stored with PNDM, which takes one denoiser call more than it is asked steps for."""
    backbone, stock = with_scheduler(sd_folder, PNDMScheduler, tmp_path)
    assert isinstance(backbone.scheduler(), PNDMScheduler)
    assert close(run_ours(backbone, 4.0), run_stock(stock, 4.0))
    assert far(run_ours(backbone, 4.0, "ddim"), run_stock(stock, 4.0))


@pytest.mark.filterwarnings("ignore:The configuration file of this scheduler")
def test_a_solver_has_what_the_pipeline_corrected_in_an_old_configuration(sd_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(sd_folder, tmp_path)
    file = folder / "scheduler" / "scheduler_config.json"
    stored = json.loads(file.read_text())
    del stored["clip_sample"], stored["steps_offset"]
    file.write_text(json.dumps(stored))
    backbone, stock = backbones.load(folder), load_stock(folder)
    assert not stock.scheduler.config.clip_sample
    assert close(run_ours(backbone, 4.0), run_stock(stock, 4.0))
    assert torch.equal(run_ours(backbone, 4.0, "ddim"), run_ours(backbone, 4.0))
    assert close(run_ours(backbone, 4.0), run_ours(backbones.load(sd_folder), 4.0))


@pytest.mark.parametrize("kind", [DDPMScheduler, EulerAncestralDiscreteScheduler, LCMScheduler, TCDScheduler])
def test_what_a_solver_adds_on_the_way_comes_from_each_rows_own_generator(
    sd_folder: Path, tmp_path: Path, kind: type[Any]
) -> None:
    backbone, stock = with_scheduler(sd_folder, kind, tmp_path)
    ours = run_ours(backbone, 4.0)
    assert close(ours, run_stock(stock, 4.0))
    torch.manual_seed(1)
    assert torch.equal(run_ours(backbone, 4.0), ours)
    assert close(run_ours(backbone, 4.0, prompts=PROMPTS[:1]), ours[:1])


@pytest.mark.parametrize("kind", [EulerDiscreteScheduler, EulerAncestralDiscreteScheduler, PNDMScheduler])
def test_points_of_the_pipelines_own_solver_are_what_the_denoiser_was_asked(
    sd_folder: Path, tmp_path: Path, kind: type[Any]
) -> None:
    backbone, _ = with_scheduler(sd_folder, kind, tmp_path)
    teacher = Predictor(backbone, backbone.denoiser, Evaluations())
    points = trace(Sampler(teacher, backbone.encode(PROMPTS), STEPS, "default"), 2, (0, 1000), 3, seed=1)
    assert len(points.t) >= 4 * STEPS - 1
    asked = teacher(points.latents, points.t, backbone.encode(PROMPTS)[points.prompts])
    assert close(points.predictions, asked)


def test_sampled_rows_do_not_depend_on_each_other(backbone: Backbone) -> None:
    conditioning = backbone.encode(PROMPTS)
    arguments = {"steps": STEPS, "guidance": 4.0, "unconditional": backbone.encode([""])}
    together = backbone.sample(backbone.denoiser, conditioning, generators(2), **arguments)
    alone = backbone.sample(backbone.denoiser, conditioning[1:], generators(2)[1:], **arguments)
    assert close(alone, together[1:])


def test_sampling_twice_gives_the_same_bits(backbone: Backbone) -> None:
    assert torch.equal(run_ours(backbone, 4.0), run_ours(backbone, 4.0))


def test_guidance_without_an_empty_prompt_is_refused(backbone: Backbone) -> None:
    with pytest.raises(ValueError, match="empty prompt"):
        backbone.sample(backbone.denoiser, backbone.encode(PROMPTS), generators(2), steps=1, guidance=2.0)


# -- prompts ----------------------------------------------------------------------------------------------------------


def test_encode_equals_the_stock_pipeline(backbone: Backbone, stock: Any) -> None:
    prompts = ["", PROMPTS[0], " ".join(PROMPTS * 20)]
    ours = backbone.encode(prompts).tensors
    if backbone.denoiser_name == "unet":
        states, _ = stock.encode_prompt(prompts, "cpu", 1, False)
    else:
        states, _, pooled, _ = stock.encode_prompt(prompts, None, None, do_classifier_free_guidance=False)
        assert close(ours["pooled_projections"], pooled)
    assert close(ours["encoder_hidden_states"], states)
    assert all(tensor.dtype == torch.float32 for tensor in ours.values())


def test_encode_is_deterministic_and_treats_each_prompt_alone(backbone: Backbone) -> None:
    together = backbone.encode([*PROMPTS, *OTHERS])
    assert len(together) == 4
    for name, tensor in backbone.encode([*PROMPTS, *OTHERS]).tensors.items():
        assert torch.equal(tensor, together.tensors[name])
    for row, prompt in enumerate([*PROMPTS, *OTHERS]):
        for name, tensor in backbone.encode([prompt]).tensors.items():
            assert close(tensor[0], together.tensors[name][row])
            assert far(tensor[0], together.tensors[name][row - 1])


def test_conditioning_rows_can_be_picked_and_joined(backbone: Backbone) -> None:
    conditioning = backbone.encode(PROMPTS)
    picked = conditioning[torch.tensor([0, 0, 1, 1])]
    joined = Conditioning.cat([conditioning[:1], conditioning[:1], conditioning[1:], conditioning[1:]])
    for name in conditioning.tensors:
        assert len(picked) == 4
        assert torch.equal(picked.tensors[name], joined.tensors[name])


# -- parameters and gradients -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", GROUPS)
def test_gradients_reach_the_declared_parameters_and_no_others(backbone: Backbone, group: str) -> None:
    student = backbone.copy_denoiser(torch.float32)
    declared = set(backbone.parameters_of(group))
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name in declared)
    backbone.predict(student, *example(backbone)).square().mean().backward()
    gradients = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
    assert set(gradients) == declared
    # The text stream of the last joint-attention block is not read by anything: its queries exist, without effect.
    assert sum(bool(gradient.any()) for gradient in gradients.values()) >= 0.8 * len(gradients)


def test_a_frozen_denoiser_gives_no_gradients(backbone: Backbone) -> None:
    latents, t, conditioning = example(backbone)
    assert not backbone.predict(backbone.denoiser, latents, t, conditioning).requires_grad
    assert not any(p.requires_grad for p in backbone.copy_denoiser(torch.float32).parameters())
    assert not conditioning.tensors["encoder_hidden_states"].requires_grad


def test_parameter_groups_are_nested(backbone: Backbone) -> None:
    full, cross_attention, kv = (set(backbone.parameters_of(group)) for group in GROUPS)
    assert kv < cross_attention < full
    assert full == {name for name, _ in backbone.denoiser.named_parameters()}


def test_text_states_reach_the_picture_through_the_kv_group_alone(backbone: Backbone) -> None:
    """With these projections at zero the prediction no longer depends on the text states; with them it does."""
    latents, t, conditioning = example(backbone)
    others = backbone.encode(OTHERS).tensors["encoder_hidden_states"]
    swapped = Conditioning({**conditioning.tensors, "encoder_hidden_states": others})
    blind = backbone.copy_denoiser(torch.float32)
    for name in backbone.parameters_of("cross-attention-kv"):
        blind.get_parameter(name).zero_()
    for denoiser, same in ((backbone.denoiser, False), (blind, True)):
        first, second = (backbone.predict(denoiser, latents, t, c) for c in (conditioning, swapped))
        assert torch.allclose(first, second, atol=1e-6) == same


def test_predictor_counts_evaluations_in_latents_with_and_without_gradients(backbone: Backbone) -> None:
    student = backbone.copy_denoiser(torch.float32).requires_grad_(True)
    predictor = Predictor(backbone, student, Evaluations())
    latents, t, conditioning = example(backbone)
    predictor(latents, t, conditioning)
    with torch.no_grad():
        predictor(latents, t, conditioning)
    predictor.sample(conditioning, generators(2), steps=3, solver="default")
    assert predictor.evaluations == Evaluations(forward=2 + 2 + 2 * 3, backward=2)


# -- folders ----------------------------------------------------------------------------------------------------------


def copy_of(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_load_gives_the_stored_weights_in_float32_without_gradients(backbone: Backbone, model_folder: Path) -> None:
    stored = backbones.stored_denoiser(model_folder)
    loaded = backbone.denoiser.state_dict()
    assert stored.keys() == loaded.keys()
    for name, tensor in stored.items():
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], tensor.float())


def test_stored_denoiser_keeps_the_stored_dtype(sd_folder: Path, sd_v_folder: Path) -> None:
    assert {t.dtype for t in backbones.stored_denoiser(sd_folder).values()} == {torch.float32}
    assert {t.dtype for t in backbones.stored_denoiser(sd_v_folder).values()} == {torch.float16}


def test_replace_denoiser_changes_the_named_tensors_only(
    model_folder: Path, backbone: Backbone, tmp_path: Path
) -> None:
    folder = copy_of(model_folder, tmp_path)
    before = backbones.stored_denoiser(folder)
    names = backbone.parameters_of("cross-attention-kv")
    digest = backbones.model_digest(folder)
    backbones.replace_denoiser(folder, {name: before[name] * 2 for name in names})
    after = backbones.stored_denoiser(folder)
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor * 2 if name in names else tensor)
        assert after[name].dtype == tensor.dtype
    assert backbones.model_digest(folder) != digest
    load_stock(folder)


def test_replace_denoiser_finds_tensors_in_every_shard(sd_folder: Path, tmp_path: Path) -> None:
    stock = load_stock(sd_folder)
    stock.save_pretrained(tmp_path, max_shard_size="300KB")
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 1
    before = backbones.stored_denoiser(tmp_path)
    assert before.keys() == stock.unet.state_dict().keys()
    backbones.replace_denoiser(tmp_path, {name: tensor + 1 for name, tensor in before.items()})
    loaded = load_stock(tmp_path).unet.state_dict()
    assert all(torch.equal(loaded[name], tensor + 1) for name, tensor in before.items())


def test_two_builds_have_equal_weights_and_tokens() -> None:
    for build in tiny.PIPELINES.values():
        first, second = build(), build()
        for name, component in first.components.items():
            if isinstance(component, torch.nn.Module):
                other = second.components[name].state_dict()
                assert all(torch.equal(tensor, other[key]) for key, tensor in component.state_dict().items())
            elif "tokenizer" in name:
                assert component.get_vocab() == second.components[name].get_vocab()


def test_unknown_group_and_solver_name_a_near_one(backbone: Backbone) -> None:
    with pytest.raises(ExpungeError, match=r"'cross-atention'.*Did you mean cross-attention"):
        backbone.parameters_of("cross-atention")
    with pytest.raises(ExpungeError, match=r"'xyz'.*Known: full, cross-attention, cross-attention-kv"):
        backbone.parameters_of("xyz")
    with pytest.raises(ExpungeError, match=r"'defalt'.*Did you mean default"):
        run_ours(backbone, 1.0, "defalt")
    with pytest.raises(ExpungeError, match=r"'xyz'.*Known: default"):
        backbone.scheduler("xyz")


def test_a_folder_without_a_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExpungeError, match=r"model_index\.json"):
        backbones.locate(str(tmp_path))
    for source in (str(tmp_path / "missing"), "./missing", "missing", "a/b/c"):
        with pytest.raises(ExpungeError, match="is no folder"):
            backbones.locate(source)


def test_locate_gives_the_folder_itself(sd_folder: Path) -> None:
    assert backbones.locate(str(sd_folder)) == sd_folder


@pytest.mark.parametrize("quiet", [True, False])
def test_no_bar_of_the_libraries_is_shown_while_a_model_is_loaded(
    sd_folder: Path, quiet: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bars = diffusers.utils.logging
    bars.enable_progress_bar()
    if not quiet:
        monkeypatch.setattr(backbones, "without_bars", nullcontext)
    try:
        backbones.load(sd_folder)
        assert bars.is_progress_bar_enabled()
    finally:
        bars.disable_progress_bar()
    assert ("Loading pipeline components" in capsys.readouterr().err) is not quiet


def test_an_unsupported_pipeline_class_is_named_with_the_supported_ones(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(ExpungeError, match=r"FluxPipeline.*StableDiffusionPipeline, StableDiffusion3Pipeline"):
        backbones.load(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_an_unreadable_model_index_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "model_index.json").write_text(content)
    with pytest.raises(ExpungeError, match=r"model_index\.json|not supported"):
        backbones.load(tmp_path)


def test_pickled_weights_are_refused_in_every_component(model_folder: Path, tmp_path: Path) -> None:
    for component in (backbones.backbone_class(model_folder).denoiser_name, "vae", "text_encoder"):
        folder = copy_of(model_folder, tmp_path)
        for path in (folder / component).glob("*.safetensors"):
            name = "pytorch_model.bin" if component == "text_encoder" else "diffusion_pytorch_model.bin"
            torch.save(load_file(path), path.with_name(name))
            path.unlink()
        with pytest.raises(ExpungeError, match=rf"{component} holds no \.safetensors file.*[Pp]ickled"):
            backbones.load(folder)
        shutil.rmtree(folder)


@pytest.mark.parametrize("ending", [".fp16.safetensors", ".fp16-00001-of-00001.safetensors"])
def test_a_variant_alone_is_refused_by_its_name(model_folder: Path, tmp_path: Path, ending: str) -> None:
    """A component that is there in both is loaded from the plain file."""
    folder = copy_of(model_folder, tmp_path)
    (weights,) = (folder / "vae").glob("*.safetensors")
    shutil.copy(weights, weights.with_name(weights.stem + ending))
    backbones.check(folder)
    backbones.load(folder)
    weights.unlink()
    with pytest.raises(ExpungeError, match=r"vae holds its weights as the variant 'fp16' alone.*save_pretrained"):
        backbones.check(folder)


def test_an_incomplete_pipeline_is_refused(sd_folder: Path, tmp_path: Path) -> None:
    """Left alone, the libraries put an empty tokenizer or random weights in place of what is missing."""
    for missing in (
        "tokenizer",
        "vae",
        "unet/config.json",
        "tokenizer/tokenizer.json",
        "text_encoder/model.safetensors",
    ):
        folder = copy_of(sd_folder, tmp_path)
        path = folder / missing
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        with pytest.raises(ExpungeError, match=path.parent.name if path.suffix else missing):
            backbones.load(folder)
        shutil.rmtree(folder)


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_damaged_weights_are_refused(sd_folder: Path, tmp_path: Path, component: str) -> None:
    folder = copy_of(sd_folder, tmp_path)
    (weights,) = (folder / component).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ExpungeError, match="cannot be read as a safetensors file"):
        backbones.load(folder)


def test_a_missing_tensor_of_the_denoiser_is_refused(model_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(model_folder, tmp_path)
    (weights,) = (folder / backbones.backbone_class(folder).denoiser_name).glob("*.safetensors")
    tensors = load_file(weights)
    name = min(tensors)
    del tensors[name]
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(ExpungeError, match=f"lacks 1 tensors, {name}"):
        backbones.load(folder)
