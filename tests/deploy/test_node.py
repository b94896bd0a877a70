"""A hospital's node against a SuperLink that sends rubbish: it says so in one line, and goes on."""

import threading
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message
from flwr.common.constant import HEARTBEAT_MIN_INTERVAL, HEARTBEAT_PATIENCE
from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.message_pb2 import Metadata, ObjectTree
from tests.deploy.test_records import run_identity  # noqa: F401
from tests.deploy.test_transport import Clock

from fedveil.deploy import node as shared
from fedveil.deploy.flower import node as module
from fedveil.deploy.flower.node import _HEARTBEAT, Node, NodeSettings
from fedveil.deploy.flower.records import content_of
from fedveil.deploy.site.ipc import LineError

TREE = ObjectTree(object_id="\x1b[2J\nforged")
RUBBISH = {
    "no tree": PullMessagesResponse(messages_list=[MessageProto()]),
    "empty": PullMessagesResponse(messages_list=[MessageProto()], message_object_trees=[TREE]),
    "metadata": PullMessagesResponse(
        messages_list=[MessageProto(metadata=Metadata(message_id="\x1b\n", message_type="\x00", ttl=-1.0))],
        message_object_trees=[TREE],
    ),
    "no list": SimpleNamespace(messages_list=[object()], message_object_trees=[TREE]),
}


def make_node(tmp_path, monkeypatch, forward) -> Node:
    """A node without a connection."""
    settings = NodeSettings(
        superlink="127.0.0.1:1",
        authority=b"",
        key=ec.generate_private_key(ec.SECP384R1()),
        state=tmp_path / "state",
    )
    monkeypatch.setattr(Node, "_connect", lambda _: None)
    return Node(settings, forward)


@pytest.mark.parametrize("response", RUBBISH.values(), ids=RUBBISH)
def test_rubbish_from_the_superlink_does_not_end_the_node(tmp_path, response, monkeypatch, caplog):
    monkeypatch.setattr(module, "_UPLOAD_SECONDS", 0.1)
    one = make_node(tmp_path, monkeypatch, lambda data: data)
    one._client = SimpleNamespace(
        PullMessages=lambda _: response,
        PullObject=lambda _: SimpleNamespace(
            object_found=True, object_available=True, object_content=b"rubbish"
        ),
        ConfirmMessageReceived=lambda _: None,
    )
    assert one._carry_one()
    assert [
        record.getMessage().isprintable()
        for record in caplog.records
        if record.thread == threading.get_ident()
    ] == [True]
    assert "arrived incomplete" in caplog.text


def test_flower_admits_the_heartbeat():
    """A shorter interval is refused when the node signs on."""
    assert _HEARTBEAT >= HEARTBEAT_MIN_INTERVAL
    assert HEARTBEAT_PATIENCE == 2, "a node counts as gone after this many intervals"


def test_a_site_service_that_is_down_is_waited_for_once(tmp_path, monkeypatch, caplog):
    """The first request waits for a restart; while the service stays down, later ones cost a second each."""
    clock, up = Clock(), []

    def forward(data: bytes) -> bytes:
        if not up:
            raise LineError("nobody listens")
        return data

    monkeypatch.setattr(shared, "time", clock)
    one = make_node(tmp_path, monkeypatch, forward)
    one._line._stop = SimpleNamespace(is_set=lambda: False, wait=clock.sleep)
    used = []
    for _ in range(3):
        before = clock.now
        asked = Message(content_of(b"asked"), dst_node_id=1, message_type="query")
        assert one._answer(asked).has_error()
        used.append(clock.now - before)
    assert 20 <= used[0] <= 22
    assert max(used[1:]) <= 2
    up.append(True)
    with caplog.at_level("INFO"):
        asked = Message(content_of(b"asked"), dst_node_id=1, message_type="query")
        assert not one._answer(asked).has_error()
    assert "answers again" in caplog.text
    up.clear()
    before = clock.now
    one._answer(Message(content_of(b"asked"), dst_node_id=1, message_type="query"))
    assert clock.now - before >= 20
