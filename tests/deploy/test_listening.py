"""The local socket: garbage, slow callers, tokens, modes, other users, a graceful stop."""

import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.deploy.ports import free_port

from fedveil.deploy.site import listening
from fedveil.deploy.site.ipc import Address, LineError, ask, send
from fedveil.deploy.site.listening import Listener
from fedveil.errors import InvalidValue


@pytest.fixture
def serve(tmp_path: Path) -> Iterator:
    started = []

    def start(address: Address | None = None, answer=lambda data: data[::-1], limit: int = 1000) -> Listener:
        listener = Listener(address or Address(str(tmp_path / "s")), answer, limit=limit)
        thread = threading.Thread(target=listener.serve)
        thread.start()
        started.append((listener, thread))
        return listener

    yield start
    for listener, thread in started:
        listener.stop()
        thread.join()


def test_bytes_go_there_and_back(serve, tmp_path):
    serve()
    address = Address(str(tmp_path / "s"))
    assert ask(address, b"abc", timeout=60, limit=100) == b"cba"
    assert ask(address, b"", timeout=60, limit=100) == b""


def test_an_empty_message_is_whole_once_its_length_is_sent():
    line, peer = socket.socketpair()

    class Answered:
        """A line whose peer closes as soon as it has the length."""

        def sendall(self, data: bytes) -> None:
            line.sendall(data)
            peer.close()

    with line:
        send(Answered(), b"")


def test_garbage_on_the_socket_leaves_the_service_up(serve, tmp_path):
    serve()
    path = str(tmp_path / "s")
    for garbage in (b"", b"\xff" * 8, b"\0" * 7, b"\0" * 7 + b"\x20" + b"short", os.urandom(4000)):
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(path)
            line.sendall(garbage)
            line.shutdown(socket.SHUT_WR)
    assert ask(Address(path), b"ab", timeout=60, limit=100) == b"ba"


def test_a_giant_message_is_not_read(serve, tmp_path):
    answered = []
    serve(answer=lambda data: answered.append(data) or b"", limit=10)
    with pytest.raises(LineError):
        ask(Address(str(tmp_path / "s")), b"x" * 11, timeout=60, limit=100)
    assert not answered


def test_a_giant_answer_is_not_read(serve, tmp_path):
    serve()
    with pytest.raises(LineError, match="are allowed"):
        ask(Address(str(tmp_path / "s")), b"x" * 11, timeout=60, limit=10)


def test_a_caller_who_says_nothing_is_dropped(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(listening, "_PATIENCE", 0.05)
    serve()
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(tmp_path / "s"))
        line.settimeout(5)
        assert line.recv(1) == b""


def test_tcp_asks_for_the_token(serve):
    port = free_port()
    right, wrong = (Address(("127.0.0.1", port), token * 64) for token in (b"a", b"b"))
    serve(right)
    assert ask(right, b"ab", timeout=60, limit=10) == b"ba"
    with pytest.raises(LineError):
        ask(wrong, b"ab", timeout=60, limit=10)
    with pytest.raises(LineError):
        ask(Address(("127.0.0.1", port)), b"ab" * 100, timeout=60, limit=10)


@pytest.mark.parametrize(
    "text", ["tcp:0.0.0.0:80", "tcp:example.org:80", "tcp:127.0.0.1:0", "unix:", "http:x", ""]
)
def test_only_this_machine_can_be_listened_at(text, tmp_path):
    token = tmp_path / "token"
    token.write_text("a" * 64)
    with pytest.raises(ValueError):
        Address.parse(text, token)


def test_tcp_without_a_token_is_refused():
    with pytest.raises(ValueError, match="token"):
        Address.parse("tcp:127.0.0.1:8000")


def test_the_socket_is_the_owners_alone(serve, tmp_path):
    serve()
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600


@pytest.mark.skipif(os.getuid() != 0, reason="only root can try as another user")
def test_another_user_cannot_talk_to_the_service_or_read_its_files(serve):
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)  # so that only the files' own modes protect them
        from fedveil.deploy.identity import Identity

        Identity.create(folder / "identity.key")
        serve(Address(str(folder / "s")))
        program = (
            "import os, socket, sys\n"
            "os.setgid(65534); os.setuid(65534)\n"
            "line = socket.socket(socket.AF_UNIX)\n"
            "for action in (lambda: line.connect('s'), lambda: open('identity.key')):\n"
            "    try: action()\n"
            "    except PermissionError: continue\n"
            "    sys.exit('got in')\n"
            "open('identity.pub')\n"
        )
        done = subprocess.run(
            [sys.executable, "-I", "-c", program], cwd=folder, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_an_address_in_use_says_so(serve, tmp_path):
    serve()
    with pytest.raises(InvalidValue, match="another service answers there"):
        Listener(Address(str(tmp_path / "s")), lambda data: data, limit=10)
    port = free_port()
    with socket.create_server(("127.0.0.1", port)), pytest.raises(InvalidValue, match="must be free"):
        Listener(Address(("127.0.0.1", port), b"a" * 64), lambda data: data, limit=10)


def test_a_socket_left_by_a_killed_service_is_replaced(serve, tmp_path):
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "s"))
    left.close()
    serve()
    assert ask(Address(str(tmp_path / "s")), b"ab", timeout=60, limit=10) == b"ba"


def test_a_stop_finishes_the_answer_at_hand(serve, tmp_path):
    begun, go_on, answers = threading.Event(), threading.Event(), []

    def slow(data: bytes) -> bytes:
        begun.set()
        assert go_on.wait(60)
        return data

    listener = serve(answer=slow)
    address = Address(str(tmp_path / "s"))
    caller = threading.Thread(target=lambda: answers.append(ask(address, b"x", timeout=60, limit=10)))
    caller.start()
    assert begun.wait(60)
    listener.stop()
    go_on.set()
    caller.join(60)
    assert answers == [b"x"]


def test_an_absent_service_is_a_line_error(tmp_path):
    with pytest.raises(LineError):
        ask(Address(str(tmp_path / "nobody")), b"x", timeout=1, limit=10)


def test_the_line_needs_the_standard_library_only():
    program = (
        "import sys; before = set(sys.modules); import fedveil.deploy.site.ipc; "
        "print([m for m in set(sys.modules) - before if m.split('.')[0] not in sys.stdlib_module_names | {'fedveil'}])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_callers_without_a_token_keep_nobody_out(serve):
    """Fifty of them hang, some after half a token: a caller that knows it is served, again and again."""
    address = Address(("127.0.0.1", free_port()), b"a" * 64)
    serve(address)
    strangers = []
    try:
        for number in range(50):
            line = socket.create_connection(address.where)
            strangers.append(line)
            line.sendall(b"a" * (number % 3 * 20))
        for _ in range(3):
            assert ask(address, b"ab", timeout=60, limit=10) == b"ba"
        for line in strangers:
            line.settimeout(60)
            assert line.recv(1) == b""
    finally:
        for line in strangers:
            line.close()


def test_more_strangers_than_are_kept_give_way_to_who_knows_the_token(serve, monkeypatch):
    monkeypatch.setattr(listening, "_STRANGERS", 4)
    address = Address(("127.0.0.1", free_port()), b"a" * 64)
    serve(address)
    strangers = [socket.create_connection(address.where) for _ in range(20)]
    try:
        assert ask(address, b"ab", timeout=60, limit=10) == b"ba"
    finally:
        for line in strangers:
            line.close()


def test_a_message_that_trickles_in_has_one_deadline(serve, tmp_path, monkeypatch):
    """Each byte comes in time, the message does not: the caller is dropped all the same."""
    monkeypatch.setattr(listening, "_PATIENCE", 0.5)
    serve()
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(tmp_path / "s"))
        line.sendall((1000).to_bytes(8, "big"))
        line.settimeout(0.1)
        for _ in range(200):
            try:
                line.sendall(b"x")
                if line.recv(1) == b"":
                    return
            except TimeoutError:
                continue
            except OSError:
                return
        pytest.fail("a caller that trickles was never dropped")
