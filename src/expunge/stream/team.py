"""Several processes that serve one run together, started by `accelerate launch`.

The first one decides, writes and measures. All of them train, each on rows of its own; between trainings the others wait to be
told which step is next.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.utils import broadcast_object_list
from torch.distributed import DistError

from expunge.errors import Interrupted
from expunge.hardware import processes


class Team:
    def __init__(self) -> None:
        self._processes = processes()

    @property
    def first(self) -> bool:
        """Whether this process is the one that decides."""
        return self._processes.is_main_process

    @property
    def size(self) -> int:
        return self._processes.num_processes

    def tell(self, step: int | None) -> None:
        """Send the others to train a step; None sends them home."""
        self._share(step)

    def told(self) -> Iterator[int]:
        """The steps that the first process sends this one to."""
        while (step := self._share(None)) is not None:
            yield step

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first process runs the block before the others do.

        Raises:
            Interrupted: when one of the others has ended.
        """
        with self.together(), self._processes.main_process_first():
            yield

    @contextmanager
    def together(self) -> Iterator[None]:
        """Work that every process must do.

        Raises:
            Interrupted: when one of the others has ended.
        """
        try:
            yield
        except RuntimeError as error:
            if self.size > 1 and (isinstance(error, DistError) or "peer" in str(error)):
                raise Interrupted(
                    "Another process of this launch has ended. `expunge resume RUN`, launched as before, goes on from the "
                    "last checkpoint."
                ) from error
            raise

    def _share(self, step: int | None) -> int | None:
        said = [step]
        with self.together():
            broadcast_object_list(said)
        return said[0]
