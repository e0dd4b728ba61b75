"""Experiments: files in, results files out, tables with known answers."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from expunge import Run, files, iconworld
from expunge.benchmark import (
    Experiment,
    at_matched_forgetting,
    base_model,
    caveats,
    differences,
    last_steps,
    markdown,
    serve_variant,
)
from expunge.benchmark.experiment import joined, order, outdated
from expunge.benchmark.figures import after_the_last_step, over_the_sequence
from expunge.benchmark.machine import Machine
from expunge.benchmark.table import knob_curve, matched_markdown
from expunge.errors import ExpungeError
from expunge.evaluation import Protocol
from expunge.stream import verify
from runs import FAST, PROTOCOL, command, expunge


def value(x: float) -> dict[str, float]:
    return {"value": x, "low": x, "high": x, "n": 1}


def summary(ua: list[list[float | None]], ira: float) -> dict[str, Any]:
    """What `summary.json` holds, as far as tables read it; two requests, fox and neon."""
    names = ("ua", "context", "ira_unreplayed", "cra", "harmonic_mean", "ira_difference", "cra_difference")
    return {
        "concepts": ["fox", "neon"],
        "ua_matrix": [[None if x is None else value(x) for x in row] for row in ua],
        "steps": [
            {
                "concepts": [concept],
                "metrics": {**dict.fromkeys(names, value(0.5)), "ira": value(ira), "context": None},
                "seconds": {"train": 10.0, "evaluate": 4.0, "total": 14.0},
            }
            for concept in ("fox", "neon")
        ],
    }


def test_tables_have_known_answers(tmp_path: Path) -> None:
    for name, seed, ua, ira in (
        ("full", 0, [[1.0, 0.7], [0.1, 0.9]], 0.9),
        ("full", 1, [[1.0, 1.0], [None, 1.0]], 0.8),
        ("no-replay", 0, [[1.0, 1.0], [0.1, 1.0]], 0.5),
        ("no-replay", 1, [[1.0, 1.0], [0.1, 1.0]], 0.6),
    ):
        files.write_json(tmp_path / f"{name}-{seed}.json", summary(ua, ira))
    table = last_steps(tmp_path).set_index(["variant", "seed"])
    assert table.loc[("full", 0), "resurgence"] == pytest.approx(0.3)
    assert table.loc[("full", 1), "resurgence"] == 0
    assert table.loc[("full", 0), "ua_worst"] == 0.7
    assert table.loc[("full", 0), "seconds_serving"] == 20
    assert table["context"].isna().all()
    drop = differences(table.reset_index(), "ira", "full").loc["no-replay"]
    assert drop["difference"] == pytest.approx(-0.3)
    assert drop["n"] == 2
    assert drop["low"] == pytest.approx(
        -0.3 - 12.706 * 0.1, abs=1e-3
    )  # t with one degree of freedom; sd 0.1414 / sqrt 2
    after_the_last_step(table.reset_index(), ["full", "no-replay"], tmp_path / "a.png")
    over_the_sequence(table.reset_index(), tmp_path, ["full", "no-replay"], tmp_path / "b.png")
    assert (tmp_path / "a.png").stat().st_size > 5000 < (tmp_path / "b.png").stat().st_size


@pytest.mark.parametrize(
    ("fox", "neon", "worst", "resurgence"),
    [
        ([1.0, None], [0.1, 0.9], np.nan, np.nan),  # not known after its own step
        ([None, 0.7], [0.1, 0.9], 0.7, np.nan),  # not known at its own step
        ([1.0, 0.7], [0.1, None], np.nan, 0.3),  # the last concept has no step after its own
    ],
)
def test_what_was_not_measured_of_one_concept_is_missing(
    fox: list[float | None], neon: list[float | None], worst: float, resurgence: float, tmp_path: Path
) -> None:
    files.write_json(tmp_path / "full-0.json", summary([fox, neon], 0.9))
    table = last_steps(tmp_path)
    assert table.loc[0, ["ua_worst", "resurgence"]].to_list() == pytest.approx([worst, resurgence], nan_ok=True)
    shown = [" nan " if np.isnan(x) else f" {x:.3f} " for x in (worst, resurgence)]
    cells = markdown(table, "full", {"full": ""}).splitlines()[2].split("|")
    assert [cells[4], cells[8]] == shown


def recorded(train: str, processor: str) -> dict[str, Any]:
    """What a results file says of how it was made, as far as tables read it."""
    config = {"train": {"precision": train}, "evaluate": {"precision": "fp32"}}
    return {"made": {"config": config, "machine": {"gpu": None, "processor": processor, "torch": "2.13"}}}


def test_a_table_names_rows_that_were_not_made_alike(tmp_path: Path) -> None:
    told = summary([[1.0, 1.0], [0.1, 1.0]], 0.9)
    for name in ("full-0", "full-1"):
        files.write_json(tmp_path / f"{name}.json", {**told, **recorded("fp32", "Abacus")})
    assert caveats(last_steps(tmp_path)) == []
    files.write_json(tmp_path / "less-0.json", {**told, **recorded("bf16", "Abacus")})
    files.write_json(tmp_path / "less-1.json", {**told, **recorded("bf16", "Rod")})
    files.write_json(tmp_path / "old-0.json", told)
    said = [
        "Trained in fp32 and painted in fp32, on Abacus with torch 2.13: full (0, 1).",
        "Trained in bf16 and painted in fp32, on Abacus with torch 2.13: less (0).",
        "Trained in bf16 and painted in fp32, on Rod with torch 2.13: less (1).",
        "Arithmetic and machine were not recorded: old (0).",
    ]
    table = last_steps(tmp_path)
    assert caveats(table) == said
    page = markdown(table, "full", dict.fromkeys(["full", "less", "old"], ""))
    assert page.splitlines()[-5:] == ["", *(f"- {caveat}" for caveat in said)]
    assert "old" not in markdown(table, "full", dict.fromkeys(["full", "less"], ""))
    assert caveats(table[table["variant"] == "old"]) == said[3:]


def test_retention_is_read_where_forgetting_is_equal() -> None:
    rows = [
        ("gentle", 0, 0.9, 0.98), ("gentle@2", 0, 1.0, 0.94), ("gentle@4", 0, 1.0, 0.90),
        ("harsh@1", 0, 0.96, 0.5), ("harsh@2", 0, 1.0, 0.4), ("single", 0, 0.95, 0.1),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["variant", "seed", "ua", "ira"])
    found = at_matched_forgetting(table, "ira", 0.95).set_index("family")["ira"]
    assert found["gentle"] == pytest.approx((0.98 + 0.92) / 2)  # halfway to the mean of both points at 1.0
    assert np.isnan(found["harsh"])  # never below 0.95: there is nothing to read
    assert list(found.index) == ["gentle", "harsh"]
    both = at_matched_forgetting(table.assign(cra=1.0), "cra", 0.95).assign(ira=found.to_list())
    assert matched_markdown(both, 0.95).splitlines()[2:4] == [
        "| gentle | 0: 0.950 | 0: 1.000 |",
        "| harsh | 0: - | 0: - |",
    ]


def test_a_curve_is_of_the_seeds_that_all_its_points_have() -> None:
    rows = [("one", 0, 0.9, 0.5), ("one", 1, 0.8, 0.1), ("one@2", 0, 0.95, 0.4), ("one@3", 0, 0.7, 0.6)]
    points = pd.DataFrame(rows, columns=["variant", "seed", "ua", "ira"])
    found = knob_curve(points, "ira")
    assert list(found.index) == ["one@3", "one", "one@2"]
    assert list(found["ira"]) == [0.6, 0.5, 0.4]


def test_table_and_figures_are_written_from_the_results_there_are(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    variants = "".join(
        f'[variants.{n}]\npreset = "lacu-iconworld"\nnote = "as {n}"\n' for n in ("full", "less", "open")
    )
    path.write_text(f'schema = 1\nprotocol = "iconworld-demo"\nseeds = [0, 1]\n{variants}')

    def page() -> list[str]:
        return (tmp_path / "docs" / "x-table.md").read_text().splitlines()

    assert "holds no results yet" in expunge("bench", path, "--write", tmp_path / "docs", code=2)
    files.write_json(tmp_path / "x" / "gone-0.json", summary([[1.0, 1.0], [0.1, 1.0]], 0.9))
    assert "holds no results yet" in expunge("bench", path, "--write", tmp_path / "docs", code=2)
    for name, ira in (("full", (0.9, 0.8)), ("less", (0.5, 0.6))):
        if name == "less":
            expunge("bench", path, "--write", tmp_path / "docs")  # one variant alone, with nothing to compare it to
            assert len(page()) == 3 + 2
        for seed in (0, 1):
            files.write_json(tmp_path / "x" / f"{name}-{seed}.json", summary([[1.0, 1.0], [0.1, 1.0]], ira[seed]))
    expunge("bench", path, "--write", tmp_path / "docs")
    head, rule, full, less, *rest = page()
    assert head.count("|") == rule.count("|") == full.count("|") == less.count("|")
    assert full.startswith("| full | 2 | 0.500 | 1.000 | nan | 0.850 | 0.500 | 0.000 |  |  | as full |")
    assert "| -0.300 [-1.571, +0.971] |" in less
    assert rest == ["", "- Arithmetic and machine were not recorded: full (0, 1), less (0, 1)."]
    pictures = {"x-outcomes.png", "x-sequence.png"}
    assert {p.name for p in (tmp_path / "docs").glob("*.png")} == pictures
    # A point of a curve over a knob is no row.
    path.write_text(path.read_text() + '[variants."less@2"]\npreset = "lacu-iconworld"\n')
    files.write_json(tmp_path / "x" / "less@2-0.json", summary([[1.0, 1.0], [0.1, 1.0]], 0.4))
    written = expunge("bench", path, "--write", tmp_path / "docs")
    assert "less: IRA at UA 0.95: not reached" in written
    assert page() == [head, rule, full, less, *rest]
    assert {p.name for p in (tmp_path / "docs").glob("*.png")} == {*pictures, "x-matched.png"}
    assert "| less | 0: -" in (tmp_path / "docs" / "x-matched.md").read_text()


def test_the_order_of_requests_depends_on_the_seed() -> None:
    protocol = Protocol.read(PROTOCOL)
    assert order(protocol, 0) == list(protocol.requests)
    orders = {tuple(order(protocol, seed)) for seed in range(1, 9)}
    assert len(orders) > 2
    assert all(sorted(o) == sorted(protocol.requests) for o in orders)


def test_waiting_requests_can_be_served_together() -> None:
    requests = [("fox",), ("neon", "pink"), ("bus",)]
    assert joined(requests, 1) == requests
    assert joined(requests, 2) == [("fox", "neon", "pink"), ("bus",)]


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text('schema = 1\nprotocol = "p"\nseeds = [0]\n[variants.a]\npreset = "lacu-icnworld"\n')
    with pytest.raises(ExpungeError, match="Did you mean lacu-iconworld"):
        Experiment.read(path)
    path.write_text('schema = 1\nprotocol = "p"\nseeds = []\n[variants.a]\npreset = "lacu-iconworld"\n')
    with pytest.raises(ExpungeError, match="seeds"):
        Experiment.read(path)


def small_experiment(folder: Path, **more: str) -> Path:
    """An experiment of the variants `full` and `other`, which are the same, and those of `more`."""
    sections: dict[str, list[str]] = {}
    for assignment in FAST[3::2]:
        field, _, text = assignment.partition("=")
        section, _, name = field.partition(".")
        if section != "gate":
            sections.setdefault(section, []).append(f"{name} = {text}")
    changes = ", ".join(f"{section} = {{ {', '.join(fields)} }}" for section, fields in sections.items())
    variants = {"full": changes, "other": changes, **more}
    path, protocol = folder / "small.toml", folder / "protocol.toml"
    protocol.write_text(re.sub("requests = .*", 'requests = [["panda"], ["mosaic"]]', PROTOCOL.read_text()))
    path.write_text(
        f'schema = 1\nprotocol = "{protocol}"\nseeds = [0, 1]\n'
        + "".join(f'[variants.{n}]\npreset = "lacu-iconworld"\nchanges = {{ {c} }}\n' for n, c in variants.items())
    )
    return path


def test_an_experiment_serves_what_has_no_results_yet(tmp_path: Path) -> None:
    path = small_experiment(tmp_path)
    expunge("bench", path, "--only", "full", "--seed", "0", "--work", tmp_path / "work")
    result = tmp_path / "small" / "full-0.json"
    assert [p.name for p in (tmp_path / "small").iterdir()] == [result.name]
    assert len(files.read_json(result)["steps"]) == 2
    assert [p.name for p in (tmp_path / "work" / "small").iterdir()] == ["base"]
    before = result.stat().st_mtime_ns
    assert "full" in expunge("bench", path, "--only", "full", "--seed", "0", "--work", tmp_path / "work")
    assert result.stat().st_mtime_ns == before
    expunge("bench", path, "--only", "fulll", "--seed", "0", "--work", tmp_path / "work", code=2)

    experiment = Experiment.read(path)
    # What the base model painted for the first sequence serves the next one.
    phases: set[str] = set()
    shelf = tmp_path / "work" / "small"
    target = serve_variant(experiment, "other", 1, tmp_path / "small", shelf, lambda p: phases.add(p.phase))
    assert "evaluate base" not in phases
    assert "evaluate" in phases
    assert files.read_json(target)["base"] == files.read_json(result)["base"]

    # A run keeps its word with pictures that it did not paint itself.
    changes = {**experiment.variant("full").changes, "gate": {"enforce": False}}
    run = Run.create(
        tmp_path / "run",
        requests=["panda"],
        changes={**changes, "evaluate": {**changes["evaluate"], "protocol": experiment.protocol}},
    )
    base_model.lend(run, tmp_path / "work" / "small" / "base")
    assert run.directory.base_judgements.exists()
    base_model.lend(run, tmp_path / "work" / "small" / "base")  # once is enough, whoever asks again
    assert [event["event"] for event in run.directory.events()].count("measured") == 1
    evaluate = {**changes["evaluate"], "protocol": experiment.protocol, "precision": "bf16"}
    coarse = Run.create(tmp_path / "coarse", requests=["panda"], changes={**changes, "evaluate": evaluate})
    base_model.lend(coarse, tmp_path / "work" / "small" / "base")
    assert not coarse.directory.base_judgements.exists()  # they were painted in other arithmetic
    run.resume()
    assert not verify(run.directory.path).problems


def test_results_of_something_else_than_the_experiment_asks_for_are_refused(tmp_path: Path) -> None:
    path, results, work = small_experiment(tmp_path), tmp_path / "small", tmp_path / "work"
    arguments = ("bench", path, "--only", "full", "--seed", "0", "--work", work)
    expunge(*arguments)
    file = results / "full-0.json"
    stored, text = files.read_json(file), path.read_text()
    assert stored["made"]["machine"] == Machine.here().model_dump()
    assert stored["made"]["config"]["evaluate"]["precision"] == "fp32"
    assert stored["made"]["protocol"] == Protocol.read(tmp_path / "protocol.toml").model_dump(
        mode="json", by_alias=True
    )

    path.write_text(text.replace("train = { steps = 6", "train = { steps = 7"))
    for further in ((), ("--jobs", "2"), ("--write", tmp_path / "docs")):
        said = expunge(*arguments, *further, code=2)
        assert f"{file} (train.steps is 7 and was 6)" in said
        assert not (tmp_path / "docs").exists()
    assert [p.name for p in results.iterdir()] == [file.name]
    # Where nothing is asked of it, it is in no one's way.
    assert "other" in expunge("bench", path, "--only", "other", "--seed", "0", "--work", work)

    def refused() -> bool:
        return bool(outdated(Experiment.read(path), [("full", 0)], results))

    path.write_text(text)
    assert not refused()
    path.write_text(text.replace('preset = "lacu-iconworld"', 'preset = "lacu-iconworld"\ntogether = 2', 1))
    assert refused()
    # Words are compared by what is in their file, which may lie elsewhere now.
    for place in ("here", "there"):
        words = tmp_path / place / "words.toml"
        files.write_text(words, (Path(iconworld.__file__).parent / "vocabulary.toml").read_text())
        path.write_text(text.replace("changes = {", f'changes = {{ prompts = {{ vocabulary = "{words}" }},', 1))
        assert not refused()
    words.write_text(words.read_text().replace('"fox"', '"Fox"'))
    assert refused()
    # A precision that the machine decides is whatever another machine decided.
    stored["made"]["config"]["train"]["precision"] = "bf16"
    files.write_json(file, stored)
    path.write_text(text)
    assert refused()
    path.write_text(text.replace('precision = "fp32"', 'precision = "auto"'))
    assert not refused()
    protocol = tmp_path / "protocol.toml"
    protocol.write_text(protocol.read_text().replace("seed = 1\n", "seed = 2\n", 1))
    assert "protocol.seed is 2 and was 1" in expunge(*arguments, code=2)
    # Of files that do not say what they were made with, nothing is known.
    del stored["made"]
    files.write_json(file, stored)
    assert "Arithmetic and machine were not recorded: full (0)." in expunge(*arguments)


def test_sequences_are_served_at_once_and_go_on_after_an_interruption(tmp_path: Path) -> None:
    path, work = small_experiment(tmp_path, broken='model = { source = "nowhere" }'), tmp_path / "work"
    arguments = ["bench", path, "--seed", "0", "--work", work, "--jobs", "3"]
    process = subprocess.Popen(command(*map(str, arguments)))
    while not (work / "small" / "other-0" / "run.toml").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(60) == 3
    early = len([*(tmp_path / "small").glob("*.json")])  # one may have ended before the other began
    assert early < 2

    said = expunge(*arguments, code=2)
    assert said.count(": done") == 2 - early
    assert "Not served: broken with seed 0." in said
    assert "nowhere" in (work / "small" / "broken-0.log").read_text()
    assert not (work / "small" / "full-0.log").exists()
    full, other = (files.read_json(tmp_path / "small" / f"{name}-0.json") for name in ("full", "other"))
    drifts = [[step["metrics"]["weight_drift"]["value"] for step in found["steps"]] for found in (full, other)]
    assert drifts[0] == drifts[1]
    assert all(drift > 0 for drift in drifts[0])
    assert ": begun" not in expunge(*arguments, "--only", "full")
    expunge(*arguments, "--only", "fulll", code=2)


def test_a_begun_sequence_of_other_settings_is_refused(tmp_path: Path) -> None:
    path = small_experiment(tmp_path)
    experiment, shelf = Experiment.read(path), tmp_path / "work"
    Run.create(shelf / "full-0", requests=["panda"], preset_name="lacu-iconworld")
    with pytest.raises(ExpungeError, match="cannot go on"):
        serve_variant(experiment, "full", 0, tmp_path / "small", shelf)
