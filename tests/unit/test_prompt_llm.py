"""Prompts by a language model, asked of a local server that can fail."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from expunge.concepts import Concept, mentions
from expunge.errors import ExpungeError
from expunge.prompts import KnownConcepts, LlmConfig, LlmPrompts
from llm_server import Handler, Server, answer, serving

pytest.importorskip("openai")

GOLF_BALL = Concept(name="golf ball", aliases=("dimpled ball",), confusables=("tennis ball",))
KNOWN = KnownConcepts(concepts=(GOLF_BALL,))
NOTHING: frozenset[str] = frozenset()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving() as server:
        yield server


def source(server: Server, tmp_path: Path, **fields: Any) -> LlmPrompts:
    config = {"model": "small", "base_url": server.url, "cache": str(tmp_path / "cache"), "evaluation_prompts": 4}
    return LlmPrompts(LlmConfig.model_validate({**config, **fields}), KNOWN)


def broken(**changes: Any) -> Callable[[Handler], None]:
    """The well-behaved answer to the question about names, with some fields changed."""
    return lambda handler: handler.say(json.dumps({**answer(""), **changes}))


def test_forget_prompts_come_with_a_mapping_for_each_replacement(server: Server, tmp_path: Path) -> None:
    prompts = source(server, tmp_path).forget_prompts(GOLF_BALL, ["tennis ball", "toy 3"], 14, 0, NOTHING)
    assert [p.id for p in prompts] == [str(i) for i in range(1, 15)]
    assert len({p.prompt for p in prompts}) == 14
    for prompt in prompts:
        assert mentions(prompt.prompt, GOLF_BALL)
        assert [c.prompt for c in prompt.candidates] == [
            prompt.prompt.replace("golf ball", n) for n in ("tennis ball", "toy 3")
        ]


def test_without_replacements_no_mapping_is_asked_for_and_every_prompt_stays(server: Server, tmp_path: Path) -> None:
    prompts = source(server, tmp_path).forget_prompts(GOLF_BALL, [], 4, 0, NOTHING)
    assert len(prompts) == 4
    assert not any(p.candidates for p in prompts)
    assert not any("Replacements" in json.dumps(question["messages"]) for question in server.asked)


def test_no_evaluation_prompt_is_trained_on(server: Server, tmp_path: Path) -> None:
    asked = source(server, tmp_path)
    trained = {p.prompt for p in asked.forget_prompts(GOLF_BALL, ["toy 1"], 20, 0, NOTHING)}
    trained |= set(asked.retain_prompts(["golf ball"], 20, 0, NOTHING))
    measured = asked.evaluation_prompts(GOLF_BALL, 4, 0, NOTHING, {})
    assert not trained & {p.prompt for p in measured}
    assert measured[0].scene == {"thing": "golf ball"}
    with pytest.raises(ExpungeError, match="There are 4 evaluation prompts for 'golf ball', not 5"):
        asked.evaluation_prompts(GOLF_BALL, 5, 0, NOTHING, {})


def test_nor_is_one_of_another_concept(server: Server, tmp_path: Path) -> None:
    """A toy's prompts are retain prompts and mapping prompts; some of them say what the golf ball is measured by."""

    def shared(handler: Handler) -> None:
        handler.say(json.dumps({"prompts": [f"golf ball and scene toy 1 number {4 + i}" for i in range(4)]}))

    def same(handler: Handler) -> None:
        said = answer(server.asked[-1]["messages"][1]["content"])["prompts"]
        handler.say(json.dumps({"prompts": ["Golf ball, and scene toy 1 number 4!", *said[1:]]}))

    asked, toy = source(server, tmp_path), Concept(name="toy 1")
    server.faults = [shared]
    measured = {p.prompt for p in asked.evaluation_prompts(GOLF_BALL, 4, 0, NOTHING, {})}
    asked.evaluation_prompts(toy, 4, 0, NOTHING, {})
    server.faults = [same]
    written = asked.retain_prompts(["toy 1"], 40, 0, NOTHING)
    assert len({*written}) == 19  # of twenty
    assert not any("golf" in prompt.casefold() for prompt in written)
    assert any("number 4" in prompt for prompt in measured)


def test_what_is_off_limits_is_left_out_and_never_told(server: Server, tmp_path: Path) -> None:
    asked = source(server, tmp_path)
    avoid = frozenset({"toy 1", "number 7"})
    retained = asked.retain_prompts(["toy 1", "toy 2"], 30, 0, avoid)
    assert len(retained) == 30
    assert {p.split(" number")[0] for p in retained} == {"scene toy 2"}
    assert not any("number 7" in p.prompt for p in asked.forget_prompts(GOLF_BALL, ["toy 2"], 9, 0, avoid))
    assert not any("toy 1" in json.dumps(question["messages"]) for question in server.asked)


def test_cached_answers_need_no_server_and_no_key(server: Server, tmp_path: Path) -> None:
    first = source(server, tmp_path)
    related, digest = first.related(GOLF_BALL), first.digest
    count = len(server.asked)
    again = source(server, tmp_path, base_url="https://api.openai.com/v1")
    assert (again.related(GOLF_BALL), again.digest, len(server.asked)) == (related, digest, count)
    assert not any("golf" in file.name for file in (tmp_path / "cache").iterdir())
    with pytest.raises(ExpungeError, match=r"no API key in the environment\. Set OPENAI_API_KEY"):
        again.related(Concept(name="fox"))
    source(server, tmp_path).related(Concept(name="fox"))
    assert again.digest != digest
    source(server, tmp_path, model="large").related(GOLF_BALL)  # another model is asked anew
    assert len(server.asked) == count + 2


def test_a_changed_cached_answer_is_refused_by_name(server: Server, tmp_path: Path) -> None:
    source(server, tmp_path).related(GOLF_BALL)
    (file,) = (tmp_path / "cache").iterdir()
    file.write_text(file.read_text().replace("tennis ball", "two golf balls"))
    with pytest.raises(ExpungeError, match=f"{file.name} cannot be used: 'two golf balls' speaks of 'golf ball'"):
        source(server, tmp_path).related(GOLF_BALL)


def test_the_key_comes_from_the_environment_and_is_not_kept(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source(server, tmp_path).related(GOLF_BALL)
    monkeypatch.setenv("OPENAI_API_KEY", "of-a-user")
    source(server, tmp_path).related(Concept(name="fox"))
    assert server.keys == ["Bearer none", "Bearer of-a-user"]
    assert not any("of-a-user" in file.read_text() for file in (tmp_path / "cache").iterdir())


FAULTS: dict[str, tuple[Callable[[Handler], None], str]] = {
    "malformed": (lambda h: h.say('{"related": ['), "it is not JSON"),
    "prose": (lambda h: h.say("[1]"), "it is not a JSON object"),
    "no reply": (lambda h: h.body("{"), "the server's reply is not JSON"),
    "no choice": (lambda h: h.body('{"choices": []}'), "the server's reply holds no message"),
    "no message": (lambda h: h.body('{"choices": [{}]}'), "the server's reply holds no message"),
    "no choices": (lambda h: h.body('{"choices": 5}'), "the server's reply holds no message"),
    "choices by name": (lambda h: h.body('{"choices": {"a": 1}}'), "the server's reply holds no message"),
    "message is text": (lambda h: h.body('{"choices": [{"message": "x"}]}'), "the server's reply holds no message"),
    "no object": (lambda h: h.body("[1]"), "the server's reply holds no message"),
    "error as a reply": (
        lambda h: h.body('{"error": {"message": "no such model"}}'),
        "holds no message: .*no such mod",
    ),
    "deep reply": (lambda h: h.body("[" * 100_000), "the server's reply is not JSON"),
    "content is an object": (lambda h: h.say({"related": []}), "it is no text"),
    "content is a number": (lambda h: h.say(5), "it is no text"),
    "content is pictures": (lambda h: h.say([{"type": "image_url", "image_url": {}}, 5]), "it is empty"),
    "half a character": (lambda h: h.say("\ud83d"), "it is not JSON"),
    "half a character inside": (broken(related=["\ud83d toy", *(f"toy {i}" for i in range(19))]), "surrogates not"),
    "infinity": (broken(more=float("inf")), "it is not JSON"),
    "deep": (lambda h: h.say("[" * 100_000), "it is not JSON"),
    "long name": (broken(related=["x" * 300, *(f"toy {i}" for i in range(19))]), "at most 200 characters, not 300"),
    "hidden sign": (broken(related=["toy\u202e", *(f"toy {i}" for i in range(19))]), r"U\+202E cannot be printed"),
    "refusal": (lambda h: h.say(None, refusal="I cannot help"), r"the model refused \(I cannot help\)"),
    "half a refusal": (lambda h: h.say("\ud83d", refusal="no \ud83d"), r"the model refused \(no \?\)"),
    "filtered": (lambda h: h.say(None, "content_filter"), "the server filtered it"),
    "cut off": (lambda h: h.say('{"rel', "length"), "cut off"),
    "empty": (lambda h: h.say(""), "it is empty"),
    "leak": (broken(related=["golf balls", *(f"toy {i}" for i in range(19))]), "'golf balls' speaks of 'golf ball'"),
    "alias": (
        broken(related=["Dimpled ball", *(f"toy {i}" for i in range(19))]),
        "'Dimpled ball' speaks of 'dimpled ball'",
    ),
    "count": (broken(related=["toy"]), '"related" must hold 20 texts, not 1'),
    "long": (
        broken(related=["toy " * 41, *(f"toy {i}" for i in range(19))]),
        r"at most 40 words, and 'toy .*…' has 41",
    ),
    "twice": (broken(unrelated=["Toy-3", *(f"place {i}" for i in range(19))]), "'Toy-3' stands there twice"),
    "blank": (broken(related=[""] * 20), '"related" must be a list of texts'),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_answer_is_asked_again_and_named_in_the_end(server: Server, tmp_path: Path, fault: str) -> None:
    serve, sentence = FAULTS[fault]
    server.faults = [serve]
    assert source(server, tmp_path, attempts=2).related(GOLF_BALL)[0] == "tennis ball"
    assert len(server.asked) == 2
    server.faults = [serve] * 2
    with pytest.raises(ExpungeError, match=sentence) as error:
        source(server, tmp_path, attempts=2, cache=str(tmp_path / "other")).related(GOLF_BALL)
    assert "no usable answer in 2 attempts" in str(error.value)
    assert not (tmp_path / "other").exists()  # what cannot be used is not kept
    assert len(server.asked) == 4


def test_without_the_extra_it_is_named(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExpungeError, match=r'need `pip install "\.\[llm\]"`'):
        source(server, tmp_path).related(GOLF_BALL)
    assert not server.asked


def test_a_text_in_parts_is_one_text(server: Server, tmp_path: Path) -> None:
    said = json.dumps(answer(""))
    server.faults = [lambda h: h.say([{"type": "text", "text": said[:9]}, {"type": "text", "text": said[9:]}])]
    assert source(server, tmp_path, attempts=1).related(GOLF_BALL)


def test_attempts_is_the_most_requests_whatever_they_failed_at(server: Server, tmp_path: Path) -> None:
    server.faults = [lambda h: h.body("{}", 500), lambda h: h.say("[1]")] * 2
    with pytest.raises(ExpungeError, match="/v1 cannot be used"):
        source(server, tmp_path, attempts=3).related(GOLF_BALL)
    assert len(server.asked) == 3


def test_the_model_is_told_what_was_wrong(server: Server, tmp_path: Path) -> None:
    server.faults = [FAULTS["leak"][0]]
    source(server, tmp_path).related(GOLF_BALL)
    assert "'golf balls' speaks of 'golf ball'" in server.asked[1]["messages"][-1]["content"]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda m: {**m, "1": {"toy 1": "a dimpled ball and toy 1"}}, "speaks of 'dimpled ball'"),
        (lambda m: {**m, "1": {"toy 1": "an empty scene"}}, "does not name 'toy 1'"),
        (lambda m: {**m, "1": {"toy 2": "a toy 2"}}, "the mappings of id 1 must be for exactly: toy 1"),
        (lambda m: {i: p for i, p in m.items() if i != "2"}, "must have exactly the ids 1, 2"),
        (lambda m: {**m, "11": m["1"]}, "must have exactly the ids 1, 2"),
    ],
)
def test_mappings_must_be_paired_and_free_of_the_concept(
    server: Server, tmp_path: Path, spoil: Callable[[dict[str, Any]], dict[str, Any]], sentence: str
) -> None:
    def serve(handler: Handler) -> None:
        question = server.asked[-1]["messages"][1]["content"]
        handler.say(json.dumps({"mappings": spoil(answer(question)["mappings"])}))

    asked = source(server, tmp_path, attempts=1)
    asked.retain_prompts(["golf ball"], 10, 0, NOTHING)  # the prompts themselves are asked for before
    server.faults = [serve]
    with pytest.raises(ExpungeError, match=sentence):
        asked.forget_prompts(GOLF_BALL, ["toy 1"], 10, 0, NOTHING)
    assert len(asked.forget_prompts(GOLF_BALL, ["toy 1"], 10, 0, NOTHING)) == 10


@pytest.mark.parametrize(
    "around",
    [
        "```json\n{}\n```",
        "Sure! Here it is:\n```json\n{}\n```\nHope it helps.",
        "The answer is {}.",
        '<think>{{"related": []}} will not do</think>\n\n{}',
    ],
)
def test_what_stands_around_the_answer_is_no_fault(server: Server, tmp_path: Path, around: str) -> None:
    server.faults = [lambda h: h.say(around.format(json.dumps(answer(""))))]
    assert source(server, tmp_path, attempts=1).related(GOLF_BALL)


@pytest.mark.parametrize("status", [400, 422])
def test_a_server_that_knows_no_response_format_is_asked_without(server: Server, tmp_path: Path, status: int) -> None:
    refusal = """{"error": "'response_format.type' must be 'json_schema' or 'text'"}"""
    server.faults = [lambda h: h.body(refusal, status)]
    asked = source(server, tmp_path, attempts=1)
    assert asked.related(GOLF_BALL)
    asked.related(Concept(name="fox"))
    assert ["response_format" in question for question in server.asked] == [True, False, False]


def test_a_request_that_is_refused_either_way_is_named_in_the_servers_words(server: Server, tmp_path: Path) -> None:
    server.faults = [lambda h: h.body('{"error": {"message": "the context is too long"}}', 400)] * 2
    with pytest.raises(ExpungeError, match=r"/v1 cannot be used \(.*the context is too long"):
        source(server, tmp_path).related(GOLF_BALL)
    assert len(server.asked) == 2


def test_a_server_error_is_tried_again_and_named_in_the_end(server: Server, tmp_path: Path) -> None:
    server.faults = [lambda h: h.body('{"error": {"message": "overloaded"}}', 500)]
    assert source(server, tmp_path, attempts=2).related(GOLF_BALL)
    server.faults = [lambda h: h.body('{"error": {"message": "overloaded"}}', 500)] * 2
    with pytest.raises(ExpungeError, match=r"/v1 cannot be used \(.*overloaded"):
        source(server, tmp_path, attempts=2).related(Concept(name="fox"))
    assert len(server.asked) == 4


def test_a_wrong_key_is_not_tried_again(server: Server, tmp_path: Path) -> None:
    server.faults = [lambda h: h.body('{"error": {"message": "wrong key"}}', 401)]
    with pytest.raises(ExpungeError, match="wrong key"):
        source(server, tmp_path).related(GOLF_BALL)
    assert len(server.asked) == 1


def test_a_server_that_is_silent_is_left_in_time(server: Server, tmp_path: Path) -> None:
    asked = source(server, tmp_path, attempts=2, timeout_seconds=0.5)
    server.faults = [lambda h: time.sleep(1.5)]
    assert asked.related(GOLF_BALL)
    assert len(server.asked) == 2
    server.faults = [lambda h: time.sleep(1.5)] * 2
    sentence = r"did not answer within 0.5 seconds, in 2 attempts\. Raise prompts\.timeout_seconds"
    with pytest.raises(ExpungeError, match=sentence):
        asked.related(Concept(name="fox"))
    assert len(server.asked) == 4


def test_a_server_that_is_not_there_is_named(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ExpungeError, match=r"http://127\.0\.0\.1:9/v1 cannot be used"):
        source(server, tmp_path, attempts=1, base_url="http://127.0.0.1:9/v1").related(GOLF_BALL)
