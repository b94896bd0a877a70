"""Sums as they are masked: whole numbers on a grid, encoded and decoded by the product, with noise left off."""

import math
from unittest import mock

import numpy as np
from tests.neighbours.harness import Vector

from fedveil.errors import Refused
from fedveil.federation import Release
from fedveil.federation.noise import Noise
from fedveil.privacy.discrete import DiscreteGaussian

__all__ = ["moved_on_the_grid"]


def moved_on_the_grid(noise: Noise, release: Release, total: Vector, rest: Vector) -> float:
    """How far two sums differ once encoded and decoded, in bounds, less what rounding to the grid may add.

    Both are rounded to the nearest whole number, each number by half a step at most. A sum that is refused counts as
    nothing: whether it is would tell.
    """
    integer = release.integer
    assert integer is not None
    decoded = [_decoded(noise, release, one) for one in (total, rest)]
    allowed = math.sqrt(len(total)) * integer.step
    return max(0.0, float(np.linalg.norm(decoded[0] - decoded[1])) - allowed) / release.mechanism.clip_norm


def _decoded(noise: Noise, release: Release, total: Vector) -> Vector:
    def halves(count: int, generator: object) -> np.ndarray:
        return np.full(count, 2**31, dtype=np.uint32)

    def none(shares: DiscreteGaussian, size: int, generator: object) -> np.ndarray:
        return np.zeros(size, dtype=np.int64)

    integer = release.integer
    assert integer is not None
    with (
        mock.patch("fedveil.privacy.accounting.integer.random_words", halves),
        mock.patch.object(DiscreteGaussian, "draw", none),
    ):
        try:
            return integer.decode(noise.protect(total, release.calibrated, np.random.default_rng(0)))
        except Refused:
            return np.zeros(len(total))
