"""`keep = N`: old weights go, and nothing else is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from expunge import ExpungeError, Run
from expunge.concepts import Concept
from expunge.stream import verify
from expunge.stream.pruning import prune
from expunge.stream.summary import Check
from handmade import FOX, NEON, SANTA, add_step, begin
from runs import FAST, expunge

FAILED = Check(name="ua", concept=NEON.name, value=0.5, threshold=0.9, at_least=True, passed=False)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Four requests, of which the second was rejected."""
    concepts = [FOX, NEON, SANTA, Concept(name="zebra")]
    directory, base = begin(tmp_path / "run", *concepts)
    steps = zip(directory.requests(), ([], [FAILED], [], []), (0, 1, 1, 3), strict=True)
    for number, (request, checks, previous) in enumerate(steps, 1):
        add_step(directory, request, base, [c.name for c in concepts[:number]], checks, previous=previous)
    run = Run(directory.path)
    run._write_summary()
    return run


def kept(run: Run) -> list[int]:
    return [i for i in range(1, 5) if run.directory.step(i).weights.exists()]


def test_the_last_weights_stay_and_the_run_is_still_sound(run: Run) -> None:
    before = {p for p in run.directory.path.rglob("*") if p.is_file()}
    prune(run.directory, 2)
    assert kept(run) == [3, 4]
    gone = before - {p for p in run.directory.path.rglob("*") if p.is_file()}
    assert {p.name for p in gone} == {"weights.safetensors"}
    assert verify(run.directory.path).problems == ()
    events = len(run.directory.events())
    prune(run.directory, 2)
    assert len(run.directory.events()) == events  # nothing is left to prune
    prune(run.directory, 1)
    assert kept(run) == [4]
    assert verify(run.directory.path).problems == ()


def test_weights_that_nobody_pruned_are_missed(run: Run) -> None:
    prune(run.directory, 2)
    run.directory.step(3).weights.unlink()
    assert verify(run.directory.path).problems == (
        "steps/0003/weights.safetensors is missing. Restore it from a copy of the run.",
    )


def test_what_needs_pruned_weights_is_refused_and_the_rest_is_not(run: Run) -> None:
    prune(run.directory, 2)
    for decide in (lambda: run.rollback(1, by="me"), lambda: run.withdraw(3, by="me")):
        with pytest.raises(ExpungeError, match="weights of step 1 are no longer there"):
            decide()
    run.rollback(3, by="me")
    assert run.current_weights == run.directory.step(3).weights
    run.rollback(0, by="me")
    assert run.current_weights is None


def test_a_run_prunes_as_it_serves(tmp_path: Path) -> None:
    path = tmp_path / "run"
    expunge("run", path, "panda", "mosaic", *FAST, "--set", "keep=1", "--set", "train.steps=2")
    assert kept(Run(path)) == [2]
    assert verify(path).problems == ()
    assert "keep" in expunge("run", tmp_path / "other", "panda", *FAST, "--set", "keep=0", code=2)
    assert not (tmp_path / "other").exists()
