"""A listening socket that bounds what strangers can occupy, before a byte of theirs is read.

A connection is a stranger's until `GuardedListener.admit` says that its other end has proved a key. Strangers are few
at a time and few per second, in all and for each address; the oldest make room for new ones. What a connection costs
before its TLS handshake, memory above all, is therefore bounded by the limits, whatever is sent. Connections that were
admitted do not count against strangers, so hospitals behind one proxy or address translation are served.
"""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from typing import Any

__all__ = ["ConnectionLimits", "GuardedListener"]

Peer = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """How many connections a listener serves.

    Attributes:
        strangers: connections that have not proved a key.
        strangers_per_address: the same, from one address.
        seconds: age from which a stranger's connection is closed to make room for a new one.
        rate: strangers' connections per second from one address, over longer times.
        burst: strangers' connections from one address at once.
        admitted: connections of one key's owner.
    """

    strangers: int = 128
    strangers_per_address: int = 64
    seconds: float = 10.0
    rate: float = 20.0
    burst: float = 200.0
    admitted: int = 32


@dataclass(slots=True)
class _Seen:
    """An accepted connection."""

    line: socket.socket
    since: float
    owner: str | None = None


@dataclass(slots=True)
class _Bucket:
    """The connections that an address may still open, refilled over time."""

    left: float
    at: float


@dataclass(slots=True)
class _Table:
    """All open connections, by the peer's address and port."""

    seen: dict[Peer, _Seen] = field(default_factory=dict)
    buckets: dict[str, _Bucket] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)


class _Line(socket.socket):
    """An accepted connection that reports its end."""

    ended: Callable[[], None] | None = None

    def close(self) -> None:
        """Close it, and give its place free."""
        super().close()
        if self.ended is not None:
            self.ended()
            self.ended = None


class GuardedListener(socket.socket):
    """A TCP socket that listens at an address within limits.

    Args:
        host: local address to listen at.
        port: its port.
        limits: how many connections are served.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        host: str,
        port: int,
        limits: ConnectionLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        self._limits, self._clock, self._table = limits or ConnectionLimits(), clock, _Table()
        self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.bind((host, port))

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection.

        Raises:
            ConnectionAbortedError: the limits do not admit it; it is closed.
        """
        plain, address = super().accept()
        line = _Line(fileno=plain.detach())
        peer: Peer = address[:2]
        with self._table.lock:
            if not self._room(peer[0]):
                line.close()
                raise ConnectionAbortedError("too many connections")
            seen = _Seen(line, self._clock())
            self._table.seen[peer] = seen
            line.ended = lambda: self._forget(peer, seen)
        return line, address

    def admit(self, peer: Peer, owner: str) -> bool:
        """A connection's other end has proved that it is the owner of a key; False if the owner has too many."""
        with self._table.lock:
            seen = self._table.seen.get(peer)
            if seen is None:
                return False
            if seen.owner != owner:
                if sum(one.owner == owner for one in self._table.seen.values()) >= self._limits.admitted:
                    return False
                bucket = self._table.buckets.get(_place(peer[0]))
                first, seen.owner = seen.owner is None, owner
                if first and bucket is not None:
                    bucket.left = min(bucket.left + 1.0, self._limits.burst)
        return True

    def owner(self, peer: Peer) -> str | None:
        """Who proved to be at the other end of a connection."""
        with self._table.lock:
            seen = self._table.seen.get(peer)
            return None if seen is None else seen.owner

    def _forget(self, peer: Peer, seen: _Seen) -> None:
        with self._table.lock:
            if self._table.seen.get(peer) is seen:
                del self._table.seen[peer]

    def _room(self, address: str) -> bool:
        """Whether a stranger from this address may connect; closes older strangers if that makes room."""
        strangers = {peer: seen for peer, seen in self._table.seen.items() if seen.owner is None}
        place = _place(address)
        near = {peer: seen for peer, seen in strangers.items() if _place(peer[0]) == place}
        for crowd, most in (
            (near, self._limits.strangers_per_address),
            (strangers, self._limits.strangers),
        ):
            if len(crowd) >= most and not self._make_room(crowd):
                return False
        return self._spend(place)

    def _make_room(self, crowd: dict[Peer, _Seen]) -> bool:
        peer = min(crowd, key=lambda one: crowd[one].since)
        seen = crowd[peer]
        if self._clock() - seen.since < self._limits.seconds:
            return False
        self._table.seen.pop(peer, None)
        with suppress(OSError):
            seen.line.shutdown(socket.SHUT_RDWR)  # its owner, the event loop, reads the end and closes it
        return True

    def _spend(self, place: str) -> bool:
        now, limits, buckets = self._clock(), self._limits, self._table.buckets
        if len(buckets) > 4096:
            full = [
                one
                for one, kept in buckets.items()
                if kept.left + (now - kept.at) * limits.rate >= limits.burst
            ]
            for one in full:
                del buckets[one]
        bucket = buckets.setdefault(place, _Bucket(limits.burst, now))
        bucket.left = min(limits.burst, bucket.left + (now - bucket.at) * limits.rate)
        bucket.at = now
        if bucket.left < 1.0:
            return False
        bucket.left -= 1.0
        return True


def _place(address: str) -> str:
    """An address, or the network of 64 bits that an IPv6 host may choose its addresses from."""
    found = ip_address(address.partition("%")[0])
    if not isinstance(found, IPv6Address) or found.ipv4_mapped is not None:
        return address
    return found.packed[:8].hex()
