"""What mapping and retain choices choose, read from the record that a step keeps."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from expunge import iconworld
from expunge.backbones import Backbone, load
from expunge.concepts import Concept, mentions
from expunge.errors import ExpungeError
from expunge.methods import METHODS, Earlier, Record, StepContext
from expunge.prompts import Candidate, ForgetPrompt, PromptFolder, Vocabulary
from steps import SMALL, built, context, earlier

PROMPTS = Path(__file__).parents[1] / "data" / "prompts"


@pytest.fixture(scope="module")
def backbone(sd_folder: Any) -> Backbone:
    """Choices read prompts and distances; one family is enough."""
    return load(sd_folder)


def test_null_maps_every_prompt_to_the_empty_one(backbone: Backbone) -> None:
    record = _record(backbone, mapping="null")
    assert {p["prompt"] for p in record.prompts["mapping"]} == {""}


def test_fixed_puts_the_given_word_in_the_concepts_place_and_keeps_the_scene(backbone: Backbone) -> None:
    record = _record(backbone, mapping="fixed", mapping_target={"object": "wolf"})
    for forget, mapping in _pairs(record):
        assert mapping == forget.replace("fox", "wolf") != forget


@pytest.mark.parametrize("target", ["plum", "Plum"])
def test_prompts_that_the_target_cannot_be_written_in_are_left_out(
    backbone: Backbone, tmp_path: Path, target: str
) -> None:
    folder = shutil.copytree(PROMPTS, tmp_path / "prompts")
    file = folder / "golf_ball" / "candidates_clip.json"
    file.write_text(file.read_text().replace('"replacement": "plum"', '"replacement": "fig"', 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = PromptFolder(folder)
    concept = source.concept("golf ball")
    step = context(backbone, source=source, concepts=(concept,), earlier=(), held_out=frozenset())
    retained = {"retain": "local", "retain_prompts": 4}
    record = _record(backbone, step, mapping="fixed", mapping_target={"object": target}, **retained)
    assert len(record.prompts["mapping"]) == 3
    for forget, mapping in _pairs(record):
        assert "golf ball" in forget
        assert "lum" in mapping
    source.check_replacement(concept, target)
    with pytest.raises(
        ExpungeError, match=r"No mapping candidate of 'golf ball' in .* has 'pear' in its place\. Known: "
    ):
        source.check_replacement(concept, "pear")
    step = dataclasses.replace(step, held_out=frozenset({"Plum"}))
    with pytest.raises(ExpungeError, match="can write 'object' in the place of 'golf ball' in none of its prompts"):
        _record(backbone, step, mapping="superclass", **retained)


def test_a_word_that_few_prompts_of_a_folder_have_is_found_in_all_of_these(backbone: Backbone, tmp_path: Path) -> None:
    """Whichever prompts are drawn first."""
    folder = Path(shutil.copytree(Path(__file__).parents[1] / "data" / "prompts", tmp_path / "prompts"))
    candidates = json.loads((folder / "golf_ball/candidates_clip.json").read_text())
    rare = [id for id, entry in enumerate(candidates) if id in (1, 3)]
    for place in rare:
        entry = candidates[place]["candidates"][0]
        entry |= {"prompt": entry["prompt"].replace(entry["replacement"], "hen"), "replacement": "hen"}
    (folder / "golf_ball/candidates_clip.json").write_text(json.dumps(candidates))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = PromptFolder(folder)
    concept = source.concept("golf ball")
    for seed in range(4):
        step = context(backbone, source=source, concepts=(concept,), earlier=(), held_out=frozenset(), seed=seed)
        record = _record(
            backbone, step, mapping="fixed", mapping_target={"object": "hen"}, forget_prompts=1, neighbours="source"
        )
        assert "hen" in record.prompts["mapping"][0]["prompt"]


@pytest.mark.parametrize(("now", "before"), [("ball", []), ("golf ball", ["ball"])])
def test_names_that_speak_of_what_is_gone_are_no_neighbours(backbone: Backbone, now: str, before: list[str]) -> None:
    source = Vocabulary.model_validate(
        {
            "schema": 1,
            "templates": ["{thing}", "a photo of {thing}"],
            "evaluation_templates": ["an image of {thing}"],
            "slots": {"thing": {"phrase": "{a} {}", "kind": "object"}},
            "groups": [
                {"name": "toys", "slot": "thing", "concepts": ["ball", "golf ball", "tennis ball", "kite"]},
                {"name": "beach", "slot": "thing", "concepts": ["beach ball", "shell"]},
            ],
        }
    )
    told = [Earlier(1, tuple(source.concept(name) for name in before))]
    step = context(backbone, source=source, concepts=(source.concept(now),), earlier=told, held_out=frozenset())
    record = _record(backbone, step, retain_concepts=1)
    assert set(record.choices["neighbours"][now]) == {"kite", "shell"}
    assert not any("ball" in p["prompt"] for p in record.prompts["mapping"])
    assert not any("ball" in p for p in record.prompts["retain"])


def test_a_held_out_neighbour_is_not_trained_on_however_it_is_written(backbone: Backbone) -> None:
    vocabulary = iconworld.vocabulary().model_copy(update={"aliases": {"wolf": ("grey wolf",)}})
    for held_out in ("wolf", "Wolf", "grey-wolf"):
        step = context(backbone, source=vocabulary, held_out=frozenset({held_out}))
        record = _record(
            backbone, step, retain="global", forget_prompts=20, mapping="contextual", mapping_candidates=90
        )
        words = [p for p in (*(p["prompt"] for p in record.prompts["mapping"]), *record.prompts["retain"])]
        assert "wolf" not in record.choices["neighbours"]["fox"]
        assert not any("wolf" in prompt for prompt in words)


def test_what_speaks_of_a_held_out_neighbour_is_not_trained_on(backbone: Backbone) -> None:
    words = iconworld.vocabulary().model_dump(mode="json", by_alias=True)
    words["groups"][0]["concepts"] = [*words["groups"][0]["concepts"], "arctic wolf"]
    source = Vocabulary.model_validate(words)
    step = context(backbone, source=source, held_out=frozenset({"wolf"}))
    record = _record(backbone, step, retain="local", forget_prompts=20, mapping="contextual", mapping_candidates=90)
    told = [*(p["prompt"] for p in record.prompts["mapping"]), *record.prompts["retain"]]
    assert record.choices["neighbours"]["fox"].keys().isdisjoint({"wolf", "arctic wolf"})
    assert not any("wolf" in prompt for prompt in told)
    assert not any("wolf" in p for p in source.retain_prompts(["arctic wolf", "dog"], 9, 1, frozenset({"wolf"})))
    record = _record(backbone, context(backbone, held_out=frozenset({"cat"})))
    assert "wolf" in record.choices["neighbours"]["fox"]


def test_superclass_puts_the_concepts_kind_in_its_place(backbone: Backbone) -> None:
    for forget, mapping in _pairs(_record(backbone, mapping="superclass")):
        assert mapping == forget.replace("a fox", "an object") != forget
    person = dataclasses.replace(context(backbone), concepts=(Concept(name="fox", kind="person"),))
    for forget, mapping in _pairs(_record(backbone, person, mapping="superclass")):
        assert mapping == forget.replace("fox", "person") != forget


def test_contextual_deals_replacements_evenly_and_keeps_the_scene(backbone: Backbone) -> None:
    record = _record(backbone, mapping="contextual", mapping_candidates=3, forget_prompts=9)
    near = list(record.choices["neighbours"]["fox"])[:3]
    dealt = [choice["mapping"][0]["replacement"] for choice in record.choices["mapping"]]
    assert Counter(dealt) == dict.fromkeys(near, 3)
    for (forget, mapping), name in zip(_pairs(record), dealt, strict=True):
        assert f"{mapping.replace(name, 'fox')}".replace("an fox", "a fox") == forget
    assert not [d for c in record.choices["mapping"] for d in c["distances"]]  # nobody was asked how near they are


def test_score_takes_the_nearest_candidates_and_one_target_is_the_first_of_several(backbone: Backbone) -> None:
    one, three = (_record(backbone, mapping="score", mapping_candidates=6, mapping_targets=n) for n in (1, 3))
    assert all(set(c["distances"]) for c in three.choices["mapping"])
    for single, several in zip(one.choices["mapping"], three.choices["mapping"], strict=True):
        order = sorted(several["distances"])
        near = list(one.choices["neighbours"]["fox"])
        by_distance = [near[several["distances"].index(d)] for d in order[:3]]
        assert [m["replacement"] for m in several["mapping"]] == by_distance
        assert single["mapping"] == several["mapping"][:1]
    ids = [p["id"] for p in three.prompts["mapping"]]
    assert ids == [p["id"] for p in three.prompts["forget"]]
    assert set(Counter(ids).values()) == {3}


@pytest.mark.parametrize("method", METHODS)
def test_every_mapping_is_there_for_every_method(method: str, backbone: Backbone) -> None:
    for mapping in ("null", "fixed", "superclass", "contextual", "score"):
        changes: dict[str, Any] = {"mapping": mapping, "mapping_targets": 1}
        if mapping == "fixed":
            changes["mapping_target"] = {"object": "wolf", "style": "watercolor"}
        record = _record(backbone, method=method, **changes)
        assert len(record.prompts["mapping"]) == SMALL[method]["forget_prompts"]


def test_the_source_may_say_who_is_near_instead_of_the_model(backbone: Backbone) -> None:
    by_source = _record(backbone, neighbours="source").choices["neighbours"]["fox"]
    by_score = _record(backbone, neighbours="score").choices["neighbours"]["fox"]
    step = context(backbone)
    assert list(by_source) == [n for n in step.source.related(step.concepts[0]) if n not in step.off_limits]
    assert set(by_source.values()) == {None}
    assert list(by_score.values()) == sorted(by_score.values())
    assert by_source.keys() == by_score.keys()
    assert list(by_source) != list(by_score)


@pytest.mark.parametrize(
    ("changes", "local"),
    [({"retain": "local"}, 12), ({"retain": "global"}, 0), ({"retain": "mixed", "local_share": 2 / 3}, 8)],
)
def test_retain_prompts_are_local_global_or_a_share_of_both(
    backbone: Backbone, changes: dict[str, Any], local: int
) -> None:
    record = _record(backbone, **changes, retain_concepts=4, retain_prompts=12)
    near = [Concept(name=n) for n in list(record.choices["neighbours"]["fox"])[:4]]
    prompts = record.prompts["retain"]
    assert [any(mentions(p, n) for n in near) for p in prompts] == [True] * local + [False] * (12 - local)


def test_where_nothing_is_far_all_that_is_mixed_is_local(backbone: Backbone) -> None:
    near = {"name": "toys", "slot": "thing", "concepts": ["ball", "kite", "top"]}
    source = Vocabulary.model_validate(
        {
            "schema": 1,
            "templates": ["{thing}", "a photo of {thing}"],
            "evaluation_templates": ["an image of {thing}"],
            "slots": {"thing": {"phrase": "{a} {}", "kind": "object"}},
            "groups": [near],
        }
    )
    step = context(backbone, source=source, concepts=(source.concept("ball"),), earlier=(), held_out=frozenset())
    for share in (0.0, 0.5):
        retained = _record(backbone, step, retain="mixed", local_share=share, retain_prompts=6).prompts["retain"]
        assert [sum(name in p for p in retained) for name in ("kite", "top")] == [3, 3]
    with pytest.raises(ExpungeError, match=r"Nothing is far from 'ball': .* \(retain_concepts = 3\)"):
        _record(backbone, step, retain="global")


def test_earlier_concepts_are_steered_again_to_what_is_still_there(backbone: Backbone) -> None:
    before = earlier("neon"), earlier("santa", "pear")
    step = context(backbone, earlier=before)
    again = _record(backbone, step, lambda_again=1.0, again_prompts=7).choices["again"]
    assert Counter(c["concept"] for c in again) == {"neon": 2, "santa": 2, "pear": 2}
    gone = (*step.concepts, *step.forgotten, Concept(name="cat"))
    for choice in again:
        assert any(mentions(choice["forget"], c) for c in step.forgotten)
        assert not [m["prompt"] for m in choice["mapping"] for c in gone if mentions(m["prompt"], c)]
    one = [
        _record(backbone, dataclasses.replace(step, seed=seed), lambda_again=1.0, again_prompts=1) for seed in range(9)
    ]
    assert {len(record.choices["again"]) for record in one} == {1}  # more concepts than prompts: they take turns
    assert len({record.choices["again"][0]["concept"] for record in one}) > 1
    assert _record(backbone, step).choices["again"] == []
    assert _record(backbone, context(backbone, earlier=()), lambda_again=1.0).choices["again"] == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"mapping": "fixed"}, "mapping_target names nothing for 'object', the kind of 'fox'"),
        ({"mapping": "fixed", "mapping_target": {"object": "cat"}}, "which is held out"),
        ({"mapping": "fixed", "mapping_target": {"object": "big fox"}}, "speaks of 'fox', which must be forgotten"),
        ({"mapping": "fixed", "mapping_target": {"object": "neon fish"}}, "speaks of 'neon', which must be forgotten"),
    ],
)
def test_a_target_that_cannot_be_is_answered_with_a_sentence(
    backbone: Backbone, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ExpungeError) as error:
        _record(backbone, **changes)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"mapping": "score", "mapping_target": {"object": "dog"}}, 'mapping_target is for the mapping "fixed"'),
        ({"mapping": "fixed", "mapping_target": {"object": "an apple"}}, "leave out the article"),
        ({"mapping": "fixed", "mapping_target": {"object": " "}}, "at least one letter or digit"),
        ({"mapping": "null", "mapping_targets": 2}, "a prompt has 1"),
        ({"mapping": "score", "mapping_targets": 3}, "mapping_candidates 2 a prompt has 2"),
        ({"mapping": "nearest"}, "'null', 'fixed', 'superclass', 'contextual' or 'score'"),
        ({"local_share": 1.5}, "local_share"),
    ],
)
def test_choices_that_contradict_each_other_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError) as error:
        built("lacu", **changes)
    assert sentence in str(error.value)


def test_a_source_with_too_few_candidates_is_named_with_its_prompt(backbone: Backbone) -> None:
    step = context(backbone, held_out=frozenset(iconworld.vocabulary().names("thing")) - {"fox", "wolf"})
    with pytest.raises(ExpungeError, match=r"id 1\) has too few mapping candidates: 1, and mapping_targets is 2"):
        _record(backbone, step, retain="local", mapping_targets=2)


class Leaking(Vocabulary):
    """A prompt of the kind `leaks` is not what was asked for."""

    leaks: str

    def forget_prompts(self, *asked: Any) -> list[ForgetPrompt]:
        first, *rest = super().forget_prompts(*asked)
        if self.leaks == "forget":
            first = dataclasses.replace(first, prompt="a bus in the snow")
        if self.leaks == "mapping":
            first = dataclasses.replace(first, candidates=(Candidate("a neon bus", "bus"),))
        return [first, *rest]

    def retain_prompts(self, *asked: Any) -> list[str]:
        own = super().retain_prompts(*asked)
        return ["two foxes in the snow", *own[1:]] if self.leaks == "retain" else own


@pytest.mark.parametrize(
    ("leaks", "sentence"),
    [
        ("forget", "The forget prompt 'a bus in the snow' (id 1) does not speak of 'fox'."),
        ("mapping", "The mapping prompt 'a neon bus' speaks of 'neon', which must be forgotten."),
        ("retain", "The retain prompt 'two foxes in the snow' speaks of 'fox', which must be forgotten."),
    ],
)
def test_a_prompt_of_a_source_that_leaks_is_told(leaks: str, sentence: str, backbone: Backbone) -> None:
    source = Leaking.model_validate({**iconworld.vocabulary().model_dump(by_alias=True), "leaks": leaks})
    with pytest.raises(ExpungeError, match=f"^{re.escape(sentence)}$"):
        _record(backbone, context(backbone, source=source), mapping="contextual")


def _record(backbone: Backbone, step: StepContext | None = None, method: str = "lacu", **changes: Any) -> Record:
    record: Record = built(method, **changes).prepare(step or context(backbone))[1]
    return record


def _pairs(record: Record) -> list[tuple[str, str]]:
    prompts = record.prompts
    return [(f["prompt"], m["prompt"]) for f, m in zip(prompts["forget"], prompts["mapping"], strict=True)]


def test_earlier_concepts_are_not_ranked_again(backbone: Backbone) -> None:
    """Their replacements come from the ranking of their own step, without what was forgotten since."""
    settings = {"lambda_again": 1.0, "again_prompts": 4, "mapping": "contextual", "mapping_candidates": 2}
    near = {"neon": ["fox", "mosaic", "watercolor", "halftone"]}
    told = context(backbone, earlier=(earlier("neon", near=near),))
    record = _record(backbone, told, **settings)
    used = [choice["mapping"][0]["replacement"] for choice in record.choices["again"]]
    assert used == ["mosaic", "watercolor", None, "mosaic"]  # dealt in turn; None is the style left out
    asked = told.teacher.evaluations.forward
    _record(backbone, fresh := context(backbone), **settings)
    assert fresh.teacher.evaluations.forward > asked
