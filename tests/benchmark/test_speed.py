"""`expunge bench speed`: both engines timed in turn, in a file that says what it was measured on."""

from __future__ import annotations

import json
import time
from collections import namedtuple
from collections.abc import Callable
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from expunge import Run, backbones, files, iconworld
from expunge.benchmark import Experiment, machine, speed
from expunge.benchmark.experiment import OPEN_GATE
from expunge.benchmark.machine import Beside, Machine
from expunge.benchmark.speed import Plan, Settings, SpeedResults, measure
from expunge.errors import ExpungeError
from expunge.reference import METHOD_SETTINGS, EngineName
from expunge.stream import preset
from runs import FAST, PROTOCOL, STAND_IN, expunge
from timings import timed

SMALL: dict[str, dict[str, Any]] = {
    "method": {
        "forget_prompts": 2,
        "mapping_candidates": 1,
        "mapping_draws": 1,
        "retain_concepts": 1,
        "retain_prompts": 2,
        "retain_draws": 1,
    },
    "replay": {"forget_latents": 1, "retain_latents": 1, "steps": 2},
    "train": {"batch_size": 1, "accumulation": 1, "steps": 2, "learning_rate": 1e-3, "precision": "fp32"},
}
CHANGES: dict[EngineName, dict[str, Any]] = {"reference": SMALL, "fast": SMALL}
QUIET = 0.1
"""A load average at which nothing else runs."""


def test_the_flag_means_the_published_settings_whatever_a_preset_says() -> None:
    changes = {"train": {"engine": "reference", "precision": "bf16", "stop": {"check_every": 5}}}
    config = preset("lacu-iconworld", changes)
    assert (config.train.precision, config.train.stop) == ("fp32", None)
    replay = config.replay
    assert (replay.source, replay.steps, replay.solver, replay.batch_size) == ("fresh", 20, "published", 1)
    assert preset("lacu-iconworld").train.engine == "fast"
    published = preset("lacu-sd15", {"train": {"engine": "reference"}})
    assert published.replay.model_copy(update={"batch_size": 64}) == preset("lacu-sd15").replay


def test_the_experiment_on_quality_differs_in_the_engine_its_steps_and_its_prompts_alone() -> None:
    experiment = Experiment.read(Path(__file__).parents[2] / "benchmarks" / "speed" / "quality.toml")
    configs = {name: preset(variant.preset, variant.changes) for name, variant in experiment.variants.items()}
    assert {name: config.train.engine for name, config in configs.items()} == {
        "reference": "reference",
        "fast": "fast",
        "reference-equal": "reference",
    }
    engine = {"replay": True, "method": set(METHOD_SETTINGS), "train": {"engine", "precision"}}
    effort = {
        "replay": True,
        "method": engine["method"] | {"forget_prompts", "retain_prompts"},
        "train": engine["train"] | {"steps"},
    }
    for left_out, name in ((engine, "reference-equal"), (effort, "reference")):
        assert configs["fast"].model_dump(exclude=left_out) == configs[name].model_dump(exclude=left_out)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], SpeedResults]:
    """`measured(n)`: the results of n requests; a larger n goes on from a smaller one."""
    folder = tmp_path_factory.mktemp("speed")
    plan = Plan(preset="lacu-iconworld", protocol=str(PROTOCOL), changes=CHANGES)
    return lambda n: measure(plan, n, folder / "results" / "tiny.json", folder / "work", load=lambda: QUIET)


def test_a_pair_is_counted_as_the_published_table_predicts(measured: Callable[[int], SpeedResults]) -> None:
    ((reference, fast),) = measured(1).pairs
    # bank: 4 latents x 2 solver steps; then 2 + 2 per step; the rest is scoring
    batched = fast.evaluations.forward - 2 * (2 + 2) - 2 * (2 + 2)
    one_by_one = reference.evaluations.forward - 2 * 44
    assert one_by_one > 0
    assert batched == -(-one_by_one // 8) * 8  # batches are of sizes that oneDNN knows already
    assert reference.evaluations.backward == 2 * 2
    assert fast.evaluations.backward == 2 * 2
    assert reference.seconds.evaluate == fast.seconds.evaluate == 0
    assert 0 < reference.seconds.choose < reference.seconds.total
    assert all(
        row.process and row.process > row.seconds.total + 1 for row in (reference, fast)
    )  # imports alone take more
    assert all(row.beside is not None for row in (reference, fast))
    assert reference.seconds.train > fast.seconds.train  # 44 evaluations against 4, in every optimizer step


def test_bytes_are_those_of_the_tensors(measured: Callable[[int], SpeedResults]) -> None:
    ((reference, fast),) = measured(1).pairs
    shapes = backbones.denoiser_shapes(iconworld.model_folder("iconworld") or Path())
    values = sum(prod(shape) for shape in shapes.values())
    trained = sum(prod(shape) for name, shape in shapes.items() if ".attn2." in name)
    for row in (reference, fast):
        assert row.held["teacher"] == 4 * (values if row is reference else trained)  # what never changes is held once
        assert row.held["student"] == pytest.approx(4 * values, rel=1e-3)
        assert row.held["gradients"] == 4 * trained
        assert row.held["moments"] == pytest.approx(8 * trained, rel=1e-3)  # and a count of steps for each tensor
        assert row.held["base model as stored"] == 2 * values
        assert row.held["adapters"] == row.held["anchors"] == 0  # the anchor is the teacher itself
        assert row.peak_memory > sum(row.held.values())
        assert 0 < row.artifact < 2.1 * trained
    assert reference.held["prompts and replay"] == 0 < fast.held["prompts and replay"]
    assert reference.held["encoders"] == fast.held["encoders"]


def test_bytes_of_adapters_are_counted_apart(tmp_path: Path) -> None:
    train = {**SMALL["train"], "parameters": "lora"}
    changes = {
        **SMALL,
        "train": train,
        "model": {"source": str(STAND_IN)},
        "evaluate": {"protocol": str(PROTOCOL)},
        "gate": OPEN_GATE,
    }
    run = Run.create(tmp_path / "run", requests=["panda"], preset_name="lacu-iconworld", changes=changes)
    held = run.train(run.requests[0], None).held
    values = sum(prod(shape) for shape in backbones.denoiser_shapes(STAND_IN).values())
    assert held["student"] == pytest.approx(4 * values, rel=1e-2)
    assert 0 < held["adapters"] == held["gradients"]


def test_the_same_call_goes_on_after_the_last_pair(
    measured: Callable[[int], SpeedResults], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measured(1)
    results = measured(2)
    assert results.rows[:2] == first.rows
    assert [(row.request, row.engine) for row in results.rows] == [
        (1, "reference"),
        (1, "fast"),
        (2, "fast"),
        (2, "reference"),
    ]
    assert [row.concepts for row in results.rows[1:3]] == [("panda",), ("pumpkin",)]
    assert len(results.sessions) == 2
    assert results.wall_ratio is not None
    assert results.wall_ratio.n == 2
    monkeypatch.setattr(speed, "_timed", lambda *_: pytest.fail("timed again"))
    assert measured(2) == results


def test_a_request_that_is_timed_again_does_not_find_its_own_work(tmp_path: Path) -> None:
    """What M(0) painted for it is kept for later requests (`teacher = "base"`), and would be read instead of painted."""
    run = Run.create(tmp_path / "fast", requests=["panda"], preset_name="lacu-iconworld", changes=SMALL)
    earlier, own = run.directory.memory / "earlier", run.directory.memory / "own"
    files.write_text(earlier, "painted for a request before it")
    for _ in range(2):
        speed._as_before(run, 1, tmp_path / "note.json")
        assert earlier.exists()
        assert not own.exists()
        assert not run.directory.step(1).path.exists()
        files.write_text(own, "painted by the attempt that was interrupted")
        files.write_text(run.directory.step(1).weights, "trained by it")


def test_both_engines_start_from_what_the_reference_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, asked = tmp_path / "work", []

    def serve(command: list[str], **_: Any) -> Any:
        run, number, previous, cost = command[3:]
        asked.append((Path(run).name, number, previous))
        if number == "3":
            return SimpleNamespace(returncode=1, stderr="some hint\nThe loss is not finite.\n")
        files.write_text(Path(run) / "steps" / f"{int(number):04d}" / "weights.safetensors", Path(run).name)
        row = timed(1, "fast", 1.0).model_dump(include={"seconds", "evaluations", "held", "peak_memory", "artifact"})
        files.write_json(Path(cost), row)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr("subprocess.run", serve)
    plan = Plan(preset="lacu-iconworld", protocol=str(PROTOCOL), changes=CHANGES)
    left = work / "reference" / "steps" / "0001" / "weights.safetensors"
    measure(plan, 2, tmp_path / "out.json", work, load=lambda: QUIET)
    assert asked == [
        ("reference", "1", "-"),
        ("fast", "1", "-"),
        ("fast", "2", str(left)),
        ("reference", "2", str(left)),
    ]

    with pytest.raises(ExpungeError, match="Request 3 could not be served by the engine reference: The loss is not"):
        measure(plan, 3, tmp_path / "out.json", work, load=lambda: QUIET)
    (work / "reference" / "steps" / "0002" / "weights.safetensors").unlink()
    with pytest.raises(ExpungeError, match="is gone, from which request 3 starts"):
        measure(plan, 3, tmp_path / "out.json", work, load=lambda: QUIET)
    with pytest.raises(ExpungeError, match="has 3 requests, not 4"):
        measure(plan, 4, tmp_path / "out.json", work, load=lambda: QUIET)


def test_what_others_take_meanwhile_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    times = namedtuple("times", "user system idle iowait")
    own = namedtuple("own", "user system children_user children_system")
    everyone, ours = iter([times(10, 2, 50, 1), times(16, 4, 60, 5)]), iter([own(1, 1, 0, 0), own(1.5, 1, 2, 0.5)])
    monkeypatch.setattr(machine.psutil, "cpu_times", lambda: next(everyone))
    monkeypatch.setattr(machine.os, "times", lambda: next(ours))
    with Beside() as others:
        time.sleep(0.1)
    assert others.cores * others.seconds == pytest.approx(8 - 3)
    rows = [timed(1, engine, 1.0).model_copy(update={"beside": others.cores}) for engine in speed.ENGINES]
    results = SpeedResults(
        machine=Machine.here(),
        settings=Settings(preset="p", protocol="q", model="m", seed=0, engines={}),
        rows=(rows[0], rows[1].model_copy(update={"beside": 0.05})),
    )
    assert sum("other processes took" in caveat for caveat in results.caveats) == 1


def test_what_else_runs_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(preset="lacu-iconworld", protocol=str(PROTOCOL), changes=CHANGES)
    out = tmp_path / "out.json"
    with pytest.raises(ExpungeError, match=r"load average of the last minute is 1\.70.*--force"):
        measure(plan, 1, out, tmp_path / "work", load=lambda: 1.7)
    assert not out.exists()
    monkeypatch.setattr(speed, "_timed", lambda runs, engine, k, work: timed(k, engine, 1.0))
    results = measure(plan, 1, out, tmp_path / "work", load=lambda: 1.7, force=True)
    assert results.sessions[0].forced
    assert any("forced beside a load average of 1.70" in caveat for caveat in results.caveats)
    assert json.loads(out.read_text())["sessions"][0]["load_average"] == 1.7


def test_other_settings_and_other_machines_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_timed", lambda runs, engine, k, work: timed(k, engine, 1.0))
    out = tmp_path / "out.json"

    def run(work: str = "work", **changes: Any) -> SpeedResults:
        plan = Plan(**{"preset": "lacu-iconworld", "protocol": str(PROTOCOL), "changes": CHANGES, **changes})
        return measure(plan, 1, out, tmp_path / work, load=lambda: QUIET)

    run()
    with pytest.raises(ExpungeError, match="with other settings"):
        run("other", changes={**CHANGES, "fast": _with_steps(1)})
    here = Machine.here()
    monkeypatch.setattr(machine.Machine, "here", lambda: here.model_copy(update={"threads": 64}))
    with pytest.raises(ExpungeError, match="on another machine"):
        run()
    out.unlink()
    with pytest.raises(ExpungeError, match="reference was made with other settings"):
        run(changes={**CHANGES, "reference": _with_steps(1)})


def test_ratios_are_medians_of_pairs_and_quoted_from_six_on(tmp_path: Path) -> None:
    settings = Settings(preset="p", protocol="q", model="m", seed=0, engines={})
    begun = SpeedResults(machine=Machine.here(), settings=settings)
    assert begun.wall_ratio is None
    seconds = {"reference": [10.0, 20.0, 90.0, 10.0, 12.0, 11.0], "fast": [5.0, 4.0, 9.0, 5.0, 5.0, 5.0]}
    rows = [timed(k + 1, engine, s[k]) for k in range(6) for engine, s in seconds.items()]
    results = begun.model_copy(update={"rows": tuple(rows)})
    found = results.wall_ratio
    assert found is not None
    assert (found.low, found.high, found.n) == (2.0, 10.0, 6)
    assert found.value == pytest.approx((2.2 + 2.4) / 2)  # of 2, 5, 10, 2, 2.4, 2.2
    assert results.caveats == []
    assert results.model_copy(update={"rows": tuple(rows[:10])}).caveats != []
    results.write(tmp_path / "r.json")
    assert SpeedResults.read(tmp_path / "r.json") == results
    (tmp_path / "r.json").write_text(json.dumps({"schema": 1, "machine": {}}))
    with pytest.raises(ExpungeError, match=r"The results file .*r\.json cannot be used: "):
        SpeedResults.read(tmp_path / "r.json")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_timed", lambda runs, engine, k, work: timed(k, engine, 2.0))
    options = ("--requests", "2", "--out", tmp_path / "out.json", "--work", tmp_path / "work")
    monkeypatch.setattr("os.getloadavg", lambda: (3.0, 3.0, 3.0))
    said = expunge("bench", "speed", *FAST, *options, code=2)
    assert "something else is running" in said
    said = expunge("bench", "speed", *FAST, *options, "--force", "--fast-set", "train.steps=3")
    assert "1.00 [1.00, 1.00]" in said
    assert "forced" in said
    stored = files.read_json(tmp_path / "out.json")
    steps = {engine: config["train"]["steps"] for engine, config in stored["settings"]["engines"].items()}
    assert steps == {"reference": 6, "fast": 3}
    assert str(tmp_path) not in json.dumps(stored)


def _with_steps(steps: int) -> dict[str, dict[str, Any]]:
    return {**SMALL, "train": {**SMALL["train"], "steps": steps}}
