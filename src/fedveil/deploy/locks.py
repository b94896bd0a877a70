"""Locks on files, which the operating system releases when their process ends, however it ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["is_locked", "locked_alone", "release", "shared", "turn"]

_MODE = 0o600


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE)


def shared(path: Path) -> int:
    """A lock that others may share; waits for the end of one that is held alone. Give it to `release`."""
    file = _open(path)
    fcntl.flock(file, fcntl.LOCK_SH)
    return file


def locked_alone(path: Path) -> int | None:
    """A lock that nobody shares; None if somebody has one. Give it to `release`."""
    file = _open(path)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file


def is_locked(path: Path) -> bool:
    """Whether somebody holds a lock alone. Looking takes it for a moment, so who wants it must wait, as `turn` does."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # whoever may only read may look
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def release(lock: int) -> None:
    """End a lock."""
    os.close(lock)


@contextmanager
def turn(path: Path) -> Iterator[None]:
    """One process at a time; the others wait."""
    file = _open(path)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)
