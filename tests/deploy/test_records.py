"""Bytes in Flower's own messages."""

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from fedveil.deploy.flower.private.coordinator import TaskIdentity
from fedveil.deploy.flower.records import bytes_of, content_of


@pytest.fixture(autouse=True)
def run_identity(monkeypatch):
    """What Flower asks of a process that makes messages."""
    for name in ("task_id", "run_id", "node_id"):
        monkeypatch.setattr(TaskIdentity, f"_{name}", 1, raising=False)


def message(content: RecordDict) -> Message:
    return Message(content, dst_node_id=1, message_type="query")


@pytest.mark.parametrize("size", [0, 10, 2**20, 2**20 + 1])
def test_bytes_travel_in_flowers_messages_however_many(size):
    data = np.random.default_rng(0).bytes(size)
    assert bytes_of(message(content_of(data))) == data


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"fedveil": ConfigRecord({"bytes": "text"})}),
        RecordDict({"fedveil": ConfigRecord({"other": b"bytes"})}),
        RecordDict({"fedveil": MetricRecord({"bytes": 1})}),
    ],
)
def test_a_message_without_bytes_carries_none(content):
    assert bytes_of(message(content)) is None
