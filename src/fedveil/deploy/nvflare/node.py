"""A hospital's network end: a cell that carries bytes and runs no code sent by the coordinator.

A stock NVFlare client runs the jobs that its server sends. This node is no NVFlare client: it opens one cell, which
connects to the coordinator's, and hands each message to the site service."""

import logging
import queue
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from fedveil.deploy.carrier import CELL
from fedveil.deploy.node import (
    SERVICE_AWAY,
    Complaints,
    NodeFile,
    SiteLine,
    forward_to,
    only_one,
    read_node_file,
    run_program,
    stop_on_signals,
    wrong_certificate,
)
from fedveil.deploy.nvflare import ANSWER, ASK, FAILED, LONGEST
from fedveil.deploy.nvflare.cell import Cell, CellSettings
from fedveil.deploy.provisioning.expiry import expiring
from fedveil.errors import InvalidValue

__all__ = ["Node", "NodeSettings", "run_node"]

log = logging.getLogger("fedveil.node")

_LOOK = 0.5
_AWAY_SECONDS = 5.0
_PROBE_SECONDS = 10.0
_MOST_WAITING = 8


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """A node's settings.

    Attributes:
        folder: holds ca.pem, node.pem and node.key; node.state is written there.
        host: the coordinator's name or IPv4 address.
        port: its port.
        name: the hospital's name, which node.pem confirms.
    """

    folder: Path
    host: str
    port: int
    name: str

    @classmethod
    def load(cls, folder: Path, coordinator: str) -> "NodeSettings":
        """Read the certificate of a start-up kit's folder; ``coordinator`` is HOST:PORT."""
        host, _, port = coordinator.rpartition(":")
        if not host or ":" in host or not port.isdigit() or not 0 < int(port) < 65536:
            raise InvalidValue(
                f"the coordinator's address is {coordinator!r}",
                "over NVFlare it is a host's name or an IPv4 address, and a port",
                "correct coordinator in node.toml",
            )
        try:
            certificate = x509.load_pem_x509_certificate((folder / "node.pem").read_bytes())
        except (OSError, ValueError) as error:
            raise InvalidValue(
                f"{folder / 'node.pem'} cannot be read ({error})",
                "a node needs ca.pem, node.pem and node.key of its start-up kit",
                "copy them from the kit",
            ) from None
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return cls(folder, host, int(port), str(names[0].value) if names else "")

    @property
    def address(self) -> str:
        """The coordinator's host and port."""
        return f"{self.host}:{self.port}"

    def cell(self) -> CellSettings:
        """The settings of the node's cell."""
        return CellSettings(
            name=self.name,
            host=self.host,
            port=self.port,
            listens=False,
            authority=self.folder / "ca.pem",
            certificate=self.folder / "node.pem",
            key=self.folder / "node.key",
            peers=(CELL,),
            topics=(ASK,),
        )


class Node:
    """Connects to the coordinator and hands every message's bytes to the site service, one after the other.

    Args:
        settings: where to connect, and with which certificate.
        line: to the site service.
        stop: ends the node after the current message.
    """

    def __init__(self, settings: NodeSettings, line: SiteLine, stop: threading.Event) -> None:
        self._settings, self._line, self._stop = settings, line, stop
        self._waiting: queue.Queue[tuple[str, bytes]] = queue.Queue(_MOST_WAITING)
        self._complain, self._away_since = Complaints(), time.monotonic()
        self._session: str | None = None
        self._closed = False
        self._cell = Cell(settings.cell(), self._hear)

    def run(self) -> None:
        """Carry messages until told to stop; tolerates interruptions of the coordinator and the site service.

        Raises:
            FederationError: the coordinator's certificate is wrong.
        """
        with only_one(self._settings.folder / "node.state"), self._cell:
            while not self._stop.is_set():
                self._watch()
                try:
                    name, data = self._waiting.get(timeout=_LOOK)
                except queue.Empty:
                    continue
                self._carry(name, data)

    def _hear(self, _peer: str, _topic: str, name: str, data: bytes) -> None:
        try:
            self._waiting.put_nowait((name, data))
        except queue.Full:
            log.warning("a message was dropped: %s wait already", _MOST_WAITING)

    def _carry(self, name: str, data: bytes) -> None:
        answer = self._line.answer(data)
        if answer is not None and len(answer) > LONGEST:
            log.error("an answer of %s bytes is too long for NVFlare, which carries %s", len(answer), LONGEST)
            sent = self._cell.send(CELL, FAILED, name, b"its answer is too long for NVFlare")
        elif answer is None:
            sent = self._cell.send(CELL, FAILED, name, SERVICE_AWAY.encode())
        else:
            sent = self._cell.send(CELL, ANSWER, name, answer)
        if not sent:
            log.warning("an answer was lost with the connection; the coordinator asks again")

    def _watch(self) -> None:
        """Log each connection, and why there is none."""
        session, now = self._cell.session(CELL), time.monotonic()
        if session != self._session:
            if session is None:
                log.info("the connection to %s has ended", self._settings.address)
            else:
                log.info("connected to %s as %s", self._settings.address, self._settings.name)
            self._session, self._away_since, self._closed = session, now, False
        if session is None and now - self._away_since > _AWAY_SECONDS:
            self._away_since = now + _PROBE_SECONDS
            found = trouble(self._settings)
            if found is not None:
                self._complain("%s", found)
            elif not self._closed:
                self._closed = True
                log.info(
                    "nothing listens at %s, as between studies; if one runs now, check the address in node.toml",
                    self._settings.address,
                )


def trouble(settings: NodeSettings) -> str | None:
    """Why there is no connection, found by a connection of its own; None if nothing listens, as between studies.

    Raises:
        FederationError: the coordinator's certificate is not trusted: a retry will not help.
    """
    address = settings.address
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(settings.folder / "ca.pem")
    context.load_cert_chain(settings.folder / "node.pem", settings.folder / "node.key", password="")
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((settings.host, settings.port), _PROBE_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=settings.host) as line,
        ):
            ended = line.recv(1) == b""
    except ssl.SSLCertVerificationError as error:
        raise wrong_certificate(address, str(error)) from None
    except ssl.SSLError as error:
        if "ALERT" not in str(error).upper():
            return (
                f"something other than the coordinator answers at {address} ({error}): check the address in "
                "node.toml"
            )
        ended = True
    except ConnectionRefusedError:
        return None
    except OSError as error:
        return (
            f"no connection to {address} ({error}): the coordinator may not run a study now; otherwise check the "
            "address in node.toml, and that the firewall allows outgoing connections to that port"
        )
    if ended:
        return (
            f"{address} ended the connection at once: node.pem must be signed by an authority that the coordinator "
            "trusts, and valid by its clock"
        )
    return (
        f"the coordinator at {address} does not admit {settings.name!r}: its studies name other hospitals, or it ended "
        "just now"
    )


class _NodeFile(NodeFile):
    """``node.toml``."""

    coordinator: str


def run_node(folder: Path) -> None:
    """Run the node of a start-up kit's folder until SIGTERM or SIGINT."""
    settings, address = read_node_file(folder, _NodeFile)
    stop = threading.Event()
    node = Node(NodeSettings.load(folder, settings.coordinator), SiteLine(forward_to(address), stop), stop)
    for text in expiring(folder):
        log.warning("%s", text)
    stop_on_signals(stop.set)
    node.run()


def main() -> None:
    """``python -m fedveil.deploy.nvflare.node FOLDER``: a node as a small separate program."""
    run_program(run_node)


if __name__ == "__main__":
    main()
