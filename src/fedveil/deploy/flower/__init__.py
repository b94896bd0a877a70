"""Flower as a carrier of opaque bytes: TLS, node authentication, a queue at the coordinator; nothing else.

The only place that imports flwr, limited to the versions that the tests ran with, telemetry off; `private` names what
Flower does not document. `node` is the hospital's end: it speaks Flower's fleet protocol itself, so that no code sent
by the coordinator ever runs there; a stock `flower-supernode` would fetch the run's app and start it for every message.
`process` starts and joins the coordinator's SuperLink, `gate` guards its port, `link` holds a run on it, and `carrier`
is the `fedveil.deploy.carrier.Carrier` over that.
"""

import os

__all__ = ["SOON", "STANDING", "USERS", "VERSIONS"]

_LOOPBACK = ("localhost", "127.0.0.1", "::1")

USERS = "FEDVEIL_USERS"
"""Environment variable: the file that coordinators lock while they run. A SuperLink ends once nobody does."""

STANDING = "FEDVEIL_STANDING"
"""Environment variable: the open file by which a standing SuperLink holds its lock. It has no end of its own."""

VERSIONS = ((1, 41), (1, 42))
"""The first and the last version of Flower that the tests ran with."""

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
