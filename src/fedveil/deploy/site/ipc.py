"""The connection between a node and the site service on one machine. Standard library only: the node imports it.

A connection carries one exchange: a length (8 bytes, big-endian) and that many bytes, each way. An address is
``unix:PATH`` (access is controlled by the file's mode) or ``tcp:HOST:PORT`` with a token that the caller sends first.
"""

import hmac
import socket
import struct
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Address", "LineError", "ask", "receive", "send"]

TOKEN_LENGTH = 64
_LENGTH = struct.Struct(">Q")
_CHUNK = 2**20


class LineError(Exception):
    """The peer sent nothing usable: it disconnected, was too slow, or announced too many bytes."""


@dataclass(frozen=True, slots=True)
class Address:
    """A site service's address.

    Attributes:
        where: a socket file's path, or host and port.
        token: 64 characters that a TCP client must send; None for a socket file.
    """

    where: str | tuple[str, int]
    token: bytes | None = None

    @classmethod
    def parse(cls, text: str, token_file: Path | None = None) -> "Address":
        """Read ``unix:PATH`` or ``tcp:HOST:PORT``; ValueError explains why other text is invalid."""
        kind, _, rest = text.partition(":")
        if kind == "unix" and rest:
            return cls(rest)
        host, _, port = rest.rpartition(":")
        if kind != "tcp" or not port.isdigit() or not 0 < int(port) < 65536:
            raise ValueError(f"{text!r} is neither unix:PATH nor tcp:HOST:PORT")
        if host not in ("127.0.0.1", "::1", "localhost"):
            raise ValueError(f"{host!r} can be reached from other machines; use 127.0.0.1")
        token = token_file.read_text().strip().encode() if token_file else b""
        if len(token) != TOKEN_LENGTH:
            raise ValueError(f"tcp needs a token file with {TOKEN_LENGTH} characters")
        return cls((host, int(port)), token)

    def connect(self, timeout: float) -> socket.socket:
        """A connection to the service, the token already sent."""
        if isinstance(self.where, str):
            line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        else:
            line = socket.socket(socket.AF_INET6 if ":" in self.where[0] else socket.AF_INET)
        line.settimeout(timeout)
        try:
            line.connect(self.where)
            if self.token is not None:
                line.sendall(self.token)
        except BaseException:
            line.close()
            raise
        return line

    def admits(self, sent: bytes) -> bool:
        """Whether a client sent the token; compared in constant time."""
        return self.token is None or hmac.compare_digest(sent, self.token)


def ask(address: Address, data: bytes, *, timeout: float, limit: int) -> bytes:
    """One exchange with the service.

    Raises:
        LineError: it cannot be reached, disconnects, or answers with more than ``limit`` bytes.
    """
    try:
        with address.connect(timeout) as line:
            send(line, data)
            return receive(line, limit)
    except OSError as error:
        raise LineError(f"{address.where}: {error.strerror or error}") from None


def send(line: socket.socket, data: bytes) -> None:
    """Send a length and the bytes."""
    line.sendall(_LENGTH.pack(len(data)))
    if data:  # the peer has the whole of an empty message, and may have answered and closed
        line.sendall(data)


def receive(line: socket.socket, limit: int, *, until: float | None = None) -> bytes:
    """Receive a length and that many bytes, ``limit`` at most.

    Args:
        line: a connection; if ``until`` is None its own timeout applies to each part.
        limit: the largest accepted number of bytes.
        until: deadline for the whole message, as of `time.monotonic`.
    """
    (length,) = _LENGTH.unpack(_exactly(line, _LENGTH.size, until))
    if length > limit:
        raise LineError(f"{length:,} bytes announced, {limit:,} are allowed")
    return _exactly(line, length, until)


def _exactly(line: socket.socket, length: int, until: float | None) -> bytes:
    chunks: list[bytes] = []
    missing = length
    while missing:
        if until is not None:
            line.settimeout(max(until - time.monotonic(), 1e-3))
        chunk = line.recv(min(missing, _CHUNK))
        if not chunk:
            raise LineError(f"the peer disconnected {missing:,} bytes before the end")
        chunks.append(chunk)
        missing -= len(chunk)
    return b"".join(chunks)
