"""What a stated guarantee allows an attacker, and whether what an attacker reached is more than that."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv

from fedveil.errors import InvalidValue
from fedveil.privacy import Mechanism, delta_at
from fedveil.privacy import epsilon as price
from fedveil.privacy.accounting.gaussian import gaussian_delta, gaussian_epsilon

__all__ = ["Claim", "at_least", "at_most"]

Vector = NDArray[np.float64]
_EPSILONS = tuple(float(e) for e in np.r_[0.0, np.geomspace(1e-3, 40, 120)])


@dataclass(frozen=True, slots=True)
class Claim:
    """A guarantee as a set of pairs: the mechanism is claimed to be (epsilon, delta)-private for each of them.

    For every event S and neighbours with output laws P and P', each pair allows
    ``P'(S) <= exp(epsilon) P(S) + delta``, and the same for the complement of S. The first pair is the one that is
    stated to people. A whole curve of pairs, as the Gaussian mechanism has one, is a stronger claim than one pair.
    """

    pairs: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        for epsilon, delta in self.pairs:
            if not 0 <= epsilon < math.inf:
                raise InvalidValue(
                    f"the claimed epsilon is {epsilon:g}",
                    "it must be at least 0 and finite, or there is nothing to refute",
                    "give the epsilon that the mechanism is said to have",
                )
            if not 0 <= delta < 1:
                raise InvalidValue(
                    f"the claimed delta is {delta:g}", "it must lie in [0, 1)", "0 is pure differential privacy"
                )

    @classmethod
    def of(cls, epsilon: float, delta: float = 0.0) -> Self:
        """The claim of one pair."""
        return cls(((float(epsilon), float(delta)),))

    @classmethod
    def gaussian(cls, mu: float, delta: float = 1e-5) -> Self:
        """The claim of a Gaussian mechanism with sensitivity over standard deviation ``mu``, stated at ``delta``.

        >>> claim = Claim.gaussian(1.0, 1e-5)
        >>> round(claim.epsilon, 2), round(claim.most(0.01), 3)
        (4.38, 0.093)
        """
        if mu == 0:
            return cls.of(0.0)
        stated = gaussian_epsilon(mu, delta)
        return cls(((stated, delta), *((e, gaussian_delta(e, mu)) for e in _EPSILONS)))

    @classmethod
    def priced(cls, mechanisms: Iterable[Mechanism], delta: float) -> Self:
        """The claim of everything that a ledger charges, composed by the accountant; epsilon 0 if that is nothing."""
        charged = tuple(mechanisms)
        return cls(_curve(charged, delta)) if charged else cls.of(0.0)

    @property
    def epsilon(self) -> float:
        """As stated."""
        return self.pairs[0][0]

    @property
    def delta(self) -> float:
        """As stated."""
        return self.pairs[0][1]

    def most(self, false_positives: float) -> float:
        """The largest true positive rate that the claim allows a test with this false positive rate."""
        return min(1.0, *(min(_scaled(e, false_positives) + d, _back(e, d, false_positives)) for e, d in self.pairs))

    def excess(self, true: ArrayLike, false: ArrayLike) -> Vector:
        """How far tests with these true and false positive rates are beyond the claim; above 0 they refute it.

        It is the largest, over the claim's pairs, of the epsilon at that pair's delta that the rates show, less the
        pair's own: elementwise, for arrays of one shape.
        """
        epsilons, deltas = np.array(self.pairs).T[..., None]
        true, false = np.atleast_1d(true).astype(float), np.atleast_1d(false).astype(float)
        shown: Vector = (_shown(true, false, deltas) - epsilons).max(axis=0)
        return shown

    def shown(self, true: float, false: float) -> float:
        """A lower bound on epsilon at the stated delta, from lower and upper bounds on an attacker's rates."""
        found = _shown(np.array([true]), np.array([false]), np.array([[self.delta]]))
        return max(0.0, float(found[0, 0]))


@lru_cache(maxsize=64)
def _curve(mechanisms: tuple[Mechanism, ...], delta: float) -> tuple[tuple[float, float], ...]:
    stated = price(mechanisms, delta)
    sampled = any(one.sampling_rate < 1 for one in mechanisms)
    grid = _EPSILONS[::8] if sampled else _EPSILONS
    return ((stated, delta), *((e, min(delta_at(mechanisms, e), 1 - 1e-12)) for e in grid))


def _shown(true: Vector, false: Vector, delta: Vector) -> Vector:
    """log of (true - delta) / false, or of the same for the complement: whichever is larger."""
    with np.errstate(divide="ignore", invalid="ignore"):
        event = np.log(np.maximum(true - delta, 0)) - np.log(false)
        complement = np.log(np.maximum(1 - false - delta, 0)) - np.log(1 - true)
    return np.maximum(np.nan_to_num(event, nan=-np.inf), np.nan_to_num(complement, nan=-np.inf))


def _scaled(epsilon: float, rate: float) -> float:
    return math.exp(min(epsilon, 700.0)) * rate


def _back(epsilon: float, delta: float, rate: float) -> float:
    return 1 - math.exp(-epsilon) * (1 - delta - rate)


def at_least(hits: ArrayLike, trials: ArrayLike, confidence: float) -> Vector:
    """A lower bound on a probability from independent trials (Clopper and Pearson 1934), elementwise.

    >>> round(float(at_least(90, 100, 0.95)), 3)
    0.836
    """
    hits, trials = np.asarray(hits, float), np.asarray(trials, float)
    bound = betaincinv(np.maximum(hits, 1), trials - hits + 1, 1 - confidence)
    return np.where(hits == 0, 0.0, bound)


def at_most(hits: ArrayLike, trials: ArrayLike, confidence: float) -> Vector:
    """The upper bound likewise: of no hit in n trials, about ``-log(1 - confidence) / n``."""
    hits, trials = np.asarray(hits, float), np.asarray(trials, float)
    return 1 - at_least(trials - hits, trials, confidence)
