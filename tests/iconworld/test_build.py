"""Stages stop and go on, and end with the bits of one that was never stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from expunge import files
from expunge.errors import ExpungeError, Interrupted
from expunge.evaluation import UNSURE, Question
from expunge.iconworld import classifier
from expunge.iconworld.build import autoencoder, denoiser, draw, judge, loop, stock, tokenizer

CPU = torch.device("cpu")
ALWAYS = loop.Budget(checkpoint_minutes=0.0, print_steps=1)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory, sprites: Tensor) -> Path:
    """A folder with a few pictures, a tokenizer and an untrained autoencoder."""
    folder = tmp_path_factory.mktemp("recipe")
    plan = draw.plan(0, 0, 64)
    tensors = {name: values.to(torch.int16) for name, values in vars(stock.labels(plan)).items()}
    pictures = (draw.paint(plan, sprites) * 255).round().to(torch.uint8)
    files.save_tensors(folder / "pictures" / "0000.safetensors", {"pictures": pictures, **tensors})
    tokenizer.build(count=500).save_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    autoencoder.build((8, 8, 8)).save_pretrained(folder / "vae")
    return folder


def trainee(name: str, folder: Path) -> loop.Trainee:
    source = stock.Stock(folder, stock.CHUNK)
    if name == "autoencoder":
        settings = autoencoder.Settings(steps=6, batch=4, crop=16, widths=(8, 8, 8))
        return autoencoder.Training(settings, source, CPU)
    if name == "judge":
        return judge.Training(judge.Settings(steps=6, batch=8), source, CPU)
    small = denoiser.Settings(steps=6, batch=4, widths=(16, 16, 32), text_width=16, text_layers=1)
    return denoiser.Training(small, source, folder, CPU)


def stored_steps(folder: Path, name: str) -> int:
    """Steps that the last checkpoint of a stage holds."""
    return int(json.loads(files.metadata(folder / f"{name}.checkpoint.safetensors")["made"])["steps"])


@pytest.mark.parametrize("name", ["autoencoder", "judge", "denoiser"])
def test_a_stopped_stage_ends_with_the_same_bits(name: str, drawn: Path, tmp_path: Path) -> None:
    loop.train(trainee(name, drawn), tmp_path / "whole", ALWAYS)
    with pytest.raises(Interrupted):
        loop.train(trainee(name, drawn), tmp_path / "stopped", loop.Budget(minutes=0.0, print_steps=1))
    assert stored_steps(tmp_path / "stopped", name) == 1
    with pytest.raises(Interrupted, match="step 2 of 6"):
        loop.train(trainee(name, drawn), tmp_path / "stopped", loop.Budget(minutes=0.0, print_steps=1))
    loop.train(trainee(name, drawn), tmp_path / "stopped", ALWAYS)
    for file in (f"{name}.checkpoint.safetensors", f"{name}.csv"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "stopped" / file).read_bytes()


def test_other_settings_are_refused(drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        loop.train(trainee("judge", drawn), tmp_path, loop.Budget(minutes=0.0))
    other = judge.Training(judge.Settings(steps=7, batch=8), stock.Stock(drawn, stock.CHUNK), CPU)
    with pytest.raises(ExpungeError, match="was made with the settings"):
        loop.train(other, tmp_path, ALWAYS)


def test_the_denoiser_ends_in_a_stock_pipeline(drawn: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    training = trainee("denoiser", drawn)
    assert isinstance(training, denoiser.Training)
    training.save(tmp_path)
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("a fox and a zebra", num_inference_steps=2, guidance_scale=3.0, output_type="pt").images
    assert picture.shape == (1, 3, 64, 64)


def test_the_judge_is_unsure_of_what_it_does_not_know(tmp_path: Path) -> None:
    torch.manual_seed(0)
    styles = classifier.Head(("plain", "neon", "mosaic"), temperature=0.001)
    heads = {"thing": classifier.Head(("fox", "owl", "key")), "style": styles}
    classifier.save(tmp_path / "judge.safetensors", classifier.Classifier({"thing": 3, "style": 3}), heads)
    watcher = classifier.CalibratedJudge(tmp_path / "judge.safetensors")
    answer = watcher.judge(torch.rand(1, 3, 64, 64), [Question("fox", "thing", {"thing": "fox", "style": "neon"})])[0]
    assert answer.seen["thing"].value == UNSURE
    assert answer.shown is None
    assert answer.recognisable is False
    assert answer.seen["style"].value != UNSURE
    assert watcher.judge(torch.rand(1, 3, 64, 64), [Question("red", "colour", {})])[0].shown is None


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_stage_stores_what_it_has_when_it_is_told_to_stop(drawn: Path) -> None:
    command = [sys.executable, "-m", "expunge.iconworld.build", "--out", str(drawn), "--stage", "judge"]
    options = ["--pictures", str(stock.CHUNK), "--steps", "100000", "--batch", "8"]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("judge 50/"):
                break
        process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        rest = process.stdout.read()
        assert process.wait() == 3
    assert time.monotonic() - begun < 20
    assert "the same command goes on" in rest
    assert stored_steps(drawn, "judge") >= 50
