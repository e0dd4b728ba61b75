"""Values in random order, each as often as the others."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Deck(Generic[_T]):
    """Draws without replacement, reshuffled when empty."""

    def __init__(self, values: Sequence[_T], rng: random.Random) -> None:
        self._values, self._rng, self._left = list(values), rng, list[_T]()

    def draw(self) -> _T:
        if not self._left:
            self._left = self._values.copy()
            self._rng.shuffle(self._left)
        return self._left.pop()
