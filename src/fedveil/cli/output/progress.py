"""Progress of a running study, with the time left: one bar per stage, or lines where there is no terminal."""

import time
from types import TracebackType
from typing import Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fedveil.cli.output.console import errors

__all__ = ["Bars"]

PAUSE = 15.0
"""Seconds between two lines, where there is no terminal; a stage that takes less prints none."""


class Bars:
    """Progress on standard error: bars on a terminal, otherwise a line from time to time; nothing if quiet."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=errors,
            disable=quiet or not errors.is_terminal,
        )
        self._task: TaskID | None = None
        self._lines = None if quiet or errors.is_terminal else _Lines()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def stage(self, name: str, total: int, done: int = 0) -> None:
        """Begin a stage of ``total`` steps."""
        self._task = self._progress.add_task(name, total=total, completed=done, note="")
        if self._lines is not None:
            self._lines.begin(name, total, done)

    def advance(self, count: int = 1, note: str = "") -> None:
        """Mark steps of the current stage as done."""
        if self._task is not None:
            self._progress.update(self._task, advance=count, note=note)
        if self._lines is not None:
            self._lines.advance(count, note)


class _Lines:
    """Lines with the steps done, the time left at the pace so far, and the note."""

    def begin(self, name: str, total: int, done: int) -> None:
        self._name, self._total, self._first, self._done = name, total, done, done
        self._start = self._last = time.monotonic()

    def advance(self, count: int, note: str) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._last < PAUSE or self._done <= self._first:
            return
        self._last = now
        left = (now - self._start) / (self._done - self._first) * max(0, self._total - self._done)
        said = f"{self._name}: {self._done:,} of {self._total:,}, {_duration(left)} left"
        errors.print(f"{said}, {note}" if note else said, soft_wrap=True, highlight=False, markup=False)


def _duration(seconds: float) -> str:
    """A duration as people say it.

    >>> _duration(40), _duration(600), _duration(9000)
    ('40 s', '10 min', '2 h 30 min')
    """
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
