"""Neighbouring inputs by which an unknown mechanism is tried: sets of vectors that differ by one vector."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedveil.errors import InvalidValue

__all__ = ["Neighbours", "default_neighbours"]

Vector = NDArray[np.float64]
_SEED = 7  # fixes the directions: an attacker's choice, not a secret
_HUGE = 1e3


@dataclass(frozen=True, slots=True, eq=False)
class Neighbours:
    """Two inputs that a guarantee claims can hardly be told apart.

    Attributes:
        name: how they differ, for people.
        first: one input: a list of contributions, or whatever the mechanism takes.
        second: its neighbour.
    """

    name: str
    first: Any
    second: Any


def default_neighbours(dimension: int, *, bound: float = 1.0, others: int = 4) -> tuple[Neighbours, ...]:
    """Pairs of lists of vectors, the second with one vector more: where a sum of clipped vectors is weakest.

    One vector more: at the bound, along and against the others; far beyond the bound, in one coordinate and in all,
    which shows missing clipping; of zeros, which shows a count; beside a single other vector, which shows a division
    by a private number.

    Args:
        dimension: length of each vector.
        bound: the norm to which the mechanism is said to clip.
        others: number of vectors that both inputs hold.
    """
    for name, value in (("dimension", dimension), ("others", others)):
        if value < 1:
            raise InvalidValue(f"{name} is {value}", "it must be at least 1", "give a whole number")
    if not 0 < bound < math.inf:
        raise InvalidValue(f"bound is {bound:g}", "it must be positive and finite", "give the clip norm")
    generator = np.random.default_rng(_SEED)
    axis = np.zeros(dimension)
    axis[0] = bound
    flat = np.full(dimension, bound / math.sqrt(dimension))
    alike = [axis.copy() for _ in range(others)]
    mixed = generator.normal(size=(others, dimension))
    mixed *= bound / np.linalg.norm(mixed, axis=1, keepdims=True)
    apart = list(mixed)

    def one_more(name: str, base: Sequence[Vector], extra: Vector) -> Neighbours:
        return Neighbours(name, [*base], [*base, extra])

    zeros = [np.zeros(dimension)] * others
    return (
        one_more("one more at the bound, others zero", zeros, axis),
        one_more("one more at the bound, others in all directions", apart, axis),
        one_more("one more along the others", alike, axis),
        one_more("one more against the others", alike, -axis),
        one_more("one more far beyond the bound, in one coordinate", apart, _HUGE * axis),
        one_more("one more far beyond the bound, in all coordinates", apart, _HUGE * flat),
        one_more("one more of zeros", alike, np.zeros(dimension)),
        one_more("one more beside a single other", [-axis], axis),
    )
