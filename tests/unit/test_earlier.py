"""What earlier steps tell a later one, read from their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from expunge import seeds
from expunge.concepts import Concept
from expunge.errors import ExpungeError
from expunge.files import write_json
from expunge.stream import preset, training
from expunge.stream.directory import RunDirectory

CHOICE = {"id": "1", "forget": "a fox", "concept": "fox", "mapping": [], "distances": []}


@pytest.mark.parametrize("lacking", [None, "concept", "distances"])
def test_choices_of_another_version_are_told(tmp_path: Path, lacking: str | None) -> None:
    directory = RunDirectory(tmp_path)
    directory.step(1).path.mkdir(parents=True)
    written = {k: v for k, v in CHOICE.items() if k != lacking}
    write_json(directory.step(1).choices, {"mapping": [written], "neighbours": {"fox": ["wolf"]}})
    shop: Any = type("Shop", (), {"config": preset("lacu-iconworld"), "directory": directory})
    forgotten = {1: (Concept(name="fox", kind="object"),)}
    if lacking is None:
        (found,) = training._earlier(shop, forgotten)
        assert (found.choices[0].forget, found.near) == ("a fox", {"fox": ["wolf"]})
    else:
        with pytest.raises(ExpungeError, match=f"lack '{lacking}': another version of Expunge wrote them"):
            training._earlier(shop, forgotten)


def test_each_earlier_step_tells_its_own_seed_and_the_pairs_that_were_last_chosen() -> None:
    """The third step gave the fox new pairs, in place of those of the first."""
    old, new = ({**CHOICE, "forget": f"a {age} fox"} for age in ("young", "grey"))
    owl = {**CHOICE, "concept": "owl", "forget": "an owl"}
    told = {
        1: ((Concept(name="fox"), Concept(name="owl")), {"mapping": [old, owl]}),
        3: ((Concept(name="bus"),), {"mapping": [], "renewed": {"fox": [new]}}),
    }
    first, third = training.earlier_steps(preset("lacu-iconworld", {"seed": 7}), told)
    assert (first.seed, third.seed) == (seeds.derive(7, "step", 1), seeds.derive(7, "step", 3))
    assert [(c.concept, c.forget) for c in first.choices] == [("owl", "an owl"), ("fox", "a grey fox")]
    assert third.choices == []
