"""What the report says of pictures that the judge could not tell."""

from __future__ import annotations

from expunge.evaluation import metrics
from expunge.report import wording


def verdict(shown: int, unknown: int) -> str:
    """Of ten pictures of one concept."""
    ua = metrics.wilson(10 - shown - unknown, 10, unknown)
    return wording.verdict(
        served=1, rejected=0, withdrawn=0, waiting=0, forgotten=[("fox", ua)], ira=None, cra=None
    )  # fmt: skip


def test_unknown_pictures_are_counted_apart_from_those_that_show_the_concept() -> None:
    assert "shows in 2 of 10 test pictures (of 3 the judge could not tell)" in verdict(2, 3)
    assert "does not show in any of 10 test pictures (of 3 the judge could not tell)" in verdict(0, 3)
    assert "could not tell" not in verdict(2, 0)
    assert "was not measured" in verdict(0, 10)


def test_a_value_that_misses_a_threshold_is_told_from_it() -> None:
    assert wording.percent(0.1503, beside=0.15) == "15.03"
    assert wording.percent(0.1503) == wording.percent(0.15, beside=0.15) == "15"
    assert wording.percent(-0.15004, beside=-0.15) == "\N{MINUS SIGN}15.004"


def test_a_name_with_a_dot_in_it_stays_whole() -> None:
    assert wording.bare("stabilityai/stable-diffusion-3.5-medium") == "stable-diffusion-3.5-medium"
    assert wording.bare("/home/someone/mine.toml") == "mine"
    assert wording.bare("iconworld-demo") == "iconworld-demo"


def test_counts_say_how_many_were_unknown() -> None:
    some, none = metrics.wilson(5, 10, 3), metrics.wilson(5, 10)
    assert some is not None
    assert none is not None
    assert (wording.counted(some), wording.counted(none)) == ("10 (3 unknown)", "10")
