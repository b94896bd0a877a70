"""Starts Flower's SuperLink with one rule added: from other machines, it serves only hospitals' nodes.

A SuperLink answers three interfaces on one port. The fleet interface, which nodes use, authenticates every
call. The control interface, which registers nodes and starts runs, does so only with a commercial add-on;
open to the network, it would let anyone register a node or make stock nodes run a foreign program. So it and the
interface of the coordinator's own process are served on the loopback address only."""

import os
from ipaddress import ip_address
from typing import Any

from flwr.supercore.app_utils import start_parent_process_monitor
from flwr.superlink import extensions
from flwr.superlink.cli import flower_superlink
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

from fedveil.deploy.flower import PARENT

__all__ = ["FleetOnly", "main"]


class FleetOnly:
    """ASGI middleware: calls from other machines only reach ``/v1/fleet/``."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Forward a call, or refuse it."""
        if scope["type"] == "lifespan" or _is_fleet(scope["path"]) or _is_local(scope):
            await self._app(scope, receive, send)
        else:
            await PlainTextResponse("nodes only", status_code=403)(scope, receive, send)


def _is_fleet(path: str) -> bool:
    return path.startswith("/v1/fleet/") and ".." not in path


def _is_local(scope: Any) -> bool:
    client = scope.get("client")
    try:
        address = ip_address(client[0]) if client else None
    except ValueError:
        return False
    if address is None:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def main() -> None:
    """Run the SuperLink with the arguments of ``flower-superlink``."""
    inner = extensions.get_middleware
    extensions.get_middleware = lambda: (Middleware(FleetOnly), *inner())
    if parent := os.environ.get(PARENT):
        start_parent_process_monitor(int(parent))
    flower_superlink()


if __name__ == "__main__":
    main()
