"""A real site service: what it is offered makes it neither dial out nor allocate, until somebody approved it."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.deploy.hospital import NETWORK, make_offer, set_up

from fedveil.deploy.identity import Identity
from fedveil.deploy.offer import Offer
from fedveil.deploy.sealing import FROM_COORDINATOR, FROM_SITE, new_id, seal, unseal
from fedveil.deploy.site.ipc import Address, ask
from fedveil.federation.wire import Frame, decode, encode

CLI = "from fedveil.cli.main import app; app()"
PACKAGE = '''
"""A package of networks as timm is one: it fetches public weights, and knows networks of any size."""
import socket
from types import SimpleNamespace
import torch
from torch import nn

def is_model(name):
    return name in ("far", "giant")

def get_pretrained_cfg(name):
    return SimpleNamespace(fixed_input_size=False)

def create_model(name, *, pretrained, num_classes, in_chans):
    if pretrained:
        socket.create_connection(("127.0.0.1", {port}), timeout=5).close()
    width = 16_000 if name == "giant" else 8
    first, last = nn.Linear(64 * in_chans, width), nn.Linear(width, num_classes)
    return nn.Sequential(nn.Flatten(), first, nn.Linear(width, width), last)
'''
"""Its giant takes a gigabyte."""
GIGABYTE = 2**30


@pytest.fixture
def hub() -> Iterator[tuple[int, list[object]]]:
    """Where weights could be fetched: a port, and who called."""
    called: list[object] = []
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.1)
    stop = threading.Event()

    def listen() -> None:
        while not stop.is_set():
            try:
                line, caller = server.accept()
            except TimeoutError:
                continue
            called.append(caller)
            line.close()

    thread = threading.Thread(target=listen)
    thread.start()
    yield server.getsockname()[1], called
    stop.set()
    thread.join()
    server.close()


class Service:
    """`fedveil site serve` as a process of its own, with a package of networks that dials out."""

    def __init__(self, base: Path, port: int) -> None:
        self.base, self.coordinator = base, Identity.create(base / "coordinator.key")
        self.folder = set_up(base, self.coordinator, methods='["gradient"]')
        (base / "packages" / "timm").mkdir(parents=True)
        (base / "packages" / "timm" / "__init__.py").write_text(PACKAGE.replace("{port}", str(port)))
        path = os.pathsep.join([str(base / "packages"), os.environ.get("PYTHONPATH", "")])
        self.environment = {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}
        self.site = Identity.load(self.folder / "identity.key").public
        command = [sys.executable, "-c", CLI, "site", "serve", str(self.folder)]
        with (base / "service.log").open("wb") as log:
            self.process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        self.wait()

    def wait(self) -> None:
        until = time.monotonic() + 180
        while not (self.folder / "site.sock").exists():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < until, "the service does not listen"
            time.sleep(0.05)

    @property
    def log(self) -> str:
        return (self.base / "service.log").read_text()

    @property
    def most_memory(self) -> int:
        """Bytes that the process has held at most."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024

    def ask(self, frame: Frame) -> Frame:
        sealed = seal(
            encode(frame), self.coordinator, to=self.site, purpose=FROM_COORDINATOR, message=new_id()
        )
        answer = ask(Address(str(self.folder / "site.sock")), sealed, timeout=120, limit=2**20)
        opened = unseal(answer, self.coordinator, sender=self.site, purpose=FROM_SITE)
        assert opened.body is not None
        return decode(opened.body)

    def offer(self, offer: Offer) -> Frame:
        return self.ask(Frame("offer", {**offer.to_dict(), "nonce": "n"}))

    def run(self, *words: str) -> tuple[int, str]:
        command = [sys.executable, "-c", CLI, "site", *words, str(self.folder)]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=120)
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def service(tmp_path: Path, hub: tuple[int, list[object]]) -> Iterator[Service]:
    started = Service(tmp_path, hub[0])
    yield started
    started.process.terminate()
    started.process.wait(120)


def of(network: str, base: Path) -> Offer:
    """An offer of a study that trains a network, made by who has nothing installed of it."""
    made = make_offer(base, template=NETWORK)
    text = made.study.to_toml().replace('network = "cnn"', f'network = "{network}"')
    return Offer.from_dict({**made.to_dict(), "study": text})


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_an_offer_makes_a_service_neither_dial_out_nor_allocate(service, tmp_path, hub):
    assert service.offer(of("cnn", tmp_path)).kind == "offered"  # what it loads once for any network
    before = service.most_memory
    wide = of("cnn", tmp_path)
    wide = replace(wide, classes=tuple(f"class {number}" for number in range(1000)))
    for offer in (
        of("timm:far", tmp_path),
        of("timm:giant@scratch", tmp_path),
        of("timm:giant", tmp_path),
        wide,
    ):
        answer = service.offer(offer)
        assert answer.kind == "offered", service.log
        assert answer.head["status"] == "pending"
    assert service.most_memory - before < GIGABYTE / 8
    assert hub[1] == []


def test_weights_that_are_not_here_are_said_to_who_approves_and_never_fetched(service, tmp_path, hub):
    digest = service.offer(of("timm:far", tmp_path)).head["study"]
    code, said = service.run("approve", digest, "--yes")
    assert code == 2, said
    assert "never downloads" in said
    assert "pretrained=True" in said
    assert not list((service.folder / "studies").glob("*.approved"))
    assert hub[1] == []


def test_an_approved_study_does_not_make_a_service_dial_out_either(service, tmp_path, hub):
    """Approved by hand, where the command refuses: the service answers without the weights, and stays at home."""
    digest = service.offer(of("timm:far", tmp_path)).head["study"]
    (service.folder / "studies" / f"{digest}.approved").write_text('{"by": "me", "at": "now"}')
    until, status = time.monotonic() + 180, ""
    while status not in ("ready", "refused"):
        assert time.monotonic() < until, service.log
        head = {"study": digest, "nonce": "n", "receipt": None, "version": "x"}
        status = service.ask(Frame("hello", head)).head["status"]
    assert hub[1] == []
    assert "a site program" in service.log
    assert "noise alone" in service.log


def test_a_service_still_answers_at_a_port_of_its_own_machine(tmp_path):
    """Nobody is dialled in order to be answered."""
    program = (
        "import socket\n"
        "from fedveil.deploy.site.offline import offline\n"
        "server = socket.create_server(('127.0.0.1', 0))\n"
        "client = socket.create_connection(server.getsockname())\n"
        "with offline():\n"
        "    line, _ = server.accept()\n"
        "    line.sendall(b'ab')\n"
        "    assert client.recv(2) == b'ab'\n"
        "    for call in (lambda: socket.create_connection(server.getsockname()),\n"
        "                 lambda: socket.getaddrinfo('example.org', 443),\n"
        "                 lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))):\n"
        "        try: call()\n"
        "        except PermissionError: continue\n"
        "        raise SystemExit('it got out')\n"
        "socket.create_connection(server.getsockname())\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_service_refuses_an_offered_function_and_imports_nothing(service, tmp_path):
    """The module is there and importable: its import alone would leave a file."""
    marker = tmp_path / "imported"
    (tmp_path / "packages" / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    made = make_offer(tmp_path, template=NETWORK)
    text = made.study.to_toml().replace('network = "cnn"', 'network = "module:evil.build"')
    assert "evil" in text
    answer = service.ask(Frame("offer", {**made.to_dict(), "study": text, "nonce": "n"}))
    assert "run no code that a coordinator names" in service.log
    assert answer.kind != "offered"
    assert not list((service.folder / "studies").glob("*.json"))
    assert not marker.exists()
