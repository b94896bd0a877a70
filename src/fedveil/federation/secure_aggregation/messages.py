"""The messages of the protocol, in the order in which they are sent: frozen values with conversion to and from bytes.

::

    set-up      server → site   Session (its JSON)     who takes part, for which rounds
                site → server   Announcement           public keys, signed
                server → site   Roster                 everyone's announcement
                site → server   SharesSent             a box of shares for each neighbour
                server → site   SharesDelivered        the boxes from its neighbours
                site → server   Ready                  senders of unreadable boxes, if any
    a round     site → server   MaskedInput            in answer to the round's parameters
                server → site   RecoveryRequest        who survived
                site → server   Recovery               shares, locked
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import ClassVar, Self

import numpy as np

from fedveil.federation.secure_aggregation.codec import malformed, pack, split_evenly, unpack
from fedveil.federation.secure_aggregation.keys import KEY_BYTES, SIGNATURE_BYTES
from fedveil.federation.secure_aggregation.lock import PAD_BYTES, Lock, View
from fedveil.federation.secure_aggregation.masks import Words
from fedveil.federation.secure_aggregation.session import Session

__all__ = [
    "Announcement",
    "MaskedInput",
    "Ready",
    "Recovery",
    "RecoveryRequest",
    "Roster",
    "SharesDelivered",
    "SharesSent",
    "kind_of",
]


def kind_of(data: bytes) -> str:
    """Which message some bytes are."""
    fields = unpack(data)
    return bytes(fields[0]).decode("ascii", "replace") if fields else ""


def _fields(data: bytes, kind: str) -> list[memoryview]:
    fields = unpack(data)
    if not fields or bytes(fields[0]) != kind.encode():
        raise malformed()
    return fields[1:]


def _text(field: memoryview) -> str:
    try:
        return str(field, "utf-8")
    except UnicodeDecodeError as error:
        raise malformed() from error


def _number(field: memoryview) -> int:
    if len(field) != 8:
        raise malformed()
    return int.from_bytes(field)


def _fixed(field: memoryview, size: int) -> bytes:
    if len(field) != size:
        raise malformed()
    return bytes(field)


def _pairs(fields: list[memoryview]) -> dict[str, bytes]:
    if len(fields) % 2:
        raise malformed()
    return {_text(name): bytes(value) for name, value in zip(fields[::2], fields[1::2], strict=True)}


def _flat(pairs: Mapping[str, bytes]) -> list[str | bytes]:
    return [field for pair in pairs.items() for field in pair]


@dataclass(frozen=True, slots=True)
class Announcement:
    """A site's public keys for a session, signed by its long-term identity.

    Attributes:
        site: whose keys these are.
        channel_key: X25519 key for messages between other sites and this one.
        round_keys: X25519 key for the masks of each round.
        signature: Ed25519 signature on all of that and the session's digest.
    """

    KIND: ClassVar = "announcement 1"
    site: str
    channel_key: bytes
    round_keys: tuple[bytes, ...]
    signature: bytes

    @staticmethod
    def statement(
        session: bytes, site: str, channel_key: bytes, round_keys: tuple[bytes, ...]
    ) -> tuple[bytes | str, ...]:
        """The signed bytes."""
        return ("fedveil secure aggregation keys", session, site, channel_key, b"".join(round_keys))

    def to_bytes(self) -> bytes:
        """The unique encoding."""
        return pack(self.KIND, self.site, self.channel_key, b"".join(self.round_keys), self.signature)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Raises FederationError on anything else."""
        site, channel_key, round_keys, signature = _exactly(_fields(data, cls.KIND), 4)
        return cls(
            _text(site),
            _fixed(channel_key, KEY_BYTES),
            tuple(split_evenly(round_keys, KEY_BYTES)),
            _fixed(signature, SIGNATURE_BYTES),
        )


def _exactly(fields: list[memoryview], count: int) -> list[memoryview]:
    if len(fields) != count:
        raise malformed()
    return fields


@dataclass(frozen=True, slots=True)
class Roster:
    """Everyone's announcement, in the order of the session's sites."""

    KIND: ClassVar = "roster 1"
    announcements: tuple[Announcement, ...]

    def digest(self, session: Session) -> bytes:
        """The digest that all keys of the session are bound to."""
        return sha256(session.digest + self.to_bytes()).digest()

    def to_bytes(self) -> bytes:
        """The unique encoding."""
        return pack(self.KIND, *(one.to_bytes() for one in self.announcements))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Raises FederationError on anything else."""
        return cls(tuple(Announcement.from_bytes(bytes(field)) for field in _fields(data, cls.KIND)))


@dataclass(frozen=True, slots=True)
class SharesSent:
    """Boxes from one site, by the neighbour who can open them."""

    KIND: ClassVar = "shares sent 1"
    site: str
    boxes: Mapping[str, bytes]

    def to_bytes(self) -> bytes:
        """The unique encoding."""
        return pack(self.KIND, self.site, *_flat(self.boxes))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Raises FederationError on anything else."""
        site, *boxes = _fields(data, cls.KIND) or _exactly([], 1)
        return cls(_text(site), _pairs(boxes))


@dataclass(frozen=True, slots=True)
class SharesDelivered:
    """Boxes for one site, by the neighbour who made them."""

    KIND: ClassVar = "shares delivered 1"
    boxes: Mapping[str, bytes]

    def to_bytes(self) -> bytes:
        """The unique encoding."""
        return pack(self.KIND, *_flat(self.boxes))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Raises FederationError on anything else."""
        return cls(_pairs(_fields(data, cls.KIND)))


@dataclass(frozen=True, slots=True)
class Ready:
    """The end of a site's set-up: it has its shares, or names the senders of unreadable ones."""

    KIND: ClassVar = "ready 1"
    site: str
    unreadable: tuple[str, ...] = ()

    def to_bytes(self) -> bytes:
        """The unique encoding."""
        return pack(self.KIND, self.site, *self.unreadable)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Raises FederationError on anything else."""
        site, *unreadable = _fields(data, cls.KIND) or _exactly([], 1)
        return cls(_text(site), tuple(map(_text, unreadable)))


@dataclass(frozen=True, slots=True, eq=False)
class MaskedInput:
    """A site's words for a round, masked; uniformly random to everyone who does not know the masks.

    Words of 64 bits are another kind of message, which earlier versions do not know.
    """

    KINDS: ClassVar = {"<u4": "masked input 1", "<u8": "masked input 2"}
    site: str
    round_number: int
    words: Words

    def to_bytes(self) -> bytes:
        """The unique encoding; words are little-endian."""
        dtype = f"<u{self.words.itemsize}"
        words = np.ascontiguousarray(self.words, dtype=dtype).view(np.uint8)
        return pack(self.KINDS[dtype], self.site, self.round_number, words.data)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Raises FederationError on anything else. The words are a view into `data`, read-only."""
        kind = kind_of(data)
        dtype = next((one for one, name in cls.KINDS.items() if name == kind), None)
        if dtype is None:
            raise malformed()
        site, round_number, words = _exactly(_fields(data, kind), 3)
        if len(words) % np.dtype(dtype).itemsize:
            raise malformed()
        given = np.frombuffer(words, dtype=dtype)
        return cls(
            _text(site), _number(round_number), given.astype(given.dtype.newbyteorder("="), copy=False)
        )


@dataclass(frozen=True, slots=True)
class RecoveryRequest:
    """The survivors of a round; all other sites of the session are lost for it."""

    KIND: ClassVar = "recovery request 1"
    round_number: int
    survivors: tuple[str, ...]

    def view(self, roster: bytes) -> View:
        """The digest that locks everything revealed in answer."""
        return View(roster, self.round_number, sha256(pack(*self.survivors)).digest())

    def to_bytes(self) -> bytes:
        """The unique encoding."""
        return pack(self.KIND, self.round_number, *self.survivors)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Raises FederationError on anything else."""
        round_number, *survivors = _fields(data, cls.KIND) or _exactly([], 1)
        return cls(_number(round_number), tuple(map(_text, survivors)))


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a survivor reveals: shares of secrets in a lock, and pads for the locks of others.

    Attributes:
        site: the revealing site.
        round_number: the round.
        lock: opens if enough survivors saw the same list.
        pads: by owner, what opens this site's share of the owner's lock.
    """

    KIND: ClassVar = "recovery 1"
    site: str
    round_number: int
    lock: Lock
    pads: Mapping[str, bytes]

    def to_bytes(self) -> bytes:
        """The unique encoding: lock and pads for the same sites, in the same order."""
        sites = (name.encode() for name in self.pads)
        padded = b"".join(self.lock.padded[name] for name in self.pads)
        lists = pack(*sites), padded, b"".join(self.pads.values())
        return pack(self.KIND, self.site, self.round_number, self.lock.box, self.lock.own, *lists)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Raises FederationError on anything else."""
        site, round_number, box, own, names, padded, pads = _exactly(_fields(data, cls.KIND), 7)
        sites = [_text(name) for name in unpack(names)]
        shares, opened = split_evenly(padded, PAD_BYTES), split_evenly(pads, PAD_BYTES)
        if not len(sites) == len(set(sites)) == len(shares) == len(opened):
            raise malformed()
        lock = Lock(bytes(box), _fixed(own, KEY_BYTES), dict(zip(sites, shares, strict=True)))
        return cls(_text(site), _number(round_number), lock, dict(zip(sites, opened, strict=True)))
