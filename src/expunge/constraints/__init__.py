"""Continual regularizers. To add one: write a file with a constraint and name it in `CONSTRAINTS`."""

from expunge.constraints.base import Anchors, Constraint, ConstraintConfig
from expunge.constraints.l2 import L2, L2Config, l2_distance

CONSTRAINTS: dict[str, type[Constraint]] = {"l2": L2}

__all__ = ["CONSTRAINTS", "L2", "Anchors", "Constraint", "ConstraintConfig", "L2Config", "l2_distance"]
