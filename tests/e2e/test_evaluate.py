"""`expunge evaluate`: models in the formats that other tools write, against answers known beforehand."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

import expunge as package
import original
import tiny_judges
from expunge import Audit, ExpungeError, backbones, iconworld, report
from expunge.audit import audit_schema
from expunge.audit.paired import compare_tables
from expunge.evaluation import metrics
from expunge.stream.directory import in_use
from runs import PROTOCOL, STAND_IN, expunge

BASE = ("--base", "iconworld", "--protocol", str(PROTOCOL))
SCHEMA = Path(__file__).parents[2] / "docs" / "evaluation.schema.json"
FOLDER = iconworld.model_folder("iconworld") or Path()


@pytest.fixture(scope="module")
def itself(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base model evaluated against itself. Tests that evaluate something else begin with a copy of its base rows."""
    out = tmp_path_factory.mktemp("evaluations") / "itself"
    expunge("evaluate", "iconworld", *BASE, "--out", out)
    return out


@pytest.fixture
def out(itself: Path, tmp_path: Path) -> Path:
    return shutil.copytree(itself, tmp_path / "evaluation")


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return StableDiffusionPipeline.from_pretrained(FOLDER, safety_checker=None)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA file that Diffusers wrote, strong enough to ruin the model."""
    loaded = StableDiffusionPipeline.from_pretrained(FOLDER, safety_checker=None)
    loaded.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["attn2.to_v", "attn1.to_v"]))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in loaded.unet.named_parameters():
        if ".lora_" in name:
            parameter.data.normal_(0, 0.7, generator=generator)
    folder = tmp_path_factory.mktemp("adapter")
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(loaded.unet))
    return folder / "pytorch_lora_weights.safetensors"


def table(out: Path, which: str = "model") -> pd.DataFrame:
    return pd.read_parquet(out / which / "judgements.parquet")


# -- known answers ------------------------------------------------------------------------------------------------------


def test_the_base_model_against_itself_differs_in_nothing(itself: Path) -> None:
    summary = Audit(itself).summary()
    assert summary.model.changed == []
    for field in ("ua", "context", "ira", "cra"):
        pair = getattr(summary.against_base, field)
        assert pair.difference.value == 0.0
        assert pair.first == pair.second
    assert summary.forgotten == ["panda", "pumpkin", "mosaic"]
    assert list(summary.against_base.concepts) == summary.forgotten
    assert summary.metrics.ua is not None
    assert summary.metrics.ua.value < 0.5  # the model draws what it is asked for
    assert summary.metrics.ira is not None
    assert summary.metrics.ira.value > 0.5
    assert summary.metrics.image_drift is not None
    assert summary.metrics.weight_drift is not None
    assert summary.metrics.image_drift.value == summary.metrics.weight_drift.value == 0.0
    assert summary.metrics.kid_judge is not None
    stays = metrics.of_roles(table(itself), [], summary.forgotten)
    n = len(stays["neighbour"]) + len(stays["other"])
    assert (summary.metrics.kid_judge.value, summary.metrics.kid_judge.n) == (0.0, n)
    assert list(table(itself)["image"]) == list(table(itself, "base")["image"])
    assert "The model's weights are the base model's" in (itself / "report.html").read_text().replace("&#39;", "'")


def test_an_exported_model_is_judged_as_the_last_step_of_its_run(finished_run: Path, tmp_path: Path) -> None:
    """Also the step's weights file, a difference from the base model, and both with the same rows as the run's."""
    expunge("export", shutil.copytree(finished_run, tmp_path / "run"), tmp_path / "exported")
    step, out = finished_run / "steps" / "0002", tmp_path / "evaluation"
    run = pd.read_parquet(step / "judgements.parquet").sort_values("row", ignore_index=True)
    record = json.loads((step / "step.json").read_text())
    assert record["level"] == "final"
    for model in (tmp_path / "exported", step / "weights.safetensors"):
        asked = ("--base", STAND_IN, "--protocol", PROTOCOL, "--forgotten", "panda", "--forgotten", "mosaic")
        expunge("evaluate", model, *asked, "--out", out)
        pd.testing.assert_frame_equal(table(out).sort_values("row", ignore_index=True), run)
        summary = Audit(out).summary()
        measured = summary.metrics.model_dump()
        drift, expected = (m.pop("weight_drift") for m in (measured, record["metrics"].copy()))
        assert drift == pytest.approx(expected)  # the order of summation is another one
        assert measured == {n: v for n, v in record["metrics"].items() if n != "weight_drift"}
        assert summary.model.changed == ["unet"]


def test_a_broken_model_is_measured_as_one(out: Path, tmp_path: Path) -> None:
    """Its last layer is NaN. What cannot be measured is null with a reason, and the page says so; that nothing is left of what
    was asked for, and nothing to be recognised, can be."""
    stored = backbones.stored_denoiser(FOLDER)
    broken = {n: torch.full_like(v, float("nan")) for n, v in stored.items() if n.startswith("conv_out.")}
    save_file(broken, tmp_path / "nan.safetensors")
    expunge("evaluate", tmp_path / "nan.safetensors", *BASE, "--out", out)
    measured = Audit(out).summary().metrics
    assert (measured.ua, measured.ira, measured.weight_drift) == (None, None, None)
    assert measured.context is not None
    assert measured.recognisable is not None
    assert (measured.context.value, measured.recognisable.value) == (0, 0)
    assert "weights hold NaN" in measured.reasons["weight_drift"]
    assert measured.collapsed is not None
    assert measured.collapsed.value == 1.0
    assert "weights hold NaN" in (out / "report.html").read_text().replace("&#39;", "'")


# -- formats ------------------------------------------------------------------------------------------------------------


def test_one_file_in_the_original_layout_is_read_like_the_folder(out: Path, pipeline: Any, tmp_path: Path) -> None:
    before = table(out)
    file = original.single_file(pipeline, tmp_path / "checkpoint.safetensors")
    assert "checkpoint.safetensors" in expunge("evaluate", file, *BASE, "--out", out)
    summary = Audit(out).summary()
    assert (summary.model.kind, summary.model.changed) == ("single file", [])
    pd.testing.assert_frame_equal(table(out), before)


def test_a_folder_in_which_more_than_the_denoiser_was_trained_is_judged_whole(
    out: Path, pipeline: Any, tmp_path: Path
) -> None:
    """As a tool leaves it that trains the text encoder and the autoencoder."""
    trained = copy.deepcopy(pipeline)
    for part in (trained.text_encoder, trained.vae):
        for parameter in part.parameters():
            parameter.data.mul_(1.5)
    trained.save_pretrained(tmp_path / "trained")
    expunge("evaluate", tmp_path / "trained", *BASE, "--out", out)
    summary = Audit(out).summary()
    assert (summary.model.kind, sorted(summary.model.changed)) == ("pipeline", ["text_encoder", "vae"])
    assert (table(out)["image"] != table(out, "base")["image"]).all()
    assert summary.metrics.weight_drift is not None
    assert summary.metrics.weight_drift.value == 0.0  # of the denoiser


def test_an_adapter_is_fused_whoever_wrote_it(out: Path, adapter: Path, tmp_path: Path) -> None:
    kohya = original.kohya(load_file(adapter), 2.0, tmp_path / "kohya.safetensors")
    tables = []
    for file in (adapter, kohya):
        expunge("evaluate", file, *BASE, "--out", out)
        summary = Audit(out).summary()
        assert (summary.model.kind, summary.model.changed) == ("LoRA", ["unet"])
        tables.append(table(out))
    pd.testing.assert_frame_equal(*tables)
    # The control: a ruined model is told from the base model.
    assert summary.against_base.ira.difference is not None
    assert summary.against_base.ira.difference.high < 0
    assert summary.against_base.ira.difference.value < -0.5
    assert summary.metrics.ua is not None
    assert summary.metrics.ua.value > 0.5
    assert summary.metrics.weight_drift is not None
    assert summary.metrics.weight_drift.value > 0.01
    assert (tables[0]["image"] != table(out, "base")["image"]).all()


# -- what lies in the folder --------------------------------------------------------------------------------------------


def test_the_summary_follows_its_schema_and_the_page_holds_all_it_shows(itself: Path) -> None:
    summary = json.loads((itself / "summary.json").read_text())
    schema = json.loads(SCHEMA.read_text())
    assert schema == audit_schema()
    jsonschema.validate(summary, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(summary | {"against_base": {}}, schema)
    assert len(table(itself)) == summary["pictures"] == 3 * 4 + 6 + 4
    assert set(table(itself)["level"]) == {"between", "final"}
    page = (itself / "report.html").read_text()
    assert "://" not in page
    assert page.count("<img") == page.count('src="data:image/png;base64,')
    assert page.count("<img") >= 2 * 3 * 3
    assert not [p for p in itself.rglob("*") if "panda" in p.name or "mosaic" in p.name]


def test_a_person_is_called_by_a_number_and_never_pictured(out: Path, tmp_path: Path) -> None:
    """In a vocabulary in which all animals are persons; the pumpkin is a character."""
    words = tmp_path / "words.toml"
    text = (iconworld.HERE / "vocabulary.toml").read_text()
    words.write_text(text.replace('phrase = "{a} {}"\nkind = "object"', 'phrase = "{a} {}"\nkind = "person"'))
    config = out / "audit.toml"
    config.write_text(config.read_text().replace('vocabulary = "iconworld"', f'vocabulary = "{words}"'))
    page = re.sub(r'src="[^"]+"', "", report.write_evaluation(Audit(out)).read_text())
    for name in ("panda", "bear", "koala"):
        assert name not in page.casefold()
    assert "person 1" in page
    assert page.count("Prompts and pictures of a person are not shown.") == 1
    assert "Forget: pumpkin" in page


def test_what_is_judged_is_not_judged_again(out: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from expunge.audit import audit

    painted: list[int] = []
    paint = audit.evaluate_each
    monkeypatch.setattr(
        audit, "evaluate_each", lambda b, rows, *rest: painted.append(len(rows)) or paint(b, rows, *rest)
    )  # type: ignore[func-returns-value]
    options = {"base": "iconworld", "protocol": str(PROTOCOL)}
    Audit.create(out, model="iconworld", **options).evaluate()
    assert painted == []
    (out / "model" / "judgements.parquet").unlink()  # as if the process had been killed there
    whole = Audit.create(out, model="iconworld", **options).evaluate().metrics
    assert painted == [22]
    assert (whole.ira.n, whole.kid_judge.n) == (6, 10)
    turned = ["mosaic", "pumpkin", "panda"]
    assert Audit.create(out, model="iconworld", forgotten=turned, **options).evaluate().metrics == whole
    Audit.create(out, model="iconworld", forgotten=["panda", "watermelon"], **options).evaluate()
    assert painted == [22, 4, 4]  # watermelon alone, with both models
    assert len(table(out)) == 26
    assert Audit(out).summary().pictures == 4 + 4 + 6 + 4
    again = Audit(out).summary().metrics
    assert (again.ira.n, again.kid_judge) == (5, None)  # a watermelon is in one picture of a neighbour
    assert "other concepts to forget" in again.reasons["kid_judge"]
    with pytest.raises(ExpungeError, match="under another protocol"):
        Audit.create(out, model="iconworld", base="iconworld", protocol="iconworld-demo")


def test_results_stay_until_another_model_has_loaded(
    out: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lying() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in out.rglob("[!l]*") if p.is_file()}  # not the lock

    before, kept = Audit(out).summary(), lying()
    half = tmp_path / "half.safetensors"
    save_file({n.replace("attn2", "attn7"): v for n, v in load_file(adapter).items()}, half)
    expunge("evaluate", half, *BASE, "--out", out, code=2)
    assert lying() == kept
    other = Audit.create(out, model=str(adapter), base="iconworld", protocol=str(PROTOCOL))
    with pytest.raises(ExpungeError, match="not evaluated to the end"):
        other.summary()  # which is that of the first model
    # One that ends while the second is painted leaves nothing of the first beside it.
    monkeypatch.setattr("expunge.audit.audit.evaluate_each", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        other.evaluate()
    assert {p.name for p in out.iterdir()} == {"audit.toml", "base", "lock", "lock.owner"}
    monkeypatch.undo()
    expunge("evaluate", adapter, *BASE, "--out", out)
    assert Audit(out).summary().model.digest != before.model.digest


def test_two_processes_do_not_evaluate_into_one_folder(out: Path) -> None:
    with in_use(out):
        said = expunge("evaluate", "iconworld", *BASE, "--out", out, code=2)
    assert f"{out} is in use by process {os.getpid()}" in said
    expunge("evaluate", "iconworld", *BASE, "--out", out)


@pytest.mark.parametrize("where", ["expunge.audit.audit.evaluate_each", "expunge.audit.audit.backbones.load"])
def test_where_memory_runs_out_a_sentence_says_so(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(where, full)
    said = expunge("evaluate", "iconworld", *BASE, "--out", tmp_path / "out", code=2)
    lower = "Lower sampler.batch_size in the protocol" if "each" in where else "a machine with more memory"
    assert "There is no room here for" in said
    assert lower in said


def test_several_judges_see_the_same_pictures(out: Path, tmp_path: Path) -> None:
    clip = "clip:" + tiny_judges.save(tmp_path / "clip", *tiny_judges.clip())
    protocol = tmp_path / "two.toml"
    protocol.write_text(PROTOCOL.read_text().replace("seed = 1\n", f'also = ["{clip}"]\nseed = 1\n', 1))
    alone, both = table(out), tmp_path / "both"
    for forgotten in (["panda"], ["panda", "pumpkin", "mosaic"]):  # the second time, rows are added
        asked: dict[str, Any] = {"base": "iconworld", "protocol": str(protocol), "forgotten": forgotten}
        summary = package.Audit.create(both, model="iconworld", **asked).evaluate()
    pd.testing.assert_frame_equal(
        table(both).sort_values("row", ignore_index=True), alone.sort_values("row", ignore_index=True)
    )
    found = {which: pd.read_parquet(both / which / "judgements-2.parquet") for which in ("base", "model")}
    for seen in found.values():
        assert set(seen["judge"]) == {clip}
        assert sorted(seen["row"]) == sorted(alone["row"])
        assert dict(zip(seen["row"], seen["image"], strict=True)) == dict(
            zip(alone["row"], alone["image"], strict=True)
        )
    expected = compare_tables(found["base"], found["model"], summary.forgotten, summary.forgotten)
    assert summary.also == {clip: expected}
    assert summary.also[clip] != summary.against_base
    # A process that was killed before it wrote the main table had written this one: its rows are not there twice.
    (both / "model" / "judgements.parquet").unlink()
    assert Audit(both).evaluate() == summary
    protocol.write_text(PROTOCOL.read_text().replace("seed = 1\n", 'also = ["iconworld"]\nseed = 1\n', 1))
    with pytest.raises(ExpungeError, match="named twice"):
        package.Audit.create(both, model="iconworld", base="iconworld", protocol=str(protocol))


def test_no_more_is_painted_than_is_enough(tmp_path: Path) -> None:
    protocol = tmp_path / "tiny.toml"
    text = PROTOCOL.read_text().replace("batch_size = 8", "batch_size = 2").replace("steps = 2", "steps = 4")
    protocol.write_text(text.replace("requests =", "enough = 0.4\nrequests ="))
    out = tmp_path / "audit"
    for forgotten, pictures in ((["panda"], 2 + 2 + 2), (["panda", "fox"], 2 + 2 + 2 + 2)):
        asked: dict[str, Any] = {"base": "iconworld", "protocol": str(protocol), "forgotten": forgotten}
        for _ in range(2):  # the second time nothing is painted
            summary = Audit.create(out, model="iconworld", **asked).evaluate()
            assert summary.pictures == pictures
    base = pd.read_parquet(out / "base" / "judgements.parquet")
    assert len(base) == 4 + 4 + 6 + 4  # whole
    difference = summary.metrics.ira_difference
    assert difference is not None
    assert difference.n == 2  # of the rows that both have


# -- wrong use ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory, adapter: Path) -> Path:
    """Models that do not fit: pickled, damaged, of another model."""
    folder = tmp_path_factory.mktemp("wrong")
    for name in ("model.ckpt", "model.bin", "cut.safetensors"):
        (folder / name).write_bytes(b"not a model")
    stored = backbones.stored_denoiser(FOLDER)
    name = next(n for n in stored if "attn2.to_k" in n)
    save_file({name: stored[name][:, :-1].contiguous()}, folder / "shape.safetensors")
    save_file({name: stored[name]}, folder / "run.safetensors", {"base": "sha256:0"})
    save_file({"something.else": torch.zeros(2)}, folder / "other.safetensors")
    save_file({f"model.diffusion_model.joint_blocks.{i}": torch.zeros(2) for i in "01"}, folder / "sd3.safetensors")
    save_file({n.replace("attn2", "attn7"): v for n, v in load_file(adapter).items()}, folder / "lora.safetensors")
    for kind in ("hada_w1_a", "lokr_w1"):
        save_file({f"lora_unet_mid_block_attn2_to_v.{kind}": torch.zeros(2)}, folder / f"{kind}.safetensors")
    return folder


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{wrong}/model.ckpt"], "is a pickle"),
        (["{wrong}/model.bin"], "is a pickle"),
        (["{wrong}/nothing.ckpt"], "is a pickle"),
        (["{wrong}/nothing.safetensors"], "cannot be read as a safetensors file"),
        (["{wrong}/cut.safetensors"], "cannot be read as a safetensors file"),
        (["{wrong}/shape.safetensors"], "does not fit the base model iconworld-1"),
        (["{wrong}/run.safetensors"], "what a run changed in another model"),
        (["{wrong}/other.safetensors"], "holds no tensor of the base model iconworld-1, no LoRA"),
        (["{wrong}/sd3.safetensors"], "is a StableDiffusion3Pipeline in one file"),
        (["{wrong}/lora.safetensors"], "could not be loaded as a LoRA"),
        (["{wrong}/hada_w1_a.safetensors"], "is a LyCORIS adapter"),
        (["{wrong}/lokr_w1.safetensors"], "Merge it into the base model with the tool that made it"),
        (["./nowhere"], "no folder"),
        (["{wrong}"], "no model_index.json"),
        (["{tiny}"], "has latents of size 8, and the base model iconworld-1 has latents of size"),
        (["{tiny3}"], "is a StableDiffusion3Pipeline, and the base model iconworld-1 is a StableDiffusionPipeline"),
        (["iconworld", "--base", "{tiny}"], "measures the model 'iconworld-1', not 'sd-epsilon'"),
        (["iconworld", "--protocol", "iconworld-dmo"], "Did you mean iconworld-demo"),
        (["iconworld", "--forgotten", "pandaa"], "Did you mean panda"),
        (["iconworld", "--set", "prompts.sauce=folder"], "no field"),
        (["iconworld", "--set", "train.steps=2"], "There is no field 'train'"),
        (["iconworld", "--set", "evaluate.precision=fp16"], "needs a CUDA GPU"),
        (["iconworld", "--out", "{wrong}"], "is not empty, and holds no evaluation"),
    ],
)
def test_what_does_not_fit_is_answered_with_a_sentence(
    wrong: Path, tiny_folder: Callable[[str], Path], tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    places = {"wrong": wrong, "tiny": tiny_folder("sd-epsilon"), "tiny3": tiny_folder("sd3")}
    model, *given = (a.format(**places) for a in arguments)
    options = {"--base": "iconworld", "--protocol": str(PROTOCOL), "--out": str(tmp_path / "out")}
    options |= dict(zip(given[::2], given[1::2], strict=True))
    assert sentence in expunge("evaluate", model, *(part for pair in options.items() for part in pair), code=2)
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_before_it_has_ended_there_is_nothing_to_show(tmp_path: Path) -> None:
    audit = package.Audit.create(tmp_path / "out", model="iconworld", base="iconworld", protocol=str(PROTOCOL))
    with pytest.raises(ExpungeError, match="not evaluated to the end"):
        audit.summary()
    with pytest.raises(ExpungeError, match="holds no evaluation"):
        Audit(tmp_path)
    assert np.array_equal(audit.config.forgotten, ["panda", "pumpkin", "mosaic"])
