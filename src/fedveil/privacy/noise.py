"""Noise that cannot be predicted or replayed: ChaCha20 with a key from the operating system.

No function here takes a seed. A study's seed fixes initialisation and simulated partitions, never noise.
"""

import math
import secrets

import numpy as np
from numpy.typing import NDArray

from fedveil.errors import InvalidValue
from fedveil.lazy import later

__all__ = ["gaussian", "keyed_by", "release", "secure_generator"]

randomgen = later("randomgen")

_KEY_BITS = 256
_GRID_BITS = 20


def secure_generator() -> np.random.Generator:
    """A generator over the ChaCha20 stream of a fresh key, 256 bits from the operating system.

    Every call draws a new key. randomgen's ``key`` (unlike its ``seed``) is the cipher's key itself.
    """
    return np.random.Generator(randomgen.ChaCha(key=secrets.randbits(_KEY_BITS), rounds=20))


def keyed_by(generator: np.random.Generator) -> np.random.Generator:
    """A generator over the ChaCha20 stream of a key that `generator` draws: 256 bits.

    Of a `secure_generator` it is as unpredictable as that one, and independent of its later output. Two threads can
    then draw at the same time.
    """
    key = int.from_bytes(generator.bytes(_KEY_BITS // 8))
    return np.random.Generator(randomgen.ChaCha(key=key, rounds=20))


def gaussian(shape: int | tuple[int, ...], std: float, generator: np.random.Generator) -> NDArray[np.float64]:
    """Independent N(0, std^2), float64; `std` in the units of the noisy quantity."""
    if not (0 <= std < math.inf):
        raise InvalidValue(
            f"the noise's standard deviation is {std}", "it must be at least 0 and finite", "check it"
        )
    noise = generator.standard_normal(shape)
    noise *= std
    return noise


def release(total: NDArray[np.float64], std: float, generator: np.random.Generator) -> NDArray[np.float64]:
    """`total` + N(0, std^2 I), rounded to a multiple of a power of two near std / 2^20.

    The lowest bits of a float64 Gaussian reveal which values the sampler can reach, and so the exact sum (Mironov
    2012). Rounding afterwards is post-processing: it costs nothing, changes a coordinate by less than std / 2^20,
    and merges many reachable values into each released one.
    """
    noisy = total + gaussian(total.shape, std, generator)
    if std == 0:
        return noisy
    grid = math.ldexp(1.0, max(math.floor(math.log2(std)) - _GRID_BITS, -1000))
    return np.asarray(np.round(noisy / grid) * grid)
