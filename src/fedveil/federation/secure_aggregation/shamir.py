"""Secret sharing after Shamir (1979), byte by byte over GF(2^8): any `threshold` shares give the secret, fewer
reveal nothing.

A secret byte is the constant term of a random polynomial f of degree threshold - 1 over GF(2^8) = GF(2)[x] /
(x^8 + x^4 + x^3 + x + 1), and the share of holder i is f(i), i = 1 ... 255: the field and the points of
SLIP-39. A share is as long as the secret, however long that is, and all bytes are treated at once.
"""

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedveil.errors import InvalidValue

__all__ = ["MOST_HOLDERS", "combine", "split"]

MOST_HOLDERS = 255
_POLYNOMIAL = 0x11B


def split(secret: bytes, holders: Sequence[int], threshold: int) -> dict[int, bytes]:
    """Shares of `secret` for `holders` (different numbers 1 ... 255), any `threshold` of which suffice.

    >>> shares = split(b"mask", holders=[1, 2, 5], threshold=2)
    >>> combine({1: shares[1], 5: shares[5]})
    b'mask'
    """
    points = sorted(set(holders))
    if not 1 <= threshold <= len(points) == len(holders) or not 1 <= points[0] <= points[-1] <= MOST_HOLDERS:
        raise InvalidValue(
            f"a secret is to be shared among holders {list(holders)} with threshold {threshold}",
            f"holders are different numbers from 1 to {MOST_HOLDERS}, the threshold at most as many",
            "correct the holders or the threshold",
        )
    random = os.urandom(len(secret) * (threshold - 1))
    coefficients = np.frombuffer(secret + random, dtype=np.uint8).reshape(threshold, -1)
    shares = np.broadcast_to(coefficients[-1], (len(holders), len(secret)))
    for coefficient in coefficients[-2::-1]:  # Horner's rule
        shares = _times(holders, shares) ^ coefficient
    return {holder: share.tobytes() for holder, share in zip(holders, shares, strict=True)}


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The secret, from as many shares of it as its threshold or more: Lagrange interpolation at 0.

    Too few or wrong shares give a wrong secret; this is not detected here.
    """
    values = np.frombuffer(b"".join(shares.values()), dtype=np.uint8).reshape(len(shares), -1)
    parts = _times(_weights(tuple(shares)), values)
    return bytes(np.bitwise_xor.reduce(parts, axis=0))


def _times(factors: Sequence[int], rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Each row times its factor, in the field."""
    return _PRODUCTS.take(256 * np.asarray(factors)[:, None] + rows)


@lru_cache(maxsize=1024)
def _weights(points: tuple[int, ...]) -> tuple[int, ...]:
    """The Lagrange weights at 0: products over j != i of x_j / (x_j - x_i), minus being exclusive or."""
    weights = []
    for own in points:
        above = below = 1
        for other in points:
            if other != own:
                above, below = _product(above, other), _product(below, other ^ own)
        weights.append(_product(above, _INVERSES[below]))
    return tuple(weights)


def _product(a: int, b: int) -> int:
    return _PRODUCT_BYTES[256 * a + b]


def _products() -> NDArray[np.uint8]:
    """a b at 256 a + b, by doubling and adding."""
    once = np.arange(256)
    rows = [np.zeros_like(once), once]
    for a in range(2, 256):
        doubled = rows[a // 2] << 1
        doubled ^= _POLYNOMIAL * (doubled >> 8)
        rows.append(doubled ^ (once * (a % 2)))
    return np.concatenate(rows).astype(np.uint8)


_PRODUCTS = _products()
_PRODUCT_BYTES = _PRODUCTS.tobytes()  # for single products, where numpy is slow
_INVERSES = [0] + [_PRODUCT_BYTES[256 * a : 256 * a + 256].index(1) for a in range(1, 256)]
