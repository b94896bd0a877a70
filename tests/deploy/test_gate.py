"""A real SuperLink's port, attacked: who is served what, and what strangers cost it."""

import asyncio
import os
import re
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from tests.deploy.ports import free_port
from tests.deploy.town import wait_until

from fedveil.deploy.coordinator.hospitals import Federation
from fedveil.deploy.flower import gate
from fedveil.deploy.flower.carrier import FlowerCarrier
from fedveil.deploy.flower.gate import LARGEST_BODY, NODE_CALLS, PROOF_HEADER, Gate, NodeKeys
from fedveil.deploy.flower.private.node import NodeAuthHttpInterceptor, PullMessagesRequest
from fedveil.deploy.flower.process import SuperLink
from fedveil.deploy.provisioning.certificates import Authority, node_keys
from fedveil.deploy.provisioning.kits import make_kits
from fedveil.errors import FederationError

pytestmark = [
    pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads a process's memory from /proc"),
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),  # Flower's own
]
CONTROL = (
    "/v1/control/register-node",
    "/v1/control/start-run",
    "/v1/runtime/acquire-task",
    "/docs",
    "/openapi.json",
)
FORM = {"content-type": "application/x-protobuf"}


def found(folder: Path, hospitals: Sequence[str] = ("north",)) -> Federation:
    make_kits(folder / "kits", name="town", hospitals=hospitals, hosts=["127.0.0.1"], port=free_port())
    return Federation.load(folder / "kits" / "coordinator")


@pytest.fixture(scope="module")
def federation(tmp_path_factory) -> Iterator[Federation]:
    """A coordinator's folder whose SuperLink runs, and knows the node of north."""
    made = found(tmp_path_factory.mktemp("gate"))
    with FlowerCarrier(made.link, made.nodes()):
        yield made


@pytest.fixture
def client(federation) -> Iterator[httpx.Client]:
    context = ssl.create_default_context(cafile=str(federation.folder / "ca.pem"))
    address = f"https://{federation.link.local}"
    with httpx.Client(verify=context, base_url=address, trust_env=False, timeout=60) as made:
        yield made


def signed(key: bytes) -> dict[str, str]:
    """The headers of Flower's own node with this private key."""
    private = load_ssh_private_key(key, None)
    context = SimpleNamespace(request=httpx.Request("POST", "https://x/"))
    NodeAuthHttpInterceptor(private, private.public_key()).intercept(context, lambda _: None)
    return {
        name: context.request.headers[name] for name in context.request.headers if name.startswith("flwr-")
    }


def norths(federation: Federation) -> dict[str, str]:
    return signed((federation.folder.parent / "north" / "node" / "node.key").read_bytes())


@pytest.mark.parametrize("path", CONTROL)
@pytest.mark.parametrize("proof", [None, "0" * 64, "\xe9"])
def test_only_who_proves_the_secret_reaches_more_than_the_nodes_calls(federation, client, path, proof):
    """From this machine's own address, as behind a proxy."""
    headers = FORM if proof is None else {**FORM, PROOF_HEADER: proof.encode("latin-1")}
    assert client.post(path, headers=headers).status_code == 403
    assert client.get(path, headers={**headers, "x-forwarded-for": "127.0.0.1"}).status_code == 403
    right = {**FORM, PROOF_HEADER: federation.link.proof}
    assert client.post(path, headers=right, content=b"").status_code not in (403, 429)


def test_a_node_is_served_the_calls_that_it_makes(federation, client):
    body = PullMessagesRequest().SerializeToString()
    answer = client.post("/v1/fleet/pull-messages", headers={**FORM, **norths(federation)}, content=body)
    assert "a node proves its key" not in answer.text
    assert answer.text != "the signature or its time is wrong"
    for name in ("register-node", "unregister-node", "get-fab", "get-run"):
        assert client.post(f"/v1/fleet/{name}", headers={**FORM, **norths(federation)}).status_code == 403


@pytest.mark.parametrize("path", sorted(NODE_CALLS))
def test_others_are_refused_before_their_request_is_read(federation, client, path):
    """Nothing, a foreign key, somebody else's signature, an old signature."""
    assert client.post(path, headers=FORM).status_code == 401
    assert client.post(path, headers={**FORM, **signed(node_keys()[0])}).status_code == 403
    foreign = {**norths(federation), "flwr-signature": signed(node_keys()[0])["flwr-signature"]}
    assert client.post(path, headers={**FORM, **foreign}).text == "the signature or its time is wrong"
    for stamp in ("2020-01-01T00:00:00+00:00", "2020-01-01T00:00:00", "now", "\xe9"):
        old = {**norths(federation), "flwr-timestamp": stamp.encode("latin-1")}
        assert client.post(path, headers={**FORM, **old}).text == "the signature or its time is wrong"


def test_a_node_whose_key_is_taken_away_is_served_no_more(federation, client):
    path, file = "/v1/fleet/pull-messages", federation.folder / "nodes" / "north.pub"
    headers, kept = {**FORM, **norths(federation)}, file.read_bytes()
    assert client.post(path, headers=headers).text != "this key is not registered"
    file.unlink()
    try:
        wait_until(
            lambda: client.post(path, headers=headers).text == "this key is not registered",
            "the key to be missed",
        )
    finally:
        file.write_bytes(kept)
    wait_until(
        lambda: client.post(path, headers=headers).text != "this key is not registered", "the key to be seen"
    )


def process_of(federation: Federation) -> int:
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if str(federation.folder).encode() in words and b"fedveil.deploy.flower.superlink" in words:
                return int(folder.name)
    raise AssertionError("no SuperLink runs")


def memory(process: int, what: str) -> int:
    """KiB of a process: VmRSS now, VmHWM at most so far."""
    found = re.search(rf"^{what}:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text(), re.M)
    assert found
    return int(found[1])


def send(federation: Federation, head: bytes, body: int) -> str:
    """A request as raw bytes over TLS, as much of its body as the other end takes; the status of the answer."""
    context = ssl.create_default_context(cafile=str(federation.folder / "ca.pem"))
    piece, answer = os.urandom(2**20), b""
    try:
        with (
            socket.create_connection(("127.0.0.1", federation.table.port), timeout=60) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as line,
        ):
            with suppress(OSError):
                line.sendall(head)
                for _ in range(body // len(piece)):
                    line.sendall(piece)
            answer = line.recv(1000)
    except OSError:
        pass  # turned away, or closed in the middle
    return answer[9:12].decode()


def test_requests_of_any_size_cost_next_to_nothing(federation):
    """Bodies of 400 MB, endless headers, silent connections: the SuperLink's memory at its highest is little more."""
    process = process_of(federation)
    before = memory(process, "VmRSS")
    sizes = "content-length: 400000000\r\n\r\n", "transfer-encoding: chunked\r\n\r\n17d78400\r\n"
    for path in (*CONTROL[:2], *sorted(NODE_CALLS)):
        for size in sizes:
            head = f"POST {path} HTTP/1.1\r\nhost: x\r\n{size}".encode()
            assert send(federation, head, 400 * 10**6) in ("", "401", "403")
    assert send(federation, b"GET / HTTP/1.1\r\nx: " + b"y" * 2**22, 2**26) in ("", "400")
    silent = []
    for _ in range(70):  # more than one address may hold, and well below its burst
        with suppress(OSError):
            silent.append(socket.create_connection(("127.0.0.1", federation.table.port), timeout=60))
    for line in silent:
        line.close()
    wait_until(
        lambda: send(federation, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", 0) == "403", "their places to be free"
    )
    node = "".join(f"{name}: {value}\r\n" for name, value in norths(federation).items())
    head = (
        f"POST /v1/fleet/push-object HTTP/1.1\r\nhost: x\r\n{node}content-length: {LARGEST_BODY + 1}\r\n\r\n"
    )
    assert send(federation, head.encode(), 2**24) in ("", "413")
    assert memory(process, "VmHWM") <= 1.5 * before
    with FlowerCarrier(federation.link, federation.nodes()) as carrier:
        assert carrier.present() == {}, "it still answers"


def served(length: int | None, parts: list[bytes]) -> list[dict[str, object]]:
    """What an app behind the gate receives of a request that proves the secret."""
    headers = [(PROOF_HEADER.encode(), b"proof")]
    headers += [] if length is None else [(b"content-length", str(length).encode())]
    headers += [(b"transfer-encoding", b"chunked")] if length is None else []
    scope = {
        "type": "http",
        "path": "/v1/control/x",
        "client": ("127.0.0.1", 1),
        "headers": headers,
        "method": "POST",
    }
    left, got = list(parts), []

    async def receive():
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def app(scope, receive, send):
        while True:
            got.append(await receive())
            if not got[-1].get("more_body"):
                return

    async def send(message):
        got.append(message)

    listener = SimpleNamespace(admit=lambda *_: True, owner=lambda _: "")
    asyncio.run(Gate(app, proof="proof", keys=frozenset(), listener=listener)(scope, receive, send))
    return got


def test_a_body_ends_where_the_largest_ends():
    whole = served(LARGEST_BODY, [b"x" * (LARGEST_BODY // 2)] * 2)
    assert [one["type"] for one in whole] == ["http.request"] * 2
    chunks = served(None, [b"x" * (LARGEST_BODY // 2)] * 9)
    assert [one["type"] for one in chunks] == ["http.request"] * 2 + ["http.disconnect"]
    assert served(LARGEST_BODY + 1, [b"x"])[0]["status"] == 413
    assert served(10**20, [b"x"])[0]["status"] == 413


def test_silent_nodes_keep_the_coordinators_own_requests_waiting_for_nothing():
    """Every place for large requests of nodes is taken by one that sends nothing: the coordinator's is served."""

    async def attack() -> list[int]:
        listener = SimpleNamespace(admit=lambda *_: True, owner=lambda peer: f"key {peer[1] // 2}")
        door, inside, got = Gate(None, proof="proof", keys=NodeKeys(Path()), listener=listener), [], []

        async def app(scope, receive, send):
            inside.append(scope["client"][1])
            got.append((await receive())["body"])

        def call(number, receive, path, headers):
            head = [(b"transfer-encoding", b"chunked"), *headers]
            scope = {"type": "http", "path": path, "client": ("127.0.0.1", number), "headers": head}
            return asyncio.ensure_future(door(scope, receive, None))

        async def silent():
            await asyncio.Event().wait()

        async def quick():
            return {"type": "http.request", "body": b"x", "more_body": False}

        door._app, door._node = app, lambda peer, headers: f"key {peer[1] // 2}"
        jobs = [call(number, silent, "/v1/fleet/push-object", []) for number in range(6)]
        while len(inside) < 6:
            await asyncio.sleep(0)
        listener.owner = lambda peer: ""
        own = call(9, quick, "/v1/runtime/push-object", [(PROOF_HEADER.encode(), b"proof")])
        for _ in range(100):
            await asyncio.sleep(0)
        for job in (*jobs, own):
            job.cancel()
        await asyncio.gather(*jobs, own, return_exceptions=True)
        return inside

    assert asyncio.run(attack()) == [0, 1, 2, 3, 4, 5, 9]


def test_a_body_that_stands_still_is_given_up(monkeypatch):
    """However much of the time for a whole body is left."""
    monkeypatch.setattr(gate, "_STILL_SECONDS", 0.01)

    async def receive():
        await asyncio.Event().wait()

    assert asyncio.run(gate._Body(receive, 2**20)()) == {"type": "http.disconnect"}


class Open(BaseHTTPRequestHandler):
    """A web server that answers everybody, as Flower's own SuperLink does."""

    def do_POST(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_superlink_that_answers_strangers_is_not_used(tmp_path):
    made = found(tmp_path)
    folder = made.folder
    key, certificate = Authority.load(
        (folder / "ca.key").read_bytes(), (folder / "ca.pem").read_bytes()
    ).certify(["127.0.0.1"])
    (folder / "superlink.key").write_bytes(key)
    (folder / "superlink.pem").write_bytes(certificate)
    server = HTTPServer(("127.0.0.1", made.table.port), Open)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "superlink.pem", folder / "superlink.key")
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    use = SuperLink(made.link)
    try:
        with pytest.raises(
            FederationError, match="answers its control interface to callers without its secret"
        ):
            use.open()
    finally:
        use.close()
        server.shutdown()
        server.server_close()
        thread.join()
