"""Models in the formats of other tools over every family: what is loaded has the weights that were written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import original
from expunge import backbones
from expunge.audit.loading import fingerprints, load
from expunge.audit.sources import recognise
from expunge.backbones import Backbone
from expunge.errors import ExpungeError


def opened(model: Path, base: Path) -> Backbone:
    return load(recognise(str(model), base), backbones.load(base), base)


def changed(one: Backbone, other: Backbone) -> list[str]:
    a, b = fingerprints(one), fingerprints(other)
    return [name for name in a if a[name] != b[name]]


def adapt(
    module: nn.Module,
    alpha: int,
    wrap: Callable[[nn.Module, LoraConfig], Any],
    ends: tuple[str, ...] = ("attn2.to_v", "attn.add_v_proj"),
) -> tuple[Any, dict[str, Tensor]]:
    """Put an adapter of rank 2 on layers whose names end so; what `wrap` returns, and the weights that it should lead to."""
    names = [n for n, _ in module.named_modules() if n.endswith(ends)]
    before = {n: v.clone() for n, v in module.state_dict().items()}
    adapted = wrap(module, LoraConfig(r=2, lora_alpha=alpha, target_modules=names))
    generator = torch.Generator().manual_seed(0)
    factors = {n: p for n, p in module.named_parameters() if ".lora_" in n}
    for parameter in factors.values():
        parameter.data.normal_(0, 0.5, generator=generator)
    for name in names:
        down, up = (factors[f"{name}.lora_{f}.default.weight"] for f in "AB")
        before[f"{name}.weight"] = before[f"{name}.weight"] + alpha / 2 * up.detach() @ down.detach()
    return adapted, before


def agree(backbone: Backbone, expected: dict[str, Tensor]) -> bool:
    found = backbone.denoiser.state_dict()
    assert found.keys() == expected.keys()
    return all(torch.allclose(found[n], v, atol=1e-6) for n, v in expected.items())


def test_the_base_model_is_itself(model_folder: Path) -> None:
    """As a folder, and as the file of its denoiser."""
    base = backbones.load(model_folder)
    file = next((model_folder / base.denoiser_name).glob("*.safetensors"))
    for model, kind in ((model_folder, "pipeline"), (file, "denoiser")):
        assert recognise(str(model), model_folder).kind == kind
        assert changed(opened(model, model_folder), base) == []


def test_an_adapter_of_diffusers_is_fused(model_folder: Path, tmp_path: Path) -> None:
    base = backbones.load(model_folder)
    _, expected = adapt(base.denoiser, 2, lambda model, config: model.add_adapter(config))
    layers = {f"{base.denoiser_name}_lora_layers": get_peft_model_state_dict(base.denoiser)}
    type(base.pipeline).save_lora_weights(tmp_path, **layers)
    for model in (tmp_path / "pytorch_lora_weights.safetensors", tmp_path):  # the folder that Diffusers wrote will do
        assert recognise(str(model), model_folder).name == model.name
        found = opened(model, model_folder)
        assert agree(found, expected)
    assert changed(found, backbones.load(model_folder)) == [base.denoiser_name]
    assert not agree(backbones.load(model_folder), expected)


def test_the_folder_of_a_denoiser_is_its_file(model_folder: Path, tmp_path: Path) -> None:
    trained = backbones.load(model_folder)
    for parameter in trained.denoiser.parameters():
        parameter.data.mul_(1.5)
    trained.denoiser.save_pretrained(tmp_path / "trained")  # type: ignore[operator]
    source = recognise(str(tmp_path / "trained"), model_folder)
    assert (source.kind, source.name) == ("denoiser", "trained")
    assert changed(opened(tmp_path / "trained", model_folder), trained) == []
    save_file({"x": torch.zeros(1)}, tmp_path / "trained" / "more.safetensors")
    with pytest.raises(ExpungeError, match=r"holds 2 \.safetensors files and no model_index\.json.*Give one file"):
        recognise(str(tmp_path / "trained"), model_folder)


def test_a_run_is_no_model_and_the_sentence_says_what_is(sd_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run.toml").touch()
    with pytest.raises(ExpungeError, match=r"is a run.*weights\.safetensors.*expunge export"):
        recognise(str(tmp_path), sd_folder)


def test_the_scale_of_an_adapter_counts_in_each_format(sd_folder: Path, tmp_path: Path) -> None:
    """alpha / rank is 3: in the metadata of Diffusers, in a tensor of kohya's, in a file beside PEFT's."""
    base = backbones.load(sd_folder)
    _, expected = adapt(base.denoiser, 6, lambda model, config: model.add_adapter(config))
    type(base.pipeline).save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(base.denoiser),
        unet_lora_adapter_metadata=base.denoiser.peft_config["default"].to_dict(),  # type: ignore[union-attr]
    )
    diffusers = tmp_path / "pytorch_lora_weights.safetensors"
    kohya = original.kohya(load_file(diffusers), 6.0, tmp_path / "kohya.safetensors")
    wrapped, _ = adapt(backbones.load(sd_folder).denoiser, 6, get_peft_model)
    wrapped.save_pretrained(tmp_path / "peft")
    for model in (diffusers, kohya, tmp_path / "peft", tmp_path / "peft" / "adapter_model.safetensors"):
        assert agree(opened(model, sd_folder), expected), model.name


def test_an_adapter_of_the_text_encoder_is_fused_too(sd_folder: Path, tmp_path: Path) -> None:
    base = backbones.load(sd_folder)
    layers = {}
    for component, ends in (
        ("unet", ("attn2.to_v",)),
        ("text_encoder", ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")),
    ):
        module = base.pipeline.components[component]
        _, expected = adapt(module, 6, lambda model, config: model.add_adapter(config), ends)
        layers[component] = get_peft_model_state_dict(module)
    type(base.pipeline).save_lora_weights(
        tmp_path, unet_lora_layers=layers["unet"], text_encoder_lora_layers=layers["text_encoder"]
    )
    diffusers = tmp_path / "pytorch_lora_weights.safetensors"
    kohya = original.kohya(load_file(diffusers), 6.0, tmp_path / "kohya.safetensors")
    for model in (diffusers, kohya):
        found = opened(model, sd_folder)
        assert set(changed(found, backbones.load(sd_folder))) == {"unet", "text_encoder"}
    weights = found.pipeline.text_encoder.state_dict()
    assert all(torch.allclose(weights[n], v, atol=1e-6) for n, v in expected.items())


def test_another_adapter_in_the_folder_of_one_is_refused(sd_folder: Path, tmp_path: Path) -> None:
    """PEFT reads a folder, and would read the one that has its name."""
    wrapped, _ = adapt(backbones.load(sd_folder).denoiser, 2, get_peft_model)
    wrapped.save_pretrained(tmp_path)
    other = shutil.copy(tmp_path / "adapter_model.safetensors", tmp_path / "epoch-3.safetensors")
    with pytest.raises(ExpungeError, match=r"epoch-3\.safetensors holds an adapter of PEFT, .* a folder of its own"):
        recognise(str(other), sd_folder)


def test_an_adapter_that_fits_in_part_is_refused(sd_folder: Path, tmp_path: Path) -> None:
    """Diffusers and PEFT would go on without the rest."""
    wrapped, _ = adapt(backbones.load(sd_folder).denoiser, 2, get_peft_model)
    wrapped.save_pretrained(tmp_path / "peft")
    file = tmp_path / "peft" / "adapter_model.safetensors"
    factors = load_file(file)
    lost = {n.replace("down_blocks.0", "down_blocks.7"): v for n, v in factors.items()}
    assert lost.keys() != factors.keys()
    save_file(lost, file)
    save_file({n.replace("base_model.model", "unet"): v for n, v in lost.items()}, tmp_path / "lora.safetensors")
    for model in (tmp_path / "peft", tmp_path / "lora.safetensors"):
        with pytest.raises(ExpungeError, match="could not be loaded"):
            opened(model, sd_folder)
    (tmp_path / "peft" / "adapter_config.json").unlink()
    with pytest.raises(ExpungeError, match="but no adapter_config"):
        opened(file, sd_folder)


@pytest.mark.parametrize("name", ["sd-epsilon", "sd-v"])
def test_a_model_in_one_file_brings_its_parts_and_the_base_lends_the_rest(
    tiny_folder: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    folder = tiny_folder(name)
    base, trained = backbones.load(folder), backbones.load(folder)
    for part in (trained.pipeline.unet, trained.pipeline.vae, trained.pipeline.text_encoder):
        for parameter in part.parameters():
            parameter.data.mul_(1.5)
    for parts in ("unet vae text_encoder", "unet vae", "unet"):
        file = original.single_file(trained.pipeline, tmp_path / "one.safetensors", parts)
        found = opened(file, folder)
        lent = [n for n in ("unet", "vae", "text_encoder") if n not in parts.split()]
        assert changed(found, trained) == [n for n in fingerprints(found) if n in lent]
        assert set(changed(found, base)) == set(parts.split())
        assert found.pipeline.scheduler.config == base.pipeline.scheduler.config


def test_a_model_of_version_3_in_one_file_is_read_too(sd3_folder: Path, tmp_path: Path) -> None:
    base, trained = backbones.load(sd3_folder), backbones.load(sd3_folder)
    for part in (trained.pipeline.transformer, trained.pipeline.vae):
        for parameter in part.parameters():
            parameter.data.mul_(1.5)
    for parts in ("transformer vae", "transformer"):
        file = original.single_file_3(trained.pipeline, tmp_path / "one.safetensors", parts)
        assert recognise(str(file), sd3_folder).kind == "single file"
        found = opened(file, sd3_folder)
        assert set(changed(found, base)) == set(parts.split())
        assert changed(found, trained) == [n for n in ("vae",) if n not in parts]


def test_a_damaged_model_in_one_file_is_refused(sd_folder: Path, tmp_path: Path) -> None:
    file = original.single_file(backbones.load(sd_folder).pipeline, tmp_path / "one.safetensors")
    whole = load_file(file)
    name = next(n for n in whole if n.endswith("attn2.to_k.weight"))
    save_file({n: v for n, v in whole.items() if n != name}, tmp_path / "gap.safetensors")
    save_file({**whole, name: whole[name][:, 1:].contiguous()}, tmp_path / "shape.safetensors")
    for damaged in ("gap", "shape"):
        with pytest.raises(ExpungeError, match="could not be loaded as a single file"):
            opened(tmp_path / f"{damaged}.safetensors", sd_folder)
    opened(file, sd_folder)  # the control


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "cond_stage_model.ours",
            r"its text_encoder is in a layout that is not read \(it holds cond_stage_model.ours\)",
        ),
        ("first_stage_model.ours", "could not be loaded as a single file"),
    ],
)
def test_a_part_in_an_unknown_layout_is_refused(name: str, sentence: str, sd_folder: Path, tmp_path: Path) -> None:
    file = original.single_file(backbones.load(sd_folder).pipeline, tmp_path / "one.safetensors", "unet")
    save_file({**load_file(file), name: torch.zeros(2)}, tmp_path / "ours.safetensors")
    with pytest.raises(ExpungeError, match=sentence):
        opened(tmp_path / "ours.safetensors", sd_folder)


def test_a_text_encoder_of_version_3_in_an_unknown_layout_is_refused(sd3_folder: Path, tmp_path: Path) -> None:
    file = original.single_file_3(backbones.load(sd3_folder).pipeline, tmp_path / "one.safetensors")
    for which in ("clip_l", "clip_g", "t5xxl"):
        tensors = {**load_file(file), f"text_encoders.{which}.ours.weight": torch.zeros(2)}
        save_file(tensors, tmp_path / f"{which}.safetensors")
        with pytest.raises(ExpungeError, match="layout that is not read"):
            opened(tmp_path / f"{which}.safetensors", sd3_folder)


def test_a_folder_that_predicts_something_else_is_refused(
    sd_folder: Path, sd_v_folder: Path, tiny_folder: Callable[[str], Path]
) -> None:
    assert json.loads((sd_v_folder / "scheduler" / "scheduler_config.json").read_text())["prediction_type"]
    with pytest.raises(ExpungeError, match="has predictions of the type v_prediction"):
        recognise(str(sd_v_folder), sd_folder)


def test_a_folder_of_another_architecture_or_pickled_is_refused_before_it_is_loaded(
    sd_folder: Path, tmp_path: Path
) -> None:
    """Version 2 of Stable Diffusion beside version 1: the same latents, and other text states."""
    wider = UNet2DConditionModel.from_config(
        {**UNet2DConditionModel.load_config(sd_folder / "unet"), "cross_attention_dim": 40}
    )
    other = shutil.copytree(sd_folder, tmp_path / "other")
    wider.save_pretrained(other / "unet")
    with pytest.raises(ExpungeError, match=r"attn2.to_k.weight is 16 x 40 there, 16 x 32 in the base model"):
        recognise(str(other), sd_folder)
    pickled = shutil.copytree(sd_folder, tmp_path / "pickled")
    file = pickled / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(ExpungeError, match="Pickled weights are not opened"):
        recognise(str(pickled), sd_folder)
