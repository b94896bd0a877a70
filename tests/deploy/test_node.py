"""A hospital's node against a SuperLink that sends rubbish: it says so in one line, and goes on."""

from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.message_pb2 import Metadata, ObjectTree

from fedveil.deploy.flower import node as module
from fedveil.deploy.flower.node import Node, NodeSettings

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


@pytest.mark.parametrize("response", RUBBISH.values(), ids=RUBBISH)
def test_rubbish_from_the_superlink_does_not_end_the_node(tmp_path, response, monkeypatch, caplog):
    monkeypatch.setattr(module, "_UPLOAD_SECONDS", 0.1)
    settings = NodeSettings(
        superlink="127.0.0.1:1",
        authority=b"",
        key=ec.generate_private_key(ec.SECP384R1()),
        state=tmp_path / "state",
    )
    monkeypatch.setattr(Node, "_connect", lambda _: None)
    one = Node(settings, lambda data: data)
    one._client = SimpleNamespace(
        PullMessages=lambda _: response,
        PullObject=lambda _: SimpleNamespace(
            object_found=True, object_available=True, object_content=b"rubbish"
        ),
        ConfirmMessageReceived=lambda _: None,
    )
    assert one._carry_one()
    assert [record.getMessage().isprintable() for record in caplog.records] == [True]
    assert "arrived incomplete" in caplog.text
