"""Unlearning methods. To add one: write a file with a method and name it in `METHODS`."""

from typing import Any

from expunge.methods.base import GradientMethod, MethodConfig, Position, Record, StepContext
from expunge.methods.lacu import Lacu, LacuConfig

METHODS: dict[str, type[GradientMethod[Any, Any]]] = {"lacu": Lacu}

__all__ = ["METHODS", "GradientMethod", "Lacu", "LacuConfig", "MethodConfig", "Position", "Record", "StepContext"]
