"""How a judge is told what a concept is called."""

from __future__ import annotations

from expunge.concepts import article

_PHRASES = {"object": "{a} {}", "style": "{} style", "background": "{a} {} background"}
"""{kind of concept: how it is written}; persons, characters and brands are written by their name alone."""
THINGS = frozenset({"object", "person", "character", "brand"})
"""Kinds of concepts that can be recognised as some thing."""


def phrase(name: str, kind: str) -> str:
    """ "fox", "object" -> "a fox"; "neon", "style" -> "neon style"."""
    return _PHRASES.get(kind, "{}").format(name, a=article(name))
