"""Ports for servers that tests start."""

from contextlib import ExitStack

from fedveil.deploy.rehearsal import held_port

_HELD = ExitStack()


def free_port() -> int:
    """A port that stays reserved for the tests until this process ends."""
    return _HELD.enter_context(held_port())
