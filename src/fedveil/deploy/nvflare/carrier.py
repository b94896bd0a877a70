"""NVFlare as a `fedveil.deploy.carrier.Carrier`: the coordinator's cell, to which the hospitals' nodes connect.

The cell is part of the coordinator's process and listens only while a study runs; one study at a time.
"""

import contextlib
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

from fedveil.deploy.carrier import CELL, Parcel, check_cell_names
from fedveil.deploy.locks import locked_alone, release
from fedveil.deploy.nvflare import ANSWER, ASK, FAILED, LONGEST
from fedveil.deploy.nvflare.cell import Cell, CellSettings
from fedveil.errors import FederationError, InvalidValue

__all__ = ["NVFlareCarrier"]

_START_SECONDS = 60.0
_MOST_KEPT = 4


class NVFlareCarrier:
    """Carries messages over the connections that the hospitals' nodes have opened.

    Args:
        folder: the coordinator's, with ca.pem, superlink.pem and superlink.key.
        host: the local address to listen at.
        port: the port.
        sites: the hospitals, by the common names of their nodes' certificates.
    """

    def __init__(self, folder: Path, host: str, port: int, sites: Sequence[str]) -> None:
        check_cell_names(sites)
        self._folder, self._host, self._port, self._sites = folder, host, port, tuple(sites)
        self._awaited: dict[str, tuple[str, float]] = {}
        self._arrived: dict[str, tuple[str, Parcel]] = {}
        self._lock = threading.Lock()
        self._open = contextlib.ExitStack()
        settings = CellSettings(
            name=CELL,
            host=host,
            port=port,
            listens=True,
            authority=folder / "ca.pem",
            certificate=folder / "superlink.pem",
            key=folder / "superlink.key",
            peers=frozenset(sites),
            topics=(ANSWER, FAILED),
        )
        self._cell = Cell(settings, self._hear)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as opening:
            held = locked_alone(self._folder / "nvflare.lock")
            if held is None:
                raise FederationError(
                    "another study of this federation runs",
                    "over NVFlare each study listens at the federation's port itself, so they take turns",
                    "wait for it to end; over Flower, studies can share the port",
                )
            opening.callback(release, held)
            _check_address(self._host, self._port)
            opening.enter_context(self._cell)
            self._wait_until_it_listens()
            self._open = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def present(self) -> Mapping[str, str]:
        """By site, the connection of its node."""
        found = {site: self._cell.session(site) for site in self._sites}
        return {site: session for site, session in found.items() if session is not None}

    def push(self, messages: Mapping[str, bytes], seconds: float) -> Mapping[str, str]:
        """Send bytes to sites that are present; their answers are taken for ``seconds``.

        Raises:
            FederationError: a message is longer than the cells carry.
        """
        sent, now = {}, time.monotonic()
        with self._lock:
            self._awaited = {name: entry for name, entry in self._awaited.items() if entry[1] > now}
        for site, data in messages.items():
            if len(data) > LONGEST:
                raise FederationError(
                    f"a message has {len(data):,} bytes",
                    f"over NVFlare it may have {LONGEST:,}",
                    "train a smaller model, or carry the messages over Flower",
                )
            name = uuid.uuid4().hex
            with self._lock:
                self._awaited[name] = site, now + seconds  # before it is sent: the answer may be fast
            if self._cell.send(site, ASK, name, data):
                sent[site] = name
        return sent

    def pull(self, names: Iterable[str]) -> Sequence[Parcel]:
        """What has arrived for these messages."""
        with self._lock:
            return [self._arrived.pop(name)[1] for name in list(names) if name in self._arrived]

    def _hear(self, site: str, topic: str, name: str, data: bytes) -> None:
        """Keep an answer that is awaited from this site, once."""
        with self._lock:
            if self._awaited.get(name, ("", 0.0))[0] != site:
                return
            del self._awaited[name]
            failure = data[:200].decode("ascii", "replace") if topic == FAILED else None
            self._arrived[name] = site, Parcel(name, None if topic == FAILED else data, failure)
            kept = [one for one, (sender, _) in self._arrived.items() if sender == site]
            for late in kept[:-_MOST_KEPT]:  # nobody has asked for it since
                del self._arrived[late]

    def _wait_until_it_listens(self) -> None:
        until = time.monotonic() + _START_SECONDS
        while True:
            with socket.socket() as probe:
                probe.settimeout(1)
                if probe.connect_ex((self._local(), self._port)) == 0:
                    return
            if time.monotonic() > until:
                raise FederationError(
                    f"nothing listens at port {self._port} after {_START_SECONDS:.0f} s",
                    "NVFlare's cell needs its certificates and its port",
                    "check superlink.pem and superlink.key",
                )
            time.sleep(0.05)

    def _local(self) -> str:
        return "127.0.0.1" if self._host in ("0.0.0.0", "localhost") else self._host


def _check_address(host: str, port: int) -> None:
    """Listen at the address for a moment, as the cell will."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen()
    except (OSError, ValueError) as error:
        raise InvalidValue(
            f"nothing can listen at {host} port {port} ({error})",
            "the address must be one of this machine's, of IPv4, and the port free",
            "correct listen or the port in federation.toml, or stop the program that uses the port",
        ) from None
