"""Secret sharing, against the field's definition and against shares that another implementation made."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedveil.errors import InvalidValue
from fedveil.federation.secure_aggregation import lock, session, shamir
from fedveil.federation.secure_aggregation.shamir import GF256, GF65536, combine, field_for, split

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


def slow_product(a, b, bits=8, polynomial=0x11B):
    """The product of two polynomials over GF(2), reduced by long division."""
    product = 0
    for bit in range(bits):
        if b >> bit & 1:
            product ^= a << bit
    for bit in range(2 * bits - 2, bits - 1, -1):
        if product >> bit & 1:
            product ^= polynomial << (bit - bits)
    return product


def test_field_is_the_one_of_slip_39():
    products = GF256.product(np.arange(256)[:, None], np.arange(256)).tolist()
    assert products == [[slow_product(a, b) for b in range(256)] for a in range(256)]


def test_the_larger_field_is_that_of_its_polynomial():
    """Against products of polynomials; and a has an inverse for every a only if the polynomial is irreducible."""
    a, b = np.random.default_rng(0).integers(0, 1 << 16, (2, 500))
    b[:5] = 0
    expected = [slow_product(*pair, 16, 0x1100B) for pair in zip(a.tolist(), b.tolist(), strict=True)]
    assert GF65536.product(a, b).tolist() == expected
    powers = set(shamir._powers(GF65536)[0][:65_535].tolist())
    assert powers == set(range(1, 1 << 16))


@st.composite
def sharings(draw):
    field = draw(st.sampled_from([GF256, GF65536]))
    holders = draw(st.lists(st.integers(1, field.most_holders), min_size=1, max_size=12, unique=True))
    threshold = draw(st.integers(1, len(holders)))
    opening = draw(st.permutations(holders))[: draw(st.integers(threshold, len(holders)))]
    secret = draw(st.binary(min_size=1, max_size=35))
    return secret + secret[::-1], holders, threshold, opening, field


@given(sharings())
def test_any_threshold_of_shares_open_the_secret(sharing):
    secret, holders, threshold, opening, field = sharing
    shares = split(secret, holders, threshold, field)
    assert combine({holder: shares[holder] for holder in opening}, field) == secret


@pytest.mark.parametrize("field", [GF256, GF65536])
def test_shares_below_the_threshold_are_independent_of_the_secret(field):
    """Two of three needed: any value of one share is as likely for one secret as for another."""
    counts = {
        secret: sum(split(bytes([secret]) * 4096, [5, 6, 7], 2, field)[6].count(value) for value in range(64))
        for secret in (0, 255)
    }
    # Binomial(4096, 1/4): mean 1024, standard deviation 28.
    assert all(abs(count - 1024) < 7 * 28 for count in counts.values())


def test_too_few_shares_give_something_else():
    secret = os.urandom(32)
    shares = split(secret, range(1, 8), 5)
    assert combine({holder: shares[holder] for holder in (1, 2, 3, 4)}) != secret


def test_sessions_of_more_sites_than_bytes_have_a_field_with_enough_points():
    assert field_for(255) is GF256
    assert field_for(256) is GF65536
    shares = split(b"mask", [1, 256, 1000], 2, field_for(1000))
    assert combine({256: shares[256], 1000: shares[1000]}, field_for(1000)) == b"mask"
    with pytest.raises(InvalidValue, match="whole elements of 16 bits"):
        split(b"odd", [1, 256], 2, GF65536)


@pytest.mark.parametrize(
    ("holders", "threshold"), [([1, 2], 3), ([1, 1], 1), ([0, 1], 1), ([1, 256], 1), ([1], 0)]
)
def test_impossible_sharings_are_refused(holders, threshold):
    with pytest.raises(InvalidValue):
        split(b"secret", holders, threshold)


def test_a_session_runs_over_the_larger_field(federation, monkeypatch, modular_sum):
    """All of the protocol, with one site lost and one silent, as if its sites were too many for bytes."""
    for module in (lock, session):
        monkeypatch.setattr(module, "field_for", lambda sites: GF65536)
    box = federation(7)
    assert box.session.field is GF65536
    words = {site: np.full(5, number, dtype=np.uint32) for number, site in enumerate(box.sites[1:], start=7)}
    total = box.run(1, words, silent=box.sites[-1:])
    np.testing.assert_array_equal(total, modular_sum(words, words))
