"""Prompts from a vocabulary: paired, free of what must not be shown, apart from evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest

from expunge import iconworld
from expunge.concepts import mentions
from expunge.errors import ExpungeError
from expunge.prompts import Vocabulary

VOCABULARY = iconworld.vocabulary()
FOX, NEON, PINK = (VOCABULARY.concept(name) for name in ("fox", "neon style", "pink"))


def test_a_concept_is_found_by_alias_and_gets_its_kind() -> None:
    assert NEON.name == "neon"
    assert NEON.kind == "style"
    assert VOCABULARY.concept("Bunny").name == "rabbit"
    assert VOCABULARY.concept("santa").kind == "character"


def test_an_unknown_concept_is_answered_with_the_nearest_names() -> None:
    with pytest.raises(ExpungeError, match="Did you mean fox"):
        VOCABULARY.concept("foxx")


def test_what_an_open_slot_means_is_no_concept_to_ask_for() -> None:
    with pytest.raises(ExpungeError, match="cannot be asked to go"):
        VOCABULARY.concept("plain")
    assert "plain" not in [*VOCABULARY.related(NEON), *VOCABULARY.unrelated(FOX)]
    assert "mosaic" in VOCABULARY.related(NEON)
    assert "mosaic" in VOCABULARY.unrelated(FOX)


def test_candidates_keep_the_scene_and_replace_the_concept_alone() -> None:
    for prompt in VOCABULARY.forget_prompts(FOX, ["wolf", "dog"], 24, 1, frozenset({"neon"})):
        assert mentions(prompt.prompt, FOX)
        assert not mentions(prompt.prompt, NEON)
        assert [c.prompt for c in prompt.candidates] == [prompt.prompt.replace("fox", n) for n in ("wolf", "dog")]


def test_a_concept_can_be_left_out_where_that_has_a_plain_meaning() -> None:
    for prompt in VOCABULARY.forget_prompts(NEON, ["mosaic"], 8, 1, frozenset()):
        assert prompt.candidates[-1].replacement is None
        assert prompt.candidates[-1].prompt == prompt.prompt.replace(" in neon style", "")
    for prompt in VOCABULARY.forget_prompts(
        PINK, ["gray"], 8, 1, frozenset()
    ):  # no ground is any ground, a pink one too
        assert [c.replacement for c in prompt.candidates] == ["gray"]


def test_retain_prompts_show_every_name_and_none_to_avoid() -> None:
    prompts = VOCABULARY.retain_prompts(["cat", "wolf", "mosaic"], 30, 3, frozenset({"wolf", "neon"}))
    assert len(prompts) == 30
    assert any("cat" in p for p in prompts)
    assert any("mosaic" in p for p in prompts)
    assert not any("wolf" in p or "neon" in p for p in prompts)
    with pytest.raises(ExpungeError, match="No concept is left"):
        VOCABULARY.retain_prompts(["wolf"], 3, 3, frozenset({"wolf"}))


def test_a_slot_without_any_value_left_is_named() -> None:
    with pytest.raises(ExpungeError, match="No value is left for the thing"):
        VOCABULARY.forget_prompts(NEON, ["mosaic"], 2, 1, frozenset(VOCABULARY.names("thing")))


def test_draws_depend_on_the_seed_alone() -> None:
    first, again, other = (VOCABULARY.forget_prompts(FOX, ["wolf"], 12, seed, frozenset()) for seed in (1, 1, 2))
    assert first == again != other


def test_values_come_up_about_equally_often() -> None:
    drawn = [p.scene for p in VOCABULARY.evaluation_prompts(FOX, 80, 0, frozenset(), {"style": ("plain", "neon")})]
    styles = [scene.get("style") for scene in drawn]
    assert styles.count("neon") == styles.count(None) == 40


def test_no_training_prompt_is_ever_an_evaluation_prompt() -> None:
    names = [*VOCABULARY.names("thing"), *VOCABULARY.related(NEON)]
    trained = set(VOCABULARY.retain_prompts(names, 4000, 5, frozenset()))
    asked = {
        p.prompt for n in names for p in VOCABULARY.evaluation_prompts(VOCABULARY.concept(n), 40, 6, frozenset(), {})
    }
    assert len(asked) > 1000
    assert not trained & asked


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("not toml", "cannot be used"),
        (
            'schema = 1\ntemplates = ["{thing}"]\nevaluation_templates = ["{thing}"]\ngroups = []\n'
            '[slots.thing]\nphrase = "{}"\nkind = "object"',
            "makes the prompts of the training template '{thing}'",
        ),
        (
            'schema = 1\ntemplates = ["{thing}{style}{ground}"]\nevaluation_templates = ["{thing}{ground}{style}"]\n'
            '[[groups]]\nname = "a"\nslot = "thing"\nconcepts = ["ball"]\n[slots.thing]\nphrase = "{}"\nkind = "object"\n'
            '[slots.style]\nphrase = " in {} style"\nkind = "style"\noptional = true\n'
            '[slots.ground]\nphrase = " on {}"\nkind = "background"\noptional = true\n',
            "makes the prompts of the training template '{thing}{style}{ground}' without style",
        ),
        (
            'schema = 1\ntemplates = ["{thing}"]\nevaluation_templates = ["an image of {thing}"]\n'
            '[slots.thing]\nphrase = "{}"\nkind = "object"\n[[groups]]\nname = "a"\nslot = "thing"\n'
            'concepts = ["soccer ball", "football"]\n[aliases]\n"soccer ball" = ["Football"]',
            "'football' means both 'soccer ball' and 'football'",
        ),
    ],
)
def test_a_bad_file_is_named_with_what_is_wrong(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "words.toml"
    path.write_text(text)
    with pytest.raises(ExpungeError, match=complaint) as error:
        Vocabulary.read(path)
    assert str(path) in str(error.value)


WORDS = """schema = 1
templates = ["{thing}"]
evaluation_templates = ["an image of {thing}"]
[slots.thing]
phrase = "{a} {}"
kind = "object"
[[groups]]
name = "things"
slot = "thing"
concepts = ["car", "race car", "golf ball", "tennis ball"]
[aliases]
"golf ball" = ["golfball"]
[confusables]
"""


def test_a_group_may_be_written_in_another_way(tmp_path: Path) -> None:
    path = tmp_path / "words.toml"
    people = (
        '[[groups]]\nname = "people"\nslot = "thing"\nkind = "person"\nphrase = "{}"\nconcepts = ["Ada Lovelace"]\n'
    )
    path.write_text(WORDS.replace("[aliases]", f"{people}[aliases]"))
    source = Vocabulary.read(path)
    ada = source.concept("Ada Lovelace")
    (prompt,) = source.forget_prompts(ada, ["car", "Ada Lovelace"], 1, 1, frozenset())
    assert prompt.prompt == "Ada Lovelace"
    assert [c.prompt for c in prompt.candidates] == ["a car", "Ada Lovelace"]
    for phrase, complaint in (("{b} {}", "cannot be written"), ("{a}", "does not say where the value stands")):
        path.write_text(WORDS.replace("[aliases]", f"{people}[aliases]".replace('"{}"', f'"{phrase}"')))
        with pytest.raises(ExpungeError, match=complaint):
            Vocabulary.read(path)


def test_confusables_of_the_file_do_not_count_as_leaks(tmp_path: Path) -> None:
    path = tmp_path / "words.toml"
    path.write_text(WORDS + 'car = ["race car"]\n"golf ball" = ["tennis ball"]')
    told = Vocabulary.read(path)
    path.write_text(WORDS)
    plain = Vocabulary.read(path)
    assert mentions("a race car", plain.concept("car")) == "car"
    assert mentions("a race car", told.concept("car")) is None
    assert mentions("a race car beside a car", told.concept("car")) == "car"
    assert mentions("golf balls", told.concept("golfball")) == "golf ball"
    assert mentions("a tennis ball", told.concept("golf ball")) is None
    assert told.digest != plain.digest


def test_what_speaks_of_the_concept_cannot_stand_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "words.toml"
    path.write_text(WORDS)
    plain = Vocabulary.read(path)
    assert plain.related(plain.concept("car")) == ["golf ball", "tennis ball"]
    assert plain.related(plain.concept("race car")) == ["car", "golf ball", "tennis ball"]
    path.write_text(WORDS + 'car = ["race car"]')
    told = Vocabulary.read(path)
    assert told.related(told.concept("car")) == ["race car", "golf ball", "tennis ball"]
    path.write_text(WORDS.replace(', "golf ball", "tennis ball"', "").replace('"golf ball" = ["golfball"]', ""))
    alone = Vocabulary.read(path)
    with pytest.raises(
        ExpungeError, match=r"could stand in the place of 'car': add one, or name .* in \[confusables\]"
    ):
        alone.related(alone.concept("car"))
    assert alone.alternatives(alone.concept("car")) == alone.unrelated(alone.concept("car")) == []


def test_what_speaks_of_the_concept_stands_in_no_other_prompt_of_training(tmp_path: Path) -> None:
    path = tmp_path / "words.toml"
    ball = WORDS.replace('"car", "race car"', '"ball", "kite"').replace('["{thing}"]', '["{thing}{style}"]')
    styled = ball.replace('"an image of {thing}"', '"an image of {thing}{style}"') + (
        '[slots.style]\nphrase = " in {} style"\nkind = "style"\n'
        '[[groups]]\nname = "styles"\nslot = "style"\nconcepts = ["neon"]\n'
    )

    def shown(told: str) -> set[str]:
        path.write_text(styled.replace("[confusables]\n", f"[confusables]\n{told}\n"))
        source, avoid = Vocabulary.read(path), frozenset({"ball"})
        style = source.concept("neon")
        return {
            *source.retain_prompts(["neon"], 8, 1, avoid),
            *(p.prompt for p in source.forget_prompts(style, [], 8, 1, avoid)),
        }

    assert shown("") == {"a kite in neon style"}
    assert shown('ball = ["golf ball"]') == {"a kite in neon style", "a golf ball in neon style"}


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('boat = ["ship"]', "confusables are given for concepts that do not exist"),
    ],
)
def test_confusables_that_cannot_be_are_named(tmp_path: Path, line: str, complaint: str) -> None:
    path = tmp_path / "words.toml"
    path.write_text(WORDS + line)
    with pytest.raises(ExpungeError, match=complaint):
        Vocabulary.read(path)
