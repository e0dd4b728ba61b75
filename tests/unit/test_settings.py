"""The reference of settings: what is committed is what the code says, and every setting is in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from expunge.cli.shared import changes_of
from expunge.errors import ExpungeError
from expunge.stream import settings

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"
SECTIONS = settings.sections()


def test_a_number_has_no_field() -> None:
    with pytest.raises(ExpungeError, match="names a field of seed, which is a number"):
        changes_of(["seed=1", "seed.x=2"])


def test_the_page_is_what_the_code_says() -> None:
    current = PAGE.read_text("utf-8") == settings.page()
    assert current, "docs/settings.md is old. Run: python -m expunge.stream.settings > docs/settings.md"


def test_tables_are_found_wherever_they_are_nested() -> None:
    assert {"", "train", "train.stop", "method", "method.warm_start", "constraints", "prompts"} <= SECTIONS.keys()
    assert SECTIONS["prompts"].configs.keys() == {"vocabulary", "folder", "llm"}


@pytest.mark.parametrize(
    ("place", "name"), [(place, name) for place, section in SECTIONS.items() for name in section.configs]
)
def test_every_field_has_a_meaning(place: str, name: str) -> None:
    section = SECTIONS[place]
    config = section.configs[name]
    undescribed = settings.properties(config).keys() - settings.meanings(config).keys() - {section.chosen_by}
    assert not undescribed, (
        f"These fields of {config.__name__} have no line under Attributes in its docstring: {undescribed}"
    )
    assert settings.meanings(config).keys() <= settings.properties(config).keys()
    assert settings.purpose(config) or not section.chosen_by, (
        f"The docstring of {config.__name__} does not say what it is"
    )


def test_a_field_says_what_it_takes_and_where_defaults_differ() -> None:
    text = " ".join(settings.page().split())
    for said in (
        "`lambda_unlearn` (number, above 0; default `5.0`, `1.0` with `dfr`): weight",
        '`source` (`"bank"`, `"fresh"` or `"trajectory"`; default `"bank"`):',
        "`keep` (integer, at least 1; optional):",
        "`folder` (text; required):",
        "`betas` (list of 2: number, at least 0, below 1; default `[0.9, 0.999]`):",
        "`warm_start` ([table or `false`](#methodwarm_start); default `false`):",
    ):
        assert said in text
