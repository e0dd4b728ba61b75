"""A step that the gate does not let pass is trained anew; a withdrawn request leaves no trace. Real processes."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from expunge import ExpungeError, Run
from expunge.files import digest_file
from expunge.stream import verify
from runs import BARELY, COLD, DRAWN, command, count_lines, expunge, kill_when

FAILING = (*DRAWN, *COLD, "--set", "gate.forget=1.0")
"""Six optimizer steps forget nothing, so both attempts miss this gate."""


@pytest.fixture(scope="module")
def rejected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "rejected"
    said = expunge("run", path, "panda", *FAILING, code=1)
    assert "Step 1 did not pass the gate: UA of panda is" in said
    assert "strength 1 and 1.5" in said
    return path


@pytest.fixture(scope="module")
def mended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "mended"
    expunge("run", path, "panda", *BARELY)
    return path


def test_both_attempts_are_kept_and_recorded(rejected: Path) -> None:
    run = Run(rejected)
    (record,) = run.records
    assert record.status == "rejected"
    assert [a.strength for a in record.attempts] == [1.0, 1.5]
    assert [a.then for a in record.attempts] == [
        "trained anew with strength 1.5, because too little was forgotten",
        "no attempt is left",
    ]
    assert all(not a.gate[0].passed for a in record.attempts)
    (first,) = run.directory.replaced(1)
    last = run.directory.step(1)
    assert digest_file(first.prompts) == digest_file(last.prompts)  # only the strength differs
    assert digest_file(first.weights) != digest_file(last.weights)
    before = json.loads(first.attempt.read_text())
    assert record.seconds.train > before["seconds"]["train"]
    counted = before["evaluations"]
    assert record.evaluations.backward == 2 * counted["backward"]
    # What M(0) painted for the first attempt is not painted again.
    assert counted["forward"] < record.evaluations.forward < 2 * counted["forward"]
    events = run.directory.events()
    assert [e["event"] for e in events] == [
        "created",
        "requested",
        "started",
        "measured",
        "retried",
        "started",
        "rejected",
    ]
    assert (events[4]["strength"], events[4]["about"]) == (1.5, ["panda"])
    assert verify(rejected).problems == ()
    assert "A first attempt with strength 1 missed UA of panda" in (rejected / "report.html").read_text()


def test_what_a_retry_changed_for_a_concept_holds_in_later_steps(mended: Path, tmp_path: Path) -> None:
    path = shutil.copytree(mended, tmp_path / "run")
    expunge("request", path, "mosaic")
    expunge("resume", path)
    run = Run(path)
    assert [r.status for r in run.records] == ["accepted", "accepted"]
    assert [a.strength for a in run.records[0].attempts] == [1.0, 1.5]
    folders = [
        run.directory.replaced(1)[0],
        run.directory.step(1),
        [*run.directory.replaced(2), run.directory.step(2)][0],
    ]
    left = [json.loads(folder.choices.read_text())["remaining"] for folder in folders]
    less = pytest.approx(0.95 / 1.5)
    assert left == [{"panda": 0.95}, {"panda": less}, {"mosaic": 0.95, "panda": less}]
    card = (run.export(tmp_path / "out") / "README.md").read_text()
    assert "- Method: lacu, strength 1\n" in card
    assert "- request 0001: panda, in a second attempt with strength 1.5\n" in card
    assert verify(path).problems == ()


def test_a_step_that_fails_its_gate_is_kept_but_not_made_current(rejected: Path, tmp_path: Path) -> None:
    run = Run(shutil.copytree(rejected, tmp_path / "run"))
    assert run.current_weights is None
    assert run.directory.step(1).weights.exists()
    with pytest.raises(ExpungeError, match="nothing to export"):
        run.export(tmp_path / "out")
    assert run.request("panda").id == "0002"


def test_a_strength_that_the_method_does_not_take_is_not_tried(tmp_path: Path) -> None:
    said = expunge("run", tmp_path / "run", "panda", *FAILING, "--set", "method.strength=700", code=1)
    assert "It was not tried again: the method takes no strength of 1050." in said
    assert len(Run(tmp_path / "run").records[0].attempts) == 1


def test_an_attempt_that_passes_its_gate_needs_no_second_one(tmp_path: Path) -> None:
    expunge("run", tmp_path / "run", "panda", *DRAWN)
    (record,) = Run(tmp_path / "run").records
    assert len(record.attempts) == 1
    assert all(check.passed for check in record.gate)


def test_the_gate_looks_at_every_concept_so_far(finished_run: Path) -> None:
    first, second = Run(finished_run).records
    others = [("context drop", None), ("ira drop", None), ("cra drop", None), ("collapsed", None)]
    assert [(c.name, c.concept) for c in first.gate] == [("ua", "panda"), *others]
    assert [(c.name, c.concept) for c in second.gate] == [("ua", "panda"), ("ua", "mosaic"), *others]
    assert verify(finished_run).problems == ()


@pytest.mark.slow
@pytest.mark.parametrize(("whole", "settings", "code"), [("rejected", FAILING, 1), ("mended", BARELY, 0)])
def test_a_retry_that_was_killed_ends_with_the_same_bits(
    request: pytest.FixtureRequest, tmp_path: Path, whole: str, settings: tuple[str, ...], code: int
) -> None:
    undisturbed: Path = request.getfixturevalue(whole)
    run = tmp_path / "killed"
    arguments = command("run", run, "panda", *settings)
    for reached in (
        # The folder is put aside right after the attempt was recorded.
        lambda run: any((run / "steps" / name / "attempt.json").exists() for name in ("0001", "0001.replaced-1")),
        lambda run: (run / "steps/0001.replaced-1").exists() and count_lines(run / "steps/0001/train.jsonl") >= 3,
    ):
        kill_when(arguments, run, reached)
        arguments = command("resume", run)
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=280)
    assert done.returncode == code, done.stdout + done.stderr
    for folder in ("0001.replaced-1", "0001"):
        for name in ("weights.safetensors", "prompts.json", "choices.json", "judgements.parquet"):
            paths = [path / "steps" / folder / name for path in (run, undisturbed)]
            assert digest_file(paths[0]) == digest_file(paths[1]), (folder, name)
    assert verify(run).problems == ()


def test_a_withdrawn_request_leaves_no_trace_in_the_model(finished_run: Path, tmp_path: Path) -> None:
    """Served and taken back, or taken back before it was served: the next request leads to the same bits."""
    late = shutil.copytree(finished_run, tmp_path / "late")
    expunge("withdraw", late, 1, "--reason", "it was a mistake")
    early = Run.create(tmp_path / "early", requests=["panda", "mosaic"], changes=_changes(finished_run))
    early.withdraw(1, by="me")
    early.resume()
    assert [r.status for r in Run(late).records] == ["withdrawn", "accepted"]
    assert digest_file(late / "steps/0002/weights.safetensors") == digest_file(early.directory.step(2).weights)
    kept = late / "steps/0002.replaced-1/weights.safetensors"
    assert digest_file(kept) == digest_file(finished_run / "steps/0002/weights.safetensors")
    assert verify(late).problems == verify(early.directory.path).problems == ()


def _changes(run: Path) -> dict[str, object]:
    return Run(run).config.model_dump(mode="json", exclude_none=True, exclude={"schema_", "constraints"})


def test_the_card_of_an_export_holds_the_head_and_what_was_measured(finished_run: Path, tmp_path: Path) -> None:
    run = Run(shutil.copytree(finished_run, tmp_path / "run"))
    card = (run.export(tmp_path / "clean") / "README.md").read_text()
    assert run.directory.head in card
    assert run.config.model.digest in card
    assert "- Method: lacu, strength 1\n" in card
    assert "Requests served: 2" in card
    assert "request 0002: mosaic" in card
    metrics = run.records[-1].metrics
    assert metrics.ira
    assert f"| {metrics.ira.value:.3f} | {metrics.ira.low:.3f} | {metrics.ira.high:.3f} | {metrics.ira.n} |" in card
    assert "No proof that a concept is gone" in card
    expunge("request", run.directory.path, "pumpkin")
    expunge("verify", run.directory.path, "--head", run.directory.events()[-1]["previous"])
