"""A hospital's site programs open no connection: not on an offer's word, and not on a library's own account."""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["offline"]

_DIALS = {"socket.connect", "socket.sendto", "socket.sendmsg"}
_ASKS = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}
_inside = 0
_hooked = False


@contextmanager
def offline() -> Iterator[None]:
    """Inside, this process reaches nothing but Unix sockets of its own machine, whatever code asks for more.

    A library that would fetch weights gets a `PermissionError`, as from a firewall. To answer at a socket of this
    machine is not concerned. This rests on Python's audit events (PEP 578); libraries that fetch in code of their own
    are told by the variables that they heed, and a kit's systemd unit takes the network away from outside as well.
    """
    global _inside, _hooked
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
    if not _hooked:
        _hooked = True
        sys.addaudithook(_refuse)  # for good, and without effect outside
    _inside += 1
    try:
        yield
    finally:
        _inside -= 1


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if not _inside:
        return
    if event in _ASKS:
        raise PermissionError(f"a site program looks up no address ({event} of {arguments[0]!r})")
    if event in _DIALS and getattr(arguments[0], "family", None) != socket.AF_UNIX:
        raise PermissionError(f"a site program opens no connection ({event} to {arguments[1]!r})")
