"""Numbers and sentences as the page prints them. What was not measured says so; it is never 0."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import PurePath

from expunge.evaluation import Value

UNMEASURED = "not measured"


def percent(x: float, *, sign: bool = False, beside: float | None = None) -> str:
    """0.985 -> "98.5"; with `sign`, "+98.5". With as many digits as tell it from `beside`, if there is a difference."""
    digits = 1
    while beside is not None and beside != x and digits < 6 and round(100 * x, digits) == round(100 * beside, digits):
        digits += 1
    rounded = round(100 * x, digits) + 0.0
    text = f"{rounded:+.{digits}f}" if sign and rounded else f"{rounded:.{digits}f}"
    return text.removesuffix(".0").replace("-", "\N{MINUS SIGN}")


def share(value: Value | None) -> str:
    return UNMEASURED if value is None else f"{percent(value.value)}%"


def share_interval(value: Value | None) -> str:
    return "" if value is None else f"{percent(value.low)} to {percent(value.high)}%"


def points(value: Value | None) -> str:
    """A difference of shares, in percentage points."""
    return UNMEASURED if value is None else f"{percent(value.value, sign=True)} pt"


def points_interval(value: Value | None) -> str:
    return "" if value is None else f"{percent(value.low, sign=True)} to {percent(value.high, sign=True)} pt"


def number(value: Value | None) -> str:
    return UNMEASURED if value is None else f"{value.value:.3g}"


def number_interval(value: Value | None) -> str:
    return "" if value is None or value.low == value.high else f"{value.low:.3g} to {value.high:.3g}"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def memory(size: int) -> str:
    """Bytes as MiB or GiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def moment(iso: str) -> str:
    return datetime.fromisoformat(iso).strftime("%Y-%m-%d %H:%M %Z")


def short_digest(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]


def bare(name: str) -> str:
    """A name without the folders, and without the ending of a settings file: where things lay on someone's disk is no part of
    the report."""
    return PurePath(name).name.removesuffix(".toml") if "/" in name or "\\" in name else name


def listed(items: Sequence[str]) -> str:
    """["a", "b", "c"] -> "a, b and c"."""
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


def count(n: int, what: str) -> str:
    """(1, "step") -> "1 step"; (2, "step") -> "2 steps"."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def capital(text: str) -> str:
    """`text` as the start of a sentence."""
    return text[:1].upper() + text[1:]


def counted(value: Value) -> str:
    """How many pictures are behind a value, and how many of them the judge could not tell."""
    return f"{value.n:,}" + (f" ({value.unknown:,} unknown)" if value.unknown else "")


def showing(ua: Value) -> int:
    """In how many of the pictures behind an unlearning accuracy the concept shows; the unknown ones are not among them."""
    return round((1 - ua.value) * ua.n) - ua.unknown


# -- the verdict ----------------------------------------------------------------------------------------------------------


def verdict(
    *,
    served: int,
    rejected: int,
    withdrawn: int,
    waiting: int,
    forgotten: Sequence[tuple[str, Value | None]],
    ira: Value | None,
    cra: Value | None,
) -> str:
    """One sentence for someone who reads no further.

    Args:
        served, rejected, withdrawn, waiting: requests by what became of them; those that wait have no finished step.
        forgotten: label and unlearning accuracy of each forgotten concept after the last accepted step.
        ira, cra: paired differences from the base model after that step.
    """
    total = served + rejected + withdrawn + waiting
    counts = [f"{served} of {count(total, 'request')} served"]
    counts += [f"{rejected} not passed by the gate"] if rejected else []
    counts += [f"{withdrawn} withdrawn"] if withdrawn else []
    counts += [f"{waiting} waiting"] if waiting else []
    parts = [", ".join(counts)]
    if not served:
        return f"{parts[0]}; the model is the base model."
    return "; ".join([*parts, forgetting(forgotten), retention(ira, cra)]) + "."


def forgetting(forgotten: Sequence[tuple[str, Value | None]]) -> str:
    """How often what was forgotten shows, from the label and the unlearning accuracy of each concept."""
    measured = [(label, value) for label, value in forgotten if value is not None]
    if not measured:
        return "whether the concepts still show was not measured"
    shows = {label: showing(v) for label, v in measured}
    n = sum(v.n for _, v in measured)
    unknown = sum(v.unknown for _, v in measured)
    missing = f" (of {unknown} the judge could not tell)" if unknown else ""
    missing += f", {len(forgotten) - len(measured)} not measured" if len(measured) < len(forgotten) else ""
    if not any(shows.values()):
        what = "the forgotten concept does not show" if len(forgotten) == 1 else "no forgotten concept shows"
        return f"{what} in any of {n} test pictures{missing}"
    total = sum(shows.values())
    if len(forgotten) == 1:
        return f"the forgotten concept shows in {total} of {n} test pictures{missing}"
    worst, value = max(measured, key=lambda pair: shows[pair[0]] / pair[1].n)
    return (
        f"forgotten concepts show in {total} of {n} test pictures "
        f"(most often {worst}: {shows[worst]} of {value.n}){missing}"
    )


def retention(ira: Value | None, cra: Value | None) -> str:
    """What was kept, from the paired differences from the base model."""
    near, far = (_against_base(v) for v in (ira, cra))
    if near == far:
        return f"retention is {near}"
    return f"retention is {near} for neighbours and {far} for the rest"


def _against_base(value: Value | None) -> str:
    if value is None:
        return "not measured"
    amount = percent(abs(value.value))
    if amount == "0":
        return "the same as the base model's"
    unit = "point" if amount == "1" else "points"
    return f"{amount} {unit} {'below' if value.value < 0 else 'above'} the base model"
