"""The lock opens where enough sites saw the same survivors, and not otherwise."""

import os

import pytest

from fedveil.federation.secure_aggregation.lock import View, close

SITES = ("a", "b", "c", "d", "e")
NUMBERS = {name: number for number, name in enumerate(SITES, start=1)}
THRESHOLD = 4


def view(survivors: str) -> View:
    return View(b"roster", 3, survivors.encode())


@pytest.fixture
def channels():
    """What "a" shares with each of the others."""
    return {name: os.urandom(32) for name in SITES[1:]}


def pads(channels, holders, survivors):
    """What some holders reveal for "a", having been shown a list of survivors."""
    return {holder: view(survivors).pad(channels[holder], "a", holder) for holder in holders}


def opened(lock, given, survivors="abcde"):
    return lock.open(view(survivors), NUMBERS, "a", given, THRESHOLD)


def test_opens_if_enough_sites_saw_the_same_list(channels):
    lock = close(b"shares", view("abcde"), NUMBERS, "a", channels, THRESHOLD)
    assert opened(lock, pads(channels, "bcd", "abcde")) == b"shares"
    assert opened(lock, pads(channels, "bcde", "abcde")) == b"shares"
    assert opened(lock, pads(channels, "bc", "abcde")) is None


def test_stays_closed_if_the_others_saw_another_list(channels):
    lock = close(b"shares", view("abcde"), NUMBERS, "a", channels, THRESHOLD)
    given = {**pads(channels, "bc", "abcde"), **pads(channels, "de", "abcd")}
    assert opened(lock, given) is None
    assert opened(lock, given, "abcd") is None


def test_pads_of_another_list_do_not_fit_even_if_they_claim_to(channels):
    """A server that replaces the check bytes still has no share."""
    lock = close(b"shares", view("abcde"), NUMBERS, "a", channels, THRESHOLD)
    given = pads(channels, "bcd", "abcd")
    forged = {holder: pad[:32] + lock.padded[holder][32:] for holder, pad in given.items()}
    assert opened(lock, forged) is None


def test_pads_serve_one_direction_round_and_session(channels):
    channel = channels["b"]
    ways = {
        View(roster, number, survivors).pad(channel, *direction)
        for roster in (b"roster", b"other")
        for number in (3, 4)
        for survivors in (b"ab", b"abc")
        for direction in (("a", "b"), ("b", "a"))
    }
    assert len(ways) == 16
