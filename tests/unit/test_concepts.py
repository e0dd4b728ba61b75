"""Does a prompt speak of a concept? Known answers."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from expunge.concepts import Concept, Request, alike, mentions, words

APPLE = Concept(name="apple", confusables=("pineapple", "apple pie"))
GOLF_BALL = Concept(name="golf ball", aliases=("golfing ball",), confusables=("tennis ball",))
BALL = Concept(name="ball", confusables=("tennis ball", "golf ball"))
MONA_LISA = Concept(name="Mona Lisa", aliases=("La Gioconda", "La Joconde"))


@pytest.mark.parametrize(
    "prompt",
    [
        "apple",
        "a photo of an apple",
        "An APPLE on a table.",
        "two apples, one red",
        "the apple's core",
        "the apple\u2019s core",
        "an apple-shaped lamp",
        "apple_tree",
        "(apple:1.3), best quality",
        "a pineapple beside an apple",
        "an apple and an apple pie",
        "apple\nphoto",
        "🍎apple🍎",
    ],
)
def test_a_prompt_that_speaks_of_an_apple(prompt: str) -> None:
    assert mentions(prompt, APPLE) == "apple"


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "   ",
        "🍎",
        "a pineapple",
        "two pineapples",
        "an apple pie",
        "two apple pies",
        "an apple-pie",
        "a crabapple",
        "applesauce",
        "apply the brush",
        "a pear",
        "an app le",
    ],
)
def test_a_prompt_that_does_not_speak_of_an_apple(prompt: str) -> None:
    assert mentions(prompt, APPLE) is None


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("a golf ball", "golf ball"),
        ("three golf balls in the grass", "golf ball"),
        ("a golf-ball", "golf ball"),
        ("Golf  Ball", "golf ball"),
        ("golf, ball", "golf ball"),
        ("a golfing ball", "golfing ball"),
        ("two golfing balls and a golf ball", "golf ball"),
        ("a tennis ball", None),
        ("golf on a field, a ball beside it", None),
        ("a ball", None),
        ("ball golf", None),
        ("golf", None),
    ],
)
def test_a_phrase_counts_as_a_whole_and_under_any_of_its_names(prompt: str, name: str | None) -> None:
    assert mentions(prompt, GOLF_BALL) == name


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("a tennis ball", None),
        ("golf balls and tennis balls", None),
        ("a tennis ball and a red ball", "ball"),
        ("balls", "ball"),
        ("a tennis player with a ball", "ball"),
    ],
)
def test_words_inside_a_confusable_do_not_count(prompt: str, name: str | None) -> None:
    assert mentions(prompt, BALL) == name


def test_a_name_that_only_overlaps_a_confusable_counts() -> None:
    concept = Concept(name="apple pie", confusables=("pie chart", "pie"))
    assert mentions("a warm apple pie", concept) == "apple pie"
    assert mentions("an apple pie chart", concept) == "apple pie"
    assert mentions("a pie chart of an apple", concept) is None


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("berry", "a bowl of berries"),
        ("wolf", "a pack of wolves"),
        ("leaf", "golden leaves"),
        ("knife", "two knives"),
        ("box", "cardboard boxes"),
        ("bus", "three buses"),
        ("church", "old churches"),
        ("potato", "potatoes in a sack"),
        ("toy", "toys"),
        ("roof", "red roofs"),
        ("straw berry", "straw berries"),
        ("R2D2", "r2d2 in the desert"),
        ("3D render", "3d renders"),
    ],
)
def test_regular_plurals_count(name: str, prompt: str) -> None:
    assert mentions(prompt, Concept(name=name)) == name


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("mouse", "two mice"),
        ("goose", "geese in flight"),
        ("man", "three men"),
        ("woman", "women at work"),
        ("snowman", "a row of snowmen"),
        ("child", "children playing"),
        ("person", "people in a park"),
        ("foot", "bare feet"),
        ("tooth", "white teeth"),
        ("ox", "two oxen"),
        ("quiz", "quizzes on paper"),
        ("cactus", "cacti in the desert"),
        ("stadium", "two stadia"),
        ("oasis", "desert oases"),
        ("matrix", "matrices of dots"),
        ("Mickey Mouse", "two Mickey Mice"),
        ("mice", "a mouse"),
        ("Spiderman", "two Spider-Men"),
    ],
)
def test_irregular_plurals_count(name: str, prompt: str) -> None:
    assert mentions(prompt, Concept(name=name)) == name


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("Beyoncé", "Beyonce sings"),
        ("Beyonce", "BEYONCÉ sings"),
        ("Pokémon", "a pokemon card"),
        ("golf ball", "a golfball"),
        ("golf ball", "two golfballs"),
        ("spiderman", "Spider-Man swings"),
        ("spiderman", "spider man swings"),
        ("Spider-Man", "spiderman swings"),
        ("van gogh style", "in VanGogh style"),
    ],
)
def test_accents_and_joined_spellings_do_not_hide_a_name(name: str, prompt: str) -> None:
    assert mentions(prompt, Concept(name=name)) == name


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("cabin", "a yellow cab in the rain"),
        ("apple", "a pineapple"),
        ("golf ball", "a tennis ball"),
        ("ball", "a ballet"),
        ("bus", "a bi"),
        ("gum", "ga"),
        ("human", "a man"),
        ("men", "a moment"),
        ("golf ball", "golfballoon"),
    ],
)
def test_other_words_stay_other_words(name: str, prompt: str) -> None:
    assert mentions(prompt, Concept(name=name)) is None


@pytest.mark.parametrize(
    ("name", "confusable"),
    [("rose", "rosé"), ("glass", "glasses"), ("golf ball", "golfball"), ("spiderman", "spider man")],
)
def test_a_confusable_is_let_through_only_as_it_is_written(name: str, confusable: str) -> None:
    concept = Concept(name=name, confusables=(confusable,))
    assert mentions(f"a {name}", concept) == name
    assert mentions(f"a {confusable}", concept) is None


@pytest.mark.parametrize(
    ("name", "prompt"),
    [("berry", "a berr"), ("wolf", "a wolve"), ("cat", "a cathedral"), ("art", "a party"), ("ice", "mice")],
)
def test_parts_of_words_do_not_count(name: str, prompt: str) -> None:
    assert mentions(prompt, Concept(name=name)) is None


@pytest.mark.parametrize("prompt", ["the MONA LISA", "Mona-Lisa smiling", "la gioconda", "La  Joconde, 1503"])
def test_aliases_and_case(prompt: str) -> None:
    assert mentions(prompt, MONA_LISA) in MONA_LISA.names
    assert mentions("a portrait of Lisa in Monaco", MONA_LISA) is None


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("café", "Inside a CAFÉ"),
        ("Straße", "eine STRASSE im Regen"),
        ("تفاحة", "صورة تفاحة حمراء"),
        ("яблоко", "Красное Яблоко"),
        ("苹果", "红 苹果"),
        ("Ноутбук 🍎", "ноутбук 🍎 на столе"),
    ],
)
def test_names_in_other_scripts(name: str, prompt: str) -> None:
    assert mentions(prompt, Concept(name=name)) == name


def test_words() -> None:
    assert words("A golf-ball's under_score, №5 — 3D!") == ["a", "golf", "ball", "s", "under", "score", "no5", "3d"]
    assert words("🍎 …") == []


# -- what a concept may be --------------------------------------------------------------------------------------------


def test_names_are_stripped_of_stray_spaces() -> None:
    assert Concept(name="  golf \n ball ").name == "golf ball"


@pytest.mark.parametrize("name", ["", "   ", "🍎", "--", "x" * 201])
def test_a_name_needs_a_word_and_an_end(name: str) -> None:
    with pytest.raises(ValidationError, match=r"name of a concept|a concept needs a name"):
        Concept(name=name)


def test_200_characters_are_allowed() -> None:
    assert len(Concept(name="x" * 200).name) == 200


@pytest.mark.parametrize("confusable", ["apple", "Apple", "malus domestica", "Malus-Domestica"])
def test_a_name_cannot_be_its_own_confusable(confusable: str) -> None:
    with pytest.raises(ValidationError, match="both a name of 'apple' and a confusable"):
        Concept(name="apple", aliases=("Malus domestica",), confusables=(confusable,))


def test_concepts_are_frozen_and_refuse_unknown_fields() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        APPLE.name = "pear"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="synonyms"):
        Concept(name="apple", synonyms=("fruit",))  # type: ignore[call-arg]


def test_names_are_the_name_and_its_aliases() -> None:
    assert MONA_LISA.names == ("Mona Lisa", "La Gioconda", "La Joconde")
    assert APPLE.kind == "object"


def test_a_concept_survives_json() -> None:
    assert Concept.model_validate_json(MONA_LISA.model_dump_json()) == MONA_LISA


def test_a_request_names_at_least_one_concept() -> None:
    with pytest.raises(ValidationError, match="concepts"):
        Request(id="1", concepts=(), received_at="2026-01-01T00:00:00+00:00")
    request = Request(id="1", concepts=(APPLE, GOLF_BALL), received_at="2026-01-01T00:00:00+00:00")
    assert [concept.name for concept in request.concepts] == ["apple", "golf ball"]


@pytest.mark.parametrize("field", ["aliases", "confusables"])
@pytest.mark.parametrize("text", ["🍎", "", "--"])
def test_aliases_and_confusables_need_a_word_too(field: str, text: str) -> None:
    with pytest.raises(ValidationError):
        Concept.model_validate({"name": "apple", field: (text,)})


def test_composed_and_decomposed_letters_are_equal() -> None:
    assert mentions("a Poke\u0301mon card", Concept(name="Pok\u00e9mon")) == "Pok\u00e9mon"


def test_combining_marks_belong_to_their_word() -> None:
    assert words("हिन्दी") == ["हिन्दी"]
    assert mentions("सोब", Concept(name="सेब")) is None


@pytest.mark.parametrize(("name", "prompt"), [("apples", "an apple"), ("berries", "one berry"), ("wolves", "a wolf")])
def test_a_name_in_the_plural_counts_in_the_singular(name: str, prompt: str) -> None:
    assert mentions(prompt, Concept(name=name)) == name


@pytest.mark.parametrize("other", ["Tennis ball", "tennis-ball", "TENNISBALL", "tennis balls", "tènnis ball"])
def test_a_name_is_the_same_however_it_is_written(other: str) -> None:
    assert alike("tennis ball", other)
    assert alike(other, "tennis ball")
    assert not alike(other, "ball")
    assert not alike(other, "table tennis ball")
