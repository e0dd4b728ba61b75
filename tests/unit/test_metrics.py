"""Metrics on hand-made tables with known answers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from expunge.evaluation import Value, metrics
from expunge.files import canonical_json
from expunge.stream.summary import measure


def table(rows: list[tuple[str, str, str, bool | None, str]]) -> pd.DataFrame:
    """(role, concept, prompt, shown, scene) -> judgements; a prompt stands in several rows, as it does in a protocol."""
    frame = pd.DataFrame(rows, columns=["role", "concept", "prompt", "shown", "asked"])
    frame["asked"] = [
        canonical_json(dict(part.partition("=")[::2] for part in scene.split("; "))) for scene in frame["asked"]
    ]
    frame["row"] = [f"row {i}" for i in range(len(frame))]
    frame["replayed"] = False
    return frame.astype({"shown": "boolean"})


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (3, 40), (39, 40), (150, 300)])
def test_wilson_agrees_with_scipy(successes: int, n: int) -> None:
    ours = metrics.wilson(successes, n)
    theirs = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert ours is not None
    assert (ours.value, ours.n) == (successes / n, n)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))


def test_nothing_measured_is_none_and_not_zero() -> None:
    empty = table([])
    assert metrics.wilson(0, 0) is None
    assert metrics.mean(empty, "shown") is None
    assert metrics.difference(empty, empty, "shown") is None
    assert metrics.unlearning_accuracy(empty, "fox") is None


def test_an_unknown_picture_counts_as_not_forgotten() -> None:
    frame = table(
        [("forget", "fox", f"p{i}", shown, "thing=fox") for i, shown in enumerate([True, False, False, False, None])]
        + [("forget", "cat", "p", True, "thing=cat"), ("neighbour", "fox", "p", True, "thing=fox")]
    )
    value = metrics.unlearning_accuracy(frame, "fox")
    assert value is not None
    assert (value.value, value.n, value.unknown) == (0.6, 5, 1)
    # The control: without the unknown one, three of four.
    known = metrics.unlearning_accuracy(frame.dropna(subset=["shown"]), "fox")
    assert known is not None
    assert (known.value, known.n, known.unknown) == (0.75, 4, 0)


def test_pictures_of_one_prompt_make_no_interval_narrower() -> None:
    """Ten of ten, from five prompts: as wide as five of five, and as the mean over the same rows."""
    frame = table([("forget", "fox", f"p{i // 2}", False, "thing=fox") for i in range(10)])
    value, five = metrics.unlearning_accuracy(frame, "fox"), metrics.wilson(5, 5)
    mean = metrics.mean(frame.assign(gone=~frame["shown"]), "gone", missing=False)
    assert value is not None
    assert five is not None
    assert mean is not None
    assert (value.value, value.n, value.low) == (1.0, 10, pytest.approx(five.low))
    assert (mean.value, mean.n, mean.low) == (1.0, 10, pytest.approx(five.low))
    each = metrics.unlearning_accuracy(frame.assign(prompt=[f"p{i}" for i in range(10)]), "fox")
    assert each == metrics.wilson(10, 10)


def test_an_unknown_picture_counts_as_not_retained() -> None:
    frame = table([("other", "bus", f"p{i}", shown, "thing=bus") for i, shown in enumerate([True, True, None, None])])
    strict, lenient = metrics.mean(frame, "shown", missing=False), metrics.mean(frame, "shown")
    assert strict is not None
    assert lenient is not None
    assert (strict.value, strict.n, strict.unknown) == (0.5, 4, 2)
    assert (lenient.value, lenient.n, lenient.unknown) == (1.0, 2, 0)


def test_an_unknown_picture_never_makes_the_difference_look_better() -> None:
    """Unknown after: the concept is lost there. Unknown before: nobody can say what changed, so the pair is left out."""
    before = table([("other", "bus", f"p{i}", s, "thing=bus") for i, s in enumerate([True, True, None, None])])
    after = table([("other", "bus", f"p{i}", s, "thing=bus") for i, s in enumerate([True, None, True, None])])
    value = metrics.difference(after, before, "shown", missing=False)
    assert value is not None
    assert (value.value, value.n, value.unknown) == (-0.5, 2, 1)


def test_a_steps_metrics_say_how_many_pictures_were_unknown() -> None:
    answers = [
        ("forget", "fox", "thing=fox", [False, False, None]),
        ("neighbour", "wolf", "thing=wolf", [True, True, True]),
    ]
    answers += [("other", "bus", "thing=bus", [True, None, None])]
    rows = [(role, name, f"{name} {i}", s, asked) for role, name, asked, shown in answers for i, s in enumerate(shown)]
    after = table(rows).assign(recognisable=True, context=True, collapsed=False).astype({"recognisable": "boolean"})
    result = measure(after.assign(shown=True), after, ["fox"], ["fox"], {"image_drift": None, "weight_drift": None})
    values = (result.ua, result.ua_recognisable, result.ira, result.cra, result.cra_difference)
    found = [(round(v.value, 3), v.n, v.unknown) for v in values if v]
    assert found == [(0.667, 3, 1), (0.667, 3, 1), (1.0, 3, 0), (0.333, 3, 2), (-0.667, 3, 2)]
    assert result.harmonic_mean is not None
    assert (result.harmonic_mean.value, result.harmonic_mean.unknown) == (pytest.approx(3 / (1.5 + 1 + 3)), 3)


def test_context_is_measured_where_a_prompt_asks_for_something_that_may_stay() -> None:
    """A fox in neon style has to lose the style once that was asked to go; of a fox alone nothing else could be lost."""
    asked = ["thing=fox; style=neon", "thing=fox; style=plain", "thing=fox"]
    after = table([("forget", "fox", f"p{i}", False, a) for i, a in enumerate(asked)])
    assert list(metrics.beside(after, ["fox", "neon"])["prompt"]) == ["p1"]
    assert list(metrics.beside(after, ["fox"])["prompt"]) == ["p0", "p1"]
    after = after.assign(recognisable=True, context=pd.array([False, True, None], dtype="boolean"), collapsed=False)
    drift = {"image_drift": None, "weight_drift": None}
    result = measure(after, after, ["fox"], ["fox", "neon"], drift)
    assert result.context is not None
    assert (result.context.value, result.context.n) == (1.0, 1)
    bare = measure(after[2:], after[2:], ["fox"], ["fox"], drift)
    assert bare.context is None
    assert bare.reasons["context"] == "no forget prompt asks for anything beside what was asked to go"


def test_what_a_judge_never_recognises_is_not_measured() -> None:
    after = table([("forget", "neon", f"p{i}", shown, "style=neon") for i, shown in enumerate([True, False, False])])
    after = after.assign(recognisable=pd.array([None] * 3, dtype="boolean"), context=None, collapsed=False)
    drift = {"image_drift": None, "weight_drift": None}
    assert measure(after, after, ["neon"], ["neon"], drift).ua_recognisable is None
    seen = after.assign(recognisable=pd.array([None, True, False], dtype="boolean"))
    found = measure(seen, seen, ["neon"], ["neon"], drift).ua_recognisable
    assert found is not None
    assert (found.value, found.n) == (pytest.approx(1 / 3), 3)


@pytest.mark.parametrize("prompts", [12, 20, 50, 150])
def test_a_model_that_lost_a_picture_is_not_safer_than_one_that_lost_none(prompts: int) -> None:
    """Two pictures of each prompt; a few of a hundred say too little about the rest for resampling to show."""
    names = [f"p{i // 2}" for i in range(2 * prompts)]
    before = table([("other", "bus", name, True, "thing=bus") for name in names])
    ends: list[tuple[float, float]] = []
    for lost in range(8):
        after = before.assign(shown=[not (i % 2 == 0 and i < 2 * lost) for i in range(2 * prompts)])
        drop, share = metrics.difference(after, before, "shown"), metrics.mean(after, "shown")
        assert drop is not None
        assert share is not None
        assert drop.value == pytest.approx(-lost / (2 * prompts))
        ends.append((drop.low, share.low))
    assert ends == sorted(ends, reverse=True)
    unseen = metrics.wilson(0, prompts)
    assert unseen is not None
    assert ends[0] == (pytest.approx(-unseen.high), pytest.approx(1 - unseen.high))
    assert ends[7] < ends[0]
    # A gain is mirrored, and what is no count is left to resampling.
    gained = metrics.difference(before, before.assign(shown=[i > 0 for i in range(2 * prompts)]), "shown")
    assert gained is not None
    assert gained.high >= unseen.high
    drift = metrics.mean(before.assign(drift=[0.001 * (i % 5) for i in range(2 * prompts)]), "drift")
    assert drift is not None
    assert drift.high < 0.004


def test_where_every_answer_is_unknown_nothing_was_measured() -> None:
    frame = table([("forget", "fox", f"p{i}", None, "thing=fox") for i in range(3)])
    assert metrics.unlearning_accuracy(frame, "fox") is None
    assert metrics.mean(frame, "shown", missing=False) is None
    assert metrics.difference(frame, frame, "shown", missing=False) is None


def test_a_name_may_hold_any_sign() -> None:
    frame = table([("neighbour", "wolf", p, True, "thing=wolf") for p in "ab"])
    frame.loc[0, "asked"] = canonical_json({"thing": "wolf", "title": "Ghost; Shell=2"})
    assert metrics.asked_for(frame["asked"][0]) == {"wolf", "Ghost; Shell=2"}
    assert list(metrics.of_roles(frame, [], ["Ghost; Shell=2"])["neighbour"]["prompt"]) == ["b"]
    assert metrics.asked_for("thing=wolf; style=neon") == {"wolf", "neon"}  # judgements of an earlier version


def test_retention_leaves_out_rows_that_hold_something_asked_to_go() -> None:
    frame = table(
        [
            ("neighbour", "wolf", "a", True, "thing=wolf; style=neon"),
            ("neighbour", "wolf", "b", False, "thing=wolf"),
            ("other", "bus", "c", True, "thing=bus; style=plain"),
            ("other", "pear", "d", True, "thing=pear"),
        ]
    )
    parts = metrics.of_roles(frame, ["fox"], ["fox", "neon", "pear"])
    assert list(parts["neighbour"]["prompt"]) == ["b"]
    assert list(parts["other"]["prompt"]) == ["c"]


def test_differences_are_paired_by_row() -> None:
    before = table([("other", "bus", f"p{i}", i % 2 == 0, "thing=bus") for i in range(40)])
    after = before.sample(frac=1, random_state=0)
    same = metrics.difference(after, before, "shown")
    unseen = metrics.wilson(0, 40)
    assert unseen is not None
    assert same == Value(value=0.0, low=-unseen.high, high=unseen.high, n=40)
    worse = before.assign(shown=before["shown"] & (before["row"] != "row 0"))
    drop = metrics.difference(worse, before, "shown")
    assert drop is not None
    assert drop.value == pytest.approx(-1 / 40)
    assert drop.low < 0


def test_intervals_are_as_wide_as_prompts_are_few() -> None:
    """Ten pictures of each of ten prompts that agree within a prompt say as much as ten pictures, not as a hundred."""
    clustered = table([("other", "bus", f"p{i}", i < 5, "thing=bus") for i in range(10) for _ in range(10)])
    spread = table([("other", "bus", f"p{i}", i < 50, "thing=bus") for i in range(100)])
    few, many = metrics.mean(clustered, "shown"), metrics.mean(spread, "shown")
    assert few is not None
    assert many is not None
    assert few.value == many.value == 0.5
    assert few.high - few.low > 2.5 * (many.high - many.low)


def test_unanimous_answers_still_have_an_interval() -> None:
    value = metrics.mean(table([("other", "bus", f"p{i}", True, "thing=bus") for i in range(20)]), "shown")
    assert value is not None
    assert value.value == value.high == 1.0
    assert 0.8 < value.low < 0.9


def test_the_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(100):
        shown = rng.random(60) < 0.8
        value = metrics.mean(table([("other", "bus", f"p{i}", bool(s), "") for i, s in enumerate(shown)]), "shown")
        assert value is not None
        hits += value.low <= 0.8 <= value.high
    assert hits >= 86


def test_harmonic_mean_is_that_of_the_means() -> None:
    parts = [pd.DataFrame({"prompt": ["a", "b"], "x": x}) for x in ([1.0, 1.0], [0.5, 0.5], [0.25, 0.25])]
    value = metrics.harmonic_mean(parts)
    assert value is not None
    assert value.value == pytest.approx(3 / (1 + 2 + 4))
    assert value.low < value.value < value.high
