"""From requests to a model that stock Diffusers loads."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import expunge as package
from expunge import backbones, iconworld
from expunge.cli import shared
from expunge.files import digest_bytes, digest_file, load_tensors
from runs import STAND_IN, command, expunge

SCHEMA = Path(__file__).parents[2] / "docs" / "summary.schema.json"


def test_a_run_leaves_all_that_the_design_promises(finished_run: Path) -> None:
    for name in (
        "run.toml",
        "events.jsonl",
        "requests.jsonl",
        "summary.json",
        "report.html",
        "base/judgements.parquet",
    ):
        assert (finished_run / name).is_file(), name
    for step in ("0001", "0002"):
        names = (
            "prompts.json",
            "choices.json",
            "train.jsonl",
            "weights.safetensors",
            "judgements.parquet",
            "step.json",
        )
        for name in names:
            assert (finished_run / "steps" / step / name).is_file(), name
        assert not (finished_run / "steps" / step / "state").exists()
        record = json.loads((finished_run / "steps" / step / "step.json").read_text())
        for name, digest in record["files"].items():
            assert digest_file(finished_run / "steps" / step / name) == digest
    assert not [p for p in finished_run.rglob("*") if "panda" in p.name or "mosaic" in p.name]
    assert not list(finished_run.rglob("*.tmp"))


def test_the_summary_follows_its_schema(finished_run: Path) -> None:
    summary = json.loads((finished_run / "summary.json").read_text())
    jsonschema.validate(summary, json.loads(SCHEMA.read_text()))
    assert summary["requests"] == [["panda"], ["mosaic"]]
    assert [len(row) for row in summary["ua_matrix"]] == [2, 2]
    assert summary["ua_matrix"][1][0]["n"] == 2  # mosaic was measured before its own turn, with the counts in between
    assert summary["ua_matrix"][0][1]["n"] == 4
    kid = summary["steps"][1]["metrics"]["kid_judge"]
    assert kid["low"] <= kid["value"] <= kid["high"]
    broken = summary | {"ua_matrix": [[0.5]]}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, json.loads(SCHEMA.read_text()))


def test_judgements_have_one_row_per_picture_and_the_same_rows_as_the_base(finished_run: Path) -> None:
    base = pd.read_parquet(finished_run / "base" / "judgements.parquet")
    last = pd.read_parquet(finished_run / "steps" / "0002" / "judgements.parquet")
    columns = ["row", "prompt", "seed"]
    pd.testing.assert_frame_equal(
        base[columns].sort_values("row", ignore_index=True), last[columns].sort_values("row", ignore_index=True)
    )
    assert (base["image"] != last["image"]).any()


def test_the_events_are_a_chain(finished_run: Path) -> None:
    lines = (finished_run / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert [e["event"] for e in events] == [
        "created", "requested", "requested", "started", "measured", "accepted", "started", "measured", "accepted",
    ]  # fmt: skip
    assert [e["previous"] for e in events[1:]] == [digest_bytes(line.encode()) for line in lines[:-1]]
    assert {e["prompts"] for e in events if e["event"] == "accepted"} == {iconworld.vocabulary().digest}


def test_weights_hold_what_differs_from_the_base_in_its_stored_dtype(finished_run: Path) -> None:
    stored = backbones.stored_denoiser(STAND_IN)
    weights = load_tensors(finished_run / "steps" / "0002" / "weights.safetensors")
    assert weights
    assert all(".attn2." in name for name in weights)
    assert all(v.dtype == stored[n].dtype and not torch.equal(v, stored[n]) for n, v in weights.items())


def test_export_loads_in_stock_diffusers_without_expunge(finished_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "clean"
    run = shutil.copytree(finished_run, tmp_path / "run")  # an export is an event, and the run is for all tests to read
    expunge("export", run, out)
    script = f"""
import sys
sys.modules["expunge"] = None
import torch
from diffusers import StableDiffusionPipeline
pipeline = StableDiffusionPipeline.from_pretrained({str(out)!r}, dtype=torch.float32)
pipeline.set_progress_bar_config(disable=True)
image = pipeline("a bus", num_inference_steps=3, guidance_scale=3.0, generator=torch.Generator().manual_seed(5)).images[0]
image.save({str(tmp_path / "stock.png")!r})
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=200)
    expunge("generate", finished_run, "a bus", "--out", tmp_path / "ours.png", "--seed", "5", "--steps", "3")
    expunge("generate", STAND_IN, "a bus", "--out", tmp_path / "base.png", "--seed", "5", "--steps", "3")
    stock, ours, base = (np.asarray(Image.open(tmp_path / f"{n}.png"), dtype=int) for n in ("stock", "ours", "base"))
    assert np.abs(stock - ours).max() <= 1
    assert np.abs(stock - base).max() > 1


def test_a_stream_stays_open(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    expunge("request", run, "pumpkin")
    assert "0003 pumpkin open" in expunge("status", run)
    digest = digest_file(run / "steps" / "0002" / "step.json")
    expunge("resume", run)
    assert digest_file(run / "steps" / "0002" / "step.json") == digest
    status = expunge("status", run)
    assert "0003 pumpkin accepted" in status
    assert len(package.Run(run).summary().steps) == 3


def test_a_lost_summary_and_page_are_made_anew(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    before = (run / "summary.json").read_text()
    (run / "summary.json").unlink()
    (run / "report.html").unlink()
    expunge("resume", run)
    assert (run / "summary.json").read_text() == before
    assert (run / "report.html").exists()


def test_two_processes_do_not_serve_one_run_but_requests_can_still_be_added(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    with package.Run(run).directory.locked():
        assert "is in use by process" in expunge("resume", run, code=2)
        expunge("request", run, "pumpkin")
    assert [r.id for r in package.Run(run).open_requests] == ["0003"]


def test_every_process_of_a_launch_is_told_the_batch(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, object]] = []
    monkeypatch.setattr(package.Run, "decides", False)
    monkeypatch.setattr(package.Run, "resume", lambda run, **how: told.append(how))
    expunge("resume", finished_run, "--batch", 3)
    assert told == [{"batch": 3}]


def test_brackets_are_printed(finished_run: Path, tmp_path: Path) -> None:
    """Rich would take them for markup, in help as in names and paths."""
    assert "A field of [prompts] or [evaluate] (repeatable)." in expunge("evaluate", "--help")
    run = shutil.copytree(finished_run, tmp_path / "[bold]" / ":apple:")

    def unwrapped(text: str) -> str:
        return "".join(text.split())

    assert "[bold]/:apple:" in unwrapped(expunge("status", run))
    said = f"Request 0003 waits. `expunge resume {run}` serves it."
    assert unwrapped(said) in unwrapped(expunge("request", run, "pumpkin"))


@pytest.mark.parametrize(
    ("given", "spin"), [({}, shared.SPIN), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)]
)
def test_threads_sleep_soon_unless_something_else_is_said(
    given: dict[str, str], spin: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", given)
    with shared.sentences():
        assert given.get("GOMP_SPINCOUNT") == spin


def test_nothing_is_said_but_what_was_asked_for(finished_run: Path) -> None:
    """Libraries hint at this and that when they are loaded, in a process of its own."""
    done = subprocess.run(command("verify", finished_run), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_command_that_loads_no_model_waits_for_no_library_that_could(finished_run: Path, tmp_path: Path) -> None:
    """Their import takes seconds."""
    code = (
        "import sys; from expunge.cli import app; app(sys.argv[1:], standalone_mode=False); "
        "print({'torch', 'diffusers', 'transformers', 'peft'} & sys.modules.keys())"
    )
    page = tmp_path / "page.html"
    for arguments in (["status"], ["verify"], ["compare", "--out", page, finished_run]):
        names = [str(a) for a in (*arguments, finished_run)]
        done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True)
        assert done.stdout.splitlines()[-1:] == ["{'torch'}"], done.stdout + done.stderr
