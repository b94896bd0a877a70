"""Discrete Gaussian noise: integer arithmetic from the operating system's key on, without floating point.

For a radix K the sampler returns K A + B with A and B independent from the discrete Gaussian D on the
integers with parameter s = 2 K, P(D = k) = exp(-k^2 / (2 s^2)) / sum_j exp(-j^2 / (2 s^2)) (Canonne, Kamath
and Steinke 2020).

K A + B is the discrete Gaussian of parameter std = s sqrt(K^2 + 1), up to a factor exp(+-2e-32) on every
probability: P(K A + B = y) is proportional to sum_a exp(-a^2/(2 s^2) - (y - K a)^2/(2 s^2)), and completing
the square makes that exp(-y^2 / (2 std^2)) times a sum over the integers of a Gaussian with width tau = s /
sqrt(K^2 + 1), centred somewhere. By Poisson summation such a sum is tau sqrt(2 pi) up to a factor 1 +- 2.1
exp(-2 pi^2 tau^2), whatever its centre (Micciancio and Walter 2017 use the same), and tau > 1.94 for every
radix admitted.

D itself is drawn by Walker's alias method from a table of whole numbers: a draw takes 32 random bits, and 192
more in the rare case that the first ones do not decide. The table adds a total variation of at most 2^-180 per draw:
2^-208 for the resolution, the rest for cutting |D| at 16 s and beyond.
"""

import math
from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedveil.errors import InvalidValue

__all__ = ["LARGEST_RADIX", "SMALLEST_RADIX", "TABLE_ERROR", "DiscreteGaussian"]

SMALLEST_RADIX, LARGEST_RADIX = 4, 512
TABLE_ERROR = 2.0**-180  # total variation per draw of D

_INDEX_BITS = 15
_FIRST_BITS = 32 - _INDEX_BITS  # bits of a bin's bound that the first 32 random bits decide
_REST_BITS = 192
_BINS = 1 << _INDEX_BITS
_BIN = 1 << (_FIRST_BITS + _REST_BITS)  # the weight of a bin; all weights together are _BINS * _BIN
_CENTRE = _BINS // 2
_DIGITS = 110


@dataclass(frozen=True, slots=True)
class DiscreteGaussian:
    """The discrete Gaussian on the integers with standard deviation 2 K sqrt(K^2 + 1), K = `radix`.

    >>> round(DiscreteGaussian(512).std)
    524289
    """

    radix: int

    def __post_init__(self) -> None:
        if not SMALLEST_RADIX <= self.radix <= LARGEST_RADIX:
            raise InvalidValue(
                f"radix is {self.radix}",
                f"it must lie between {SMALLEST_RADIX} and {LARGEST_RADIX}",
                "choose the grid with IntegerMechanism.fit",
            )

    @property
    def std(self) -> float:
        """Parameter and, to 30 digits, standard deviation."""
        return 2 * self.radix * math.sqrt(self.radix**2 + 1)

    def draw(self, size: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """`size` independent draws, int64."""
        table = _table(self.radix)
        bits = random_words(2 * size, generator)
        draws = table.draw(bits[:size], generator)
        draws *= self.radix
        draws += table.draw(bits[size:], generator)
        return draws


def random_words(count: int, generator: np.random.Generator) -> NDArray[np.uint32]:
    """`count` independent uniform 32-bit words. (64 bits at a time is the generator's fastest way.)"""
    pairs = generator.integers(0, 2**64 - 1, (count + 1) // 2, dtype=np.uint64, endpoint=True)
    return pairs.view(np.uint32)[:count]


@dataclass(frozen=True, slots=True)
class _Table:
    """Walker's alias table: bin i gives i if the bits after its index are below its bound, else other[i]."""

    first: NDArray[np.uint32]  # the index and the first bits of the bound
    rest: tuple[int, ...]  # the other bits of the bound
    other: NDArray[np.int64]

    def draw(self, bits: NDArray[np.uint32], generator: np.random.Generator) -> NDArray[np.int64]:
        bins = (bits >> np.uint32(_FIRST_BITS)).astype(np.int64)
        first = self.first.take(bins)
        draws = np.where(bits < first, bins, self.other.take(bins))
        for tie in np.flatnonzero(bits == first):
            if int.from_bytes(generator.bytes(_REST_BITS // 8), "big") < self.rest[bins[tie]]:
                draws[tie] = bins[tie]
        draws -= _CENTRE
        return draws


@lru_cache(maxsize=8)
def _table(radix: int) -> _Table:
    """The alias table of the discrete Gaussian of parameter 2 `radix` (Walker 1977, Vose 1991), in exact
    arithmetic.
    """
    weights = _weights(2 * radix)
    bounds, other = [_BIN] * _BINS, list(range(_BINS))
    small = [i for i, weight in enumerate(weights) if weight < _BIN]
    large = [i for i, weight in enumerate(weights) if weight >= _BIN]
    while small:
        i, j = small.pop(), large[-1]
        bounds[i], other[i] = weights[i], j
        weights[j] -= _BIN - weights[i]
        if weights[j] < _BIN:
            small.append(large.pop())
    # What is left is full: any bound gives the same, and 0 fits the word.
    bounds = [0 if i == j else bound for i, (bound, j) in enumerate(zip(bounds, other, strict=True))]
    first = [(i << _FIRST_BITS) | (bound >> _REST_BITS) for i, bound in enumerate(bounds)]
    rest = tuple(bound & ((1 << _REST_BITS) - 1) for bound in bounds)
    return _Table(np.array(first, dtype=np.uint32), rest, np.array(other, dtype=np.int64))


def _weights(parameter: int) -> list[int]:
    """P(D = k) for k = -_CENTRE ... _CENTRE - 1 in multiples of 1 / (_BINS * _BIN); they add up to 1."""
    with localcontext(prec=_DIGITS):
        # exp(-k^2 / 2 s^2) by its ratios exp(-(2 k + 1) / 2 s^2): two products per entry.
        base = (-1 / (2 * Decimal(parameter) ** 2)).exp()
        square, ratio, density = base * base, base, [Decimal(1)]
        for _ in range(_CENTRE):
            density.append(density[-1] * ratio)
            ratio *= square
        unit = _BINS * _BIN / (density[0] + 2 * sum(density[1:]))
        half = [int(value * unit) for value in density]
    weights = half[:0:-1] + half[:-1]
    weights[_CENTRE] += _BINS * _BIN - sum(weights)
    return weights
