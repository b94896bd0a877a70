"""What a mechanism states, as a family: the claim itself, and the same claim with more or less leakage.

A family is indexed by its leak k. k = 1 is what was stated; at leak k the noise is divided by k, or epsilon is
multiplied by it. Evidence excludes all members up to some k: then the mechanism leaks more than they do, and the
epsilon of the last excluded member is a lower bound. If k > 1 is excluded, the claim is false.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import final

import numpy as np
from scipy.special import ndtr, ndtri

from fedveil.audit.statistics import Vector, excluded_by_curve, one_run_p_value
from fedveil.privacy import Mechanism, epsilon, gdp_mu, most_true_positives

__all__ = ["Claim", "EpsilonClaim", "MechanismClaim", "largest"]

LEAST, MOST = 2.0**-10, 2.0**10
"""The range of leaks that is searched."""
PRECISION = 1e-3


class Claim(ABC):
    """A stated guarantee, and the family around it."""

    delta: float

    @abstractmethod
    def epsilon(self, leak: float = 1.0) -> float:
        """Epsilon at the claim's delta of the member with this leak."""

    @abstractmethod
    def most_true(self, false: Vector, leak: float = 1.0) -> Vector:
        """The largest true positive rate at each false positive rate."""

    @abstractmethod
    def strength(self, false: Vector, true: Vector) -> Vector:
        """A number that increases with the leak that is needed for these rates; compares thresholds cheaply."""

    @abstractmethod
    def excluded_by_guesses(
        self, canaries: int, guesses: int, correct: int, significance: float, leak: float
    ) -> bool:
        """Whether right guesses in one run exclude the member with this leak."""

    def leak_of(self, false: float, true: float) -> float:
        """The largest leak whose member does not allow a test with these rates; 0 if all do."""
        rate = np.array([false])
        return largest(lambda leak: true > float(self.most_true(rate, leak)[0]))


@final
@dataclass(frozen=True, slots=True)
class EpsilonClaim(Claim):
    """(epsilon, delta) and nothing else is claimed; a member's epsilon is multiplied by its leak.

    Bounds from it need no assumption about the mechanism.
    """

    stated: float
    delta: float

    def epsilon(self, leak: float = 1.0) -> float:
        """Epsilon times the leak."""
        return self.stated * leak

    def most_true(self, false: Vector, leak: float = 1.0) -> Vector:
        """Kairouz, Oh and Viswanath 2015, theorem 2.1."""
        exponent = self.epsilon(leak)
        first = math.exp(min(700.0, exponent)) * false + self.delta
        second = 1 - math.exp(-exponent) * (1 - self.delta - false)
        return np.asarray(np.clip(np.minimum(first, second), 0.0, 1.0))

    def strength(self, false: Vector, true: Vector) -> Vector:
        """The epsilon that the rates need."""
        with np.errstate(divide="ignore", invalid="ignore"):
            first = np.log(np.maximum(true - self.delta, 0.0) / false)
            second = np.log(np.maximum(1 - false - self.delta, 0.0) / (1 - true))
        return np.asarray(np.maximum(np.nan_to_num(first, nan=-np.inf), np.nan_to_num(second, nan=-np.inf)))

    def excluded_by_guesses(
        self, canaries: int, guesses: int, correct: int, significance: float, leak: float
    ) -> bool:
        """By the theorem of Steinke, Nasr and Jagielski."""
        return one_run_p_value(canaries, guesses, correct, self.epsilon(leak), self.delta) <= significance


@final
@dataclass(frozen=True, slots=True)
class MechanismClaim(Claim):
    """The whole trade-off function of some mechanisms; a member's noise is divided by its leak.

    Bounds from it read: this noise is at most what a mechanism of this kind with that epsilon has. They assume the kind
    (Gaussian, sampled as stated), and only for the size of a lower bound; that a claim is false needs no assumption,
    since the claim is the whole function.
    """

    mechanisms: tuple[Mechanism, ...]
    delta: float

    def epsilon(self, leak: float = 1.0) -> float:
        """The accountant's epsilon of the mechanisms with their noise divided by the leak."""
        return epsilon(_scaled(self.mechanisms, leak), self.delta) if leak > 0 else 0.0

    def most_true(self, false: Vector, leak: float = 1.0) -> Vector:
        """See `fedveil.privacy.most_true_positives`."""
        return most_true_positives(_scaled(self.mechanisms, leak), false)

    def strength(self, false: Vector, true: Vector) -> Vector:
        """The mu of a Gaussian mechanism that allows these rates."""
        return np.asarray(ndtri(true) - ndtri(false))

    def excluded_by_guesses(
        self, canaries: int, guesses: int, correct: int, significance: float, leak: float
    ) -> bool:
        """By the algorithm of Mahloujifar, Melis and Chaudhuri."""
        inverse = _inverse(self.mechanisms, leak)
        return excluded_by_curve(inverse, canaries, guesses, correct, significance)


def largest(excluded: Callable[[float], bool]) -> float:
    """The largest leak that is excluded, rounded down; 0 if none is. What excludes one also excludes smaller ones."""
    low, high = math.log(LEAST), math.log(MOST)
    if not excluded(math.exp(low)):
        return 0.0
    if excluded(math.exp(high)):
        return MOST
    while high - low > PRECISION:
        middle = (low + high) / 2
        low, high = (middle, high) if excluded(math.exp(middle)) else (low, middle)
    return math.exp(low)


def _scaled(mechanisms: tuple[Mechanism, ...], leak: float) -> tuple[Mechanism, ...]:
    return tuple(replace(one, noise_multiplier=one.noise_multiplier / leak) for one in mechanisms)


@lru_cache(maxsize=64)
def _inverse(mechanisms: tuple[Mechanism, ...], leak: float) -> Callable[[float], float]:
    """The inverse of the largest true positive rate, never above it; for a symmetric f it is 1 - most_true(1 - y)."""
    scaled = _scaled(mechanisms, leak)
    factor = math.exp(min(700.0, sum(one.steps * one.epsilon_slack for one in scaled) / 2))
    missed = sum(one.steps * one.delta_slack for one in scaled)
    exact = [replace(one, epsilon_slack=0.0, delta_slack=0.0) for one in scaled]
    mu = gdp_mu(exact)
    if mu is None:
        grid = np.sort(np.concatenate([np.linspace(0, 1, 2001), np.geomspace(1e-12, 1e-3, 400)]))
        values = 1 - most_true_positives(exact, 1 - grid)

    def inverse(y: float) -> float:
        least = max(0.0, (y - missed) / factor)
        if mu is not None:
            found = float(ndtr(ndtri(least) - mu))
        else:
            found = float(values[np.searchsorted(grid, least, side="right") - 1])
        return max(0.0, found / factor - missed)

    return inverse
