"""Expunge removes concepts from text-to-image diffusion models, one deletion request after another.

import expunge

run = expunge.Run.create("runs/mine", requests=["fox", "neon style"])
run.resume()
run.export("clean-model")
"""

from typing import TYPE_CHECKING, Any

from expunge.errors import ExpungeError

if TYPE_CHECKING:
    from expunge.audit import Audit, compare
    from expunge.concepts import Concept, Request
    from expunge.stream import Run, RunConfig, Summary, estimate

__version__ = "0.1.0"
__all__ = [
    "Audit",
    "Concept",
    "ExpungeError",
    "Request",
    "Run",
    "RunConfig",
    "Summary",
    "__version__",
    "compare",
    "estimate",
]


def __getattr__(name: str) -> Any:
    """Import torch and Diffusers only when something that needs them is used."""
    if name in ("Concept", "Request"):
        from expunge import concepts

        return getattr(concepts, name)
    if name in ("Audit", "compare"):
        from expunge import audit

        return getattr(audit, name)
    if name in ("Run", "RunConfig", "Summary", "estimate"):
        from expunge import stream

        return getattr(stream, name)
    raise AttributeError(f"module 'expunge' has no attribute {name!r}")
