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
        wait_until(lambda: carrier.present().keys() == {north, south}, "two nodes")
        before = carrier.present()
        assert carrier.present() == before, "a session stays while its node does"
        sent = carrier.push({north: b"for north", south: large}, 60)
        assert sent.keys() == {north, south}
        assert answers(carrier, sent) == {north: b"for north"[::-1], south: large[::-1]}
        assert not any(parcel.data for parcel in carrier.pull(sent.values())), "each answer once"
        twice = [carrier.push({north: bytes([number])}, 60) for number in (1, 2)]
        assert [answers(carrier, one)[north] for one in twice] == [b"\x01", b"\x02"]
        town.kill(f"{north}.node")
        town.connect(north)
        wait_until(lambda: carrier.present().get(north, before[north]) != before[north], "a new session")
        assert answers(carrier, carrier.push({north: b"again"}, 60)) == {north: b"niaga"}
    with Federation.load(town.coordinator).carrier() as carrier:
        wait_until(lambda: carrier.present().keys() == {north, south}, "two nodes")
        assert answers(carrier, carrier.push({south: b"new"}, 60)) == {south: b"wen"}
