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
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Field:
    """GF(2^bits), by a polynomial for which x + 1 (8 bits) or x (16 bits) generates all elements but 0."""

    bits: int
    polynomial: int

    @property
    def most_holders(self) -> int:
        """The number of points other than 0."""
        return (1 << self.bits) - 1

    def product(self, a: Integers | Elements, b: Integers | Elements) -> Elements:
        """a b, element by element."""
        powers, logarithms = _powers(self)
        return powers.take(logarithms.take(a) + logarithms.take(b))

    def weights(self, points: Sequence[int]) -> Elements:
        """The Lagrange weights at 0: products over j != i of x_j / (x_j - x_i), minus being exclusive or."""
        powers, logarithms = _powers(self)
        x = np.asarray(points)
        differences = x[:, None] ^ x
        np.fill_diagonal(differences, 1)  # whose logarithm is 0
        own = logarithms.take(x)
        exponents = own.sum() - own - logarithms.take(differences).sum(axis=1)
        weights: Elements = powers.take(exponents % self.most_holders)
        return weights

    def elements(self, data: bytes, rows: int) -> Elements:
        """Bytes as `rows` equal rows of elements."""
        kind = np.dtype("u1") if self.bits == 8 else np.dtype("<u2")
        return np.frombuffer(data, dtype=kind).reshape(rows, -1).astype(np.uint16)

    def to_bytes(self, row: Elements) -> bytes:
        """The inverse of `elements`, of one row."""
        return row.astype("u1" if self.bits == 8 else "<u2").tobytes()


GF256 = Field(8, 0x11B)
GF65536 = Field(16, 0x1100B)


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
    tables = _tables(tuple(holders), field)
    for coefficient in coefficients[-2::-1]:  # Horner's rule
        shares = _times(tables, shares) ^ coefficient
    return {holder: field.to_bytes(share) for holder, share in zip(holders, shares, strict=True)}


def combine(shares: Mapping[int, bytes], field: Field = GF256) -> bytes:
    """The secret, from as many shares of it as its threshold or more: Lagrange interpolation at 0.

    Too few or wrong shares give a wrong secret; this is not detected here.
    """
    values = field.elements(b"".join(shares.values()), len(shares))
    parts = field.product(_weights(tuple(shares), field)[:, None], values)
    return field.to_bytes(np.bitwise_xor.reduce(parts, axis=0))


@lru_cache(maxsize=1024)
def _weights(points: tuple[int, ...], field: Field) -> Elements:
    return field.weights(points)


@lru_cache(maxsize=64)
def _tables(factors: tuple[int, ...], field: Field) -> tuple[Elements, ...]:
    """For each byte of an element the factors' products with all its values (factors, 256)."""
    column, values = np.asarray(factors)[:, None], np.arange(256)
    return tuple(field.product(column, values << place) for place in range(0, field.bits, 8))


def _times(tables: tuple[Elements, ...], rows: Elements) -> Elements:
    """Each row times its factor; multiplication by a factor is linear in the bytes of an element."""
    start = (256 * np.arange(len(rows)))[:, None]
    if len(tables) == 1:
        return tables[0].take(start + rows)
    return tables[0].take(start + (rows & 255)) ^ tables[1].take(start + (rows >> 8))


@lru_cache(maxsize=2)
def _powers(field: Field) -> tuple[Elements, Integers]:
    """Powers of the generator, twice, then zeros; and logarithms, that of 0 so large that its products are 0."""
    order, last = field.most_holders, 1
    powers, logarithms = np.zeros(4 * order + 1, np.uint16), np.zeros(order + 1, np.int64)
    for exponent in range(order):
        powers[[exponent, order + exponent]], logarithms[last] = last, exponent
        doubled = (last << 1) ^ field.polynomial * (last >> (field.bits - 1))
        last = doubled ^ last if field.bits == 8 else doubled
    logarithms[0] = 2 * order
    return powers, logarithms
