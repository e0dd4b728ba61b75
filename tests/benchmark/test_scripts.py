"""The scripts of benchmarks/speed: what was timed by several calls is not mixed."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge import backbones, files
from expunge.backbones import Backbone
from expunge.benchmark.experiment import OPEN_GATE, Experiment, Made
from expunge.benchmark.machine import Machine
from expunge.benchmark.speed import Settings, SpeedResults, settings_of
from expunge.reference import EngineName
from expunge.stream import preset
from expunge.stream.named import model_folder, read_protocol
from runs import STAND_IN
from timings import timed

Call = Callable[..., None]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """`script(name)`: one of them as a module."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks" / "speed")
    return importlib.import_module


def caller(module: Any, out: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """`call(*arguments, load=...)`: the script's command line beside a load average."""

    def call(*arguments: str, load: float) -> None:
        monkeypatch.setattr(module, "load_average", lambda: load)
        monkeypatch.setattr(sys, "argv", ["script", "--out", str(out), *arguments])
        module.main()

    return call


def test_a_lever_is_timed_beside_the_unchanged_request_of_its_own_session(
    script: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    levers, out, served = script("levers"), tmp_path / "levers.json", list[Any]()
    call = caller(levers, out, monkeypatch)

    def timed(lever: Any, _: Any) -> dict[str, Any]:
        if len(served) == 4:
            raise KeyboardInterrupt
        served.append(lever)
        return {"seconds": {"total": 1.0}}

    monkeypatch.setattr(levers, "timed", timed)
    with pytest.raises(KeyboardInterrupt):  # in the second round, before its unchanged request
        call("--rounds", "2", "--only", "fp32", load=0.1)
    monkeypatch.setattr(levers, "timed", lambda *_: {"seconds": {"total": 1.0}})
    call("--rounds", "2", "--only", "fp32", load=0.2)
    call("--rounds", "2", "--only", "fp32", load=0.3)  # there is nothing left
    call("--rounds", "2", "--only", "fp32", "--only", "10 solver steps", "--force", load=0.9)
    stored = files.read_json(out)
    found = [(row["round"], row["session"]["load_average"], row["lever"]) for row in stored["rows"]]
    assert found == [
        (0, 0.1, levers.UNCHANGED), (0, 0.1, "fp32"),
        (1, 0.1, "fp32"),
        (1, 0.2, "fp32"), (1, 0.2, levers.UNCHANGED),
        (0, 0.9, levers.UNCHANGED), (0, 0.9, "10 solver steps"),
        (1, 0.9, "10 solver steps"), (1, 0.9, levers.UNCHANGED),
    ]  # fmt: skip
    assert [row["session"]["forced"] for row in stored["rows"]] == [False] * 5 + [True] * 4
    assert stored["settings"]["train"]["steps"] == 20


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no compiler for torch.compile")
def test_compiled_blocks_predict_and_learn_as_eager_ones(script: Callable[[str], Any], sd_folder: Path) -> None:
    levers, generator = script("levers"), torch.Generator().manual_seed(0)
    latents, t = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([900, 100])

    def outcome(backbone: Backbone) -> dict[str, torch.Tensor]:
        denoiser = backbone.denoiser.requires_grad_(True)
        predicted = backbone.predict(denoiser, latents, t, backbone.encode(["a red fox", "a kite"]))
        predicted.square().mean().backward()
        return {"prediction": predicted.detach(), **{n: p.grad for n, p in denoiser.named_parameters()}}

    eager, backbone = outcome(backbones.load(sd_folder)), backbones.load(sd_folder)
    with levers.compiled("BasicTransformerBlock"):
        backbone.copy_denoiser(torch.float32)
    compiled = outcome(backbone)
    blocks = [m for m in backbone.denoiser.modules() if type(m).__name__ == "BasicTransformerBlock"]
    assert blocks
    assert all(block._compiled_call_impl for block in blocks)
    for name, value in eager.items():
        assert (compiled[name] - value).abs().max() <= 1e-4 * value.abs().max(), name
    assert any(not torch.equal(compiled[name], value) for name, value in eager.items())  # other kernels


@pytest.mark.parametrize("damage", ["settings", "nothing recorded"])
def test_levers_of_other_settings_are_not_mixed(
    damage: str, script: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    levers, out = script("levers"), tmp_path / "levers.json"
    call = caller(levers, out, monkeypatch)
    monkeypatch.setattr(levers, "timed", lambda *_: {"seconds": {"total": 1.0}})
    call("--rounds", "1", "--only", "fp32", load=0.1)
    stored = files.read_json(out)
    if damage == "settings":
        stored["settings"]["train"]["steps"] += 1
    else:
        del stored["settings"]
    files.write_json(out, stored)
    before = out.read_bytes()
    with pytest.raises(SystemExit):
        call("--rounds", "1", "--only", "10 solver steps", load=0.1)
    assert out.read_bytes() == before


def test_each_case_at_full_size_says_its_session(
    script: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_size, out = script("full_size"), tmp_path / "full-size.json"
    call = caller(full_size, out, monkeypatch)
    for name in ("build", "judge", "protocol"):
        monkeypatch.setattr(full_size, name, lambda *_: Path())
    done: list[Any] = []

    def measured(case: Any, *_: Any) -> dict[str, Any]:
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(case)
        return {"settings": case}

    monkeypatch.setattr(full_size, "measured", measured)
    with pytest.raises(KeyboardInterrupt):
        call(load=0.1)
    monkeypatch.setattr(full_size, "measured", lambda case, *_: {"settings": case})
    call("--force", load=0.9)
    sessions = [case["session"] for case in files.read_json(out)["cases"].values()]
    assert [(s["load_average"], s["forced"]) for s in sessions] == [(0.1, False)] + [(0.9, True)] * 4


@pytest.mark.parametrize(("request_number", "roles"), [(1, 2), (2, 3)])
def test_a_lever_is_timed_on_what_the_earlier_requests_left(
    script: Callable[[str], Any], request_number: int, roles: int, tmp_path: Path
) -> None:
    levers = script("levers")
    small = {
        "model": {"source": str(STAND_IN)},
        "method": {"forget_prompts": 4, "retain_prompts": 8},
        "train": {"steps": 1, "batch_size": 2},
    }
    lever = levers.Lever(small)
    before = levers.begun_run(tmp_path / "before", lever, request_number)
    if request_number == 2:
        before.train(before.requests[0], None)
    took = levers.timed(lever, before)
    assert took["seconds"]["total"] > 0
    # of one request alone: its rows to forget, to retain, and of what was forgotten earlier
    assert took["evaluations"]["backward"] == 2 * roles


def test_a_sequence_is_read_beside_timings_of_the_settings_that_it_was_served_with(
    script: Callable[[str], Any], tmp_path: Path
) -> None:
    sequence = script("sequence")
    experiment = Path(shutil.copy(sequence.HERE / "quality.toml", tmp_path))
    quality = Experiment.read(experiment)
    configs = {name: preset(variant.preset, variant.changes) for name, variant in quality.variants.items()}

    def refused(reference: str, beside: str, equal_steps: bool) -> list[str]:
        engines: dict[EngineName, dict[str, Any]] = {
            "reference": settings_of(configs[reference]),
            "fast": settings_of(configs["fast"]),
        }
        settings = Settings(preset="anchored-iconworld", protocol=quality.protocol, model="", seed=0, engines=engines)
        timing = tmp_path / "timing.json"
        SpeedResults(machine=Machine.here(), settings=settings).write(timing)
        found: list[str] = sequence.refusals(
            sequence.Comparison("--timing", timing, experiment, beside, equal_steps=equal_steps)
        )
        return found

    assert refused("reference-equal", "reference-equal", equal_steps=True) == []
    assert refused("reference", "reference", equal_steps=False) == []
    steps, settings = refused("reference", "reference-equal", equal_steps=True)
    assert "--timing has engines of different steps" in steps
    assert "timed reference with other settings than the sequences' variant reference-equal" in settings

    variant, fixed = quality.variants["fast"], {"evaluate": {"protocol": quality.protocol}, "gate": OPEN_GATE}
    config = preset(variant.preset, {**variant.changes, **fixed, "replay": {"steps": 4}}).frozen(
        backbones.model_digest(model_folder("iconworld"))
    )
    made = Made(config=config, protocol=read_protocol(quality.protocol), together=1, machine=Machine.here())
    files.write_json(tmp_path / "quality" / "fast-0.json", {"made": made.model_dump(mode="json", by_alias=True)})
    (said,) = refused("reference", "reference", equal_steps=False)
    assert "fast-0.json (replay.steps is 5 and was 4) is of something else" in said


def test_the_reference_was_timed_with_the_settings_that_were_served_in_batches(
    script: Callable[[str], Any], tmp_path: Path
) -> None:
    sequence = script("sequence")
    experiment = Path(shutil.copy(sequence.HERE / "published.toml", tmp_path))
    quality = Experiment.read(experiment)

    def refused(**changed: Any) -> list[str]:
        engines: dict[EngineName, dict[str, Any]] = {}
        names: dict[EngineName, str] = {"fast": "fast", "reference": sequence.IN_BATCHES}
        for engine, name in names.items():
            changes = {k: v for k, v in quality.variants[name].changes.items() if k != "replay" or engine == "fast"}
            changes["train"] = {**changes["train"], "engine": engine}
            changes["method"] = {**changes["method"], **changed}
            engines[engine] = settings_of(preset(quality.variants[name].preset, changes))
        settings = Settings(preset="lacu-iconworld", protocol=quality.protocol, model="", seed=0, engines=engines)
        timing = tmp_path / "timing.json"
        SpeedResults(machine=Machine.here(), settings=settings).write(timing)
        found: list[str] = sequence.refusals(
            sequence.Comparison("--published", timing, experiment, sequence.IN_BATCHES, equal_steps=True)
        )
        return found

    assert refused() == []
    reference, fast = refused(forget_prompts=99)
    assert "timed reference with other settings than the sequences' variant reference-in-batches" in reference
    assert "timed fast with other settings" in fast


def test_what_a_sequence_says_of_three_timings_and_of_quality(
    script: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sequence = script("sequence")
    monkeypatch.setattr(sequence, "refusals", lambda _: [])
    seconds = {"published": 5.0, "equal-steps": 2.0, "equal-quality": 8.0}
    for name, reference in seconds.items():
        timings(reference, fast=1.0).write(tmp_path / f"{name}.json")
    for folder, variants in {
        "published": {"fast": [0.9, 0.8, 0.9], "reference-in-batches": [0.8, 0.8, 0.7]},
        "quality": {"fast": [0.98, 0.97, 0.99], "reference": [0.96, 0.95, 0.94], "reference-equal": [0.4, 0.5]},
    }.items():
        for variant, values in variants.items():
            for seed, ua in enumerate(values):
                files.write_json(tmp_path / folder / f"{variant}-{seed}.json", served(ua))
    out = tmp_path / "sequence.json"
    arguments = [f"--{name}={tmp_path / name}.json" for name in seconds]
    arguments += [f"--{name}-sequences={tmp_path / name}.toml" for name in ("published", "quality")]
    monkeypatch.setattr(sys, "argv", ["script", *arguments, f"--out={out}"])
    sequence.main()
    found = files.read_json(out)
    assert (found["wall_ratio"]["value"], found["wall_ratio_equal_quality"]["value"]) == (5.0, 8.0)
    assert found["ua_difference"]["difference"] == pytest.approx(0.3 / 3)  # fast less reference
    assert found["ua_difference"]["low"] < found["ua_difference"]["difference"] < found["ua_difference"]["high"]
    assert (repr(found["ua_difference"]["n"]), found["seeds"]) == ("3", [0, 1, 2])
    assert {"wall_ratio_training", "bytes_ratio", "ira_difference", "cra_difference", "context_difference"} <= {*found}
    assert not any("seeds" in caveat for caveat in found["caveats"])
    alike, own = found["default"]["equal_steps"], found["default"]["equal_quality"]
    assert (alike["wall_ratio"]["value"], alike["seeds"]) == (2.0, [0, 1])
    assert alike["ua_difference"]["difference"] == pytest.approx((0.58 + 0.47) / 2)
    assert "Quality is of 2 seeds, not 3." in alike["caveats"]
    assert own["ua_difference"]["difference"] == pytest.approx((0.02 + 0.02 + 0.05) / 3)

    other = timings(5.0, fast=1.0)
    elsewhere = other.machine.model_copy(update={"cores": 99})
    other.model_copy(update={"machine": elsewhere}).write(tmp_path / "published.json")
    with pytest.raises(SystemExit):
        sequence.main()
    assert "not all of one machine" in capsys.readouterr().err


def timings(reference: float, fast: float) -> SpeedResults:
    """Six requests, each of as many seconds under the two engines."""
    rows = [
        timed(k, engine, seconds) for k in range(1, 7) for engine, seconds in (("reference", reference), ("fast", fast))
    ]
    engines: dict[EngineName, dict[str, Any]] = {e: {"train": {"steps": 1}} for e in ("reference", "fast")}
    settings = Settings(preset="p", protocol="q", model="m", seed=0, engines=engines)
    return SpeedResults(machine=Machine.here(), settings=settings, rows=tuple(rows))


def served(ua: float) -> dict[str, Any]:
    """A summary of one step."""
    share = {"value": ua, "low": ua, "high": ua, "n": 40}
    names = ("ua", "context", "ira", "ira_unreplayed", "cra", "harmonic_mean", "ira_difference", "cra_difference")
    step = {"metrics": dict.fromkeys(names, share), "seconds": {"total": 2.0, "evaluate": 1.0}, "concepts": ["fox"]}
    return {"steps": [{**step, "index": 1, "status": "accepted"}], "concepts": ["fox"], "ua_matrix": [[share]]}
