"""The socket of a site service: who may connect, how much they may send, and a stop that finishes what was
begun."""

import logging
import os
import shutil
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from fedveil.deploy.local import Address, LineError, receive, send
from fedveil.errors import InvalidValue

__all__ = ["Listener"]

log = logging.getLogger("fedveil.site")

_PATIENCE = 30.0
_AT_ONCE = 8


class Listener:
    """Accepts connections at an address and hands each message to ``answer``.

    Args:
        address: a socket file, mode 0600 (0660 where a group is named), or loopback TCP with a token.
        answer: from a message to its answer; must not raise.
        limit: the longest message that is read.
        group: the users that may connect beside the service's own; None for nobody.
    """

    def __init__(
        self, address: Address, answer: Callable[[bytes], bytes], *, limit: int, group: str | None = None
    ) -> None:
        self._address, self._answer, self._limit = address, answer, limit
        self._slots = threading.BoundedSemaphore(_AT_ONCE)
        self._stopping = threading.Event()
        self._threads: set[threading.Thread] = set()
        self._socket = _bind(address, group)

    def serve(self) -> None:
        """Answer until `stop`, then finish the connections that are open."""
        with self._socket:
            while not self._stopping.is_set():
                try:
                    line, _ = self._socket.accept()
                except TimeoutError:
                    continue
                except OSError as error:
                    log.warning("a connection could not be accepted: %s", error)
                    self._stopping.wait(0.1)
                    continue
                self._slots.acquire()
                thread = threading.Thread(target=self._handle, args=(line,))
                self._threads = {known for known in self._threads if known.is_alive()} | {thread}
                thread.start()
        for thread in self._threads:
            thread.join()
        if isinstance(self._address.where, str):
            Path(self._address.where).unlink(missing_ok=True)

    def stop(self) -> None:
        """Take no more connections."""
        self._stopping.set()

    def stop_on_signals(self) -> None:
        """Stop gracefully on SIGTERM and SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stop())

    def _handle(self, line: socket.socket) -> None:
        try:
            with line:
                line.settimeout(_PATIENCE)
                if not self._address.admits(line):
                    log.warning("refused: a connection without the right token")
                    return
                send(line, self._answer(receive(line, self._limit)))
        except (LineError, OSError) as error:
            log.warning("refused: a connection broke off (%s)", error)
        finally:
            self._slots.release()


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
    listener.settimeout(0.2)
    listener.listen(_AT_ONCE)
    return listener


def _bind_file(path: Path, group: str | None) -> socket.socket:
    """A socket file that is closed to others from its first moment on."""
    if path.is_socket():
        probe = socket.socket(socket.AF_UNIX)
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink()  # left behind by a service that was killed
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
