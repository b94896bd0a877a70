"""What an attacker measured, and the bound that follows: thresholds are chosen on one half and judged on the other."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
from scipy.special import ndtri
from scipy.stats import rankdata

from fedveil.audit.claims import Claim, largest
from fedveil.audit.statistics import Vector, rate_above, rate_below
from fedveil.errors import InvalidValue

__all__ = ["Evidence", "OneRun", "TwoWorlds", "choose_guesses", "choose_threshold", "guess", "judge"]

MOST_THRESHOLDS = 512
SHARES = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
"""Numbers of guesses that are considered, as fractions of the canaries."""
SIMULATED, RELIABLY = 400, 0.1
"""Simulated runs for each, and the part of them that may prove less than what numbers are compared by."""
MOST_TRIALS = 2**20
CLAIMS = 2
"""Statements that are judged by the same guesses about one run."""


class Evidence(ABC):
    """Counts of right and wrong guesses."""

    @abstractmethod
    def leak(self, claim: Claim, significance: float) -> float:
        """The largest leak of the claim's family that is excluded, except with probability ``significance``."""

    @abstractmethod
    def rates(self) -> tuple[float, float]:
        """False and true positive rate, as measured."""


@final
@dataclass(frozen=True, slots=True)
class TwoWorlds(Evidence):
    """Guesses in independent executions without the unit and with it, at a threshold that was chosen on others.

    Attributes:
        false_positives: executions without the unit for which the attacker said "with".
        negatives: executions without it.
        true_positives: executions with it for which the attacker said so.
        positives: executions with it.
    """

    false_positives: int
    negatives: int
    true_positives: int
    positives: int

    def bounds(self, significance: float) -> tuple[float, float]:
        """An upper bound on the false and a lower bound on the true positive rate, both at once."""
        false = rate_above(self.false_positives, self.negatives, significance / 2)
        true = rate_below(self.true_positives, self.positives, significance / 2)
        return float(false), float(true)

    def leak(self, claim: Claim, significance: float) -> float:
        """From both bounds; 0 if the test is not better than chance."""
        false, true = self.bounds(significance)
        return claim.leak_of(false, true) if true > false else 0.0

    def rates(self) -> tuple[float, float]:
        """As measured."""
        return self.false_positives / self.negatives, self.true_positives / self.positives

    @staticmethod
    def needed(claim: Claim, significance: float) -> int:
        """The number of executions of each world with which an attacker who is never wrong can exclude the claim."""

        def enough(trials: int) -> bool:
            false, true = TwoWorlds(0, trials, trials, trials).bounds(significance)
            return true > false and true > float(claim.most_true(np.array([false]))[0])

        return _fewest(enough)


@final
@dataclass(frozen=True, slots=True)
class OneRun(Evidence):
    """Guesses about canaries of one execution, each in by its own fair coin.

    A whole trade-off function and an epsilon with delta are excluded by different theorems, whose errors are different
    events. Both are stated of the same guesses, so each has half of the significance.

    Attributes:
        canaries: their number, with those about which nothing was guessed.
        guesses: their number, fixed beforehand; half "in" for the highest scores, half "out" for the lowest.
        correct: right guesses.
        correct_in: right guesses "in".
    """

    canaries: int
    guesses: int
    correct: int
    correct_in: int

    def leak(self, claim: Claim, significance: float) -> float:
        """By the theorem for the claim's kind."""

        def excluded(leak: float) -> bool:
            return claim.excluded_by_guesses(
                self.canaries, self.guesses, self.correct, significance / CLAIMS, leak
            )

        return largest(excluded)

    def rates(self) -> tuple[float, float]:
        """Of the guesses: wrong "in" among all "in", and right "in" among all "in"."""
        said = self.guesses - self.guesses // 2
        return (said - self.correct_in) / said, self.correct_in / said

    @staticmethod
    def needed(claim: Claim, significance: float) -> int:
        """The number of canaries with which an attacker who is never wrong can exclude the claim."""

        def enough(canaries: int) -> bool:
            return claim.excluded_by_guesses(canaries, canaries, canaries, significance / CLAIMS, 1.0)

        return _fewest(enough)


def choose_threshold(without: Vector, within: Vector, claim: Claim, significance: float) -> float:
    """The threshold with the strongest bound on these scores; "with" means a score of at least the threshold.

    Use it on other scores: on these the bound at the best threshold holds with less confidence than stated.
    """
    candidates = np.unique(np.concatenate([without, within]))
    if len(candidates) > MOST_THRESHOLDS:
        candidates = np.quantile(candidates, np.linspace(0, 1, MOST_THRESHOLDS))
    false = len(without) - np.searchsorted(np.sort(without), candidates, side="left")
    true = len(within) - np.searchsorted(np.sort(within), candidates, side="left")
    above = rate_above(false, len(without), significance / 2)
    below = rate_below(true, len(within), significance / 2)
    with np.errstate(invalid="ignore"):
        strength = np.nan_to_num(claim.strength(above, below), nan=-np.inf)
    return float(candidates[int(np.argmax(strength))])


def judge(without: Vector, within: Vector, claim: Claim, significance: float) -> TwoWorlds:
    """Choose a threshold on the first half of the scores of each world, and count guesses on the second."""
    first, second = len(without) // 2, len(within) // 2
    threshold = choose_threshold(without[:first], within[:second], claim, significance)
    out, inside = without[first:], within[second:]
    return TwoWorlds(int(np.sum(out >= threshold)), len(out), int(np.sum(inside >= threshold)), len(inside))


def guess(scores: Vector, included: Vector, guesses: int) -> OneRun:
    """Say "in" for the highest half of so many scores and "out" for the lowest; compare with the coins."""
    inside = guesses - guesses // 2
    order = np.argsort(scores, kind="stable")
    said_out, said_in = order[: guesses // 2], order[len(order) - inside :]
    right_in = int(np.sum(included[said_in]))
    right_out = int(np.sum(~np.asarray(included[said_out], dtype=bool)))
    return OneRun(len(scores), guesses, right_in + right_out, right_in)


def choose_guesses(scores: Vector, included: Vector, claim: Claim, significance: float) -> int:
    """The number of guesses with the strongest bound in nine of ten runs, from another run than that which is judged.

    The bound of one run varies much, so only the distance between scores in and out is taken from it; bounds are those
    of simulated Gaussian scores at this distance. A bound increases with the number of right guesses, so the bound that
    is reached in nine of ten runs is that of the number which is right in nine of ten.
    """
    count = len(scores)
    area = np.clip(_area(scores, included), 0.5, 1 - 0.5 / count)
    distance = math.sqrt(2) * float(ndtri(area))
    generator = np.random.default_rng(0)
    coins = generator.random((SIMULATED, count)) < 0.5
    order = np.argsort(generator.normal(size=coins.shape) + distance * coins, axis=1)
    coins = np.take_along_axis(coins, order, axis=1)

    def reached(guesses: int) -> float:
        inside = guesses - guesses // 2
        right = coins[:, count - inside :].sum(axis=1) + (~coins[:, : guesses // 2]).sum(axis=1)
        often = int(np.quantile(right, RELIABLY, method="lower"))
        return OneRun(count, guesses, often, 0).leak(claim, significance)

    return max(sorted({max(2, round(count * share)) for share in SHARES}, reverse=True), key=reached)


def _area(scores: Vector, included: Vector) -> float:
    """The area under the curve of true against false positives; 0.5 if all coins are equal."""
    inside = np.asarray(included, dtype=bool)
    if inside.all() or not inside.any():
        return 0.5
    ranks = rankdata(scores)[inside]
    return float((ranks.mean() - (inside.sum() + 1) / 2) / (~inside).sum())


def _fewest(enough: Callable[[int], bool]) -> int:
    """The smallest number for which ``enough`` holds."""
    high = 1
    while not enough(high):
        high *= 2
        if high > MOST_TRIALS:
            raise InvalidValue(
                "no number of guesses can contradict this claim",
                "its epsilon is too large, or its confidence too high, for any test",
                "state a smaller epsilon",
            )
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
