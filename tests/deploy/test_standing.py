"""One SuperLink for several studies, as real processes: who starts it, who it outlives, and when it ends."""

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.deploy.test_gate import found, process_of
from tests.deploy.town import _CLI, DEADLINE, wait_until

from fedveil.deploy.coordinator.hospitals import Federation
from fedveil.deploy.flower.carrier import FlowerCarrier
from fedveil.deploy.flower.process import SuperLink, _answers, serve
from fedveil.deploy.locks import locked_alone, release
from fedveil.errors import FederationError, InvalidValue

pytestmark = [
    pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes through /proc"),
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),  # Flower's own
]

COORDINATOR = """
import sys
from pathlib import Path
from fedveil.deploy.coordinator.hospitals import Federation
from fedveil.deploy.flower.carrier import FlowerCarrier
federation = Federation.load(Path(sys.argv[1]))
with FlowerCarrier(federation.link, federation.nodes()) as carrier:
    print("uses it", flush=True)
    for line in sys.stdin:
        print(dict(carrier.present()), flush=True)
"""


LOADING = """
import sys
from dataclasses import dataclass
from pathlib import Path
from fedveil.deploy.coordinator.hospitals import Federation
from fedveil.deploy.flower import process

process.LinkSettings.command = lambda self: [sys.executable, "-c", "print('loads', flush=True); input()"]
process.serve(Federation.load(Path(sys.argv[1])).link)
"""
"""`federation serve` whose SuperLink never gets past its imports."""


def line_of(process: "subprocess.Popen[str]") -> str:
    """The next line of a program that writes one at a time."""
    assert select.select([process.stdout], [], [], DEADLINE)[0], f"no line within {DEADLINE:.0f} s"
    return process.stdout.readline()


class Coordinator:
    """A coordinator between two studies: a process that is connected, and looks who is there when told to."""

    def __init__(self, federation: Federation) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", COORDINATOR, str(federation.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def connected(self) -> bool:
        return line_of(self.process) == "uses it\n"

    def looks(self) -> bool:
        """A call through the SuperLink succeeds."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return line_of(self.process) == "{}\n"

    def finish(self) -> None:
        self.process.stdin.close()
        assert self.process.wait(120) == 0
        self.process.stdout.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def federation(tmp_path) -> Iterator[Federation]:
    made = found(tmp_path)
    yield made
    if runs(made):
        os.kill(process_of(made), signal.SIGKILL)


def runs(federation: Federation) -> bool:
    try:
        process_of(federation)
    except AssertionError:
        return False
    return True


def test_the_first_study_to_end_does_not_stop_the_second(federation):
    """Two coordinators begin at once; whoever started the SuperLink leaves first; the last one ends it."""
    both = [Coordinator(federation) for _ in range(2)]
    assert all(one.connected() for one in both)
    started_by = Path(f"/proc/{process_of(federation)}/status").read_text()
    first, second = sorted(both, key=lambda one: f"PPid:\t{one.process.pid}\n" not in started_by)
    number = process_of(federation)
    first.finish()
    assert process_of(federation) == number, "it is not stopped, and not started again either"
    assert second.looks()
    os.kill(process_of(federation), signal.SIGKILL)
    assert second.looks(), "who is left starts it again"
    second.kill()
    wait_until(lambda: not runs(federation), "the SuperLink to notice that nobody is left")


def test_a_standing_superlink_outlives_studies(federation):
    command = [sys.executable, "-W", "ignore", "-c", _CLI, "federation", "serve", str(federation.folder)]
    with (federation.folder / "serve.log").open("ab") as log:
        standing = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_until(lambda: _answers(federation.table.port), "the SuperLink to run")
        for _ in range(2):
            with FlowerCarrier(federation.link, federation.nodes()) as carrier:
                assert carrier.present() == {}
        assert standing.poll() is None
        again = subprocess.run(command, capture_output=True, text=True)
        assert again.returncode == 2
        assert "a standing SuperLink serves" in again.stderr
        use = SuperLink(federation.link)
        use.open()
        standing.kill()
        standing.wait()
        use.ensure()
        assert not runs(federation), "it is for the service manager to start it again"
        use.close()
    finally:
        standing.kill()
        standing.wait()


def test_a_coordinator_starts_no_superlink_beside_one_that_is_being_loaded(federation):
    command = [sys.executable, "-W", "ignore", "-c", LOADING, str(federation.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as standing:
        try:
            assert line_of(standing) == "loads\n"
            use = SuperLink(replace(federation.link, patience=0.2))
            with pytest.raises(FederationError, match=r"the standing SuperLink at .* did not answer"):
                use.open()
            use.close()
            assert not runs(federation)
        finally:
            standing.kill()
    held = locked_alone(federation.link.standing)
    assert held is not None, "the lock ends with its process"
    release(held)


def test_a_reserved_port_is_for_a_server_that_reuses_addresses_only(federation):
    """Whoever binds a port without looking, as another test or program does, gets another one."""
    with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
        stranger.bind(("127.0.0.1", federation.link.port))
    with socket.create_server(("127.0.0.1", federation.link.port)):
        assert _answers(federation.link.port)


@pytest.mark.parametrize("listen", ["10.99.99.99", "nonsense", "::zz"])
def test_serve_names_an_address_that_it_cannot_use(federation, listen):
    with pytest.raises(InvalidValue, match=f"nothing can listen at {listen}"):
        serve(replace(federation.link, host=listen))


def test_serve_names_a_port_that_is_taken_at_another_address(federation):
    with socket.socket() as other:
        other.bind(("127.0.0.2", federation.link.port))
        other.listen()
        with pytest.raises(InvalidValue, match=r"nothing can listen at 0\.0\.0\.0 port"):
            serve(replace(federation.link, host="0.0.0.0"))


@pytest.mark.parametrize("name", ["superlink.pem", "superlink.key"])
def test_serve_names_a_damaged_certificate(federation, name):
    path = federation.folder / name
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InvalidValue, match=r"superlink.pem with superlink.key cannot be used"):
        serve(federation.link)
