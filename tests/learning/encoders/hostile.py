"""Processes that answer as no encoder should; the variable HOSTILE says how."""

import os
from multiprocessing.connection import Connection

from fedveil.learning.encoders.external import confined

__all__ = ["start_processes"]


class Answering(Connection):
    """Gives each answer about an image twice, or ends by a signal that has no name."""

    def send_bytes(self, said: bytes) -> None:  # type: ignore[override]
        if said != b"[]" and os.environ["HOSTILE"] == "signal":
            os.kill(os.getpid(), 40)
        super().send_bytes(said)
        if said != b"[]":
            super().send_bytes(said)


def _says(descriptor: int) -> None:
    how, line = os.environ["HOSTILE"], Connection(descriptor)
    line.recv_bytes()
    line.recv_bytes()
    line.send_bytes(how.encode())


def start_processes(descriptor: int) -> None:
    """As the real one, but for what the processes say."""
    if os.environ["HOSTILE"] in ("twice", "signal"):
        confined.Connection = Answering  # type: ignore[misc]
    else:
        confined.serve = _says
    confined.start_processes(descriptor)
