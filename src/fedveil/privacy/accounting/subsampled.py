"""Poisson-subsampled Gaussian mechanisms: privacy loss distributions, and Renyi divergences as their check.

Both give upper bounds. Privacy loss distributions (dp-accounting; Koskela et al. 2020, discretised by
connecting the dots, Doroshenko et al. 2022) are tight, and valid if all mechanisms are fixed before the first one
runs. Renyi divergences (Mironov et al. 2019) are looser by some per cent; their sum also bounds mechanisms that are
chosen in view of earlier releases, see `filter_epsilon`.
"""

import math
from functools import lru_cache, reduce
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedveil.lazy import later
from fedveil.privacy.accounting.gaussian import gaussian_epsilon

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

__all__ = ["Sampled", "filter_epsilon", "loss_delta", "loss_epsilon", "renyi_epsilon"]

special = later("scipy.special")
pld = later("dp_accounting.pld.privacy_loss_distribution")

Sampled = tuple[tuple[float, float, int], ...]
"""(noise multiplier > 0, sampling rate, steps) of each distinct mechanism, in a fixed order."""

# The grid of losses, in units of one step's root mean square loss; a finer one changes epsilon by 1e-4 of it.
_GRID = 0.02
_MOST_POINTS, _MOST_POINTS_OF_A_STEP = 2**20, 2**17
# Rounding in the sums and Fourier transforms misplaces at most this mass (observed: 2e-12 and 4.4e-16 per step).
_ROUND_OFF, _ROUND_OFF_PER_STEP = 1e-10, 1e-15
_ORDERS = np.array([*range(2, 65), *range(68, 129, 4), 160, 192, 256, 384, 512, 1024], dtype=np.float64)
_FILTERED = np.isin(_ORDERS, [2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256])
"""The orders of a filter: each has a share of delta, so few are better than many."""


def loss_delta(parts: Sampled, epsilon: float) -> float:
    """An upper bound on delta at `epsilon` for the composition of `parts`, all fixed in advance."""
    try:
        with _overflow_raises():
            return min(1.0, float(_composed(parts).get_delta_for_epsilon(epsilon)) + _round_off(parts))
    except ArithmeticError:
        return 1.0


def loss_epsilon(parts: Sampled, delta: float) -> float:
    """An upper bound on epsilon at `delta` for the composition of `parts`, all fixed in advance.

    Infinite if `delta` is not well above the mass that rounding may misplace, or if numbers overflow.
    """
    allowance = _round_off(parts)
    if delta < 100 * allowance:
        return math.inf
    try:
        with _overflow_raises():
            return float(_composed(parts).get_epsilon_for_delta(delta - allowance))
    except ArithmeticError:
        return math.inf


def renyi_epsilon(parts: Sampled, delta: float) -> float:
    """An upper bound on epsilon at `delta` for `parts`, all fixed in advance.

    From Renyi divergences to epsilon by Canonne, Kamath and Steinke 2020, proposition 12.
    """
    return max(0.0, float(np.min(_bounds(parts, delta))))


def filter_epsilon(parts: Sampled, delta: float) -> float:
    """The same for `parts` that differ and are chosen in view of earlier releases.

    At a fixed order, the sum of Renyi divergences is a filter: stop before it would exceed what (epsilon, delta)
    allows, and the whole is (epsilon, delta)-private (Feldman and Zrnic 2021). This goes on as long as *any* of k
    orders, or full participation as a Gaussian mechanism, would: which of them holds in the end may depend on the
    data. Let A_j be the sequences of events in which the first k + 1 - j do not hold and the j-th does. On A_j the
    process is the one that filter j stops, so P(S and A_j) - exp(epsilon) Q(S and A_j) is at most the delta of
    filter j. The A_j cover everything, so with delta / (k + 1) each the sum is at most delta (a union bound, as in
    Lecuyer 2021).
    """
    share = delta / (_FILTERED.sum() + 1)
    mu = math.sqrt(sum(steps / noise**2 for noise, _, steps in parts))
    return max(0.0, min(float(np.min(_bounds(parts, share)[_FILTERED])), gaussian_epsilon(mu, share)))


def _bounds(parts: Sampled, delta: float) -> NDArray[np.float64]:
    """Epsilon at `delta` by each order."""
    total = sum(steps * _renyi(noise, rate) for noise, rate, steps in parts)
    result: NDArray[np.float64] = (
        total + np.log1p(-1 / _ORDERS) - (math.log(delta) + np.log(_ORDERS)) / (_ORDERS - 1)
    )
    return result


def _overflow_raises() -> np.errstate:
    return np.errstate(over="raise", invalid="raise", divide="raise")


def _round_off(parts: Sampled) -> float:
    return _ROUND_OFF + _ROUND_OFF_PER_STEP * sum(steps for _, _, steps in parts)


@lru_cache(maxsize=256)
def _renyi(noise: float, rate: float) -> NDArray[np.float64]:
    """Renyi divergence of one step at every order, (orders,).

    (alpha - 1) D_alpha = log sum_i binom(alpha, i) (1-q)^(alpha-i) q^i exp((i^2 - i) / (2 z^2)) (Mironov et
    al. 2019, section 3.3). With 1 for exp(...) the terms sum to 1; the rest is summed, so nothing cancels.
    """
    if rate == 1:
        return np.asarray(_ORDERS / 2 * (1 / noise) * (1 / noise))
    values = np.empty_like(_ORDERS)
    for position, order in enumerate(_ORDERS):
        i = np.arange(2.0, order + 1)
        exponent = (i * i - i) / 2 * (1 / noise) * (1 / noise)
        log_binomial = special.gammaln(order + 1) - special.gammaln(i + 1) - special.gammaln(order - i + 1)
        log_weight = log_binomial + i * math.log(rate) + (order - i) * math.log1p(-rate)
        with np.errstate(divide="ignore"):
            log_terms = log_weight + exponent + np.log(-np.expm1(-exponent))
        values[position] = np.logaddexp(0.0, special.logsumexp(log_terms)) / (order - 1)
    return values


@lru_cache(maxsize=16)
def _composed(parts: Sampled) -> "PrivacyLossDistribution":
    interval = _interval(parts)
    return reduce(lambda total, part: total.compose(part), (_repeated(*part, interval) for part in parts))


def _repeated(noise: float, rate: float, steps: int, interval: float) -> "PrivacyLossDistribution":
    if rate == 1:
        return _step(noise / math.sqrt(steps), 1.0, interval)
    return _step(noise, rate, interval).self_compose(steps)


@lru_cache(maxsize=16)
def _step(noise: float, rate: float, interval: float) -> "PrivacyLossDistribution":
    return pld.from_gaussian_mechanism(
        noise, sampling_prob=rate, value_discretization_interval=interval, use_connect_dots=True
    )


def _interval(parts: Sampled) -> float:
    """A power of two for the grid of losses: fine against the losses' spread, within bounded memory."""
    steps = sum(count for _, _, count in parts)
    variance = sum(count * _mean_square_loss(noise, rate) for noise, rate, count in parts)
    widest = max(_largest_loss(noise, rate) for noise, rate, _ in parts)
    wanted = _GRID * math.sqrt(variance / steps)
    affordable = max(64 * math.sqrt(variance) / _MOST_POINTS, 2 * widest / _MOST_POINTS_OF_A_STEP, 1e-12)
    return 2.0 ** math.floor(math.log2(max(wanted, affordable)))


def _loss(x: NDArray[np.float64], noise: float, rate: float) -> NDArray[np.float64]:
    """log of (1-q) N(0, z^2) + q N(1, z^2) over N(0, z^2), at x."""
    shifted = (x - 0.5) * (1 / noise) * (1 / noise)
    if rate == 1:
        return shifted
    return np.logaddexp(math.log1p(-rate), math.log(rate) + shifted)


def _mean_square_loss(noise: float, rate: float) -> float:
    points = np.linspace(-8, 8, 321)
    weight = np.exp(-points * points / 2)
    without, with_one = (_loss(shift + noise * points, noise, rate) ** 2 for shift in (0.0, 1.0))
    return float(np.sum(weight * ((1 - rate) * without + rate * with_one)) / np.sum(weight))


def _largest_loss(noise: float, rate: float) -> float:
    return float(_loss(np.array([1 + 10 * noise]), noise, rate)[0])
