"""Accept, rollback, withdraw and verify, on runs whose files were written by hand: no model is loaded."""

from __future__ import annotations

import getpass
import importlib.util
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pandas as pd
import pytest
import torch

from expunge import Run
from expunge.concepts import Concept, Request
from expunge.errors import ExpungeError
from expunge.files import append_line, digest_file
from expunge.replay import kept_tensors
from expunge.stream import Findings, chain, verify
from expunge.stream.directory import RunDirectory
from handmade import FOX, NEON, PERSON, SANTA, add_step, begin, check
from runs import expunge

ROOT = Path(__file__).parents[2]
PASSED = [check("ua of fox", 1.0, 0.8)]
MISSED = [check("ua of fox", 1.0, 0.8), check("ira drop", 0.2, 0.15)]


def make(path: Path, *steps: bool) -> Run:
    """Fox, a person, neon and santa, one step each: accepted or rejected."""
    concepts: list[Concept] = [FOX, PERSON, NEON, SANTA][: len(steps)]
    directory, base = begin(path, *concepts)
    previous = 0
    for i, (request, taken) in enumerate(zip(directory.requests(), steps, strict=True), 1):
        gone = [c.name for c in concepts[:i]]
        add_step(directory, request, base, gone, PASSED if taken else MISSED, previous=previous)
        previous = i if taken else previous
    run = Run(path)
    run.resume()  # nothing is open: this writes the summary
    return run


def statuses(run: Run) -> list[str]:
    return [r.status for r in run.records]


def test_a_rejected_step_is_accepted_by_hand_and_the_events_say_who_and_why(tmp_path: Path) -> None:
    run = make(tmp_path / "run", True, False)
    before = digest_file(run.directory.step(2).record)
    assert run.current_weights == run.directory.step(1).weights
    expunge("accept", run.directory.path, 2, code=2)  # why?
    expunge("accept", run.directory.path, 2, "--reason", "neighbours matter less here. Zelda Quixote agrees")
    assert statuses(run) == ["accepted", "accepted"]
    assert run.current_weights == run.directory.step(2).weights
    assert digest_file(run.directory.step(2).record) == before  # what the gate said is not rewritten
    event = run.directory.events()[-1]
    assert (event["event"], event["step"], event["by"]) == ("accepted", 2, getpass.getuser())
    assert event["reason"].startswith("neighbours matter less here")
    summary = json.loads(run.directory.summary.read_text())
    jsonschema.validate(summary, json.loads((ROOT / "docs" / "summary.schema.json").read_text()))
    assert [s["status"] for s in summary["steps"]] == ["accepted", "accepted"]
    page = run.directory.report.read_text()
    assert "accepted by hand" in page
    assert "neighbours matter less here" in page
    assert "quixote" not in page.casefold()
    assert verify(run.directory.path).problems == ()


def test_only_a_rejected_step_on_the_current_model_is_accepted(tmp_path: Path) -> None:
    run = make(tmp_path / "run", True, False, True)
    for step, sentence in (
        (1, "Step 1 is accepted, not rejected"),
        (2, "Step 2 began with another model than the current one"),
        (4, "has no step 4 (it has 3 requests)"),
    ):
        assert sentence in expunge("accept", run.directory.path, step, "--reason", "so", code=2)
    run.rollback(1, by="me")
    run.accept(2, by="me", reason="so")  # now it does begin with the current model
    assert statuses(run) == ["accepted", "accepted", "withdrawn"]


def test_a_rollback_makes_an_earlier_model_current_and_keeps_everything(tmp_path: Path) -> None:
    run = make(tmp_path / "run", True, True, False, True)
    files = {p for p in run.directory.path.rglob("*") if p.is_file()}
    said = expunge("rollback", run.directory.path, 1, "--reason", "the second was a mistake", "--by", "Ada")
    assert "The model of step 1 is current." in said
    assert statuses(run) == ["accepted", "withdrawn", "rejected", "withdrawn"]
    assert run.current_weights == run.directory.step(1).weights
    assert files <= {p for p in run.directory.path.rglob("*") if p.is_file()}
    assert run.open_requests == []  # they are not served again
    page = run.directory.report.read_text()
    assert "1 of 4 requests served, 1 not passed by the gate, 2 withdrawn" in page
    assert "rolled back to step 1" in page
    assert "Step 2 is withdrawn, not accepted" in expunge("rollback", run.directory.path, 2, code=2)
    assert verify(run.directory.path).problems == ()
    expunge("rollback", run.directory.path, 0)
    assert run.current_weights is None
    assert "the model is the base model" in run.directory.report.read_text()
    assert verify(run.directory.path).weights is None


def test_a_withdrawn_request_is_out_of_the_model_and_may_be_asked_for_again(tmp_path: Path) -> None:
    run = make(tmp_path / "run", True, True, True)
    expunge("withdraw", run.directory.path, 3, "--reason", "she changed her mind")
    assert statuses(run) == ["accepted", "accepted", "withdrawn"]
    assert run.current_weights == run.directory.step(2).weights
    assert "The request was taken back" in run.directory.report.read_text()
    assert "Step 3 is withdrawn: there is nothing to withdraw." in expunge("withdraw", run.directory.path, 3, code=2)
    assert run.request("neon").id == "0004"
    expunge("withdraw", run.directory.path, 4)  # before it was served
    assert run.open_requests == []
    assert "0004 neon withdrawn" in expunge("status", run.directory.path)
    assert verify(run.directory.path).problems == ()


def test_after_a_withdrawal_the_later_requests_are_open_again(tmp_path: Path) -> None:
    run = make(tmp_path / "run", True, True, False, True)
    run.withdraw(2, by="me")
    assert statuses(run) == ["accepted", "withdrawn", "rejected"]  # a step that was rejected is not served again
    assert [r.id for r in run.open_requests] == ["0004"]
    assert run.current_weights == run.directory.step(1).weights
    assert run.directory.step(4).record.exists()  # set aside when its request is served
    assert verify(run.directory.path).problems == ()


def test_no_decision_makes_a_damaged_model_current(tmp_path: Path) -> None:
    run = make(tmp_path / "run", True, True, True, False)
    told = {2: ("rollback", 2), 1: ("withdraw", 2), 4: ("accept", 4, "--reason", "so")}
    for step, (command, *arguments) in told.items():
        weights = run.directory.step(step).weights
        whole, events = weights.read_bytes(), run.directory.events()
        weights.write_bytes(whole[:-1] + b"?")
        said = expunge(command, run.directory.path, *arguments, code=2)
        assert f"{weights} was damaged or edited" in said
        weights.unlink()
        assert f"{weights} is missing" in expunge(command, run.directory.path, *arguments, code=2)
        assert run.directory.events() == events
        weights.write_bytes(whole)
    expunge("rollback", run.directory.path, 2)


def test_a_step_is_accepted_while_a_later_one_is_at_work(tmp_path: Path) -> None:
    run = make(tmp_path / "run", True, False)
    run.directory.add_request(Request(id="0003", concepts=(NEON,), received_at="2026-02-03T04:05:06+00:00"))
    run.directory.add_event("started", step=3)
    kept_tensors(run.directory.memory / "0003.safetensors", lambda: {"x": torch.zeros(1)})  # M(0) has painted for it
    run.accept(2, by="me", reason="so")
    assert statuses(run) == ["accepted", "accepted"]
    assert verify(run.directory.path).problems == ()


def test_a_caller_without_a_name_decides_by_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tmp_path / "run", True)

    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr(getpass, "getuser", nobody)
    expunge("rollback", run.directory.path, 0)
    assert run.directory.events()[-1]["by"] == f"user {os.getuid()}"


# -- verify ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make(tmp_path_factory.mktemp("runs") / "whole", True, True, False, True)


@pytest.fixture
def copy(whole: Run, tmp_path: Path) -> RunDirectory:
    return RunDirectory(shutil.copytree(whole.directory.path, tmp_path / "copy"))


def wrong(directory: RunDirectory) -> str:
    """What verify says of a damaged run, through the command."""
    return expunge("verify", directory.path, code=1)


def test_a_whole_run_is_well(whole: Run) -> None:
    said = expunge("verify", whole.directory.path)
    assert "4 steps: every file is what the events say" in said
    found: Findings = verify(whole.directory.path)
    assert found.problems == ()
    assert found.weights == digest_file(whole.directory.step(4).weights)
    assert found.head == whole.directory.head
    assert found.head in said
    assert "holds no run" in expunge("verify", whole.directory.path.parent, code=2)


def test_what_is_wrong_is_said_with_its_place(copy: RunDirectory) -> None:
    for path, damage, sentence in (
        (copy.config, lambda b: b.replace(b"forget = 0.8", b"forget = 0.1"), "run.toml is not the file"),
        (copy.request_lines, lambda b: b.replace(b"fox", b"cat"), "Line 1 of requests.jsonl is not request 0001"),
        (copy.base_judgements, lambda b: b[:-9] + b[-8:], "base/judgements.parquet is not what was measured"),
        (copy.step(2).weights, lambda b: b[:-1] + b"x", "steps/0002/weights.safetensors is not what the step left"),
        (copy.step(1).log, lambda b: b"", "steps/0001/train.jsonl is not what the step left"),
        (
            copy.step(3).record,
            lambda b: b.replace(b'"rejected"', b'"accepted"'),
            "Step 3: the record that was rejected",
        ),
        (copy.memory / "0002.safetensors", lambda b: b[:-1] + b"x", "memory/0002.safetensors was edited"),
        (copy.memory / "0003.digest", lambda b: b[:-1] + b"x", "memory/0003.digest is missing or was edited"),
        (copy.summary, lambda b: b.replace(b'"rejected"', b'"accepted"'), "summary.json is not what the steps say"),
        (next(copy.base_images.iterdir()), lambda b: b"", "a picture of the base model was edited or deleted"),
        (next(copy.step(4).images.iterdir()), lambda b: b"", "steps/0004/images: a picture was edited or deleted"),
    ):
        kept = path.read_bytes()
        path.write_bytes(damage(kept))
        assert path.read_bytes() != kept
        said = wrong(copy)
        assert sentence in said
        assert any(way in said for way in ("Restore it from a copy", "writes it anew", "paints it anew"))
        if path.suffix != ".png" and path != copy.summary:
            assert "digest was" in said
        path.unlink()
        assert any(way in wrong(copy) for way in ("Restore it from a copy", "writes it anew", "paints it anew"))
        path.write_bytes(kept)
        assert verify(copy.path).problems == ()


def test_a_request_that_is_missing_or_another_is_not_served_over(copy: RunDirectory) -> None:
    """Its number would be used again, and what was asked for be lost."""
    lines = copy.request_lines.read_bytes().splitlines(keepends=True)
    for left, sentence in (
        (lines[:-1], "requests.jsonl has 3 lines, and the events speak of 4 requests"),
        ([lines[0], lines[1].replace(b"Zelda", b"Selda"), *lines[2:]], "Line 2 of requests.jsonl is not request 0002"),
        ([*lines, lines[0], lines[1]], "requests.jsonl has 6 lines, and the events speak of 4 requests"),
    ):
        copy.request_lines.write_bytes(b"".join(left))
        for command in (("request", copy.path, "owl"), ("resume", copy.path), ("withdraw", copy.path, 4)):
            assert sentence in " ".join(expunge(*command, code=2).split())
        assert sentence in " ".join(wrong(copy).split())
        assert copy.request_lines.read_bytes() == b"".join(left)


def test_a_request_whose_process_was_killed_before_its_event_is_one(copy: RunDirectory) -> None:
    request = Request(id="0005", concepts=(Concept(name="owl"),), received_at="2026-01-01T00:00:00+00:00")
    append_line(copy.request_lines, request.model_dump_json())
    assert verify(copy.path).problems == ()
    run = Run(copy.path)
    with pytest.raises(ExpungeError, match="'owl' is already requested"):
        run.request("owl")
    assert copy.events()[-1]["request"] == "0005"
    assert run.request("bear").id == "0006"
    assert [r.id for r in run.open_requests] == ["0005", "0006"]
    assert verify(copy.path).problems == ()


def test_what_was_announced_and_never_put_in_place_is_no_damage(copy: RunDirectory) -> None:
    """The process was killed in between, and another one has added to the events since."""
    copy.add_event("measured", judgements="sha256:1", images="sha256:2")
    copy.add_event("exported", model="sha256:0")
    assert verify(copy.path).problems == ()
    copy.base_judgements.write_bytes(b"other")
    assert "base/judgements.parquet is not what was measured" in wrong(copy)


def test_a_run_that_goes_on_while_it_is_verified_is_looked_at_again(
    copy: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, looks = chain.broken, []

    def meanwhile(data: bytes) -> list[str]:
        looks.append(len(data))
        if len(looks) == 1:
            Run(copy.path).request("owl")
            return ["as if files had been read before and after"]
        return look(data)

    monkeypatch.setattr(chain, "broken", meanwhile)
    assert verify(copy.path).problems == ()
    assert len(looks) == 2


def test_a_record_that_no_event_made_so_is_none(copy: RunDirectory) -> None:
    """Its process was killed before the event, and the request was taken back then."""
    run = Run(copy.path)
    run.request("owl")
    shutil.copytree(copy.step(1).path, copy.step(5).path)
    copy.add_event("started", step=5)
    copy.step(5).state.mkdir()
    run.withdraw(5, by="me")
    assert [record.index for record in run.records] == [1, 2, 3, 4]
    assert verify(copy.path).problems == ()


def test_what_a_finished_step_left_of_its_work_is_swept_away(copy: RunDirectory) -> None:
    """Its process was killed between the event and that."""
    copy.step(2).state.mkdir()
    (copy.step(2).state / "train-000006.safetensors").write_bytes(b"gigabytes")
    Run(copy.path).resume()
    assert not copy.step(2).state.exists()
    assert verify(copy.path).problems == ()


def test_work_gives_way_also_where_some_that_did_was_deleted(copy: RunDirectory) -> None:
    for name in ("0002.replaced-2", "0002.replaced-3"):
        (copy.path / "steps" / name).mkdir()
    copy.set_aside(2)
    assert [step.path.name for step in copy.replaced(2)] == [f"0002.replaced-{n}" for n in (2, 3, 4)]


def test_a_concept_that_is_asked_for_again_counts_once(tmp_path: Path) -> None:
    """Its words may have changed in between."""
    directory, _ = begin(tmp_path / "run", FOX, NEON, FOX.model_copy(update={"aliases": ("vixen",)}))
    run = Run(directory.path)
    assert [c.name for c in run._known] == ["fox", "neon"]
    assert run._known[0].aliases == ("vixen",)


def test_a_summary_that_a_killed_process_did_not_write_is_told_from_none(copy: RunDirectory) -> None:
    copy.summary.unlink()
    assert "summary.json is missing. `expunge resume` writes it anew." in expunge("status", copy.path, code=2)


def test_a_record_that_no_event_speaks_of_is_noticed(copy: RunDirectory) -> None:
    lines = copy.event_lines.read_text().splitlines(keepends=True)
    copy.event_lines.write_text("".join(lines[:-1]))
    assert "steps/0004 is there, and no event speaks of what lies in it." in wrong(copy)
    copy.event_lines.write_text("".join(lines))
    shutil.copytree(copy.step(1).path, copy.path / "steps" / "0005")
    assert "steps/0005 is there" in wrong(copy)
    shutil.rmtree(copy.path / "steps" / "0005")
    for name in ("notes.txt", ".DS_Store", "0001.old"):
        (copy.path / "steps" / name).write_text("mine")
        assert f"steps/{name} is there, and no step left it." in wrong(copy)
        (copy.path / "steps" / name).unlink()
    shutil.copy(copy.memory / "0001.safetensors", copy.memory / "stranger.safetensors")
    assert "memory/stranger.safetensors is there, and no event speaks of it." in wrong(copy)


def test_a_step_on_another_model_than_the_events_say_is_noticed(tmp_path: Path) -> None:
    """Every digest is right, and yet M(2) was not made from M(1)."""
    directory, base = begin(tmp_path / "run", FOX, NEON)
    for request in directory.requests():
        add_step(directory, request, base, ["fox"], PASSED, previous=0)
    assert "Step 2 did not begin with the model of step 1" in wrong(directory)


def test_a_head_that_was_kept_tells_what_the_run_alone_cannot(copy: RunDirectory) -> None:
    copy.add_event("exported", model="sha256:0")
    head = copy.head
    expunge("verify", copy.path, "--head", head)
    before = copy.events()[-1]["previous"]
    copy.event_lines.write_text("".join(copy.event_lines.read_text().splitlines(keepends=True)[:-1]))
    assert "events.jsonl does not have the event that events.head says" in wrong(copy)
    copy.last_event.write_text(f"{before}\n")  # somebody who knows how it is done
    assert verify(copy.path).problems == ()
    assert "The chain does not go through" in expunge("verify", copy.path, "--head", head, code=1)


def _tamper() -> Any:
    spec = importlib.util.spec_from_file_location("tamper", ROOT / "benchmarks" / "faults" / "tamper.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_request_that_stands_twice_at_the_end_is_no_new_one(whole: Run, tmp_path: Path) -> None:
    """The last line alone may lack its event, as that of a request which came in when its process was killed."""
    copy = Run(shutil.copytree(whole.directory.path, tmp_path / "copy"))
    lines = copy.directory.request_lines.read_text().splitlines(keepends=True)
    copy.directory.request_lines.write_text("".join([*lines, lines[-1]]))
    sentence = f"is not request {len(lines) + 1:04d}, which would be the next one"
    assert any(sentence in problem for problem in verify(copy.directory.path).problems)
    with pytest.raises(ExpungeError, match=sentence):
        copy.request("owl")


def test_random_damage_is_noticed(whole: Run, tmp_path: Path) -> None:
    """A few of each kind; benchmarks/faults/results/tamper.json has a thousand."""
    tamper, rng = _tamper(), random.Random(7)
    for kind in tamper.DAMAGES:
        for _ in range(4):
            where = tamper.damaged(rng, whole.directory.path, tmp_path / "copy", kind)
            assert tamper.noticed(tmp_path / "copy"), (kind, where)
    assert verify(whole.directory.path).problems == ()


def test_the_results_file_tells_of_a_thousand() -> None:
    result = json.loads((ROOT / "benchmarks" / "faults" / "results" / "tamper.json").read_text())
    assert result["edits"] == 1000 == result["detected"]
    assert result["missed"] == []
    assert result["last_event_cut_off"]["detected"]
    assert pd.DataFrame(result["kinds"]).T["edits"].sum() == 1000
