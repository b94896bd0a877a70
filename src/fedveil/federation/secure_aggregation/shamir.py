"""Secret sharing after Shamir (1979) over GF(2^8) or GF(2^16): any `threshold` shares give the secret, fewer reveal
nothing.

A secret is a row of field elements, of one byte or two (little-endian) each. Each element is the constant term of a
random polynomial f of degree threshold - 1, and the share of holder i is f(i), i = 1, 2, ... A share is as long as the
secret, and all its elements are treated at once.

GF(2^8) = GF(2)[x] / (x^8 + x^4 + x^3 + x + 1), the field and the points of SLIP-39, serves up to 255 holders, as it
always did; GF(2^16) = GF(2)[x] / (x^16 + x^12 + x^3 + x + 1) serves more. Both sides take the field from the number of
sites in their session (`field_for`), so no message names it.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedveil.errors import InvalidValue

__all__ = ["GF256", "GF65536", "Field", "combine", "field_for", "split"]

Elements = NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Field:
    """GF(2^bits), by a polynomial for which x + 1 (8 bits) or x (16 bits) generates all elements but 0."""

    bits: int
    polynomial: int
    generator: int

    @property
    def most_holders(self) -> int:
        """The number of points other than 0."""
        return (1 << self.bits) - 1

    def product(self, a: int, b: int) -> int:
        """a b."""
        if a == 0 or b == 0:
            return 0
        powers, logarithms = _powers(self)
        return powers[(logarithms[a] + logarithms[b]) % self.most_holders]

    def inverse(self, a: int) -> int:
        """1 / a for a other than 0."""
        powers, logarithms = _powers(self)
        return powers[-logarithms[a] % self.most_holders]

    def times(self, factors: Sequence[int]) -> "_Times":
        """Multiplies rows, each by its factor."""
        doubled, rows = np.asarray(factors, dtype=np.int64), []
        for _ in range(self.bits):
            rows.append(doubled)
            doubled = (doubled << 1) ^ self.polynomial * (doubled >> (self.bits - 1))
        # By linearity: the product with every byte, at each place of the element, from those with single bits.
        tables = []
        for place in range(0, self.bits, 8):
            table = np.zeros((len(factors), 1), np.int64)
            for row in rows[place : place + 8]:
                table = np.concatenate([table, table ^ row[:, None]], axis=1)
            tables.append(table.astype(np.uint16))
        return _Times(tuple(tables))

    def elements(self, data: bytes, rows: int) -> Elements:
        """Bytes as `rows` equal rows of elements."""
        kind = np.dtype("u1") if self.bits == 8 else np.dtype("<u2")
        return np.frombuffer(data, dtype=kind).reshape(rows, -1).astype(np.uint16)

    def to_bytes(self, row: Elements) -> bytes:
        """The inverse of `elements`, of one row."""
        return row.astype("u1" if self.bits == 8 else "<u2").tobytes()


@dataclass(frozen=True, slots=True)
class _Times:
    """Products with fixed factors: for each byte of an element (factors, 256)."""

    tables: tuple[Elements, ...]

    def __call__(self, rows: Elements) -> Elements:
        start = (256 * np.arange(len(self.tables[0])))[:, None]
        found: Elements = self.tables[0].take(start + (rows & 255))
        for place, table in enumerate(self.tables[1:], start=1):
            found ^= table.take(start + (rows >> 8 * place))
        return found


GF256 = Field(8, 0x11B, 3)
GF65536 = Field(16, 0x1100B, 2)


def field_for(holders: int) -> Field:
    """The field of a session with so many sites."""
    return GF256 if holders <= GF256.most_holders else GF65536


def split(secret: bytes, holders: Sequence[int], threshold: int, field: Field = GF256) -> dict[int, bytes]:
    """Shares of `secret` for `holders` (different numbers from 1), any `threshold` of which suffice.

    >>> shares = split(b"mask", holders=[1, 2, 5], threshold=2)
    >>> combine({1: shares[1], 5: shares[5]})
    b'mask'
    """
    points, most = sorted(set(holders)), field.most_holders
    fits = 1 <= threshold <= len(points) == len(holders) and 1 <= points[0] <= points[-1] <= most
    if not fits or 8 * len(secret) % field.bits:
        raise InvalidValue(
            f"a secret of {len(secret)} bytes is to be shared among holders {list(holders)[:300]} "
            f"with threshold {threshold}",
            f"holders are different numbers from 1 to {most}, the threshold at most as many, "
            f"the secret whole elements of {field.bits} bits",
            "correct the holders or the threshold",
        )
    random = os.urandom(len(secret) * (threshold - 1))
    coefficients = field.elements(secret + random, threshold)
    shares: Elements = np.broadcast_to(coefficients[-1], (len(holders), coefficients.shape[1]))
    times = field.times(holders)
    for coefficient in coefficients[-2::-1]:  # Horner's rule
        shares = times(shares) ^ coefficient
    return {holder: field.to_bytes(share) for holder, share in zip(holders, shares, strict=True)}


def combine(shares: Mapping[int, bytes], field: Field = GF256) -> bytes:
    """The secret, from as many shares of it as its threshold or more: Lagrange interpolation at 0.

    Too few or wrong shares give a wrong secret; this is not detected here.
    """
    values = field.elements(b"".join(shares.values()), len(shares))
    parts = _weights(tuple(shares), field)(values)
    return field.to_bytes(np.bitwise_xor.reduce(parts, axis=0))


@lru_cache(maxsize=64)
def _weights(points: tuple[int, ...], field: Field) -> _Times:
    """The Lagrange weights at 0: products over j != i of x_j / (x_j - x_i), minus being exclusive or."""
    weights = []
    for own in points:
        above = below = 1
        for other in points:
            if other != own:
                above, below = field.product(above, other), field.product(below, other ^ own)
        weights.append(field.product(above, field.inverse(below)))
    return field.times(weights)


@lru_cache(maxsize=2)
def _powers(field: Field) -> tuple[list[int], list[int]]:
    """Powers of the generator, and their logarithms by element."""
    powers, logarithms = [1], [0] * (field.most_holders + 1)
    for exponent in range(1, field.most_holders):
        last = powers[-1]
        doubled = (last << 1) ^ field.polynomial * (last >> (field.bits - 1))
        powers.append(doubled ^ last if field.generator == 3 else doubled)
        logarithms[powers[-1]] = exponent
    return powers, logarithms
