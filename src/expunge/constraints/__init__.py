"""Continual regularizers. To add one: write a file with a constraint and its config, and name both in `CONSTRAINTS`."""

from collections.abc import Callable
from typing import Any

from expunge.constraints.base import Anchors, Constraint, ConstraintConfig
from expunge.constraints.l2 import L2, L2Config, l2_distance

CONSTRAINTS: dict[str, tuple[type[ConstraintConfig], Callable[[Any], Constraint]]] = {"l2": (L2Config, L2)}

__all__ = ["CONSTRAINTS", "L2", "Anchors", "Constraint", "ConstraintConfig", "L2Config", "l2_distance"]
