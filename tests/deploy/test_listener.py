"""How many connections strangers can hold open, over real sockets; only the clock is the test's own."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from fedveil.deploy.listener import ConnectionLimits, GuardedListener, _place

LIMITS = ConnectionLimits(strangers=4, strangers_per_address=3, seconds=10, rate=1, burst=6, admitted=2)


class Door:
    """A listener with these limits, and connections to it."""

    def __init__(self, stack: ExitStack) -> None:
        self.now, self._stack = 1000.0, stack
        self.listener = stack.enter_context(GuardedListener("127.0.0.1", 0, LIMITS, lambda: self.now))
        self.listener.listen(64)

    def come(self, source: str = "127.0.0.1") -> tuple[socket.socket, tuple[str, int]] | None:
        """A new connection from an address: this side's end and the peer; None if it was turned away."""
        caller = self._stack.enter_context(socket.socket())
        caller.bind((source, 0))
        caller.connect(self.listener.getsockname())
        try:
            line, peer = self.listener.accept()
        except ConnectionAbortedError:
            caller.settimeout(30)
            assert not caller.recv(1), "it is closed, not forgotten"
            return None
        self._stack.enter_context(line)
        return line, peer


@pytest.fixture
def door() -> Iterator[Door]:
    with ExitStack() as stack:
        yield Door(stack)


def test_strangers_are_few_from_one_address_and_in_all(door):
    assert all(door.come() for _ in range(3))
    assert door.come() is None
    assert door.come("127.0.0.2"), "others are not affected"
    assert door.come("127.0.0.2") is None, "in all"


def test_the_oldest_stranger_makes_room(door):
    first, *_ = [door.come() for _ in range(3)]
    door.now += 9
    assert door.come() is None
    door.now += 2
    assert door.come()
    assert first[0].recv(1) == b"", "its end is read"


def test_who_proved_a_key_counts_no_longer_as_a_stranger(door):
    for number in range(10):
        _line, peer = door.come()
        assert door.listener.owner(peer) is None
        assert door.listener.admit(peer, f"key {number}")
        assert door.listener.owner(peer) == f"key {number}"
    door.now += 100
    assert all(door.come() for _ in range(3))
    assert door.come() is None


def test_one_keys_owner_has_few_connections(door):
    peers = [door.come()[1] for _ in range(3)]
    assert [door.listener.admit(peer, "key") for peer in peers] == [True, True, False]
    assert door.listener.admit(peers[0], "key"), "again over the same connection"


def test_a_connection_that_ends_gives_its_place_free(door):
    lines = [door.come()[0] for _ in range(3)]
    peer = lines[0].getpeername()
    lines[0].close()
    assert not door.listener.admit(peer, "key")
    assert door.come()


def test_strangers_are_few_per_second(door):
    for _ in range(6):
        line, _ = door.come()
        line.close()
    assert door.come() is None
    door.now += 1
    assert door.come()
    assert door.come() is None
    assert door.come("127.0.0.3"), "others are not affected"


def test_addresses_are_forgotten(door):
    for number in range(5000):
        door.now += 0.01
        assert door.listener._spend(f"place {number}")
    assert len(door.listener._table.buckets) < 4200


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.7", "192.0.2.8", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.7", "::ffff:192.0.2.8", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
    ],
)
def test_a_host_that_may_choose_its_address_is_one(one, other, same):
    assert (_place(one) == _place(other)) is same


def test_two_keys_that_take_turns_on_a_connection_earn_nothing(door):
    """A connection is paid back once, however often its owner changes."""
    for _ in range(3):
        door.come()[0].close()
    _line, peer = door.come()
    before = door.listener._table.buckets["127.0.0.1"].left
    for number in range(10):
        assert door.listener.admit(peer, f"key {number % 2}")
    assert door.listener._table.buckets["127.0.0.1"].left == before + 1
