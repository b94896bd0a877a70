"""The Gaussian mechanism, exactly: delta, epsilon and mu from one another.

A composition of Gaussian mechanisms with noise multipliers z_i is one Gaussian mechanism with
mu = sqrt(sum_i 1 / z_i^2) (Dong, Roth and Su 2022, corollary 3.3), also if the z_i are chosen in view of earlier
releases, while the sum stays within its bound (Smith and Thakurta 2022). It is (epsilon, delta)-differentially
private exactly when

    delta >= Phi(mu/2 - epsilon/mu) - exp(epsilon) Phi(-mu/2 - epsilon/mu)

(Balle and Wang 2018, theorem 8). The classical sqrt(2 log(1.25/delta))/epsilon is not used anywhere.
"""

import math
from collections.abc import Callable

from fedveil.lazy import later

__all__ = ["gaussian_delta", "gaussian_epsilon", "gaussian_mu"]

special = later("scipy.special")

_SQRT2 = math.sqrt(2.0)
# Nodes and weights of the 8-point Gauss-Legendre rule on [-1, 1] (symmetric, so half of them).
_NODES = (
    (0.1834346424956498, 0.3626837833783620),
    (0.5255324099163290, 0.3137066458778873),
    (0.7966664774136267, 0.2223810344533745),
    (0.9602898564975363, 0.1012285362903763),
)


def gaussian_delta(epsilon: float, mu: float) -> float:
    """The smallest delta for which the Gaussian mechanism with `mu` is (epsilon, delta)-private.

    epsilon >= 0. With a = epsilon/mu - mu/2 and b = epsilon/mu + mu/2 it is Phi(-a) - exp(epsilon) Phi(-b),
    and since exp(epsilon) phi(b) = phi(a), also phi(a) [R(a) - R(b)] with Mills' ratio R(x) = Phi(-x)/phi(x).
    The second form neither overflows for a large epsilon nor cancels for a small mu, where the difference is
    the integral of -R'(x) = 1 - x R(x) from a to b.
    """
    if mu == 0 or math.isinf(epsilon):
        return 0.0
    if math.isinf(mu):
        return 1.0
    a, b = epsilon / mu - mu / 2, epsilon / mu + mu / 2
    if math.isinf(a):
        return 0.0
    density = math.exp(-a * a / 2) / math.sqrt(2 * math.pi)
    if mu <= 0.1:
        return _small_mu(a, b, density)
    if a <= 0:
        return float(special.ndtr(-a)) - density * _mills(b)
    return density * (_mills(a) - _mills(b))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The smallest epsilon >= 0 for which the mechanism is (epsilon, delta)-private.

    Bisection that returns its upper, safe end, within 1e-13 of the root relative to it. 0 < delta < 1.
    """
    if math.isinf(mu):
        return math.inf
    if gaussian_delta(0.0, mu) <= delta:
        return 0.0
    # Phi(-a) <= exp(-a^2/2) bounds delta from above, so epsilon is at most where a = sqrt(2 log(1/delta)).
    upper = mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta))
    if math.isinf(upper):
        return math.inf
    return _bisect(lambda epsilon: gaussian_delta(epsilon, mu) <= delta, 0.0, upper)


def gaussian_mu(epsilon: float, delta: float) -> float:
    """The largest mu for which the mechanism is (epsilon, delta)-private, never above the true one.

    Bisection that returns its safe end, within 1e-13 of the root relative to it. 0 < delta < 1.
    """
    if math.isinf(epsilon):
        return math.inf
    # Bisect on 1/mu, whose upper end is safe.
    inverse = 1.0
    while gaussian_delta(epsilon, 1 / inverse) > delta:
        inverse *= 2
    return 1 / _bisect(lambda x: x > 0 and gaussian_delta(epsilon, 1 / x) <= delta, 0.0, inverse)


def _mills(x: float) -> float:
    return math.sqrt(math.pi / 2) * float(special.erfcx(x / _SQRT2))


def _small_mu(a: float, b: float, density: float) -> float:
    middle, half = (a + b) / 2, (b - a) / 2
    total = 0.0
    for node, weight in _NODES:
        for x in (middle - half * node, middle + half * node):
            total += weight * max(0.0, 1 - x * _mills(x))
    return density * half * total


def _bisect(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The upper end of a bracket, 1e-13 wide relative to it, around where `holds` turns true; holds(high)."""
    while high - low > 1e-13 * high:
        middle = low + (high - low) / 2
        if not low < middle < high:
            break
        if holds(middle):
            high = middle
        else:
            low = middle
    return high
