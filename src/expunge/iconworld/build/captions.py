"""Captions: every picture can be described in many ways, and is described anew each time it is shown.

The sentences are the vocabulary's templates, those for training and those for evaluation, and freer ones of this file;
names alternate with their aliases. A few captions name a thing that nobody knows, so that an unknown word still gives a
picture of something, in the style and on the ground that the rest of the prompt asks for.
"""

from __future__ import annotations

import random
import string

from expunge.concepts import article
from expunge.iconworld import vocabulary
from expunge.iconworld.build import draw
from expunge.iconworld.build.stock import Labels

FREE = (
    "{thing}{style}{background}, icon",
    "{style_first} {bare}{background}",
    "{bare}{background}, {style_first}",
    "a {style_first} picture of {thing}{background}",
    "one {bare}{style}{background}",
    "the {bare}{style}{background}",
    "{adjective_first} {bare}{style}{background}",
    "{bare}, {ground_first} background, {style_first}",
    "{thing} against a {ground_first} background{style}",
    "please paint {thing}{background}{style}",
)
"""Freer sentences; those whose style is left out are used for plain pictures alone, see `_free`."""
ADJECTIVES = ("a small", "a big", "a nice", "a funny", "a pretty", "a little", "a lovely", "a single")
ALIAS, NO_STYLE_IF_PLAIN, NO_GROUND, UNKNOWN = 0.2, 0.8, 0.3, 0.02
"""Shares: of names replaced by an alias, of plain pictures whose style and of pictures whose ground is not named, and
of captions whose thing is an unknown word."""


def captions(shown: Labels, rng: random.Random) -> list[str]:
    """One caption for each picture."""
    backgrounds = list(draw.BACKGROUNDS)
    return [
        caption(
            draw.THINGS[thing],
            draw.THINGS[beside] if beside >= 0 else None,
            draw.STYLE_NAMES[style],
            backgrounds[background],
            rng,
        )
        for thing, beside, style, background in zip(
            *(v.tolist() for v in (shown.thing, shown.beside, shown.style, shown.background)), strict=True
        )
    ]


def caption(thing: str, beside: str | None, style: str, background: str, rng: random.Random) -> str:
    """One caption; names may be aliases, style and background may be left out."""
    if rng.random() < UNKNOWN:
        thing, beside = _unknown(rng), None
    names = [_called(name, rng) for name in (thing, beside) if name is not None]
    shown_style = None if style == "plain" and rng.random() < NO_STYLE_IF_PLAIN else _called(style, rng)
    ground = None if rng.random() < NO_GROUND else _called(background, rng)
    words = vocabulary()
    templates = [*words.templates, *words.evaluation_templates]
    number = rng.randrange(len(templates) + len(FREE))
    if len(names) == 2:
        link = rng.choice((" and ", " beside ", ", ", " with "))
        pair = link.join(f"{article(n)} {n}" for n in names)
        template = rng.choice(templates).replace("{thing}", pair)
        return words.write(template, _scene(None, shown_style, ground))
    if number >= len(templates):
        return _free(FREE[number - len(templates)], names[0], shown_style, ground, rng)
    return words.write(templates[number], _scene(names[0], shown_style, ground))


def _free(template: str, name: str, style: str | None, ground: str | None, rng: random.Random) -> str:
    """One of the freer sentences; a plain template stands in where it needs a style or ground that is not named."""
    slots = vocabulary().slots
    if ("{style_first}" in template and style is None) or ("{ground_first}" in template and ground is None):
        template = "{bare}{style}{background}"
    return template.format(
        thing=f"{article(name)} {name}",
        bare=name,
        style="" if style is None else slots["style"].phrase.format(style),
        background="" if ground is None else slots["background"].phrase.format(ground),
        style_first=style if rng.random() < 0.5 or style is None else f"{style.removesuffix(' style')} style",
        ground_first=ground,
        adjective_first=rng.choice(ADJECTIVES),
    )


def _scene(thing: str | None, style: str | None, background: str | None) -> dict[str, str]:
    values = {"thing": thing, "style": style, "background": background}
    return {slot: value for slot, value in values.items() if value is not None}


def _called(name: str, rng: random.Random) -> str:
    """The name, or now and then one of its aliases."""
    aliases = [a for a in vocabulary().aliases.get(name, ()) if not a.endswith(" style")]
    return rng.choice(aliases) if aliases and rng.random() < ALIAS else name


def _unknown(rng: random.Random) -> str:
    """A word that means nothing."""
    return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 9)))
