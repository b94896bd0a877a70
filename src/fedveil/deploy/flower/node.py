"""A hospital's network end: a Flower node that carries bytes and runs no code sent by the coordinator.

A stock `flower-supernode` fetches the coordinator's app and starts it for every message. This node speaks
the same fleet protocol, through Flower's own client with TLS and node authentication, but hands each
message to the site service itself. That leaves no foreign code at the hospital, and no process to start: a
round costs a fraction of a second instead of several."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Error, Message

from fedveil.deploy.flower import SOON
from fedveil.deploy.flower.private.node import (
    ActivateNodeRequest,
    ConfirmMessageReceivedRequest,
    DeactivateNodeRequest,
    ErrorCode,
    FleetHttpClient,
    NodeAuthHttpInterceptor,
    NodeProto,
    ObjectPullError,
    ObjectTree,
    PullMessagesRequest,
    PushMessagesRequest,
    RuntimeVersionHttpInterceptor,
    SendNodeHeartbeatRequest,
    get_all_nested_objects,
    get_object_tree,
    inflate_object_from_contents,
    iterate_object_tree,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
    message_from_proto,
    message_to_proto,
    no_object_id_recompute,
    public_key_to_bytes,
    pull_objects,
    push_objects,
    remove_content_from_message,
)
from fedveil.deploy.flower.records import bytes_of, content_of
from fedveil.deploy.flower.refusals import is_certificate, line_trouble, refusal
from fedveil.deploy.node import (
    SERVICE_AWAY,
    Complaints,
    NodeFile,
    SiteLine,
    forward_to,
    only_one,
    read_node_file,
    run_program,
    stop_on_signals,
    wrong_certificate,
)
from fedveil.deploy.provisioning.expiry import expiring
from fedveil.errors import FedveilError, InvalidValue

__all__ = ["Node", "NodeSettings", "run_node"]

log = logging.getLogger("fedveil.node")

_HEARTBEAT = 10.0  # Flower admits no shorter one; a node counts as gone after twice this time
_EAGER, _IDLE = 0.2, 2.0
_EAGER_SECONDS = 60.0
_LONGEST_PAUSE = 2.0
_UPLOAD_SECONDS = 20.0  # a killed sender never finishes; a running one asks again
T = TypeVar("T")


class _Stopped(Exception):
    """The node was stopped while the SuperLink was unreachable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """A node's settings.

    Attributes:
        superlink: host and port of the coordinator's SuperLink.
        authority: the certificate authority that signed the SuperLink's certificate (PEM).
        key: the node's private key, by which the SuperLink knows it.
        state: the node's state file; it also prevents a second node from starting.
        patience: seconds for which a request to an unreachable site service is repeated.
        again: the same while it has not answered since the last request.
    """

    superlink: str
    authority: bytes
    key: ec.EllipticCurvePrivateKey
    state: Path
    patience: float = 20.0
    again: float = 1.0

    @classmethod
    def load(cls, folder: Path, superlink: str) -> "NodeSettings":
        """Read ``ca.pem`` and ``node.key`` of a start-up kit."""
        try:
            key = load_ssh_private_key((folder / "node.key").read_bytes(), None)
            authority = (folder / "ca.pem").read_bytes()
        except (OSError, ValueError) as error:
            raise InvalidValue(
                f"{folder} lacks a node's key or certificate ({error})",
                "a node needs ca.pem and node.key of its start-up kit",
                "copy them from the kit",
            ) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise InvalidValue(
                f"{folder / 'node.key'} is no elliptic-curve key", "Flower needs one", "use the kit's"
            )
        return cls(superlink=superlink, authority=authority, key=key, state=folder / "node.state")


class Node:
    """Connects to a SuperLink and hands every message's bytes to ``forward``.

    Args:
        settings: where to connect, and with which key.
        forward: from a message's bytes to its answer's; raises LineError while the site service is unreachable.
    """

    def __init__(self, settings: NodeSettings, forward: Callable[[bytes], bytes]) -> None:
        self._settings, self._stop = settings, threading.Event()
        self._line = SiteLine(forward, self._stop, patience=settings.patience, again=settings.again)
        self._node = NodeProto()
        self._client = self._connect()
        self._spoken = time.monotonic()
        self._complain = Complaints()

    def _connect(self) -> FleetHttpClient:
        return FleetHttpClient.from_server_address(
            self._settings.superlink,
            False,
            self._settings.authority,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                NodeAuthHttpInterceptor(self._settings.key, self._settings.key.public_key()),
            ],
        )

    def stop(self) -> None:
        """Finish the current message, then stop."""
        self._stop.set()

    def run(self) -> None:
        """Carry messages until `stop`; tolerates interruptions of the SuperLink and the site service.

        Raises:
            FederationError: the SuperLink refuses this node, or its certificate is wrong.
        """
        with only_one(self._settings.state):
            try:
                self._activate()
            except _Stopped:
                return
            beat = threading.Thread(target=self._beat, daemon=True)
            beat.start()
            try:
                while not self._stop.is_set():
                    if self._carry_one():
                        self._spoken = time.monotonic()
                    else:
                        self._stop.wait(self._pause())
            except _Stopped:
                log.info("stopped while the SuperLink was unreachable")
            finally:
                self._stop.set()
                self._leave()

    def _pause(self) -> float:
        """Short while a study is running; longer the longer there was no message."""
        quiet = time.monotonic() - self._spoken
        return _EAGER if quiet < _EAGER_SECONDS else _IDLE

    def _activate(self) -> None:
        """Register; an open session of an earlier, killed node is closed first."""
        request = ActivateNodeRequest(
            public_key=public_key_to_bytes(self._settings.key.public_key()), heartbeat_interval=_HEARTBEAT
        )
        pause = 0.5
        stale = self._settings.state.read_text().strip()
        while not self._stop.is_set():
            if stale:
                self._leave(int(stale))
            try:
                node_id = self._call(self._client.ActivateNode, request).node_id
            except httpx.HTTPStatusError as error:
                self._complain(
                    "the SuperLink at %s does not admit this node (%s): the coordinator must know its node.pub",
                    self._settings.superlink,
                    error.response.status_code,
                )
                self._stop.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            self._node = NodeProto(node_id=node_id)
            self._settings.state.write_text(f"{node_id}\n")
            log.info("connected to %s as node %s", self._settings.superlink, node_id)
            return

    def _leave(self, node_id: int | None = None) -> None:
        try:
            self._client.DeactivateNode(DeactivateNodeRequest(node_id=node_id or self._node.node_id))
        except httpx.HTTPError as error:
            log.debug("could not unregister: %s", error)

    def _beat(self) -> None:
        request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=_HEARTBEAT)
        while not self._stop.wait(_HEARTBEAT / 3):
            try:
                self._client.SendNodeHeartbeat(request)
            except httpx.HTTPError as error:
                log.debug("no heartbeat: %s", error)

    def _carry_one(self) -> bool:
        """Fetch one message, forward it, send the answer; False if there was none."""
        try:
            response = self._call(self._client.PullMessages, PullMessagesRequest(node=self._node))
            if not response.messages_list:
                return False
            message = self._fetch(
                message_from_proto(response.messages_list[0]), response.message_object_trees[0]
            )
            self._send(self._answer(message))
        except httpx.HTTPStatusError as error:
            self._complain("the SuperLink refuses a call (%s)", error.response.status_code)
            return False
        except (FedveilError, _Stopped):
            raise
        except Exception as error:  # noqa: BLE001 - whatever Flower's own reader makes of rubbish, the node goes on
            log.warning("refused: a message arrived incomplete (%.200r)", str(error))
        return True

    def _fetch(self, message: Message, tree: ObjectTree) -> Message:
        run, name = message.metadata.run_id, message.metadata.message_id
        pull = make_pull_object_fn_protobuf(
            lambda request: self._call(self._client.PullObject, request), self._node, run
        )
        names = [item.object_id for item in iterate_object_tree(tree)]
        contents = pull_objects(names, pull_object_fn=pull, max_time=_UPLOAD_SECONDS, initial_backoff=SOON)
        confirm = ConfirmMessageReceivedRequest(node=self._node, run_id=run, message_object_id=name)
        self._call(self._client.ConfirmMessageReceived, confirm)
        whole = inflate_object_from_contents(name, contents)
        if not isinstance(whole, Message):
            raise ObjectPullError(name, "it is not a message")
        whole.metadata.__dict__["_message_id"] = name
        return whole

    def _answer(self, message: Message) -> Message:
        data = bytes_of(message)
        if data is None:
            raise ValueError("it carries no bytes")
        answer = self._line.answer(data)
        if answer is None:
            return Message(Error(ErrorCode.CLIENT_APP_CRASHED, SERVICE_AWAY), reply_to=message)
        return Message(content_of(answer), reply_to=message)

    def _send(self, reply: Message) -> None:
        run = reply.metadata.run_id
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            objects, tree = get_all_nested_objects(reply), get_object_tree(reply)
            request = PushMessagesRequest(
                node=self._node,
                messages_list=[message_to_proto(_without_content(reply))],
                message_object_trees=[tree],
                clientapp_runtime_list=[0.0],
            )
            response = self._call(self._client.PushMessages, request)
            push = make_push_object_fn_protobuf(
                lambda item: self._call(self._client.PushObject, item), self._node, run, response.session_id
            )
            push_objects(objects, push, object_ids_to_push=set(response.objects_to_push))

    def _call(self, method: Callable[[Any], T], request: Any) -> T:
        """One call of the fleet protocol, repeated while the SuperLink is unreachable."""
        pause = 0.25
        while True:
            try:
                return method(request)
            except httpx.HTTPStatusError as error:
                if error.response.status_code == httpx.codes.UNAUTHORIZED:
                    raise refusal(error.response) from None
                if error.response.status_code not in (502, 503, 504) or self._stop.is_set():
                    raise
            except httpx.TransportError as error:
                if is_certificate(error):
                    raise wrong_certificate(self._settings.superlink, str(error)) from None
                if self._stop.is_set():
                    raise _Stopped from None
                self._complain("%s", line_trouble(self._settings.superlink, error))
            self._stop.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


def _without_content(message: Message) -> Message:
    return message if message.has_error() else remove_content_from_message(message)


class _NodeFile(NodeFile):
    """``node.toml``."""

    superlink: str


def run_node(folder: Path) -> None:
    """Run the node of a start-up kit's folder until SIGTERM or SIGINT."""
    settings, address = read_node_file(folder, _NodeFile)
    node = Node(NodeSettings.load(folder, settings.superlink), forward_to(address))
    for text in expiring(folder):
        log.warning("%s", text)
    stop_on_signals(node.stop)
    node.run()


def main() -> None:
    """``python -m fedveil.deploy.flower.node FOLDER``: a node as a small separate program."""
    run_program(run_node)


if __name__ == "__main__":
    main()
