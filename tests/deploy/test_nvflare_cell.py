"""What a cell takes of a peer: bytes of the agreed kind, from the peer that the certificate names, and nothing else."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

pytest.importorskip("nvflare", reason="fedveil[nvflare] is not installed")

import grpc
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey as Key
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.sfm.prefix import PREFIX_LEN, Prefix
from nvflare.fuel.utils import fobs
from tests.deploy.town import DEADLINE, Town, wait_until

from fedveil.deploy.coordinator.hospitals import Federation
from fedveil.deploy.node import SERVICE_AWAY
from fedveil.deploy.nvflare import ANSWER, ASK, FAILED, carrier, node
from fedveil.deploy.nvflare.cell import Cell, CellSettings
from fedveil.errors import FederationError, InvalidValue

HEADERS = {
    Key.MSG_TYPE: "req",
    Key.CHANNEL: "fedveil",
    Key.TOPIC: ANSWER,
    Key.ORIGIN: "north",
    Key.FROM_CELL: "north",
    Key.DESTINATION: "server",
    Key.TO_CELL: "server",
    Key.PAYLOAD_ENCODING: "bytes",
    Key.SECURE: False,
    "fedveil_name": "one",
}


@pytest.fixture
def heard(tmp_path) -> tuple[Cell, list[tuple[str, str, str, bytes]]]:
    """The coordinator's cell, not started, and what it hands over."""
    taken: list[tuple[str, str, str, bytes]] = []
    settings = CellSettings(
        name="server",
        host="127.0.0.1",
        port=1,
        listens=True,
        authority=tmp_path,
        certificate=tmp_path,
        key=tmp_path,
        peers=frozenset(("north",)),
        topics=(ANSWER,),
    )
    return Cell(settings, lambda *one: taken.append(one)), taken


def hear(one: Cell, headers: object, payload: object = b"bytes", peer: str = "north") -> None:
    message = Message(None, payload)
    message.headers = headers
    one._hear(SimpleNamespace(name=peer), None, 1, message)


def test_a_message_as_cells_send_it_is_handed_over(heard):
    one, taken = heard
    hear(one, HEADERS)
    hear(one, HEADERS, None)
    assert taken == [("north", ANSWER, "one", b"bytes"), ("north", ANSWER, "one", b"")]


WRONG = {
    "bulk": {Key.CHANNEL: "cellnet", Key.TOPIC: "bulk"},
    "certificates": {Key.CHANNEL: "credential_manager", Key.TOPIC: "key_exchange"},
    "topic": {Key.TOPIC: ASK},
    "no topic": {Key.TOPIC: None},
    "topic of another type": {Key.TOPIC: [ANSWER]},
    "objects": {Key.PAYLOAD_ENCODING: "fobs"},
    "encrypted": {Key.SECURE: True},
    "reply": {Key.MSG_TYPE: "reply"},
    "another's": {Key.ORIGIN: "south"},
    "forwarded": {Key.FROM_CELL: "south"},
    "for another": {Key.DESTINATION: "south"},
    "no name": {"fedveil_name": None},
    "long name": {"fedveil_name": "x" * 65},
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_any_other_message_is_dropped_and_told_once_a_minute(heard, caplog, change):
    one, taken = heard
    for _ in range(3):
        hear(one, {**HEADERS, **change})
    hear(one, None)
    hear(one, [1])
    assert not taken
    assert caplog.text.count("refused 1 times; the last: a message of another kind") == 1
    assert "refused" not in caplog.text.replace("refused 1 times", "")


def frame(kind: int, payload: bytes = b"") -> bytes:
    made = bytearray(PREFIX_LEN)
    Prefix(PREFIX_LEN + len(payload), 0, kind, 0, 0, 1, 1, 1).to_buffer(made, 0)
    return bytes(made) + payload


def greeting(name: object) -> bytes:
    import msgpack

    return frame(4, msgpack.packb({"endpoint_name": name}))


NEW, KNOWN = SimpleNamespace(sfm_endpoint=None), SimpleNamespace(sfm_endpoint=object())


@pytest.mark.parametrize(
    ("connection", "data", "admitted"),
    [
        (NEW, greeting("north"), True),
        (NEW, greeting("south"), False),
        (NEW, greeting("north.a"), False),
        (NEW, greeting(["north"]), False),
        (NEW, frame(4, b"\xc1"), False),
        (NEW, frame(4, b"\x90" * 5000), False),
        (NEW, frame(1, b"data"), False),
        (NEW, frame(6), False),
        (NEW, b"short", False),
        (KNOWN, greeting("north"), False),
        (KNOWN, frame(1, b"data" * 5000), True),
        (KNOWN, frame(6), True),
        (KNOWN, frame(7), True),
        (KNOWN, frame(6, b"x" * 5000), False),
        (KNOWN, frame(2, b"data"), False),
    ],
)
def test_a_handshake_comes_first_and_once(heard, connection, data, admitted):
    assert heard[0]._admits(connection, data) is admitted


HOSTILE = """
import sys, time
from nvflare.fuel.f3.cellnet.core_cell import CoreCell, TargetMessage
from nvflare.fuel.f3.message import Message
from nvflare.fuel.utils import fobs
name, port, folder = sys.argv[1:]
files = {"ca_cert": "ca.pem", "client_cert": "node.pem", "client_key": "node.key"}
files = {key: f"{folder}/{file}" for key, file in files.items()}
core = CoreCell(name, f"grpc://127.0.0.1:{port}", True, files)
core.start()
while "server" not in core.agents:
    time.sleep(0.05)
objects = {"an": "object"}
def send(channel, topic, payload, **headers):
    core.fire_and_forget(channel, topic, "server", Message({"fedveil_name": "x", **headers}, payload))
while True:  # until it is killed: a message may be lost with its connection
    send("fedveil", "answer", objects)
    send("cellnet", "bulk", [TargetMessage("server", "fedveil", "answer", Message({}, objects)).to_dict()])
    send("credential_manager", "key_exchange", {"cert_content": b"x"})
    send("cellnet", "bye", None)
    core.agents["south"] = core.agents["server"]
    core.fire_and_forget("fedveil", "answer", "south", Message({"fedveil_name": "x"}, b"for south"))
    send("fedveil", "answer", b"unasked")
    time.sleep(0.5)
"""


SENT = {
    ("answer", "server", "fobs"),
    ("bulk", "server", "fobs"),
    ("key_exchange", "server", "fobs"),
    ("bye", "server", "none"),
    ("answer", "south", "bytes"),
    ("answer", "server", "bytes"),
}
"""Topic, destination and encoding of what it sends."""


def watch_readers(monkeypatch: pytest.MonkeyPatch, read: list[object]) -> None:
    """Note each call of a function that reads objects, by whatever name a module of NVFlare's has imported it."""
    readers = (fobs.loads, fobs.load, fobs.loadf, fobs.deserialize, fobs.deserialize_stream)
    for name, module in list(sys.modules.items()):
        for key, value in list(vars(module).items()) if name.startswith("nvflare") else []:
            if any(value is reader for reader in readers):
                monkeypatch.setattr(module, key, lambda *one, **more: read.append(one))


@contextmanager
def hostile(town: Town, name: str, claims: str) -> Iterator[None]:
    """A stock cell with a hospital's certificate."""
    program = [sys.executable, "-c", HOSTILE, claims, str(town.port), str(town.kits / name / "node")]
    town.start("hostile", program)
    try:
        yield
    finally:
        town.kill("hostile")


def test_a_stock_cell_with_a_hospitals_certificate_reaches_nothing_of_nvflares(tmp_path, monkeypatch):
    """No object is deserialised, no handler runs, nothing is forwarded; the connection stays usable."""
    town, read, seen = Town(tmp_path, engine="nvflare"), [], set()
    watch_readers(monkeypatch, read)
    hear = Cell._hear

    def count(self: Cell, *one: object) -> None:
        hear(self, *one)
        seen.add(
            tuple(one[-1].headers.get(key) for key in (Key.TOPIC, Key.DESTINATION, Key.PAYLOAD_ENCODING))
        )

    monkeypatch.setattr(Cell, "_hear", count)
    with Federation.load(town.coordinator).carrier() as open_carrier, hostile(town, "north", "north"):
        wait_until(lambda: seen >= SENT, "every kind of message")
        core = open_carrier._cell._core
        assert not core.req_reg.reg, "a handler that every cell has is left"
        assert not read
        wait_until(lambda: open_carrier.present().keys() == {"north"}, "the connection, which stays usable")
        assert not open_carrier._arrived


def test_a_hospital_cannot_pass_for_another(tmp_path, caplog):
    """A connection that claims another's name than its certificate's is closed."""
    town, refused = Town(tmp_path, engine="nvflare"), []
    with Federation.load(town.coordinator).carrier() as open_carrier:
        resolver = open_carrier._cell._core.identity_resolver
        match = resolver.require_match

        def watched(*one: object) -> None:
            try:
                match(*one)
            except ValueError as error:
                refused.append(str(error))
                raise

        resolver.require_match = watched
        with hostile(town, "north", "south"):
            wait_until(lambda: refused or open_carrier.present(), "it to be refused")
            assert not open_carrier.present()
    assert "authenticated as 'north' but claimed endpoint 'south'" in refused[0]
    assert "another name than its certificate's" in caplog.text


@contextmanager
def streams(town: Town, hospital: str, claims: str, count: int = 1) -> Iterator[list[grpc.Call]]:
    """Connections with a hospital's certificate, each of which sends one handshake and is silent from then on."""
    from nvflare.fuel.f3.drivers.grpc.streamer_pb2 import Frame
    from nvflare.fuel.f3.drivers.grpc.streamer_pb2_grpc import StreamerStub

    folder, end = town.kits / hospital / "node", threading.Event()
    files = [(folder / name).read_bytes() for name in ("ca.pem", "node.key", "node.pem")]

    def talk() -> Iterator[Frame]:
        yield Frame(seq=1, data=greeting(claims))
        end.wait()

    with grpc.secure_channel(f"127.0.0.1:{town.port}", grpc.ssl_channel_credentials(*files)) as channel:
        made = [StreamerStub(channel).Stream(talk(), timeout=2 * DEADLINE) for _ in range(count)]
        try:
            yield made  # kept here too: a stream that nobody keeps is ended
        finally:
            end.set()


def test_a_refused_connection_is_closed_at_once_though_its_peer_is_silent(tmp_path):
    """Of a forged name, which NVFlare refuses, and of an unknown one, which fedveil does."""
    town = Town(tmp_path, engine="nvflare")
    with Federation.load(town.coordinator).carrier():
        for claims in ("south", "nobody"):
            with streams(town, "north", claims) as (one,):
                with pytest.raises(grpc.RpcError):
                    list(one)
                assert one.code() is grpc.StatusCode.CANCELLED, (
                    "not DEADLINE_EXCEEDED, which is its peer's end"
                )


def test_many_connections_of_one_hospital_keep_no_other_out(tmp_path):
    """Each one that greets takes the place of the one before, which is closed and leaves its thread to others."""
    town = Town(tmp_path, engine="nvflare")
    with Federation.load(town.coordinator).carrier() as open_carrier, streams(town, "north", "north", 40):
        wait_until(lambda: "north" in open_carrier.present(), "north")
        with streams(town, "south", "south"):
            wait_until(lambda: "south" in open_carrier.present(), "south")


def test_an_answer_is_taken_once_from_the_site_that_was_asked(tmp_path):
    one = carrier.NVFlareCarrier(tmp_path, "127.0.0.1", 1, ("north", "south"))
    sent: list[str] = []
    one._cell = SimpleNamespace(send=lambda site, topic, name, data: sent.append(name) or site == "north")
    names = one.push({"north": b"", "south": b""}, 60)
    assert names == {"north": sent[0]}
    one._hear("south", ANSWER, sent[0], b"from the wrong site")
    one._hear("north", ANSWER, "0" * 32, b"unasked")
    assert not one.pull(names.values())
    one._hear("north", ANSWER, sent[0], b"first")
    one._hear("north", ANSWER, sent[0], b"second")
    assert [parcel.data for parcel in one.pull(names.values())] == [b"first"]
    assert not one.pull(names.values())
    (name,) = one.push({"north": b""}, 60).values()
    one._hear("north", FAILED, name, SERVICE_AWAY.encode())
    ((parcel),) = one.pull([name])
    assert (parcel.data, parcel.failure) == (None, SERVICE_AWAY)


def test_answers_that_nobody_asks_for_any_more_are_few(tmp_path):
    one = carrier.NVFlareCarrier(tmp_path, "127.0.0.1", 1, ("north",))
    one._cell = SimpleNamespace(send=lambda *_: True)
    names = [one.push({"north": b""}, 60)["north"] for _ in range(10)]
    for name in names:
        one._hear("north", ANSWER, name, b"late")
    assert [parcel.name for parcel in one.pull(names)] == names[-carrier._MOST_KEPT :]
    one.push({"north": b""}, -1.0)
    one.push({"north": b""}, 60)
    assert len(one._awaited) == 1


def test_a_message_that_is_too_long_is_refused_at_both_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(carrier, "LONGEST", 3)
    monkeypatch.setattr(node, "LONGEST", 3)
    one = carrier.NVFlareCarrier(tmp_path, "127.0.0.1", 1, ("north",))
    with pytest.raises(FederationError, match="over NVFlare it may have 3"):
        one.push({"north": b"long"}, 60)
    assert sent_by_node(tmp_path, lambda data: data, b"long") == (
        FAILED,
        b"its answer is too long for NVFlare",
    )
    assert sent_by_node(tmp_path, lambda data: data, b"abc") == (ANSWER, b"abc")


def test_a_node_says_that_its_site_service_is_away(tmp_path):
    assert sent_by_node(tmp_path, None, b"asked") == (FAILED, SERVICE_AWAY.encode())


def sent_by_node(tmp_path, answer, data: bytes) -> tuple[str, bytes]:
    """What a node without a connection would send for a message."""
    settings = node.NodeSettings(tmp_path, "127.0.0.1", 1, "north")
    line = SimpleNamespace(answer=answer or (lambda _: None))
    one = node.Node(settings, line, SimpleNamespace())
    sent: list[tuple[str, bytes]] = []
    one._cell = SimpleNamespace(send=lambda peer, topic, name, data: sent.append((topic, data)) or True)
    one._carry("name", data)
    (found,) = sent
    return found


def test_a_node_holds_few_messages(tmp_path):
    one = node.Node(node.NodeSettings(tmp_path, "h", 1, "north"), SimpleNamespace(), SimpleNamespace())
    for number in range(100):
        one._hear("server", ASK, str(number), b"")
    assert one._waiting.qsize() == node._MOST_WAITING


@pytest.mark.parametrize("address", ["h", ":1", "h:0", "h:x", "[::1]:1", "h:65536"])
def test_a_coordinators_address_is_checked(tmp_path, address):
    with pytest.raises(InvalidValue, match=r"correct coordinator in node\.toml"):
        node.NodeSettings.load(tmp_path, address)


@pytest.mark.parametrize("name", ["server", "a.b", "x" * 65])
def test_names_that_cells_cannot_have_are_refused(tmp_path, name):
    with pytest.raises(InvalidValue, match="over NVFlare a name has"):
        carrier.NVFlareCarrier(tmp_path, "127.0.0.1", 1, (name,))
