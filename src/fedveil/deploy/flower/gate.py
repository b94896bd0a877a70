"""What a SuperLink lets in: nodes that prove a registered key, and holders of its secret; before a body is read.

A SuperLink answers three interfaces on one port. The fleet interface, which nodes use, checks signatures, but only
after it has read and parsed the whole request, of any size. The control interface, which registers nodes and starts
runs, checks nobody; open to others, it would let anyone register a node or make stock nodes run a foreign program. The
gate is in front of all three:

- of the fleet interface it serves the calls that fedveil's node makes, to those who prove the key of one of the
  federation's nodes: by a signature over the time, as Flower's node sends it, once for each connection;
- everything else is served to programs on this machine that prove the SuperLink's secret, also behind a proxy, where
  every caller has an address of this machine;
- no request's body is larger than the largest that fedveil sends, and few large ones are read at once.

Flower's own checks follow.
"""

import asyncio
import contextlib
import hashlib
import hmac
import logging
import math
import time
from base64 import b64decode
from binascii import Error as NotBase64
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from starlette.responses import PlainTextResponse

from fedveil.deploy.flower.private.superlink import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    SYSTEM_TIME_TOLERANCE,
    TIMESTAMP_HEADER,
    TIMESTAMP_TOLERANCE,
    verify_signature,
)
from fedveil.deploy.listener import GuardedListener

__all__ = ["LARGEST_BODY", "NODE_CALLS", "PROOF_HEADER", "Gate", "NodeKeys", "proof_of"]

log = logging.getLogger("fedveil.superlink")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

PROOF_HEADER = "fedveil-proof"
LARGEST_BODY = 8 * 2**20
"""Bytes of the largest request: Flower sends long messages in parts of 5 MiB."""

_SMALL_BODY = 2**16
_LARGE_AT_ONCE, _LARGE_OF_ONE = 6, 2
_BODY_SECONDS, _STILL_SECONDS = 120.0, 15.0
_LOG_SECONDS = 60.0
_LOOK_SECONDS = 2.0
_LONGEST_KEY = 2048

NODE_CALLS = frozenset(
    f"/v1/fleet/{name}"
    for name in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "push-object",
        "pull-object",
        "confirm-message-received",
    )
)
"""The calls that fedveil's node makes."""


def proof_of(secret: bytes) -> str:
    """What the holder of a SuperLink's secret sends with each call: an HMAC-SHA256, so that the secret stays here."""
    return hmac.new(secret, b"fedveil superlink proof 1", hashlib.sha256).hexdigest()


class NodeKeys:
    """The public keys of a federation's nodes, read again when the folder changes.

    Args:
        folder: a PEM file NAME.pub for each node.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._keys, self._looked = folder, frozenset[bytes](), -math.inf
        self._state: object = None

    def __contains__(self, key: bytes) -> bool:
        now = time.monotonic()
        if now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            files = sorted(self._folder.glob("*.pub"))
            state = [(path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in files]
            if state != self._state:
                found = (_canonical(path.read_bytes()) for path in files)
                self._keys, self._state = frozenset(one for one in found if one is not None), state
        return key in self._keys


class Gate:
    """ASGI middleware: forwards the calls that may be served, and refuses the others without reading their body.

    Args:
        app: what is protected.
        proof: `proof_of` the SuperLink's secret.
        keys: contains the nodes' public keys.
        listener: the socket that the calls come from.
    """

    def __init__(self, app: Any, *, proof: str, keys: NodeKeys, listener: GuardedListener) -> None:
        self._app, self._proof, self._keys, self._listener = app, proof, keys, listener
        self._large = asyncio.Semaphore(_LARGE_AT_ONCE)
        self._large_of: dict[str, asyncio.Semaphore] = {}
        self._own = asyncio.Semaphore(_LARGE_AT_ONCE)  # the secret's holders: no node may keep them waiting
        self._refused, self._logged = 0, -math.inf

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Forward a call, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        length = _length(headers)
        objection = self._objection(scope, headers) or _too_long(length)
        if objection is not None:
            await self._refuse(scope, receive, send, *objection)
        elif length <= _SMALL_BODY:
            await self._app(scope, _Body(receive, length), send)
        else:
            owner = self._listener.owner(tuple(scope["client"])) or ""
            turn = self._large_of.setdefault(owner, asyncio.Semaphore(_LARGE_OF_ONE)) if owner else self._own
            async with turn, self._large if owner else contextlib.nullcontext():
                await self._app(scope, _Body(receive, length), send)

    def _objection(self, scope: Any, headers: dict[str, str]) -> tuple[int, str] | None:
        """The status and reason of a refusal; None if the caller may make this call."""
        peer, path = scope.get("client"), scope["path"]
        if peer is None or scope["type"] != "http":
            return 403, "no address"
        if path in NODE_CALLS:
            owner = self._node(tuple(peer), headers)
            if isinstance(owner, tuple):
                return owner
        elif _is_local(peer[0]) and hmac.compare_digest(
            headers.get(PROOF_HEADER, "").encode("latin-1"), self._proof.encode()
        ):
            owner = ""
        else:
            return 403, "nodes only"
        return None if self._listener.admit(tuple(peer), owner) else (429, "too many connections")

    def _node(self, peer: tuple[str, int], headers: dict[str, str]) -> str | tuple[int, str]:
        """The key of the node that calls, in hexadecimal digits; the objection if it is none of the federation's."""
        text = headers.get(FLEET_HTTP_PUBLIC_KEY_HEADER, "")
        pem = _decoded(text) if len(text) <= _LONGEST_KEY else b""
        key = _canonical(pem)
        if key is None:
            return 401, "a node proves its key"
        if key not in self._keys:
            return 403, "this key is not registered"
        owner = key.hex()
        if self._listener.owner(peer) != owner and not _is_signed(headers, pem):
            return 401, "the signature or its time is wrong"
        return owner

    async def _refuse(self, scope: Any, receive: Receive, send: Send, status: int, reason: str) -> None:
        """Answer and close the connection, whatever is still being sent."""
        self._refused += 1
        now = time.monotonic()
        if now - self._logged >= _LOG_SECONDS:
            log.warning("refused %s requests; the last: %s", self._refused, reason)
            self._refused, self._logged = 0, now
        if scope["type"] == "http":
            response = PlainTextResponse(reason, status_code=status, headers={"connection": "close"})
            await response(scope, receive, send)


class _Body:
    """Receives a body of at most the stated length, within a limited time, and without long pauses."""

    def __init__(self, receive: Receive, length: int) -> None:
        self._receive, self._left, self._until = receive, length, time.monotonic() + _BODY_SECONDS
        self._whole = False

    async def __call__(self) -> Message:
        if self._whole:
            return await self._receive()
        try:
            left = min(self._until - time.monotonic(), _STILL_SECONDS)
            message = await asyncio.wait_for(self._receive(), left)
        except TimeoutError:
            self._whole = True
            return {"type": "http.disconnect"}
        self._left -= len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        return message if self._left >= 0 else {"type": "http.disconnect"}


def _length(headers: dict[str, str]) -> int:
    """The stated length of a body; one in chunks may be as long as any."""
    text = headers.get("content-length")
    if text is None:
        return LARGEST_BODY if "transfer-encoding" in headers else 0
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 12 else LARGEST_BODY + 1


def _too_long(length: int) -> tuple[int, str] | None:
    return (413, f"at most {LARGEST_BODY} bytes") if length > LARGEST_BODY else None


def _decoded(text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except (NotBase64, ValueError):
        return b""


def _loaded(pem: bytes) -> ec.EllipticCurvePublicKey | None:
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        return None
    return key if isinstance(key, ec.EllipticCurvePublicKey) else None


def _canonical(pem: bytes) -> bytes | None:
    """An elliptic-curve public key in DER, in which equal keys are equal; None for anything else."""
    key = _loaded(pem)
    return None if key is None else key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _is_signed(headers: dict[str, str], pem: bytes) -> bool:
    """Whether the key's owner signed a time that is about now, as Flower's nodes do."""
    key = _loaded(pem)
    stamp = headers.get(TIMESTAMP_HEADER, "")
    try:
        age = (datetime.now(UTC) - datetime.fromisoformat(stamp)).total_seconds()
    except (ValueError, TypeError):  # a time without a zone has no difference to one with
        return False
    if not -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE or not stamp.isascii():
        return False
    signature = _decoded(headers.get(FLEET_HTTP_SIGNATURE_HEADER, ""))
    return key is not None and verify_signature(key, stamp.encode("ascii"), signature)


def _is_local(address: str) -> bool:
    try:
        found = ip_address(address)
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback
