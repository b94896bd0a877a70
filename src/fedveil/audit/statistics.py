"""Exact lower bounds on what a mechanism leaks, from an attacker's guesses. Nothing here knows what was attacked.

**Two worlds.** Independent executions without a unit and with it; an attacker says "with" or "without". Exact binomial
intervals (Clopper and Pearson 1934), half of the significance for each error rate, bound both rates at once; a claim
that allows no test with these rates is excluded (Jagielski, Ullman and Oprea, 2006.07709; Nasr et al., 2302.07956).

**One run.** m canaries, each in by its own fair coin, and one execution. The guesses depend on each other through the
one execution, so binomial intervals over canaries would be wrong. Two theorems hold for any dependence:

* Steinke, Nasr and Jagielski (2305.08846), theorem 5.2 and appendix D: if the mechanism is (epsilon, delta)-private, v
  or more of r guesses are right with probability at most ``b + 2 m delta a``, with ``b = P[B >= v]``, B binomial
  (r, exp(epsilon) / (1 + exp(epsilon))) and ``a = max_i P[v > B >= v - i] / i``.
* Mahloujifar, Melis and Chaudhuri (2410.22235), algorithm 3: the same for a whole trade-off function f, tighter. The
  number of guesses r is fixed beforehand; a recursion from the largest number of right guesses downwards bounds the
  probability of c or more.

Traps that others fell into, each with a test in ``tests/audit/test_statistics.py``:

* a threshold chosen on the scores that judge it: an interval at the best of many thresholds holds at none of them;
* exactly half of the canaries in: coins must be fair and independent, or guesses are right more often than the theorem
  allows;
* intervals over the canaries of one run, as if their guesses were independent;
* the absolute value of a difference of error bounds: a test below chance says nothing about the other direction;
* the whole significance for each of two error rates, or for each of several attacks whose largest bound is quoted;
* guesses counted only where they are right: abstentions are fixed before, not after.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import stats

__all__ = ["excluded_by_curve", "one_run_p_value", "rate_above", "rate_below"]

Vector = npt.NDArray[np.float64]
Counts = npt.ArrayLike


def rate_above(successes: Counts, trials: int, significance: float) -> Vector:
    """The upper Clopper-Pearson bound on a probability: with it, ``successes`` or fewer have this significance.

    >>> float(rate_above(0, 100, 0.05).round(4))
    0.0295
    """
    found = np.asarray(successes, dtype=np.float64)
    inside = np.minimum(found, trials - 1)
    bound = stats.beta.ppf(1 - significance, inside + 1, trials - inside)
    return np.asarray(np.where(found >= trials, 1.0, bound), dtype=np.float64)


def rate_below(successes: Counts, trials: int, significance: float) -> Vector:
    """The lower Clopper-Pearson bound on a probability."""
    return np.asarray(1 - rate_above(trials - np.asarray(successes), trials, significance), dtype=np.float64)


def one_run_p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """The largest probability that ``correct`` or more of ``guesses`` guesses about ``canaries`` canaries are right, by
    the theorem of Steinke, Nasr and Jagielski.

    >>> round(one_run_p_value(100, 100, 60, 0.0, 0.0), 4)
    0.0284
    """
    right = 1 / (1 + math.exp(-epsilon))
    base = float(stats.binom.sf(correct - 1, guesses, right))
    if delta == 0 or not correct:
        return base
    missing = np.arange(1, correct + 1)
    between = stats.binom.sf(correct - missing - 1, guesses, right) - base
    return min(1.0, base + 2 * canaries * delta * float(np.max(between / missing)))


def excluded_by_curve(
    inverse: Callable[[float], float], canaries: int, guesses: int, correct: int, significance: float
) -> bool:
    """Whether a trade-off function f is excluded by right guesses in one run, by the algorithm of Mahloujifar, Melis
    and Chaudhuri with two options per canary.

    Args:
        inverse: of the largest true positive rate as a function of the false positive rate, ``1 - f``.
        canaries: each in by its own fair coin.
        guesses: fixed before the coins are compared; the other canaries are left out.
        correct: right guesses.
        significance: the probability of a false exclusion.
    """
    right = significance * correct / canaries
    wrong = significance * (guesses - correct) / canaries
    for number in range(correct - 1, -1, -1):
        larger = max(wrong, inverse(min(1.0, right)))
        if larger > wrong:
            right = min(1.0, right + number / (guesses - number) * (larger - wrong))
            wrong = larger
    return right + wrong > guesses / canaries
