"""Flower as a carrier of opaque bytes: TLS, node authentication, a queue at the coordinator; nothing else.

The only place that imports flwr, pinned to the versions that the tests ran with, telemetry off. `node` is
the hospital's end: it speaks Flower's fleet protocol itself, so that no code sent by the coordinator ever runs
there; a stock `flower-supernode` would fetch the run's app and start it for every message. `link` starts and joins
the coordinator's SuperLink; `transport` is the `fedveil.federation.Transport` over it.
"""

import os

__all__ = ["PARENT", "SOON"]

_LOOPBACK = ("localhost", "127.0.0.1", "::1")

PARENT = "FEDVEIL_PARENT"
"""Environment variable: the process whose end also ends the SuperLink, so that none remains running."""

SOON = 0.05
"""Seconds until the next poll for a part of a message that is still being sent; doubles each time."""

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"


def _reach_this_machine_directly() -> None:
    """A proxy for the outside, as hospitals set it in HTTPS_PROXY, must not carry calls to this machine itself."""
    for name in ("no_proxy", "NO_PROXY"):
        known = [host for host in os.environ.get(name, "").split(",") if host.strip()]
        os.environ[name] = ",".join([*known, *(host for host in _LOOPBACK if host not in known)])


_reach_this_machine_directly()
