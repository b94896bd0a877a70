"""A hospital's site programs open no connection, whether an offer or a library asks for one."""

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
    """Inside this context, the process can only reach Unix sockets of its own machine.

    A library that would fetch weights gets a `PermissionError`, as from a firewall. Listening at a local socket is
    still allowed. This uses Python's audit events (PEP 578). Libraries that fetch in native code are disabled by
    environment variables, and a kit's systemd unit also removes the network from outside.
    """
    global _inside, _hooked
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
    if not _hooked:
        _hooked = True
        sys.addaudithook(_refuse)  # permanent, and without effect outside the context
    _inside += 1
    try:
        yield
    finally:
        _inside -= 1


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if not _inside:
        return
    if event in _ASKS:
        raise PermissionError(f"a site program may not look up addresses ({event} of {arguments[0]!r})")
    if event in _DIALS and getattr(arguments[0], "family", None) != socket.AF_UNIX:
        raise PermissionError(f"a site program may not open connections ({event} to {arguments[1]!r})")
