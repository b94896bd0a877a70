"""Masks come from the ciphers that they are said to come from, and cancel."""

import hashlib
import hmac

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fedveil.federation.secure_aggregation.masks import apply_masks, pair_mask_key, self_mask_key
from fedveil.parallel import BLOCK


def hkdf_sha256(secret, salt, info):
    """RFC 5869, one block, from its text."""
    key = hmac.digest(salt, secret, hashlib.sha256)
    return hmac.digest(key, info + b"\x01", hashlib.sha256)


def field(value):
    data = value.encode() if isinstance(value, str) else value.to_bytes(8, "big")
    return len(data).to_bytes(4, "big") + data


def aes_counter_words(key, count):
    """AES-256 of 0, 1, 2 ... as 32-bit words, block by block."""
    blocks = b"".join(number.to_bytes(16, "big") for number in range(-(-count // 4)))
    cipher = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()
    return np.frombuffer(cipher.update(blocks), dtype="<u4")[:count]


def test_masks_come_from_a_cryptographic_generator():
    """Keys by HKDF-SHA256 over secret, session, purpose, round and direction; streams by AES-256."""
    secret, roster = bytes(range(32)), bytes(range(32, 64))
    pair = pair_mask_key(secret, roster, "site-1", "site-2", 17, "training")
    own = self_mask_key(secret, roster, "site-1", 17, "training")
    info = field("pair mask") + field("site-1") + field("site-2") + field(17) + field("training")
    assert pair == hkdf_sha256(secret, roster, info)
    info = field("self mask") + field("site-1") + field(17) + field("training")
    assert own == hkdf_sha256(secret, roster, info)
    words = np.zeros(200_001, dtype=np.uint32)
    apply_masks(words, [own], [pair])
    expected = aes_counter_words(own, words.size) - aes_counter_words(pair, words.size)
    np.testing.assert_array_equal(words, expected)


@pytest.mark.parametrize("kind", [np.uint32, np.uint64])
def test_blocks_of_a_long_vector_continue_the_same_streams(kind):
    """Whichever thread masks a block, it takes the part of the stream that belongs there."""
    keys = [bytes([number]) * 32 for number in range(3)]
    words = np.zeros(2 * BLOCK + 3, dtype=kind)
    apply_masks(words, keys[:2], keys[2:])
    stream = [aes_counter_words(key, words.nbytes // 4 + 4).view(kind)[: words.size] for key in keys]
    np.testing.assert_array_equal(words, stream[0] + stream[1] - stream[2])


def test_every_purpose_has_its_own_key():
    secret, roster, other = bytes(32), bytes(32), bytes([1]) * 32
    keys = [
        pair_mask_key(secret, roster, "a", "b", 1),
        pair_mask_key(secret, roster, "b", "a", 1),
        pair_mask_key(secret, roster, "a", "b", 2),
        pair_mask_key(secret, roster, "a", "b", 1, "training"),
        pair_mask_key(secret, other, "a", "b", 1),
        pair_mask_key(other, roster, "a", "b", 1),
        pair_mask_key(secret, roster, "ab", "", 1),
        self_mask_key(secret, roster, "a", 1),
        self_mask_key(secret, roster, "b", 1),
        self_mask_key(secret, roster, "a", 1, "training"),
    ]
    assert len(set(keys)) == len(keys)


def test_a_mask_added_and_subtracted_cancels():
    words = np.arange(100_000, dtype=np.uint32)
    keys = [bytes([number]) * 32 for number in range(5)]
    apply_masks(words, keys[:3], keys[3:])
    apply_masks(words, keys[3:], keys[:3])
    np.testing.assert_array_equal(words, np.arange(100_000))
