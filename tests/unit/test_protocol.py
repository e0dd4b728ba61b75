"""Protocols: what is measured is never trained on."""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from expunge import iconworld
from expunge.concepts import PERSON
from expunge.evaluation import Protocol, forget_rows, protocol_rows, retention_rows
from expunge.evaluation.protocol import batches
from expunge.prompts import Vocabulary
from expunge.stream.config import GateConfig
from expunge.stream.gate import check_reachable

VOCABULARY = iconworld.vocabulary()


@pytest.fixture(params=iconworld.PROTOCOLS)
def protocol(request: pytest.FixtureRequest) -> Protocol:
    return iconworld.protocol(request.param)


def test_retained_rows_show_nothing_that_is_ever_forgotten(protocol: Protocol) -> None:
    forgotten = {name for request in protocol.requests for name in request}
    for row in retention_rows(protocol, VOCABULARY):
        assert not forgotten & set(row.scene.values())


def test_counts_are_those_of_the_file(protocol: Protocol) -> None:
    rows = retention_rows(protocol, VOCABULARY)
    for role, counts in (("neighbour", "neighbours"), ("other", "others")):
        own = [r for r in rows if r.role == role]
        assert len(own) == getattr(protocol.final, counts) >= 300
        assert sum(r.level == "between" for r in own) == getattr(protocol.between, counts) >= 96
    concept = VOCABULARY.concept(protocol.requests[0][0])
    assert len(forget_rows(protocol, VOCABULARY, concept)) == protocol.final.forget >= 40


def test_rows_have_their_own_seeds_and_are_the_same_every_time(protocol: Protocol) -> None:
    rows = retention_rows(protocol, VOCABULARY)
    assert rows == retention_rows(protocol, VOCABULARY)
    assert len({r.seed for r in rows}) == len({r.id for r in rows}) == len(rows)


def test_a_row_says_whether_training_may_replay_what_it_shows() -> None:
    tiny = Protocol.read(Path(__file__).parents[1] / "data" / "tiny.toml")
    rows = [*forget_rows(tiny, VOCABULARY, VOCABULARY.concept("panda")), *retention_rows(tiny, VOCABULARY)]
    assert {row.concept for row in rows if row.replayed} == {"koala", "ogre", "woodcut"}
    assert {row.concept for row in rows if not row.replayed} == {"bear", "ghost", "halftone", "panda", "bus", "rocket"}


def test_the_examples_of_the_pages_fit_together_and_a_step_can_pass_their_gate() -> None:
    docs = Path(__file__).parents[2] / "docs"
    vocabulary, protocol = (
        tomllib.loads((docs / page).read_text().split("```toml\n")[1].split("```")[0])
        for page in ("prompts.md", "protocol.md")
    )
    source, asked = Vocabulary.model_validate(vocabulary), Protocol.model_validate(protocol)
    golf_ball = source.concept("golfball")
    assert (golf_ball.name, golf_ball.kind) == ("golf ball", "object")
    assert [[golf_ball.name], ["apple"]] == [list(names) for names in asked.requests]
    assert source.concept("Ada Lovelace").kind == PERSON
    assert asked.enough == 0.04
    rows = [row for row in protocol_rows(asked, source, [golf_ball]) if row.level == "between"]
    check_reachable(GateConfig(), rows, asked.name)
    assert source.forget_prompts(golf_ball, ["apple"], 8, 0, frozenset({"tennis ball"}))


def test_half_of_each_neighbour_group_is_held_out(protocol: Protocol) -> None:
    for group in protocol.neighbours.values():
        assert len(group.held_out) == len(group.replayed)


def test_the_rows_between_are_painted_in_the_same_batches_as_at_the_end(protocol: Protocol) -> None:
    rows = retention_rows(protocol, VOCABULARY)
    size = protocol.sampler.batch_size
    every = {tuple(r.id for r in batch) for batch in batches(rows, size)}
    between = {tuple(r.id for r in batch) for batch in batches([r for r in rows if r.level == "between"], size)}
    assert between < every


def counted(name: str) -> set[str]:
    """All concepts that a protocol forgets or counts."""
    protocol = iconworld.protocol(name)
    groups = [n for g in protocol.neighbours.values() for n in g.names]
    return {*(n for r in protocol.requests for n in r), *groups, *protocol.others}


def test_nothing_that_the_demonstration_counts_was_counted_in_tuning() -> None:
    tuned = counted("iconworld-dev-a") | counted("iconworld-dev-b")
    assert not counted("iconworld-demo") & tuned
    first, second = (iconworld.protocol(f"iconworld-dev-{x}").requests for x in "ab")
    assert not set(first) & set(second)


def test_the_demonstration_forgets_seven_things_two_of_them_characters_two_styles_and_a_background() -> None:
    requests = iconworld.protocol("iconworld-demo").requests
    kinds = [VOCABULARY.concept(name).kind for (name,) in requests]
    assert Counter(kinds) == {"object": 5, "character": 2, "style": 2, "background": 1}
    assert kinds != sorted(kinds)


def test_what_is_never_touched_is_forgotten_by_no_protocol_and_measures_the_rest(protocol: Protocol) -> None:
    never = set(iconworld.PROTOCOL_FILE["never_touched"])
    assert set(protocol.others) <= never
    assert counted(protocol.name) & never == set(protocol.others)


def test_neighbours_stand_in_the_slot_of_their_concept(protocol: Protocol) -> None:
    for name, group in protocol.neighbours.items():
        for neighbour in group.names:
            assert VOCABULARY.slot_of(neighbour) == VOCABULARY.slot_of(name)


def test_a_protocol_that_contradicts_itself_is_refused(protocol: Protocol) -> None:
    data = protocol.model_dump(by_alias=True)
    first = protocol.requests[0][0]
    with pytest.raises(ValidationError, match="forgotten and retained"):
        Protocol.model_validate({**data, "others": [*protocol.others, first]})
    with pytest.raises(ValidationError, match="are named twice among the others"):
        Protocol.model_validate({**data, "others": [*protocol.others, protocol.others[0]]})
    with pytest.raises(ValidationError, match="no neighbours are given"):
        Protocol.model_validate({**data, "requests": [*protocol.requests, ["zebra"]]})


def test_each_name_has_a_picture_at_the_end(protocol: Protocol) -> None:
    data = protocol.model_dump(by_alias=True)
    named = {
        "neighbours": len({n for g in protocol.neighbours.values() for n in g.names}),
        "others": len(protocol.others),
    }
    for counts, least in named.items():
        few = {level: {**data[level], counts: least} for level in ("between", "final")}
        for role in ("neighbour", "other"):
            rows = [r for r in retention_rows(Protocol.model_validate({**data, **few}), VOCABULARY) if r.role == role]
            assert len({r.concept for r in rows}) == named[f"{role}s"]
        few = {level: {**data[level], counts: least - 1} for level in ("between", "final")}
        with pytest.raises(ValidationError, match=rf"final\.{counts} must be at least {least}"):
            Protocol.model_validate({**data, **few})


def test_a_digest_is_of_what_decides_a_runs_pictures(protocol: Protocol) -> None:
    said = protocol.model_dump(by_alias=True, exclude_unset=True)
    for alike in ({"also": ["clip:some/model"]}, {"seeds_per_prompt": protocol.seeds_per_prompt}, {"enough": None}):
        assert Protocol.model_validate({**said, **alike}).digest == protocol.digest
    for other in ({"seed": protocol.seed + 1}, {"others": protocol.others[1:]}, {"enough": 0.04}):
        assert Protocol.model_validate({**said, **other}).digest != protocol.digest
