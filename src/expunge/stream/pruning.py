"""`keep = N`: the weights of the last N accepted steps stay on disk, and those of all work before them are deleted.

Everything else of a step stays, and so does what `verify` says of it: the events name the digests that were pruned.
"""

from __future__ import annotations

from expunge.files import digest_file
from expunge.stream.directory import RunDirectory
from expunge.stream.history import History


def prune(directory: RunDirectory, keep: int) -> None:
    """Delete the weights of all steps, and of work that gave way, before the last `keep` accepted steps."""
    spared = History.of(directory.events()).accepted[-keep:]
    old = [step for step in directory.steps() if spared and step.index < spared[0]]
    gone = [step.weights for step in old if step.weights.exists()]
    if gone:
        directory.add_event("pruned", weights=[digest_file(path) for path in gone])
        for path in gone:
            path.unlink()
