"""Sealed messages: signed by the sender, encrypted to the receiver, dated, and bound to the message that they answer.

Flower authenticates the machines and encrypts the connection to the SuperLink. A seal makes messages independent of
both: whoever controls the SuperLink, the network or a node in between sees the length, sender and time of messages,
and can drop them. They can neither read, forge nor alter one.

A message is ``magic (4) | sender (64) | receiver (64) | signature (64) | ciphertext``. Sender and receiver are public
keys. The ciphertext is HPKE in base mode (RFC 9180; X25519, HKDF-SHA256, AES-256-GCM) of ``id (16) | sent (8) | body``,
with purpose, sender and receiver as its info. The signature (Ed25519) is on purpose, sender, receiver and the SHA-256
of the ciphertext: so a ciphertext is valid for one direction and one pair of parties only, and nobody else can claim
to have sent it.

The requester draws ``id`` at random and the answer repeats it, so an answer to another message is detected. ``sent``
is the sender's clock in milliseconds. A message that is sent again has the same id and body, but a new date and
ciphertext.

Only one kind of message is not encrypted, an `introduction`: a coordinator that meets a site for the first time does
not know yet what to encrypt to. It has no body, so it cannot carry any content.
"""

import hashlib
import secrets
import struct
import time
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedveil.deploy.identity import PUBLIC_BYTES, Identity, encryption_key, fingerprint, signing_key
from fedveil.errors import FederationError

__all__ = [
    "FROM_COORDINATOR",
    "FROM_SITE",
    "NO_ID",
    "OVERHEAD",
    "Opened",
    "introduction",
    "new_id",
    "seal",
    "unseal",
]

FROM_COORDINATOR = b"fedveil coordinator to site 2"
FROM_SITE = b"fedveil site to coordinator 2"
NO_ID = bytes(16)
"""The id in an answer to a message that could not be opened."""

_SUITE = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
_MAGIC, _INTRODUCTION, _UNENCRYPTED = b"FVS2", b"FVI2", b"FVSG"
_ANYBODY = bytes(PUBLIC_BYTES)
_SIGNATURE = 64
_HEAD = len(_MAGIC) + 2 * PUBLIC_BYTES + _SIGNATURE
_INNER = struct.Struct(">16sQ")
OVERHEAD = _HEAD + 32 + 16 + _INNER.size
"""Number of bytes that a seal adds to a body."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A message whose seal was valid.

    Attributes:
        sender: the public key of whoever sealed it.
        id: drawn for a request; its answer repeats it.
        sent: seconds since 1970 by the sender's clock.
        body: the decrypted body; None for an introduction.
    """

    sender: str
    id: bytes
    sent: float
    body: bytes | None

    @property
    def digest(self) -> bytes:
        """A digest that is the same for every transmission of one message, and differs between messages."""
        return hashlib.sha256(self.id + (self.body or b"")).digest()

    def age(self) -> float:
        """Seconds since it was sent, if the two clocks agree."""
        return time.time() - self.sent


def new_id() -> bytes:
    """The id of a new message."""
    return secrets.token_bytes(len(NO_ID))


def seal(body: bytes, own: Identity, *, to: str, purpose: bytes, message: bytes) -> bytes:
    """Encrypt and sign a body.

    Args:
        body: the content, which only the receiver can read.
        own: the sender.
        to: the receiver's public key.
        purpose: the direction, `FROM_COORDINATOR` or `FROM_SITE`.
        message: the id of the request, also in an answer.
    """
    sender, receiver = bytes.fromhex(own.public), bytes.fromhex(to)
    inner = _INNER.pack(message, _now()) + body
    ciphertext = _SUITE.encrypt(inner, encryption_key(to), purpose + sender + receiver)
    signature = own.key.sign(_statement(purpose, sender, receiver, ciphertext))
    return b"".join((_MAGIC, sender, receiver, signature, ciphertext))


def introduction(own: Identity, message: bytes) -> bytes:
    """A coordinator's message to a site whose key it does not know: only its identity."""
    sender, inner = bytes.fromhex(own.public), _INNER.pack(message, _now())
    signature = own.key.sign(_statement(_INTRODUCTION, sender, _ANYBODY, inner))
    return b"".join((_INTRODUCTION, sender, _ANYBODY, signature, inner))


def unseal(data: bytes, own: Identity, *, sender: str | None, purpose: bytes) -> Opened:
    """Check a sealed message and decrypt it.

    Args:
        data: what `seal` or `introduction` made.
        own: the receiver.
        sender: the only public key that is accepted; None accepts any, for a first contact.
        purpose: direction of the message; one sealed for another purpose is refused.

    Raises:
        FederationError: it was altered, has another sender or receiver, or is not a sealed message.
    """
    accepted = (_MAGIC, _INTRODUCTION) if purpose == FROM_COORDINATOR else (_MAGIC,)
    if len(data) < _HEAD or data[:4] not in accepted:
        raise _unreadable(data)
    kind, view = bytes(data[:4]), memoryview(data)
    claimed, receiver = bytes(view[4:68]), bytes(view[68:132])
    signature, rest = bytes(view[132:_HEAD]), bytes(view[_HEAD:])
    known = bytes.fromhex(own.public) if kind == _MAGIC else _ANYBODY
    if sender is not None and claimed != bytes.fromhex(sender):
        raise FederationError(
            f"a message signed by {fingerprint(claimed.hex())} arrived",
            f"only {fingerprint(sender)} is trusted here",
            "compare the fingerprints by telephone, and replace the key only if its owner confirms: `fedveil "
            "federation confirm` takes the hand-over of a hospital that has renewed its key",
        )
    if receiver != known:
        raise FederationError(
            f"a message for {fingerprint(receiver.hex())} arrived",
            f"this party is {fingerprint(own.public)}",
            "have the sender compare this party's fingerprint, and replace its copy of the key",
        )
    signed_for = purpose if kind == _MAGIC else _INTRODUCTION
    inner = rest
    try:
        verify = Ed25519PublicKey.from_public_bytes(signing_key(claimed.hex())).verify
        verify(signature, _statement(signed_for, claimed, receiver, rest))
        if kind == _MAGIC:
            inner = _SUITE.decrypt(rest, own.encryption_key(), purpose + claimed + receiver)
    except (InvalidSignature, InvalidTag, ValueError):
        raise FederationError(
            f"a message in the name of {fingerprint(claimed.hex())} has a wrong signature",
            "signed content must arrive unchanged and be encrypted to this party's key",
            "check whether someone alters messages between the parties",
        ) from None
    if len(inner) < _INNER.size or (kind == _INTRODUCTION and len(inner) > _INNER.size):
        raise _unreadable(data)
    message, sent = _INNER.unpack_from(inner)
    return Opened(claimed.hex(), message, sent / 1000, inner[_INNER.size :] if kind == _MAGIC else None)


def _statement(purpose: bytes, sender: bytes, receiver: bytes, content: bytes) -> bytes:
    """The signed bytes; of fixed length after the purpose, which ends with a zero byte."""
    return purpose + b"\0" + sender + receiver + hashlib.sha256(content).digest()


def _now() -> int:
    return round(time.time() * 1000)


def _unreadable(data: bytes) -> FederationError:
    older = data[:4] == _UNENCRYPTED
    return FederationError(
        "a message arrived that is signed but not encrypted, as earlier versions sent it"
        if older
        else f"{len(data)} bytes arrived that are not a sealed message",
        "every message must be encrypted to its receiver and signed by its sender",
        "install the same version of fedveil at the coordinator and at every site",
    )
