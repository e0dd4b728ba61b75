"""Progress of a run in the terminal."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from expunge.stream import Progress


class RunProgress:
    """One bar per phase, with the latest losses while training. Use as a context manager; call it with a `Progress`."""

    def __init__(self, console: Console) -> None:
        self._bars = Bars(
            TextColumn("{task.description:<24}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}"),
            console=console,
            transient=not console.is_terminal,
            disable=not console.is_terminal,
        )
        self._console = console
        self._phase: tuple[int, str] | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, progress: Progress) -> None:
        phase = (progress.step, progress.phase)
        if phase != self._phase:
            name = f"step {progress.step}: {progress.phase}" if progress.step else progress.phase
            if not self._console.is_terminal:
                self._console.print(f"  {name}")
            self._close()
            self._phase, self._task = phase, self._bars.add_task(name, total=progress.total, losses="")
        assert self._task is not None
        losses = "  ".join(f"{name} {value:.2e}" for name, value in (progress.losses or {}).items())
        self._bars.update(self._task, completed=progress.done, total=progress.total, losses=losses)

    def _close(self) -> None:
        if self._task is not None:
            task = self._bars.tasks[self._task]
            self._bars.update(self._task, completed=task.total)
