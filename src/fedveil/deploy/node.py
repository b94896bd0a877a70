"""What every hospital's node does, whichever carrier brings its messages."""

import fcntl
import logging
import signal
import sys
import threading
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import IO, TypeVar

from pydantic import BaseModel, ConfigDict

from fedveil.deploy.carrier import Engine
from fedveil.deploy.site.ipc import Address, LineError, ask
from fedveil.errors import FederationError, FedveilError, InvalidValue

__all__ = [
    "SERVICE_AWAY",
    "Complaints",
    "NodeFile",
    "SiteLine",
    "engine_of",
    "forward_to",
    "only_one",
    "read_node_file",
    "run_program",
    "stop_on_signals",
    "wrong_certificate",
]

log = logging.getLogger("fedveil.node")

SERVICE_AWAY = "the site service does not answer"

_COMPLAIN_SECONDS = 60.0
_ONE_HOUR = 3600.0
_LONGEST_ANSWER = 2**31


class Complaints:
    """Logs repeated failures once per minute."""

    def __init__(self) -> None:
        self._last = -_COMPLAIN_SECONDS

    def __call__(self, text: str, *words: object) -> None:
        """Log a failure, unless one was logged within the last minute."""
        if time.monotonic() > self._last + _COMPLAIN_SECONDS:
            self._last = time.monotonic()
            log.warning(text + "; trying again", *words)


class SiteLine:
    """Hands messages to the site service, and repeats each for a while if it cannot be reached.

    Args:
        forward: from a message's bytes to its answer's; raises LineError while the site service is unreachable.
        stop: is set when the node is to end.
        patience: seconds for which a message is repeated.
        again: the same while the service has not answered since the last message.
    """

    def __init__(
        self,
        forward: Callable[[bytes], bytes],
        stop: threading.Event,
        *,
        patience: float = 20.0,
        again: float = 1.0,
    ) -> None:
        self._forward, self._stop, self._patience, self._again = forward, stop, patience, again
        self._complain, self._down = Complaints(), False

    def answer(self, data: bytes) -> bytes | None:
        """The service's answer to a message; None if it cannot be reached."""
        until = time.monotonic() + (self._again if self._down else self._patience)
        while True:
            try:
                answer = self._forward(data)
            except LineError as error:
                if time.monotonic() > until or self._stop.is_set():
                    self._down = True
                    log.error("%s: %s", SERVICE_AWAY, error)
                    return None
                self._complain("%s (%s): start it, or correct node.toml", SERVICE_AWAY, error)
                self._stop.wait(0.5)
                continue
            if self._down:
                log.info("the site service answers again")
            self._down = False
            return answer


class NodeFile(BaseModel):
    """What ``node.toml`` holds for every carrier."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    engine: Engine = "flower"
    site: str
    token: str | None = None


F = TypeVar("F", bound=NodeFile)


def _values(folder: Path) -> dict[str, object]:
    return tomllib.loads((folder / "node.toml").read_text(encoding="utf-8"))


def _unusable(folder: Path, error: Exception) -> InvalidValue:
    return InvalidValue(
        f"{folder / 'node.toml'} cannot be used ({error})",
        "a node needs the coordinator's address and site",
        "use the kit's node.toml",
    )


def engine_of(folder: Path) -> Engine:
    """The carrier that a node's folder is for.

    Raises:
        InvalidValue: its ``node.toml`` cannot be read, or names another one.
    """
    try:
        found = _values(folder).get("engine", "flower")
    except (OSError, ValueError) as error:
        raise _unusable(folder, error) from None
    if found == "nvflare":
        return "nvflare"
    if found == "flower":
        return "flower"
    raise _unusable(folder, ValueError(f'engine is {found!r}, neither "flower" nor "nvflare"'))


def read_node_file(folder: Path, kind: type[F]) -> tuple[F, Address]:
    """Read ``node.toml``; return its settings and the site service's address.

    Raises:
        InvalidValue: it cannot be used.
    """
    try:
        settings = kind.model_validate(_values(folder))
        where, _, rest = settings.site.partition(":")
        text = f"unix:{(folder / rest).resolve()}" if where == "unix" else settings.site
        return settings, Address.parse(text, folder / settings.token if settings.token else None)
    except (OSError, ValueError) as error:
        raise _unusable(folder, error) from None


def forward_to(address: Address) -> Callable[[bytes], bytes]:
    """Asks a site service."""
    return lambda data: ask(address, data, timeout=_ONE_HOUR, limit=_LONGEST_ANSWER)


def only_one(state: Path) -> IO[str]:
    """Open a node's state file; it prevents a second node from starting until it is closed.

    Raises:
        FederationError: another node has it.
    """
    file = state.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise FederationError(
            f"another node uses {state}",
            "only one node may connect for a hospital",
            "stop the other node",
        ) from None
    return file


def wrong_certificate(address: str, reason: str) -> FederationError:
    """The coordinator's certificate is not valid now, is not from the kit's authority, or names another address."""
    now = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    if "not yet valid" in reason or "has expired" in reason:
        expired = "has expired" in reason
        return FederationError(
            f"by this machine's clock ({now} UTC) the certificate of {address} "
            + ("has expired" if expired else "is not valid yet"),
            "a certificate is valid between two dates",
            "synchronise the clock by NTP"
            + ("; if it is right, have the coordinator run `fedveil federation renew`" if expired else ""),
        )
    return FederationError(
        f"the certificate of {address} is not trusted ({reason})",
        "it must be signed by the kit's ca.pem and name this address",
        "check the address in node.toml; if it is right, ask the coordinator for the current ca.pem, or for a "
        "certificate that names this address",
    )


def run_program(run: Callable[[Path], None]) -> None:
    """A node as a small separate program, whose only argument is its folder."""
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s: %(message)s", level=logging.WARNING)
    logging.getLogger("fedveil").setLevel(logging.INFO)
    try:
        run(Path(sys.argv[1] if len(sys.argv) > 1 else "node"))
    except FedveilError as error:
        sys.exit(f"error: {error}")


def stop_on_signals(stop: Callable[[], None]) -> None:
    """Call a function on SIGTERM and SIGINT."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop())
