"""Unlearning methods. To add one: write a file with a method and name it in `METHODS`."""

from typing import Any

from expunge.methods.base import Earlier, GradientMethod, MethodConfig, Position, Record, StepContext
from expunge.methods.dfr import Dfr
from expunge.methods.lacu import Lacu
from expunge.methods.naive import Naive

METHODS: dict[str, type[GradientMethod[Any, Any]]] = {
    "lacu": Lacu,
    "dfr": Dfr,
    "naive": Naive,
}

__all__ = ["METHODS", "Earlier", "GradientMethod", "MethodConfig", "Position", "Record", "StepContext"]
