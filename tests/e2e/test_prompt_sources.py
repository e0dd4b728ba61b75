"""Runs whose prompts come from a folder or from a language model, from the request to the finished step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny_judges
from expunge import Run
from llm_server import serving
from runs import PROTOCOL

PROMPTS = PROTOCOL.parent / "prompts"
MEASURED = """
schema = 1
name = "golf"
model = "sd-epsilon"
judge = "vl:{judge}"
seed = 1
requests = [["golf ball"]]
others = ["{other}"]
seeds_per_prompt = 1
neighbours."golf ball" = {{ held_out = ["{neighbour}"], replayed = [] }}
sampler = {{ solver = "default", steps = 1, guidance = 1.0 }}
between = {{ forget = 1, neighbours = 1, others = 1 }}
final = {{ forget = 1, neighbours = 1, others = 1 }}
"""


def serve(place: Path, model: Path, prompts: dict[str, Any], **names: str) -> Run:
    """A run that forgot the golf ball; the names are those that its protocol measures."""
    judge = tiny_judges.save(place / "judge", *tiny_judges.vision_language())
    (place / "protocol.toml").write_text(MEASURED.format(judge=judge, **names))
    changes = {
        "model": {"source": str(model)},
        "prompts": prompts,
        "evaluate": {"protocol": str(place / "protocol.toml")},
        "method": {
            "forget_prompts": 4, "retain_prompts": 4,
            "mapping_candidates": 2, "mapping_draws": 1, "retain_draws": 1,
        },
        "replay": {"steps": 1, "forget_latents": 1, "retain_latents": 1},
        "train": {"steps": 1, "batch_size": 2, "warmup_steps": 0},
        "gate": {"enforce": False},
    }  # fmt: skip
    run = Run.create(place / "run", requests=["golf ball"], preset_name="lacu-iconworld", changes=changes)
    assert [record.status for record in run.serve()] == ["accepted"]
    return run


def check(run: Run, mapping: set[str]) -> None:
    """Whether the digest of the prompts stands in the step's event, and the mapping prompts show what they should."""
    events = run.directory.events()
    assert [e["prompts"] for e in events if e["event"] == "accepted"] == [run.source.digest]
    prompts = json.loads(run.directory.step(1).prompts.read_text())
    assert len(prompts["forget"]) == len(prompts["mapping"]) == 4
    assert all("golf ball" in p["prompt"] for p in prompts["forget"])
    assert not any("golf ball" in str(p) for p in prompts["retain"])
    assert all(any(name in p["prompt"] for name in mapping) for p in prompts["mapping"])


@pytest.mark.usefixtures("prompts_may_be_cut")
def test_a_run_is_served_from_a_folder(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    run = serve(
        tmp_path,
        tiny_folder("sd-epsilon"),
        {"source": "folder", "folder": str(PROMPTS)},
        neighbour="Plum",
        other="Lighthouse",
    )
    check(run, {"arble", "othing"})  # the plum is held out


@pytest.mark.usefixtures("prompts_may_be_cut")
def test_a_run_is_served_from_a_language_model(
    tmp_path: Path, tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openai")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving() as server:
        prompts = {
            "source": "llm", "model": "small", "base_url": server.url, "cache": str(tmp_path / "cache"),
            "evaluation_prompts": 1,
        }  # fmt: skip
        run = serve(tmp_path, tiny_folder("sd-epsilon"), prompts, neighbour="toy 1", other="place 1")
        check(run, {"tennis ball", "toy"})
        assert len(list((tmp_path / "cache").iterdir())) == len(server.asked) > 0
