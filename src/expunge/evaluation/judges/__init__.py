"""Judges that know concepts by their words. To add one: write a file with a class, and name it in `JUDGES`.

Transformers is imported where a judge needs it: that takes seconds, and most commands ask none of these."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from expunge.errors import ExpungeError, suggestion
from expunge.evaluation.judge import Judge
from expunge.evaluation.judges.clip import ClipJudge
from expunge.evaluation.judges.vision_language import VisionLanguageJudge

JUDGES: Mapping[str, Callable[[str], Judge]] = {"clip": ClipJudge, "vl": VisionLanguageJudge}
"""{prefix: judge}; a judge is written PREFIX:MODEL, where MODEL is a folder or a hub id."""


def find_judge(name: str, own: Mapping[str, Callable[[], Judge]]) -> Judge:
    """The judge that `name` means: a name in `own`, or PREFIX:MODEL. Reads no weights.

    Raises:
        ExpungeError: for an unknown name or prefix, and for a model that is missing or of another kind.
    """
    if name in own:
        return own[name]()
    prefix, colon, model = name.partition(":")
    if prefix not in JUDGES:
        known = (*own, *(f"{p}:MODEL" for p in JUDGES))
        raise ExpungeError(f"There is no judge {name!r}. {suggestion(name, known)}")
    if not (colon and model):
        raise ExpungeError(f"The judge {name!r} names no model. Write {prefix}:MODEL, with a folder or a hub id.")
    return JUDGES[prefix](model)


__all__ = ["JUDGES", "ClipJudge", "VisionLanguageJudge", "find_judge"]
