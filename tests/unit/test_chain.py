"""The chain of events, and what the events say became of a request."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from expunge.stream import chain
from expunge.stream.directory import RunDirectory
from expunge.stream.history import History


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path)
    for step in range(1, 5):
        directory.add_event("started", step=step)
    return directory


def test_a_chain_that_was_only_added_to_is_whole(directory: RunDirectory) -> None:
    assert chain.broken(directory.event_lines.read_bytes()) == []
    before = directory.head
    directory.add_event("started", step=5)
    assert chain.broken(directory.event_lines.read_bytes()) == []
    assert directory.events()[-1]["previous"] == before != directory.head


def test_an_event_waits_while_somebody_else_adds_one(directory: RunDirectory) -> None:
    other = RunDirectory(directory.path)
    late = threading.Thread(target=lambda: other.add_event("started", step=6))
    with directory.appending():
        late.start()
        late.join(0.5)
        assert late.is_alive()
        directory.add_event("started", step=5)
    late.join(60)
    assert [event["step"] for event in directory.events()] == [1, 2, 3, 4, 5, 6]
    assert chain.broken(directory.event_lines.read_bytes()) == []


def test_every_change_of_a_line_is_told_with_its_place(directory: RunDirectory) -> None:
    lines = directory.event_lines.read_text().splitlines()

    def said(*changed: str) -> list[str]:
        return chain.broken(("\n".join(changed) + "\n").encode())

    one, two, three, four = lines
    assert "Line 2 of events.jsonl has another digest" in said(one, two.replace('"step":2', '"step":7'), three, four)[0]
    assert "Line 4 of events.jsonl has another digest" in said(one, two, three, four.replace('"step":4', '"step":5'))[0]
    assert "Line 3 of events.jsonl is not written" in said(one, two, three.replace(",", ", ", 1), four)[0]
    assert "Line 1 of events.jsonl is no JSON" in said("{", two, three, four)[0]
    assert "Line 2 of events.jsonl does not follow" in said(one, three, four)[0]
    assert "Line 1 of events.jsonl does not follow" in said(two, three, four)[0]
    assert "Line 2 of events.jsonl does not follow" in said(one, three, two, four)[0]
    assert "Line 5 of events.jsonl does not follow" in said(one, two, three, four, four)[0]
    assert "half a line" in chain.broken("\n".join(lines).encode())[0]
    assert "missing or empty" in chain.broken(b"")[0]
    # What was rewritten from a place on is a chain again; only a head that is kept elsewhere tells.
    assert said(one, two) == []


def test_a_line_separator_in_a_reason_does_not_break_a_line(directory: RunDirectory) -> None:
    directory.add_event("withdrawn", step=1, by="me", reason="one\u2028two\nthree")
    assert directory.events()[-1]["reason"] == "one\u2028two\nthree"
    assert chain.broken(directory.event_lines.read_bytes()) == []


def events(*said: str) -> list[dict[str, object]]:
    """ "accepted 1" -> the event; "accepted 1 by hand" has a decision."""
    found: list[dict[str, object]] = []
    for text in said:
        name, _, rest = text.rpartition(" ") if text.startswith("rolled back") else text.partition(" ")
        step = int(rest.split()[0])
        decided = {"by": "me", "reason": "so"} if "hand" in text or name in ("rolled back", "withdrawn") else {}
        found.append(
            json.loads(json.dumps({"at": "now", "event": name, "step": step, "to": step, "record": f"r{step}"}))
            | ({"strength": 1.5, "about": ["pink"]} if name == "retried" else {})
            | decided
        )
        if name != "rolled back":
            del found[-1]["to"]
    return found


def test_the_events_decide_what_became_of_a_request() -> None:
    served = ("accepted 1", "rejected 2", "accepted 3", "accepted 4")
    assert History.of(events(*served)).accepted == [1, 3, 4]
    back = History.of(events(*served, "rolled back 1"))
    assert back.status == {1: "accepted", 2: "rejected", 3: "withdrawn", 4: "withdrawn"}
    assert back.decisions[4].undone == "step 1"
    again = History.of(events(*served, "withdrawn 3"))
    assert again.status == {1: "accepted", 2: "rejected", 3: "withdrawn"}  # 4 is open again, and 2 stays out
    assert History.of(events(*served, "withdrawn 3", "accepted 4")).accepted == [1, 4]
    assert History.of(events("accepted 1", "rejected 2", "accepted 2 by hand")).accepted == [1, 2]
    assert History.of(events(*served, "withdrawn 2")).accepted == [1, 3, 4]
    assert History.of(events(*served, "withdrawn 5")).status[5] == "withdrawn"  # before it was served


def test_a_decision_is_about_the_work_that_it_was_made_about() -> None:
    served = ("accepted 1", "rejected 2", "accepted 2 by hand")
    assert History.of(events(*served)).decisions.keys() == {2}
    assert History.of(events(*served, "withdrawn 1")).decisions.keys() == {1}  # 2 is open again
    assert History.of(events(*served, "withdrawn 1", "accepted 2")).decisions.keys() == {1}
    assert History.of(events(*served, "withdrawn 1", "rejected 2", "accepted 2 by hand")).decisions.keys() == {1, 2}


def test_work_that_began_with_another_model_is_not_gone_on_with() -> None:
    served = ("accepted 1", "accepted 2", "started 3")
    assert History.of(events(*served)).at_work == 3
    for decision in ("rolled back 1", "withdrawn 1", "withdrawn 3"):
        assert History.of(events(*served, decision)).at_work is None, decision
    assert History.of(events(*served, "withdrawn 4")).at_work == 3
    retried = History.of(events(*served, "retried 3"))
    assert (retried.at_work, retried.retry) == (None, (3, 1.5, ("pink",)))
    assert History.of(events(*served, "retried 3", "started 3")).retry == (3, 1.5, ("pink",))
    assert History.of(events(*served, "retried 3", "started 3", "accepted 3")).retry is None
    assert History.of(events(*served, "retried 3", "started 3", "rolled back 1")).retry is None


def test_a_retry_belongs_to_the_record_that_it_led_to() -> None:
    tried = ("accepted 1", "retried 2", "started 2")
    assert History.of(events(*tried)).retries == {}
    assert [*History.of(events(*tried, "accepted 2", "accepted 3")).retries] == [2]
    assert [*History.of(events(*tried, "rejected 2", "accepted 2 by hand")).retries] == [2]
    served_anew = (*tried, "accepted 2", "withdrawn 1", "started 2", "accepted 2")
    assert History.of(events(*served_anew)).retries == {}
