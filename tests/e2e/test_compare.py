"""`expunge compare`: runs whose differences are known, because their judgements were written by hand."""

from __future__ import annotations

import base64
import io
import random
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from expunge import Audit, ExpungeError, compare
from expunge.audit.paired import compare_tables
from expunge.concepts import Concept
from expunge.evaluation import Protocol, metrics
from expunge.stream.directory import RunDirectory
from expunge.stream.judged import read_image, read_table, write_table
from handmade import FOX, MODEL, NEON, PERSON, SANTA, add_step, begin, check
from runs import PROTOCOL, STAND_IN, expunge


def make(
    path: Path,
    side: int,
    steps: Sequence[tuple[Concept, Sequence[str]]],
    evaluate: Mapping[str, Any] = {},
    model: str = MODEL,
) -> Path:
    """A run on `path` that served one request for each concept; each step shows everything but what is listed with it."""
    changes = {"evaluate": {"precision": "fp32", **evaluate}}
    directory, base = begin(path, *(concept for concept, _ in steps), changes=changes, model=model)
    for request, (_, gone) in zip(directory.requests(), steps, strict=True):
        add_step(directory, request, base, list(gone), [], side)
    return path


@pytest.fixture(scope="module")
def a(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forgets the fox, a person and neon; loses the cat on the way."""
    path = tmp_path_factory.mktemp("runs") / "gentle"
    steps = [
        (FOX, ["fox"]),
        (PERSON, ["fox", PERSON.name]),
        (NEON, ["fox", PERSON.name, "neon", "cat"]),
    ]
    return make(path, 1, steps)


@pytest.fixture(scope="module")
def b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Asked in another order, it does not forget neon, and loses the house."""
    path = tmp_path_factory.mktemp("runs") / "harsh"
    steps = [
        (PERSON, [PERSON.name]),
        (FOX, ["fox", PERSON.name, "house"]),
        (NEON, ["fox", PERSON.name, "house"]),
    ]
    return make(path, 2, steps)


def test_differences_are_those_that_were_written(a: Path, b: Path) -> None:
    found = compare(a, b)
    # After the first step they have forgotten different things, so they are compared after the second and the third.
    assert [(p.stages[0].name, p.stages[1].name) for p in found.points] == [("step 2", "step 2"), ("step 3", "step 3")]
    before, after = (p.paired for p in found.points)
    assert before.ua.difference is not None
    assert before.ua.difference.value == 0
    assert before.cra.difference is not None
    assert (before.cra.first.value, before.cra.second.value, before.cra.difference.value) == (1, 0, -1)  # type: ignore[union-attr]
    assert after.ua.difference is not None
    assert after.ua.difference.value == pytest.approx(-1 / 3)
    assert after.ua.difference.low < after.ua.difference.value < after.ua.difference.high
    assert after.ua.difference.n == 12
    assert after.concepts["neon"].difference is not None
    assert after.concepts["neon"].difference.value == -1
    assert after.ira.difference is not None
    assert after.ira.difference.value == pytest.approx(1 / 4)  # cat is one of the four neighbours
    assert after.context.first is not None
    # The other way round every difference has the other sign.
    assert compare(b, a).outcome.paired.ira.difference.value == pytest.approx(-1 / 4)  # type: ignore[union-attr]


def test_an_unknown_answer_counts_against_the_model_that_it_is_about(a: Path, tmp_path: Path) -> None:
    """Also in a difference, on either side."""
    blurred = shutil.copytree(a, tmp_path / "blurred")
    path = RunDirectory(blurred).step(3).judgements
    table = pd.read_parquet(path)
    table.loc[table["row"].isin(["forget/fox/by hand 1", "other/house/by hand 2"]), "shown"] = pd.NA
    write_table(path, table)
    for pair, sign in ((compare(a, blurred).outcome.paired, -1), (compare(blurred, a).outcome.paired, 1)):
        assert pair.ua.difference is not None
        assert pair.cra.difference is not None
        assert (pair.ua.difference.value, pair.ua.difference.unknown) == (pytest.approx(sign / 12), 1)
        assert (pair.cra.difference.value, pair.cra.difference.unknown) == (pytest.approx(sign / 4), 1)


def test_a_pair_is_left_out_of_a_difference_from_the_base_model_where_that_is_unknown(a: Path) -> None:
    """As in a run's own metrics, which stand on the same page; between two models the unknown one counts against it."""
    after = read_table(RunDirectory(a).step(3).judgements)
    before = read_table(RunDirectory(a).base_judgements)
    before.loc[before["row"].isin(["neighbour/cat/by hand 0", "neighbour/cat/by hand 1"]), "shown"] = pd.NA
    told = (["fox"], ["fox"])
    found = compare_tables(before, after, *told, base=True).ira.difference
    of_a_run = [metrics.of_roles(table, *told)["neighbour"] for table in (after, before)]
    assert found == metrics.difference(*of_a_run, "shown", missing=False)
    as_models = compare_tables(before, after, *told).ira.difference
    assert found is not None
    assert as_models is not None
    assert (found.n, found.value) == (14, pytest.approx(-2 / 14))  # the cat is lost, as far as the base model had one
    assert (as_models.n, as_models.value) == (16, pytest.approx(-2 / 16))


def test_where_the_orders_differ_the_end_counts_over_what_both_forgot(a: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other", 3, [(SANTA, ["santa"]), (NEON, ["santa"])])
    found = compare(a, other)
    assert [p.forgotten for p in found.points] == [("neon",)]
    assert found.outcome.paired.ua.difference is not None
    assert found.outcome.paired.ua.difference.value == -1
    # Where one has only served more, the last common point is the outcome.
    longer = make(tmp_path / "longer", 4, [(FOX, ["fox"]), (PERSON, ["fox"]), (NEON, ["fox"]), (SANTA, ["fox"])])
    assert [p.stages[1].name for p in compare(a, longer).points] == ["step 1", "step 2", "step 3"]


def test_a_run_against_itself_differs_in_nothing(finished_run: Path, tmp_path: Path) -> None:
    page = tmp_path / "same.html"
    said = expunge("compare", finished_run, finished_run, "--out", page)
    assert said.count("+0.00 ") >= 4
    assert re.search(r"UA of mosaic \S+ ±\S+ \S+ ±\S+ \+0.00", said)
    assert "the two cannot be told apart" in page.read_text()
    points = compare(finished_run, finished_run).points
    found = [getattr(p.paired, name).difference for p in points for name in ("ua", "context", "ira", "cra")]
    measured = [difference for difference in found if difference is not None]  # the stand-in's pictures are riddles
    assert len(measured) >= 4
    assert {difference.value for difference in measured} == {0}


def test_a_run_is_compared_with_an_evaluation(finished_run: Path, tmp_path: Path) -> None:
    """The evaluation of a run's last weights and the run have painted the same."""
    weights = finished_run / "steps" / "0002" / "weights.safetensors"
    out = tmp_path / "evaluated"
    Audit.create(
        out, model=str(weights), base=str(STAND_IN), protocol=str(PROTOCOL), forgotten=["mosaic", "panda"]
    ).evaluate()
    expunge("compare", finished_run, out, "--out", tmp_path / "page.html")
    found = compare(finished_run, out)
    assert [p.stages[1].name for p in found.points] == ["model"]
    for name in ("ua", "context", "ira", "cra"):
        assert getattr(found.outcome.paired, name).difference.value == 0
    pictures = [
        pd.read_parquet(path).set_index("row")["image"].to_dict()
        for path in (out / "model" / "judgements.parquet", weights.with_name("judgements.parquet"))
    ]
    assert pictures[0] == pictures[1]
    assert "weights.safetensors (denoiser)" in (tmp_path / "page.html").read_text()


# -- the page -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(a: Path, b: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("pages") / "compare.html"
    said = expunge("compare", a, b, "--out", file)
    assert "UA of neon" in said
    assert "-1.00" in said
    return file.read_text()


def test_the_page_shows_the_same_rows_of_base_a_and_b(page: str, a: Path, b: Path) -> None:
    assert "://" not in page
    fox = next(card for card in page.split('<article class="card">') if "Forget: fox" in card)
    column = next(c for c in fox.split("<figure>") if "a drawing of a fox, number 1" in c)
    assert re.findall(r'alt="(\w+): a drawing of a fox, number 1', column) == ["base", "A", "B"]
    sources = re.findall(r'src="data:image/png;base64,([^"]+)"', column)
    directory = RunDirectory(a)
    shelves = [(directory.base_judgements, directory.base_images)]
    shelves += [(step.judgements, step.images) for step in (RunDirectory(run).step(3) for run in (a, b))]
    for source, (judgements, images) in zip(sources, shelves, strict=True):
        digest = read_table(judgements).set_index("row")["image"]["forget/fox/by hand 1"]
        shown = np.array(Image.open(io.BytesIO(base64.b64decode(source))))
        assert np.array_equal(shown, read_image(images, digest))
    assert "B is above A in IRA (+25 pt)" in page
    assert "B is below A in UA (\N{MINUS SIGN}33.3 pt) and CRA (\N{MINUS SIGN}100 pt)" in page


def test_what_was_not_measured_is_not_said_to_be_alike(a: Path, tmp_path: Path) -> None:
    silent = shutil.copytree(a, tmp_path / "silent")
    path = RunDirectory(silent).step(3).judgements
    write_table(path, pd.read_parquet(path).assign(context=pd.array([pd.NA] * 36, dtype="boolean")))
    expunge("compare", a, silent, "--out", tmp_path / "page.html")
    said = "In UA, IRA and CRA the two cannot be told apart; Context was not measured."
    assert said in " ".join((tmp_path / "page.html").read_text().split())


def test_a_request_that_a_run_did_not_take_is_said(a: Path, tmp_path: Path) -> None:
    path = tmp_path / "one of three"
    directory, base = begin(path, FOX, NEON, SANTA, changes={"evaluate": {"precision": "fp32"}})
    fox, neon, _ = directory.requests()
    add_step(directory, fox, base, ["fox"], [])
    add_step(directory, neon, base, ["fox"], [check("ua of neon", 0.0, 0.9)])
    expunge("compare", a, path, "--out", tmp_path / "page.html")
    page = " ".join((tmp_path / "page.html").read_text().split())
    assert "gentle: lacu, 3 steps<" in page
    assert "one of three: lacu, 1 step (of its other requests 1 rejected, 1 waiting)<" in page
    assert "Compared: A after step 1, B after step 1, over 1 concept that both have forgotten." in page


def test_only_rows_of_which_both_kept_a_picture_are_shown(a: Path, b: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(b, tmp_path / "bare")
    for picture in (bare / "steps" / "0003" / "images").iterdir():
        picture.unlink()
    expunge("compare", a, bare, "--out", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<img" not in page
    assert "No picture was kept of a row that all models painted." in page


def test_a_person_is_called_by_the_requests_of_both_and_never_pictured(page: str) -> None:
    for name in ("zelda", "quixot"):
        assert name not in page.casefold()
    assert "request 0002 of A and request 0001 of B" in page
    assert "Prompts and pictures of a person are not shown." in page
    assert "a drawing of a fox, number 0" not in page.casefold()  # that prompt speaks of the person
    assert "number 0" not in page[page.index("Forget: fox") : page.index("Neighbour")]


# -- wrong use --------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_compared_is_answered_with_a_sentence(a: Path, finished_run: Path, tmp_path: Path) -> None:
    steps = [(FOX, ["fox"])]
    elsewhere = make(tmp_path / "elsewhere", 5, steps, model="sha256:1")
    protocol = make(tmp_path / "protocol", 5, steps, {"protocol": "iconworld-dev-a"})
    precision = make(tmp_path / "precision", 5, steps, {"precision": "bf16"})
    nothing = make(tmp_path / "nothing", 6, [(SANTA, ["santa"])])
    empty = make(tmp_path / "empty", 7, [])
    prompts = shutil.copytree(a, tmp_path / "prompts")
    base = RunDirectory(prompts).base_judgements
    write_table(base, pd.read_parquet(base).assign(prompt="another"))
    seeds = shutil.copytree(a, tmp_path / "seeds")
    base = RunDirectory(seeds).base_judgements
    write_table(base, pd.read_parquet(base).assign(seed=lambda table: table["seed"] + 1))
    for other, sentence in (
        (elsewhere, f"the base model of one is {MODEL}, of the other sha256:1"),
        (protocol, "the protocol of one is iconworld-demo, of the other iconworld-dev-a"),
        (precision, "one was painted in fp32, the other in bf16"),
        (prompts, "their rows have other prompts"),
        (seeds, "their rows have other seeds"),
        (nothing, "have forgotten no concept in common"),
        (empty, "has no accepted step yet"),
        (tmp_path, "holds neither a run (run.toml) nor an evaluation"),
    ):
        assert sentence in expunge("compare", a, other, "--out", tmp_path / "page.html", code=2)
    assert not (tmp_path / "page.html").exists()


def test_a_protocol_that_was_edited_since_is_told(a: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both runs read the file as it is now; what they were measured by is in their events."""
    compare(finished_run, finished_run)
    monkeypatch.setattr(Protocol, "digest", "sha256:1")
    with pytest.raises(ExpungeError, match=f"is not what {finished_run} was measured with"):
        compare(finished_run, finished_run)


def test_a_damaged_table_is_answered_with_a_sentence(a: Path, tmp_path: Path) -> None:
    for which in ("base", "steps/0003"):
        damaged = shutil.copytree(a, tmp_path / which.replace("/", "-"))
        path = damaged / which / "judgements.parquet"
        path.write_bytes(path.read_bytes()[:-1])
        said = expunge("compare", a, damaged, "--out", tmp_path / "page.html", code=2)
        assert f"{path} cannot be read as a table" in said
    whole = (a / "base" / "judgements.parquet").read_bytes()
    for cut in range(0, len(whole), 97):
        path.write_bytes(whole[:cut])
        with pytest.raises(ExpungeError, match="cannot be read as a table"):
            read_table(path)
    rng = random.Random(0)
    for _ in range(500):
        place = rng.randrange(len(whole) // 2, len(whole))  # what describes the values lies behind them
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :])
        with suppress(ExpungeError):  # some damage is in no one's way
            read_table(path)


@pytest.mark.parametrize("out", ["summary.json", "folder", "folder.html", ".html"])
def test_the_page_takes_the_place_of_nothing_but_a_page(a: Path, b: Path, tmp_path: Path, out: str) -> None:
    for folder in ("folder", "folder.html"):
        (tmp_path / folder).mkdir()
    (tmp_path / "summary.json").write_text("{}")
    said = expunge("compare", a, b, "--out", tmp_path / out, code=2)
    assert "is no HTML file. Give a name that ends in .html." in said
    assert "UA" not in said  # nothing was compared
    assert (tmp_path / "summary.json").read_text() == "{}"
