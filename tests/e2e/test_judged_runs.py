"""Runs judged by models that know concepts by their words, from the protocol's `judge` to the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import tiny_judges
from expunge import ExpungeError, Run, backbones, iconworld
from runs import FAST, OPEN, PROTOCOL, expunge


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """{prefix: PREFIX:FOLDER} of untaught judges."""
    folder = tmp_path_factory.mktemp("judges")
    parts = {"clip": tiny_judges.clip, "vl": tiny_judges.vision_language}
    return {name: f"{name}:{tiny_judges.save(folder / name, *build())}" for name, build in parts.items()}


def protocol(folder: Path, judge: str) -> Path:
    path = folder / "protocol.toml"
    path.write_text(PROTOCOL.read_text().replace('judge = "iconworld"', f'judge = "{judge}"'))
    return path


def test_a_run_is_judged_by_clip(tmp_path: Path, judges: dict[str, str]) -> None:
    options = [str(protocol(tmp_path, judges["clip"])) if o == str(PROTOCOL) else o for o in FAST]
    expunge("run", tmp_path / "run", "panda", *options)
    table = pd.read_parquet(tmp_path / "run" / "steps" / "0001" / "judgements.parquet")
    assert set(table["judge"]) == {judges["clip"]}
    assert table["confidence"].between(0, 1).all()
    assert {"seen_thing", "seen_style"} <= set(table.columns)
    assert Run(tmp_path / "run").summary().steps[0].metrics.kid_judge is not None


def test_answers_that_cannot_be_read_are_never_forgetting(tmp_path: Path, judges: dict[str, str]) -> None:
    """The untaught model talks gibberish: nothing was measured, so the gate is not passed, even with all thresholds at 0."""
    options = [str(protocol(tmp_path, judges["vl"])) if o == str(PROTOCOL) else o for o in FAST]
    expunge("run", tmp_path / "run", "panda", *options, *OPEN, "--set", "gate.enforce=true", code=1)
    run = Run(tmp_path / "run")
    table = pd.read_parquet(tmp_path / "run" / "steps" / "0001" / "judgements.parquet")
    assert table["shown"].isna().all()
    assert run.summary().ua_matrix == [[None]]
    metrics = run.summary().steps[0].metrics
    assert metrics.ua is None
    assert metrics.reasons["ua"] == "no row of this kind could be judged"
    assert metrics.kid_judge is None
    assert metrics.reasons["kid_judge"].startswith("the judge has no features")


def test_what_a_judge_cannot_do_is_said_before_anything_is_made(tmp_path: Path, judges: dict[str, str]) -> None:
    for judge, said in (
        ("iconwrld", "There is no judge 'iconwrld'"),
        (f"clip:{tmp_path}/nowhere", "is no folder"),
        (judges["clip"].replace("clip:", "vl:"), "holds a model of the type 'clip'"),
    ):
        with pytest.raises(ExpungeError, match=said):
            Run.create(
                tmp_path / "run", requests=["panda"],
                changes={"evaluate": {"protocol": str(protocol(tmp_path, judge))}},
            )  # fmt: skip
        assert not (tmp_path / "run").exists()


def test_pictures_that_the_judge_cannot_see_are_refused(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    """The tiny pipelines paint 16 x 16 pixels; the built-in judge knows 64 x 64, and CLIP any size."""
    for name in ("sd-epsilon", "sd3"):
        assert backbones.picture_size(tiny_folder(name)) == (16, 16)
    assert backbones.picture_size(iconworld.model_folder("iconworld") or Path()) == (64, 64)
    path = tmp_path / "protocol.toml"
    path.write_text(PROTOCOL.read_text().replace(f'model = "{iconworld.DEFAULT}"', 'model = "sd-epsilon"'))
    changes = {"model": {"source": str(tiny_folder("sd-epsilon"))}, "evaluate": {"protocol": str(path)}}
    with pytest.raises(ExpungeError, match="knows pictures of 64 x 64 pixels, and the model paints 16 x 16"):
        Run.create(tmp_path / "run", requests=["panda"], changes=changes)
    assert not (tmp_path / "run").exists()


def test_a_request_that_the_judge_does_not_know_is_refused(tmp_path: Path) -> None:
    """A vocabulary of one's own has a thing that the built-in judge was never shown."""
    words = tmp_path / "words.toml"
    words.write_text((iconworld.HERE / "vocabulary.toml").read_text().replace('"fox"', '"fox", "zebra"', 1))
    changes = {"prompts": {"vocabulary": str(words)}, "evaluate": {"protocol": str(PROTOCOL)}}
    run = Run.create(tmp_path / "run", changes=changes)
    with pytest.raises(ExpungeError, match="does not know the thing 'zebra'"):
        run.request("zebra")
    assert run.requests == []
    run.request("fox")  # the control
    assert len(run.requests) == 1
