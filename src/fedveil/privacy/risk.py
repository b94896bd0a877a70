"""What a guarantee allows an attacker who tries to infer whether a unit's images were used.

The attacker sees all releases, knows everything except whether one unit took part, and answers yes or no.
Differential privacy bounds every such test (Wasserman and Zhou 2010); known attacks are weaker.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedveil.lazy import later
from fedveil.privacy.accounting.composition import delta_at, gdp_mu, is_mixture
from fedveil.privacy.guarantee import Guarantee, Unit
from fedveil.privacy.mechanism import Mechanism

__all__ = ["Risk", "most_true_positives", "operational_risk"]

special = later("scipy.special")
optimize = later("scipy.optimize")

_FALSE_POSITIVE_RATE = 0.01
_EPSILONS = (
    0.0,
    *(1e-3 * 1.25**power for power in range(52)),
)  # up to 88; beyond, a bound is 1 up to 1e-38
_GRID = (0.0, *np.geomspace(1e-3, 60.0, 160))
"""Of the whole trade-off function; every value gives a valid bound."""


@dataclass(frozen=True, slots=True)
class Risk:
    """Upper bounds on the success of any membership-inference attack.

    ``advantage`` is the largest difference of true and false positive rates, ``true_positive_rate`` the
    largest one at ``false_positive_rate``.
    """

    advantage: float
    true_positive_rate: float
    unit: Unit
    false_positive_rate: float = _FALSE_POSITIVE_RATE

    def __str__(self) -> str:
        false, true = _of_100(self.false_positive_rate), _of_100(self.true_positive_rate)
        right = _of_100((1 + self.advantage) / 2)
        return (
            f"An attacker who wrongly names {false} in 100 {self.unit}s that did not take part can name "
            f"at most {true} in 100 of those that did ({false} by chance), and whether one {self.unit} "
            f"took part is guessed right at most {right} times in 100 (50 by tossing a coin)."
        )

    def to_dict(self) -> dict[str, Any]:
        """The bounds and the sentence, for JSON."""
        return {
            "advantage": self.advantage,
            "true_positive_rate": self.true_positive_rate,
            "false_positive_rate": self.false_positive_rate,
            "in_words": str(self),
        }


def operational_risk(guarantee: Guarantee, mechanisms: Iterable[Mechanism] = ()) -> Risk:
    """The risk that `guarantee` allows, or the smaller one that all `mechanisms` behind it allow.

    From epsilon and delta alone, at a false positive rate a (Kairouz, Oh and Viswanath 2015, theorem 2.1),
    TPR <= min(exp(epsilon) a + delta, 1 - exp(-epsilon) (1 - delta - a)), and the advantage is at most
    (exp(epsilon) - 1 + 2 delta) / (exp(epsilon) + 1).

    Mechanisms are (epsilon, delta(epsilon))-private for every epsilon at once, so both bounds may be minimised over
    it. At full participation that comes to TPR = Phi(Phi^-1(a) + mu) and to an advantage of 2 Phi(mu/2) - 1 (Dong,
    Roth and Su 2022). It does not hold for a mixture of which some sample (`is_mixture`), where it would be the curve
    of a fixed sequence, and a coordinator may repeat requests: its risk follows from epsilon and delta alone.

    >>> guarantee = Guarantee(1.0, 1e-5, "patient", "site")
    >>> print(operational_risk(guarantee, [Mechanism(28.9, 1.0, steps=60)]))
    An attacker who wrongly names 1 in 100 patients that did not take part can name at most 2 in 100 of \
those that did (1 by chance), and whether one patient took part is guessed right at most 55.4 times in 100 \
(50 by tossing a coin).
    """
    released = [mechanism.for_unit(guarantee.unit) for mechanism in mechanisms]
    if math.isinf(guarantee.epsilon):
        return Risk(1.0, 1.0, guarantee.unit)
    if not released or is_mixture(released):
        known = guarantee.epsilon, guarantee.delta
        return Risk(_advantage(*known), _true_positives(*known), guarantee.unit)
    mu = gdp_mu(released)
    if mu is not None:
        true_positives = float(special.ndtr(special.ndtri(_FALSE_POSITIVE_RATE) + mu))
        return Risk(float(2 * special.ndtr(mu / 2) - 1), true_positives, guarantee.unit)
    curve = partial(delta_at, released)
    return Risk(_least(_advantage, curve), _least(_true_positives, curve), guarantee.unit)


def most_true_positives(mechanisms: Iterable[Mechanism], rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """The largest true positive rate at each false positive rate: 1 - f for the trade-off function f of all
    `mechanisms` together (Dong, Roth and Su 2022), in the direction that favours the attacker. Of a mixture of which
    some sample it is that of the fixed sequence, as an audit executes it.

    At full participation it is Phi(Phi^-1(a) + mu). If units are sampled it is the smallest bound, over a grid of
    epsilon, that (epsilon, delta(epsilon)) gives, see `operational_risk`. With slack E and D (see `Mechanism`) it is
    exp(E/2) g(exp(E/2) (a + D)) + D, for the same function g without slack, by the inequalities in
    `fedveil.privacy.accounting.composition`.

    Args:
        mechanisms: all of the same unit.
        rates: false positive rates in [0, 1].

    >>> most_true_positives([Mechanism(1.0, 1.0, steps=1)], np.array([0.0, 0.01, 0.5])).round(3)
    array([0.   , 0.092, 0.841])
    """
    released = list(mechanisms)
    factor = math.exp(min(700.0, sum(one.steps * one.epsilon_slack for one in released) / 2))
    missed = sum(one.steps * one.delta_slack for one in released)
    exact = [replace(one, epsilon_slack=0.0, delta_slack=0.0) for one in released]
    moved = np.minimum(1.0, factor * (np.asarray(rates, dtype=np.float64) + missed))
    mu = gdp_mu(exact)
    bound = np.ones_like(moved)
    if mu is not None:
        bound = special.ndtr(special.ndtri(moved) + mu) if math.isfinite(mu) else bound
    else:
        for epsilon in _GRID:
            delta = delta_at(exact, epsilon)
            bound = np.minimum(bound, math.exp(epsilon) * moved + delta)
            bound = np.minimum(bound, 1 - math.exp(-epsilon) * (1 - delta - moved))
    return np.asarray(np.clip(factor * bound + missed, 0.0, 1.0))


def _advantage(epsilon: float, delta: float) -> float:
    return min(1.0, math.tanh(epsilon / 2) + delta * (1 - math.tanh(epsilon / 2)))


def _true_positives(epsilon: float, delta: float) -> float:
    rate = _FALSE_POSITIVE_RATE
    return min(1.0, math.exp(min(epsilon, 700)) * rate + delta, 1 - math.exp(-epsilon) * (1 - delta - rate))


def _least(bound: Callable[[float, float], float], curve: Callable[[float], float]) -> float:
    """The smallest `bound` on the privacy curve that a search finds; each is valid, so a suboptimal one is safe."""

    def value(epsilon: float) -> float:
        return bound(epsilon, curve(epsilon))

    best = min(range(len(_EPSILONS)), key=lambda i: value(_EPSILONS[i]))
    around = _EPSILONS[max(best - 1, 0)], _EPSILONS[min(best + 1, len(_EPSILONS) - 1)]
    found = optimize.minimize_scalar(value, bounds=around, method="bounded", options={"xatol": 1e-5})
    return min(value(_EPSILONS[best]), float(found.fun))


def _of_100(share: float) -> str:
    """In percent, rounded upwards, since it states an upper bound."""
    return f"{math.ceil(1000 * share - 1e-9) / 10:g}"
