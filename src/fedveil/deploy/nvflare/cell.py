"""A cell that hands over bytes from known peers and does nothing else that a peer asks for.

What a peer sends meets, in this order:

1. gRPC: TLS with a certificate of the federation's authority on both sides, HTTP/2, the length of a message, and a
   Protobuf message with a number and bytes;
2. `Cell._admits`, which has read the first 16 bytes of a frame: a handshake comes first, once, has 4 KiB at most, and
   names a cell that is expected;
3. NVFlare: that name is the common name of the peer's certificate; MessagePack headers of at most 64 KiB;
4. `Cell._hear`: every header has the one value that it may have; the rest of the frame is handed over as it is.

NVFlare's own handlers (bulk messages, goodbyes, the exchange of certificates), its forwarding between cells, its
encryption and its deserialisation of objects (FOBS) are never reached.
"""

import logging
import math
import ssl
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fedveil.deploy.nvflare import LONGEST
from fedveil.deploy.nvflare.private import (
    DATA,
    GREETING,
    HEARTBEAT,
    InvalidCertChain,
    Message,
    expected_headers,
    greeter,
    guard,
    kind_of,
    make_core,
    release,
    session,
    topic_of,
)
from fedveil.errors import InvalidValue

__all__ = ["Cell", "CellSettings"]

log = logging.getLogger("fedveil.cell")

_CHANNEL, _NAME = "fedveil", "fedveil_name"
_LONGEST_NAME = 64
_LONGEST_GREETING = 4096
_FRAME = 2**17  # bytes of a frame apart from its content: headers, and Protobuf's
_LOG_SECONDS = 60.0

Hear = Callable[[str, str, str, bytes], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CellSettings:
    """A cell's address, files and peers.

    Attributes:
        name: its name, which its certificate confirms.
        host: where it listens, or whom it connects to: a name or an IPv4 address.
        port: the same.
        listens: whether it listens.
        authority: the certificates that it trusts (PEM file).
        certificate: its own (PEM file).
        key: the private key of that (PEM file).
        peers: the names of the cells that may connect, or that it connects to.
        topics: the topics of the messages that it takes.
    """

    name: str
    host: str
    port: int
    listens: bool
    authority: Path
    certificate: Path
    key: Path
    peers: Collection[str]
    topics: Collection[str]

    def check(self) -> None:
        """Refuse files that are not a certificate, its private key and an authority's certificate.

        Raises:
            InvalidValue: for such files.
        """
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_cert_chain(self.certificate, self.key, password="")
            context.load_verify_locations(self.authority)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise InvalidValue(
                f"{self.certificate} with {self.key.name} and {self.authority.name} cannot be used ({error})",
                "NVFlare's cell needs its certificate, the private key of it, and the authority's certificate",
                "restore the files from a copy of the folder or from the kit",
            ) from None


class Cell:
    """Exchanges messages with the cells of its settings while the context is open.

    Args:
        settings: its address, files and peers.
        hear: is called with a peer's name, a topic, a message's name and its bytes, on a thread of NVFlare's.
    """

    def __init__(self, settings: CellSettings, hear: Hear) -> None:
        self._settings, self._given = settings, hear
        self._refused, self._logged, self._lock = 0, -math.inf, threading.Lock()
        self._core: Any = None

    def __enter__(self) -> Self:
        one = self._settings
        one.check()
        files = {"authority": one.authority, "certificate": one.certificate, "key": one.key}
        url, most = f"grpc://{one.host}:{one.port}", 2 * len(one.peers) + 8
        try:
            self._core = make_core(
                one.name, url, files, listens=one.listens, options=_options(one), most=most
            )
        except InvalidCertChain as error:
            raise InvalidValue(
                f"{one.certificate} is not valid with {one.authority.name} ({error})",
                "it must be signed by that authority, and valid now",
                "synchronise the clock by NTP; if it is right, use the files of one kit, or renew them",
            ) from None
        guard(self._core, admits=self._admits, hear=self._hear, forged=self._forged)
        self._core.start()
        return self

    def __exit__(self, *_: object) -> None:
        release(self._core)

    def session(self, peer: str) -> str | None:
        """The name of the connection with a peer; None if there is none."""
        return session(self._core, peer)

    def send(self, peer: str, topic: str, name: str, data: bytes) -> bool:
        """Give a message to a connection; False if there is none. It may be lost with the connection."""
        sent = self._core.fire_and_forget(_CHANNEL, topic, peer, Message({_NAME: name}, data))
        return not sent[peer]

    def _admits(self, connection: Any, frame: bytes) -> bool:
        kind, greeted = kind_of(frame), connection.sfm_endpoint is not None
        short = len(frame) <= _LONGEST_GREETING
        allowed = {DATA: greeted, HEARTBEAT: greeted and short, GREETING: short and not greeted}
        if not allowed.get(kind, False):
            return self._refuse("a frame that may not come now")
        if kind == GREETING and greeter(frame) not in self._settings.peers:
            return self._refuse("a cell of another name")
        return True

    def _forged(self) -> None:
        self._refuse("a cell of another name than its certificate's")

    def _hear(self, endpoint: Any, _connection: object, _number: int, message: Any) -> None:
        peer, headers = str(endpoint.name), message.headers
        if not isinstance(headers, dict) or not self._is_expected(peer, headers):
            self._refuse("a message of another kind")
            return
        self._given(peer, str(topic_of(headers)), str(headers[_NAME]), bytes(message.payload or b""))

    def _is_expected(self, peer: str, headers: dict[str, object]) -> bool:
        name, topic = headers.get(_NAME), topic_of(headers)
        wanted = expected_headers(peer, self._settings.name, _CHANNEL)
        return (
            isinstance(name, str)
            and len(name) <= _LONGEST_NAME
            and isinstance(topic, str)
            and topic in self._settings.topics
            and all(headers.get(key) == value for key, value in wanted.items())
        )

    def _refuse(self, what: str) -> bool:
        """Log the refusals, once a minute; False."""
        with self._lock:
            self._refused += 1
            now = time.monotonic()
            if now - self._logged >= _LOG_SECONDS:
                log.warning("refused %s times; the last: %s", self._refused, what)
                self._refused, self._logged = 0, now
        return False


def _options(settings: CellSettings) -> list[tuple[str, int]]:
    """gRPC's channel arguments: limits, no port for two, dead connections noticed, no proxy to this machine itself."""
    options = [
        ("grpc.max_send_message_length", LONGEST + _FRAME),
        ("grpc.max_receive_message_length", LONGEST + _FRAME),
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
    if settings.listens:
        return [
            *options,
            ("grpc.so_reuseport", 0),
            ("grpc.server_handshake_timeout_ms", 20_000),
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ]
    if settings.host in ("localhost", "127.0.0.1"):
        options.append(("grpc.enable_http_proxy", 0))
    return options
