"""What every carrier promises, with real nodes as processes and an echo in place of each site service."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.deploy.hospital import SITES, edit
from tests.deploy.town import DEADLINE, Town, wait_until

from fedveil.deploy.carrier import Carrier, Engine
from fedveil.deploy.coordinator.hospitals import Federation
from fedveil.deploy.site.ipc import LineError, receive, send

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # Flower's own


@contextmanager
def echo(path: Path) -> Iterator[None]:
    """Answers every message with its bytes reversed."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            while True:
                try:
                    line, _ = server.accept()
                except OSError:
                    return
                with line:
                    try:
                        send(line, receive(line, 2**30)[::-1])
                    except (LineError, OSError):
                        continue

        threading.Thread(target=serve, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown(socket.SHUT_RDWR)
    path.unlink()


def push(carrier: Carrier, messages: dict[str, bytes]) -> dict[str, str]:
    """Send to sites, each as soon as it is connected; the messages' names by site."""
    sent: dict[str, str] = {}

    def all_sent() -> bool:
        rest = {site: data for site, data in messages.items() if site not in sent}
        sent.update(carrier.push(rest, 2 * DEADLINE))
        return sent.keys() == messages.keys()

    wait_until(all_sent, "the sites to be sent to")
    return sent


def answers(carrier: Carrier, names: dict[str, str]) -> dict[str, bytes | None]:
    """What comes back from each site."""
    waiting, found = {name: site for site, name in names.items()}, {}
    until = time.monotonic() + DEADLINE
    while waiting:
        assert time.monotonic() < until, f"only {sorted(found)} answered"
        for parcel in carrier.pull(list(waiting)):
            assert parcel.failure is None
            found[waiting.pop(parcel.name)] = parcel.data
        time.sleep(0.02)
    return found


@pytest.mark.parametrize("engine", ["flower", "nvflare"])
def test_a_carrier_brings_bytes_to_nodes_and_answers_back(engine: Engine, tmp_path):
    if engine == "nvflare":
        pytest.importorskip("nvflare", reason="fedveil[nvflare] is not installed")
    town = Town(tmp_path, engine=engine)
    with echo(tmp_path / "echo"):
        try:
            for name in SITES[:2]:
                edit(town.kits / name / "node" / "node.toml", site=f'"unix:{tmp_path / "echo"}"')
                town.connect(name)
            keep_promises(town)
        finally:
            town.close()


def keep_promises(town: Town) -> None:
    """Present, push and pull; a node that is killed; a carrier that is closed and opened again."""
    north, south, _ = SITES
    large = os.urandom(3 * 2**20)
    with Federation.load(town.coordinator).carrier() as carrier:
        before: dict[str, str] = {}

        def stays() -> bool:
            before.update(carrier.present())
            return carrier.present() == before and before.keys() == {north, south}

        wait_until(stays, "two nodes, each in one session")
        sent = push(carrier, {north: b"for north", south: large})
        assert answers(carrier, sent) == {north: b"for north"[::-1], south: large[::-1]}
        assert not any(parcel.data for parcel in carrier.pull(sent.values())), "each answer once"
        twice = [push(carrier, {north: bytes([number])}) for number in (1, 2)]
        assert [answers(carrier, one)[north] for one in twice] == [b"\x01", b"\x02"]
        town.kill(f"{north}.node")
        town.connect(north)
        wait_until(lambda: carrier.present().get(north, before[north]) != before[north], "a new session")
        assert answers(carrier, push(carrier, {north: b"again"})) == {north: b"niaga"}
    with Federation.load(town.coordinator).carrier() as carrier:
        wait_until(lambda: carrier.present().keys() == {north, south}, "two nodes")
        assert answers(carrier, push(carrier, {south: b"new"})) == {south: b"wen"}
