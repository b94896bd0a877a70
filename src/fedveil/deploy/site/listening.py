"""The socket of a site service: who may connect, how much they may send, and a stop that finishes open requests.

A TCP client has to send the token before it occupies one of the few worker threads. Until then it only uses an open
socket; there are at most `_STRANGERS` of these, for `_TOKEN_WAIT` seconds."""

import logging
import os
import selectors
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fedveil.deploy.site.ipc import TOKEN_LENGTH, Address, LineError, receive, send
from fedveil.errors import InvalidValue

__all__ = ["Listener"]

log = logging.getLogger("fedveil.site")

_PATIENCE = 30.0
"""Seconds for a whole message, and again for its answer to be received."""
_TOKEN_WAIT = 5.0
"""Seconds for the token."""
_AT_ONCE = 8
"""Messages that are answered at a time; further clients with the token wait."""
_STRANGERS = 64
"""Clients that have not sent the token yet; a new one replaces the oldest."""
_TURN = 0.2


@dataclass(slots=True)
class _Stranger:
    """A client that has not sent the whole token yet."""

    line: socket.socket
    until: float
    sent: bytes = b""


class Listener:
    """Accepts connections at an address and hands each message to ``answer``.

    Args:
        address: a socket file, mode 0600 (0660 if a group is named), or loopback TCP with a token.
        answer: from a message to its answer; must not raise.
        limit: the longest message that is read.
        group: users that may connect in addition to the service's own; None for nobody.
    """

    def __init__(
        self, address: Address, answer: Callable[[bytes], bytes], *, limit: int, group: str | None = None
    ) -> None:
        self._address, self._answer, self._limit = address, answer, limit
        self._stopping = threading.Event()
        self._socket = _bind(address, group)
        self._strangers: dict[int, _Stranger] = {}

    def serve(self) -> None:
        """Answer until `stop`, then finish the connections that are open."""
        with (
            self._socket,
            selectors.DefaultSelector() as ready,
            ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="line") as answering,
        ):
            ready.register(self._socket, selectors.EVENT_READ)
            while not self._stopping.is_set():
                for key, _ in ready.select(_TURN):
                    line = self._accept(ready) if key.fileobj is self._socket else self._heard(ready, key.fd)
                    if line is not None:
                        answering.submit(self._handle, line)
                self._drop_late(ready)
            for number in list(self._strangers):
                self._drop(ready, number).close()
        if isinstance(self._address.where, str):
            Path(self._address.where).unlink(missing_ok=True)

    def stop(self) -> None:
        """Accept no more connections."""
        self._stopping.set()

    def stop_on_signals(self) -> None:
        """Stop gracefully on SIGTERM and SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stop())

    def _accept(self, ready: selectors.BaseSelector) -> socket.socket | None:
        """Accept a client: through a socket file it may send at once; over TCP it has to send the token first."""
        try:
            line, _ = self._socket.accept()
        except (BlockingIOError, TimeoutError):
            return None
        except OSError as error:
            log.warning("a connection could not be accepted: %s", error)
            self._stopping.wait(0.1)
            return None
        if self._address.token is None:
            return line
        if len(self._strangers) >= _STRANGERS:
            self._refuse(ready, next(iter(self._strangers)))
        line.setblocking(False)
        self._strangers[line.fileno()] = _Stranger(line, time.monotonic() + _TOKEN_WAIT)
        ready.register(line, selectors.EVENT_READ)
        return None

    def _heard(self, ready: selectors.BaseSelector, number: int) -> socket.socket | None:
        """The connection of a client that has sent the token; one that sent another is dropped."""
        stranger = self._strangers.get(number)
        if stranger is None:  # dropped in this iteration
            return None
        try:
            chunk = stranger.line.recv(TOKEN_LENGTH - len(stranger.sent))
        except BlockingIOError:
            return None
        except OSError:
            chunk = b""
        stranger.sent += chunk
        if chunk and len(stranger.sent) < TOKEN_LENGTH:
            return None
        if not self._address.admits(stranger.sent):
            self._refuse(ready, number)
            return None
        return self._drop(ready, number)

    def _drop_late(self, ready: selectors.BaseSelector) -> None:
        now = time.monotonic()
        for number in [key for key, stranger in self._strangers.items() if stranger.until < now]:
            self._refuse(ready, number)

    def _refuse(self, ready: selectors.BaseSelector, number: int) -> None:
        log.warning("refused: a connection without the right token")
        self._drop(ready, number).close()

    def _drop(self, ready: selectors.BaseSelector, number: int) -> socket.socket:
        line = self._strangers.pop(number).line
        ready.unregister(line)
        return line

    def _handle(self, line: socket.socket) -> None:
        try:
            with line:
                message = receive(line, self._limit, until=time.monotonic() + _PATIENCE)
                answer = self._answer(message)
                line.settimeout(_PATIENCE)
                send(line, answer)
        except (LineError, OSError) as error:
            log.warning("refused: a connection broke off (%s)", error)


def _bind(address: Address, group: str | None) -> socket.socket:
    where = address.where
    try:
        file = Path(where) if isinstance(where, str) else None
        listener = _bind_file(file, group) if file else socket.create_server(where)
    except OSError as error:
        raise InvalidValue(
            f"the service cannot listen at {where} ({error.strerror or error})",
            "the address must be free, and the folder writable",
            "stop the other program, or change site.listen in site.toml",
        ) from None
    listener.setblocking(False)
    listener.listen(128)
    return listener


def _bind_file(path: Path, group: str | None) -> socket.socket:
    """A socket file that is inaccessible to others from its creation."""
    if path.is_socket():
        probe = socket.socket(socket.AF_UNIX)
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink()  # left by a killed service
        else:
            raise OSError("another service answers there")
        finally:
            probe.close()
    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    if group is not None:
        shutil.chown(path, group=group)
        path.chmod(0o660)
    return listener
