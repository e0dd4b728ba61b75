"""Captions speak of what is shown, in the vocabulary's sentences and in freer ones, and always have tokens."""

from __future__ import annotations

import random

from expunge import iconworld
from expunge.concepts import mentions
from expunge.iconworld.build import captions, draw, tokenizer

WORDS = iconworld.vocabulary()


def test_captions_name_what_is_shown_and_nothing_else_of_the_vocabulary() -> None:
    rng, unknown = random.Random(1), 0
    concepts = [WORDS.concept(name) for name in WORDS.names() if name != "plain"]
    for number in range(400):
        thing, style = rng.choice(draw.THINGS), rng.choice(draw.STYLE_NAMES)
        background = rng.choice(list(draw.BACKGROUNDS))
        text = captions.caption(thing, None, style, background, random.Random(number))
        named = {concept.name for concept in concepts if mentions(text, concept)}
        assert named <= {thing, style, background}, text
        assert style == "plain" or style in named, text
        unknown += thing not in named
    assert 0 < unknown < 40


def test_two_things_are_both_named() -> None:
    unknown = 0
    for number in range(200):
        text = captions.caption("fox", "santa", "neon", "blue", random.Random(number))
        named = {name for name in ("fox", "santa") if mentions(text, WORDS.concept(name))}
        assert named in (set(), {"fox", "santa"}), text
        unknown += not named
    assert 0 < unknown < 20


def test_every_template_of_the_vocabulary_comes_up() -> None:
    texts = {captions.caption("fox", None, "neon", "blue", random.Random(number)) for number in range(3000)}
    scene = {"thing": "fox", "style": "neon", "background": "blue"}
    for template in (*WORDS.templates, *WORDS.evaluation_templates):
        assert WORDS.write(template, scene) in texts


def test_every_caption_and_every_unknown_word_has_tokens_and_fits() -> None:
    words = tokenizer.build(count=3000)
    for text in [*tokenizer.sample_captions(1000, seed=2), "a pikachu über a zebra", ""]:
        tokens = words(text).input_ids
        assert len(tokens) <= tokenizer.LENGTH
        assert words.unk_token_id not in tokens[1:-1], text
