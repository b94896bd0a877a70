"""Secret sharing, against the field's definition and against shares that another implementation made."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedveil.errors import InvalidValue
from fedveil.federation.secure_aggregation.shamir import _product, combine, split

# Made with shamir-mnemonic 0.3.0, Trezor's implementation of SLIP-39: the value at 0, and shares to open it.
REFERENCE = [
    (
        "608bd850125f148268ef59b71dc16e58",
        {1: "6216aab6721350f5e9f6e1cfd6ec0ca9", 2: "64aa3c87d2c79c6c71dd3247909baaa1"},
    ),
    (
        "8c1b7410d69b34346be74ef247f46fb8",
        {
            1: "f58548f43b80138a81456f17f9f9460d",
            2: "5c79d689b41651ff0213a4b17cddca5c",
            3: "25e7ea6d590d7641e8b18554c2d0e3e9",
        },
    ),
    (
        "76d2c2a9e70e205dc2ba3c638d37ba01",
        {
            1: "6096fe3f6a1ae32a1d552c9484a91fdd",
            3: "1c4f7b8e2205e77f5ce8fcd18a180dc9",
            4: "3c9f7fe65bb15b01ac6ed657f293c08b",
            6: "76f34b4639eabda7748b4c120decda60",
            7: "0e3a6e52b5bd6a6e098cc77453fed0ba",
            8: "46acc359b672793bcdc6e40b6605c2f0",
            10: "3d05f658b9b61b5431ee4c8b100313e8",
        },
    ),
]


@pytest.mark.parametrize(("secret", "shares"), REFERENCE)
def test_shares_of_another_implementation_open(secret, shares):
    assert combine({holder: bytes.fromhex(share) for holder, share in shares.items()}).hex() == secret


def slow_product(a, b):
    """The product of two polynomials over GF(2), reduced modulo x^8 + x^4 + x^3 + x + 1 by long division."""
    product = 0
    for bit in range(8):
        if b >> bit & 1:
            product ^= a << bit
    for bit in range(14, 7, -1):
        if product >> bit & 1:
            product ^= 0x11B << (bit - 8)
    return product


def test_field_is_the_one_of_slip_39():
    assert all(_product(a, b) == slow_product(a, b) for a in range(256) for b in range(256))


@st.composite
def sharings(draw):
    holders = draw(st.lists(st.integers(1, 255), min_size=1, max_size=12, unique=True))
    threshold = draw(st.integers(1, len(holders)))
    opening = draw(st.permutations(holders))[: draw(st.integers(threshold, len(holders)))]
    return draw(st.binary(min_size=1, max_size=70)), holders, threshold, opening


@given(sharings())
def test_any_threshold_of_shares_open_the_secret(sharing):
    secret, holders, threshold, opening = sharing
    shares = split(secret, holders, threshold)
    assert combine({holder: shares[holder] for holder in opening}) == secret


def test_shares_below_the_threshold_are_independent_of_the_secret():
    """Two of three needed: any value of one share is as likely for one secret as for another."""
    counts = {
        secret: sum(split(bytes([secret]) * 4096, [5, 6, 7], 2)[6].count(value) for value in range(64))
        for secret in (0, 255)
    }
    # Binomial(4096, 1/4): mean 1024, standard deviation 28.
    assert all(abs(count - 1024) < 7 * 28 for count in counts.values())


def test_too_few_shares_give_something_else():
    secret = os.urandom(32)
    shares = split(secret, range(1, 8), 5)
    assert combine({holder: shares[holder] for holder in (1, 2, 3, 4)}) != secret


@pytest.mark.parametrize(
    ("holders", "threshold"), [([1, 2], 3), ([1, 1], 1), ([0, 1], 1), ([1, 256], 1), ([1], 0)]
)
def test_impossible_sharings_are_refused(holders, threshold):
    with pytest.raises(InvalidValue):
        split(b"secret", holders, threshold)
