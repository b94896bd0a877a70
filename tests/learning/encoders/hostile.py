"""Processes that answer as no encoder should; the variable HOSTILE says how."""

import os
from multiprocessing.connection import Connection

from fedveil.learning.encoders.external import confined

__all__ = ["start_processes"]


class Twice(Connection):
    """Gives each answer about an image twice."""

    def send_bytes(self, said: bytes) -> None:  # type: ignore[override]
        super().send_bytes(said)
        if said != b"[]":
            super().send_bytes(said)


def _says(descriptor: int) -> None:
    how, line = os.environ["HOSTILE"], Connection(descriptor)
    line.recv_bytes()
    line.recv_bytes()
    if how.startswith("signal "):
        os.kill(os.getpid(), int(how.split()[1]))
    line.send_bytes(how.encode())


def start_processes(descriptor: int) -> None:
    """As the real one, but for what the processes say."""
    if os.environ["HOSTILE"] == "twice":
        confined.Connection = Twice  # type: ignore[misc]
    else:
        confined.serve = _says
    confined.start_processes(descriptor)
