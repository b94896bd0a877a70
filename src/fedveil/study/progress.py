"""How a running study reports its progress."""

from typing import Protocol

__all__ = ["Progress", "Silent"]


class Progress(Protocol):
    """Receives the stages of a run and their steps."""

    def stage(self, name: str, total: int, done: int = 0) -> None:
        """A stage of ``total`` steps begins, ``done`` of them finished in an earlier process."""
        ...

    def advance(self, count: int = 1, note: str = "") -> None:
        """``count`` more steps of the stage are finished."""
        ...


class Silent:
    """Ignores all progress."""

    def stage(self, name: str, total: int, done: int = 0) -> None:
        """Ignore it."""

    def advance(self, count: int = 1, note: str = "") -> None:
        """Ignore it."""
