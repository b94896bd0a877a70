"""Starts Flower's SuperLink behind a gate (`fedveil.deploy.flower.gate`) and a listener with limits.

It ends when nobody uses it any more: each coordinator holds a shared lock on a file while it runs, and a SuperLink that
a coordinator started ends itself once it can lock that file alone. A standing one (`fedveil federation serve`) does not
wait for users; it inherits a lock, by which coordinators recognise it and which ends with it.
"""

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import uvicorn
from starlette.middleware import Middleware

from fedveil.deploy.flower import STANDING, USERS
from fedveil.deploy.flower.gate import Gate, NodeKeys, proof_of
from fedveil.deploy.flower.private.superlink import extensions, flower_superlink
from fedveil.deploy.listener import GuardedListener
from fedveil.deploy.locks import locked_alone

__all__ = ["main"]

_LOOK = 0.5
_LONGEST_HEADERS = 32768
_IDLE = 75


def _serve(folder: Path) -> None:
    """Run Flower's SuperLink, its web server replaced by one with limits.

    Args:
        folder: the coordinator's, with the SuperLink's secret and the nodes' public keys.
    """
    secret, inner = (folder / "superlink.secret").read_bytes(), extensions.get_middleware
    listeners: list[GuardedListener] = []

    def middleware() -> tuple[Middleware, ...]:
        host, port = _argument("--host"), int(_argument("--port"))
        listeners.append(GuardedListener(host, port))
        keys = NodeKeys(folder / "nodes")
        return (Middleware(Gate, proof=proof_of(secret), keys=keys, listener=listeners[0]), *inner())

    def run(app: Any, **options: Any) -> None:
        allowed = {
            name: options[name] for name in ("host", "port", "log_config", "ssl_keyfile", "ssl_certfile")
        }
        config = uvicorn.Config(
            app,
            **allowed,
            access_log=False,  # a line for each request of a stranger would fill the disk
            http="h11",  # bounds the length of headers
            h11_max_incomplete_event_size=_LONGEST_HEADERS,
            loop="asyncio",  # accepts through the listener
            ws="none",
            proxy_headers=False,  # a header must not decide which address a caller has
            timeout_keep_alive=_IDLE,
            timeout_graceful_shutdown=3,
            server_header=False,
        )
        uvicorn.Server(config).run(sockets=list(listeners))

    extensions.get_middleware = middleware
    uvicorn.run = run
    flower_superlink()


def _argument(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


def _end_without_users(path: Path) -> None:
    """End this process once no coordinator holds the lock; a new one then waits until this process is gone."""
    while True:
        time.sleep(_LOOK)
        if locked_alone(path) is not None:
            os.kill(os.getpid(), signal.SIGTERM)
            return


def main() -> None:
    """``python -m fedveil.deploy.flower.superlink FOLDER ...``, then the arguments of ``flower-superlink``."""
    folder = Path(sys.argv.pop(1))
    logging.getLogger("fedveil").setLevel(logging.INFO)
    if standing := os.environ.pop(STANDING, None):
        os.set_inheritable(int(standing), False)  # held by this process alone, until it ends
    elif users := os.environ.get(USERS):
        threading.Thread(target=_end_without_users, args=[Path(users)], daemon=True).start()
    _serve(folder)


if __name__ == "__main__":
    main()
