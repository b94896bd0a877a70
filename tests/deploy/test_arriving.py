"""A node that answers with anything but a whole message, at a real SuperLink: the others are not affected."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import pytest
from flwr.app import ConfigRecord, Message
from tests.deploy.test_gate import found
from tests.deploy.town import wait_until

from fedveil.deploy.coordinator.hospitals import Federation
from fedveil.deploy.flower import node as nodes
from fedveil.deploy.flower.carrier import FlowerCarrier

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # Flower's own


class Hostile(nodes.Node):
    """Announces ``answer`` as its answer; ``sends`` says whether it is uploaded as well, ``parts`` adds to it."""

    answer, sends, parts = ConfigRecord({"a": 1}).deflate(), True, 0

    def _send(self, reply: Message) -> None:
        run, name = reply.metadata.run_id, hashlib.sha256(self.answer).hexdigest()
        announced = nodes.message_to_proto(nodes.remove_content_from_message(reply))
        announced.metadata.message_id = name
        more = [nodes.ObjectTree(object_id=f"{number:064x}") for number in range(self.parts)]
        request = nodes.PushMessagesRequest(
            node=self._node,
            messages_list=[announced],
            message_object_trees=[nodes.ObjectTree(object_id=name, children=more)],
            clientapp_runtime_list=[0.0],
        )
        response = self._call(self._client.PushMessages, request)
        if self.sends:
            push = nodes.make_push_object_fn_protobuf(
                lambda item: self._call(self._client.PushObject, item), self._node, run, response.session_id
            )
            push(name, self.answer)


@contextmanager
def connected(federation: Federation, site: str, kind: type[nodes.Node], forward) -> Iterator[nodes.Node]:
    folder = federation.folder.parent / site / "node"
    node = kind(nodes.NodeSettings.load(folder, f"127.0.0.1:{federation.table.port}"), forward)
    thread = threading.Thread(target=node.run)
    thread.start()
    try:
        yield node
    finally:
        node.stop()
        thread.join()
        node._client.close()


@pytest.fixture(scope="module")
def town(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """A carrier, the hostile node of north, and the honest one of south, which answers once it may."""
    federation, may = found(tmp_path_factory.mktemp("arriving"), ["north", "south"]), threading.Event()

    def answer(data: bytes) -> bytes:
        may.wait()
        return data

    with ExitStack() as stack:
        carrier = stack.enter_context(FlowerCarrier(federation.link, federation.nodes()))
        hostile = stack.enter_context(connected(federation, "north", Hostile, lambda data: data))
        stack.enter_context(connected(federation, "south", nodes.Node, answer))
        stack.callback(may.set)
        wait_until(lambda: len(carrier.present()) == 2, "both nodes")
        yield SimpleNamespace(carrier=carrier, hostile=hostile, may=may)


def held(town: SimpleNamespace) -> dict:
    """The announced answers that are not whole."""
    return town.carrier._arriving._announced


def first(carrier: FlowerCarrier, names: list[str]) -> list:
    """The first parcels that arrive."""
    got: list = []
    wait_until(lambda: got.extend(carrier.pull(names)) or got, "an answer")
    return got


@pytest.mark.parametrize(
    ("answer", "parts"),
    [
        (Hostile.answer, 0),
        (Hostile.answer, 2000),
    ],
)
def test_an_answer_that_is_no_message_is_refused(town, answer, parts):
    town.hostile.answer, town.hostile.sends, town.hostile.parts = answer, parts == 0, parts
    names = town.carrier.push({"north": b"hello"}, 100)
    (parcel,) = first(town.carrier, list(names.values()))
    assert (parcel.name, parcel.data) == (names["north"], None)


def test_an_answer_that_is_announced_and_not_sent_delays_nobody(town):
    town.hostile.answer, town.hostile.sends, town.hostile.parts = b"never sent", False, 0
    town.may.clear()
    names = town.carrier.push({"north": b"hello", "south": b"hello"}, 100)
    pulled = list(names.values())
    wait_until(lambda: not town.carrier.pull(pulled) and names["north"] in held(town), "north to announce it")
    town.may.set()
    (parcel,) = first(town.carrier, pulled)
    assert (parcel.name, parcel.data) == (names["south"], b"hello")
    held(town)[names["north"]]._seconds = -1.0
    (late,) = first(town.carrier, [names["north"]])
    assert (late.data, late.failure) == (None, "its answer was announced and did not arrive")
