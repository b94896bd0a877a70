"""The names of NVFlare that fedveil uses; NVFlare documents few of them. Nothing else imports nvflare.

`tests/deploy/test_nvflare_names.py` says which one a new version moved.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nvflare.fuel.f3 import communicator
from nvflare.fuel.f3.cellnet.cell_cipher import InvalidCertChain
from nvflare.fuel.f3.cellnet.core_cell import CoreCell
from nvflare.fuel.f3.cellnet.defs import Encoding, MessageHeaderKey, MessageType
from nvflare.fuel.f3.comm_config import CommConfigurator
from nvflare.fuel.f3.comm_error import CommError
from nvflare.fuel.f3.drivers import grpc_driver
from nvflare.fuel.f3.drivers.driver_params import DriverParams
from nvflare.fuel.f3.drivers.grpc_driver import GrpcDriver, StreamConnection
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.sfm import conn_manager
from nvflare.fuel.f3.sfm.constants import HandshakeKeys, Types
from nvflare.fuel.f3.sfm.prefix import Prefix
from nvflare.fuel.f3.stats_pool import StatsPoolManager

__all__ = [
    "DATA",
    "GREETING",
    "HEARTBEAT",
    "InvalidCertChain",
    "Message",
    "expected_headers",
    "greeter",
    "guard",
    "kind_of",
    "make_core",
    "release",
    "session",
    "topic_of",
]

logging.getLogger("nvflare").setLevel(logging.CRITICAL)  # it would write what peers sent

_LONGEST_PAUSE = 2
_HEARTBEAT = 5
_once = threading.Lock()


class _Connection(StreamConnection):  # type: ignore[misc] # nvflare has no types
    """A connection whose end does not wait for its peer's next frame, during which it would keep a thread."""

    def close(self) -> None:
        context = self.context
        if context is not None:
            context.cancel()
        super().close()


grpc_driver.StreamConnection = _Connection

DATA, GREETING, HEARTBEAT, OTHER = "message", "greeting", "heartbeat", "other"
_KINDS = {
    Types.DATA: DATA,
    Types.HELLO: GREETING,
    Types.READY: GREETING,
    Types.PING: HEARTBEAT,
    Types.PONG: HEARTBEAT,
}


def make_core(
    name: str,
    url: str,
    files: Mapping[str, Path],
    *,
    listens: bool,
    options: Sequence[tuple[str, int]],
    most: int,
) -> Any:
    """A cell that has not been started.

    Args:
        name: its name among cells.
        url: ``grpc://HOST:PORT``, where it listens or connects to.
        files: the authority's certificate, the cell's own and its private key (PEM): "authority", "certificate", "key".
        listens: whether it listens.
        options: gRPC's channel arguments.
        most: connections at the same time.

    Raises:
        InvalidCertChain: the certificate is not the authority's, or not valid now.
    """
    CommConfigurator._configuration = {  # in place of a file comm_config.json
        "allow_adhoc_conns": False,
        "use_aio_grpc": False,
        "heartbeat_interval": _HEARTBEAT,
        "grpc": {"options": list(options), "max_workers": most},
    }
    CommConfigurator._config_loaded = True
    conn_manager.MAX_WAIT = _LONGEST_PAUSE  # seconds between attempts to connect
    with _once:
        if not communicator.driver_loaded:
            # NVFlare would load all drivers, one for shared folders among them.
            communicator.driver_mgr.register(GrpcDriver)
            communicator.driver_loaded = True
    certificate, key = (
        (DriverParams.SERVER_CERT, DriverParams.SERVER_KEY)
        if listens
        else (DriverParams.CLIENT_CERT, DriverParams.CLIENT_KEY)
    )
    credentials = {
        DriverParams.CA_CERT.value: str(files["authority"]),
        certificate.value: str(files["certificate"]),
        key.value: str(files["key"]),
    }
    StatsPoolManager.pools.clear()  # an earlier cell of this process has left its statistics there
    try:
        core = CoreCell(fqcn=name, root_url=url, secure=True, credentials=credentials)
    except InvalidCertChain:
        CoreCell.ALL_CELLS.pop(name, None)
        raise
    core.req_reg.reg.clear()  # the handlers that every cell has
    return core


def guard(
    core: Any, *, admits: Callable[[Any, bytes], bool], hear: Any, forged: Callable[[], object]
) -> None:
    """Put checks before NVFlare's own reading of frames and of messages.

    Args:
        core: a cell that has not been started.
        admits: whether a frame that came over a connection may be read; if not, the connection is closed.
        hear: is called with endpoint, connection, number and message instead of the cell.
        forged: is called when a peer claims another name than its certificate's; the connection is closed.
    """
    manager, resolver = core.communicator.conn_manager, core.identity_resolver
    read, match = manager.process_frame, resolver.require_match

    def require_match(*names: str) -> None:
        try:
            match(*names)
        except ValueError:
            forged()
            raise

    def process_frame(connection: Any, frame: bytes) -> None:
        if not admits(connection, frame):
            connection.conn.close()
        elif kind_of(frame) == DATA:
            read(connection, frame)
        else:
            manager.process_frame_task(connection, frame)  # at once: a message may follow, on another thread

    manager.process_frame, core.process_message = process_frame, hear
    resolver.require_match = require_match


def kind_of(frame: bytes) -> str:
    """What a frame is, by its first 16 bytes: DATA, GREETING or HEARTBEAT, or OTHER."""
    try:
        kind = Prefix.from_bytes(frame).type
    except CommError:
        return OTHER
    return _KINDS.get(kind, OTHER)


def greeter(frame: bytes) -> str | None:
    """The name in a handshake; None if it cannot be read."""
    try:
        found = conn_manager.ConnManager.get_dict_payload(Prefix.from_bytes(frame), frame)
        name = found.get(HandshakeKeys.ENDPOINT_NAME)
    except Exception:  # noqa: BLE001 - whatever its reader makes of rubbish
        return None
    return name if isinstance(name, str) else None


def expected_headers(peer: str, me: str, channel: str) -> dict[str, object]:
    """The headers that a message of bytes from a peer to this cell has, apart from its topic."""
    key = MessageHeaderKey
    return {
        key.MSG_TYPE: MessageType.REQ,
        key.CHANNEL: channel,
        key.ORIGIN: peer,
        key.FROM_CELL: peer,
        key.DESTINATION: me,
        key.TO_CELL: me,
        key.PAYLOAD_ENCODING: Encoding.BYTES,
        key.SECURE: False,
    }


def topic_of(headers: Mapping[str, object]) -> object:
    """The topic that a message names."""
    return headers.get(MessageHeaderKey.TOPIC)


def session(core: Any, peer: str) -> str | None:
    """The name of the connection with a peer; None if there is none."""
    if peer not in core.agents:
        return None
    found = core.communicator.conn_manager.get_connections(peer)
    return str(found[0].get_name()) if found else None


def release(core: Any) -> None:
    """Stop a cell, and let another one of this process have its name."""
    core.agents.clear()  # else it says goodbye and waits for answers
    core.stop()
    CoreCell.ALL_CELLS.pop(core.get_fqcn(), None)
