"""The report of a run whose files were written by hand with the real classes: no model is loaded, nothing is trained."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from expunge import report
from expunge.errors import ExpungeError
from expunge.files import write_json
from expunge.stream import Run
from expunge.stream.judged import read_table, write_table
from expunge.stream.summary import measure, read_record
from handmade import DRIFT, FOX, KNOWN, NEON, PERSON, add_step, begin, check


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Fox and a person forgotten, neon rejected by the gate, santa still waiting."""
    directory, base = begin(tmp_path_factory.mktemp("runs") / "without-zelda-quixote", FOX, PERSON, NEON)
    fox, person, neon = directory.requests()
    add_step(directory, fox, base, ["fox"], [check("ua of fox", 1.0, 0.9), check("ira drop", 0.0, 0.1)])
    add_step(directory, person, base, ["fox", PERSON.name], [check(f"ua of {PERSON.name}", 1.0, 0.9)], previous=1)
    failing = [check("ua of neon", 1.0, 0.9), check("ira drop", 0.1875, 0.1), check("cra drop", None, 0.1)]
    add_step(directory, neon, base, ["neon", "cat"], failing, previous=2)
    run = Run(directory.path)
    run.resume()  # nothing is open: this writes the summary
    run.request("santa")
    return run


@pytest.fixture(scope="module")
def page(untouched: Run) -> str:
    return report.write(untouched).read_text()


@pytest.fixture
def run(untouched: Run, tmp_path: Path) -> Run:
    """A copy that a test may damage."""
    return Run(shutil.copytree(untouched.directory.path, tmp_path / untouched.directory.path.name))


class Elements(HTMLParser):
    """The attributes of every element, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {k: v or "" for k, v in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data

    def images(self) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.elements if tag == "img"]


def section(page: str, request: str) -> str:
    found = re.search(rf'<article [^>]*id="request-{request}">.*?</article>', page, re.DOTALL)
    assert found
    return found[0]


def test_the_page_is_one_file_that_refers_to_nothing_outside(page: str) -> None:
    assert "://" not in page
    for tag, attributes in Elements(page).elements:
        assert tag not in ("script", "iframe", "object", "embed")
        for name in ("src", "href", "xlink:href", "srcset", "data"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
    assert not re.search(r"url\((?!#)|@import", page)
    identifiers = re.findall(r'\sid="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))


def test_the_same_run_gives_the_same_page(page: str, run: Run) -> None:
    path = report.write(run)
    assert path == run.directory.report
    assert path.read_text() == page


def test_every_request_is_shown_with_what_became_of_it(page: str) -> None:
    for request, title, status in (
        ("0001", "fox", "accepted"),
        ("0002", "a person", "accepted"),
        ("0003", "neon", "rejected"),
        ("0004", "santa", "waiting"),
    ):
        text = Elements(section(page, request)).text
        assert title in text
        assert status in text
    assert "2 of 4 requests served, 1 not passed by the gate, 1 waiting" in page
    # fox: 3 of its 4 prompts may be pictured, before and after; a neighbour that training never saw, the same way.
    shown = Elements(section(page, "0001")).images()
    assert len([i for i in shown if "a drawing of a fox" in i["alt"]]) == 4
    assert len([i for i in shown if "a drawing of a cat" in i["alt"]]) == 6
    assert "100%" in Elements(section(page, "0001")).text


def test_the_page_says_where_the_time_of_every_request_went(page: str) -> None:
    times = page[page.index('<section aria-labelledby="timings">') :]
    table = [
        re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)
        for row in re.findall(r"<tr>.*?</tr>", times, re.DOTALL)
    ]
    header, *rows = table
    phases = {"choose": "1.0", "replay": "2.0", "train": "30.0", "save": "0.1", "evaluate": "40.0", "total": "73.1"}
    for place, row in enumerate(rows[:3], 1):
        told = dict(zip(header, row, strict=True))
        assert told["step"] == str(place)
        assert {phase: told[phase] for phase in phases} == phases


def test_a_rejected_step_says_which_threshold_it_missed(page: str) -> None:
    rejected = section(page, "0003")
    failed = [Elements(row).text for row in re.findall(r'<tr class="failed">.*?</tr>', rejected, re.DOTALL)]
    assert len(failed) == 2
    assert all(part in failed[0] for part in ("IRA below the base model's", "18.8 pt", "at most 10 pt", "failed"))
    assert all(part in failed[1] for part in ("CRA below the base model's", "not measured", "failed"))
    assert "was not taken" in rejected


def test_a_person_is_called_by_the_request_and_never_pictured(page: str) -> None:
    for name in ("zelda", "quixot"):
        assert name not in page.casefold()
    assert "request 0002" in Elements(page).text
    assert "UA of request 0002" in Elements(section(page, "0002")).text
    assert Elements(section(page, "0002")).images() == []
    # The fox prompt that speaks of the person is left out with its pictures.
    assert "number 0" not in section(page, "0001")[: section(page, "0001").index("Neighbour")]


def test_a_picture_of_which_the_judge_could_not_tell_is_shown_as_such(run: Run) -> None:
    """It counts as not forgotten, and its prompt is the one that is looked at again at the end."""
    last = run.directory.step(2)
    for step, row in ((run.directory.step(1), "forget/fox/by hand 1"), (last, "forget/fox/by hand 2")):
        table = read_table(step.judgements)
        table.loc[table["row"] == row, "shown"] = pd.NA
        write_table(step.judgements, table)
    record = read_record(last.record)
    measured = measure(read_table(run.directory.base_judgements), table, ["fox", PERSON.name], KNOWN, DRIFT)
    write_json(last.record, record.model_copy(update={"metrics": measured}).model_dump(mode="json", by_alias=True))
    page = report.write(run).read_text()
    fox = [i["alt"] for i in Elements(section(page, "0001")).images() if "a drawing of a fox" in i["alt"]]
    assert [("number 1" in alt, "after" in alt, "(unknown)" in alt) for alt in fox if "unknown" in alt] == [
        (True, True, True)
    ]
    assert "8 (1 unknown)" in Elements(page).text
    again = page[page.index("Forgotten earlier") :]
    assert "number 2 (unknown)" in again[: again.index("</section>")]


def test_pictures_that_were_not_kept_are_named_as_such(run: Run) -> None:
    for picture in [*run.directory.step(1).images.iterdir(), *run.directory.base_images.iterdir()]:
        picture.unlink()
    fox = section(report.write(run).read_text(), "0001")
    assert Elements(fox).images() == []
    assert "picture not kept" in fox


def test_what_was_not_measured_is_listed_with_its_reason(page: str) -> None:
    text = Elements(page).text
    limits = text[text.index("What is not claimed") :]
    assert "KID" in limits
    assert "the judge has no features" in limits
    assert "no row of this kind could be judged" in limits
    assert "a-test-judge" in limits


def test_a_log_that_is_damaged_is_not_drawn_and_the_rest_is(run: Run) -> None:
    (run.directory.step(2).log).write_bytes(b'{"step": 1, "los\n')
    page = report.write(run).read_text()
    assert page.count("Its train.jsonl is damaged") == 1
    assert "Losses of step 1" in page
    assert "Losses of step 2" not in page


def test_what_was_asked_to_go_is_no_neighbour_that_was_lost(run: Run) -> None:
    run.request("cat")
    page = report.write(run).read_text()
    fox = Elements(section(page, "0001"))
    assert "Neighbour, replayed in training: dog" in fox.text
    assert not [i for i in fox.images() if "a drawing of a cat" in i["alt"]]


def test_a_run_whose_protocol_is_gone_still_has_a_page(run: Run) -> None:
    config = run.directory.config
    config.write_text(config.read_text().replace('protocol = "iconworld-demo"', 'protocol = "/gone/mine.toml"'))
    page = report.write(Run(run.directory.path)).read_text()
    assert "no neighbour is pictured" in section(page, "0001")
    assert "/gone" not in page


def test_without_a_finished_step_there_is_nothing_to_report(tmp_path: Path) -> None:
    directory, _ = begin(tmp_path / "run", FOX)
    with pytest.raises(ExpungeError, match="no finished step yet"):
        report.write(Run(directory.path))
