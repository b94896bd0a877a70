"""Decisions from noisy releases: posterior means under a public prior and the known variance of the noise.

Every decision that a study takes from a noisy sum (class frequencies and weights, thresholds, centres, a hospital's own
numbers) is the mean of its posterior distribution. The likelihood is Gaussian with the variance that
the mechanism states, the prior is public and fixed here. Without noise a decision is the plain estimate; with more
noise it approaches what is known without the release: equal frequencies or those of an earlier release, no shift. No
estimate is accepted or rejected by a threshold. All of this is post-processing.

**Counts.** Class sizes n_k are half-normal with a very large deviation, `MOST_UNITS`. From ``c_k = n_k + N(0, u)``
follows a normal distribution truncated to ``n_k >= 0``; its mean is ``c + sqrt(u) phi(c / sqrt(u)) / Phi(c /
sqrt(u))`` where c and u include the prior. Two releases of the same counts are first averaged by their precision.

**Middle.** Class means of scores are ``m_k = M + d_k`` with the middle ``M ~ N(M_0, MIDDLE^2)`` in each coordinate and
differences d_k that sum to 0 and are nearly unrestricted, `DIFFERENCE`. M_0 is 0, no shift, or for a hospital the
common middle. Sums are released as ``S_k = n_k m_k + N(0, v)``. Given n, everything is Gaussian: with Sigma the prior
covariance of (m_1 .. m_K) and N = diag(n), S has covariance ``G = N Sigma N + v I``, and m - M_0 the mean ``Sigma N
G^-1 (S - N M_0)``. The unknown counts are integrated over: n is drawn from its posterior given the counts alone, by a
fixed sequence, and each draw is weighted by the likelihood of S under it. A class that noise hides leaves M
undetermined, however well the other classes are known, and M_0 remains.

**Values around common ones.** A hospital's numbers are normal around the common ones, with a public variance t per
coordinate; an estimate with error variance v moves the common value by the fraction ``t / (t + v)`` of the difference.

**Lengths.** A vector of k numbers, such as a centre of features, is normal around 0 with variance t / k per coordinate,
where t is uniform up to its largest squared length. Its posterior mean is the vector times the mean of ``t / (t + k
v)``, which is near the James-Stein factor where k is large.
"""

from dataclasses import dataclass

import numpy as np

from fedveil.lazy import later
from fedveil.learning.models.learner import Vector

__all__ = [
    "LEAST_WEIGHT",
    "MIDDLE",
    "ClassMeans",
    "Noisy",
    "combined",
    "counts_of",
    "drawn_counts",
    "means_of",
    "moved",
    "shrunk",
    "weight_of",
]

special = later("scipy.special")

MIDDLE = 0.1
"""Standard deviation of the middle between class means, in units of the longest score. It was 0.05 to 0.1 on training
patients of chest X-rays with two and three classes and on the phantom, at epsilon 0.25 to 4."""
DIFFERENCE = 1.0
"""The same of a class mean's difference to the middle: as long as scores can be, so that it says nothing about M."""
LEAST_WEIGHT = 0.1
"""A release that is known to leave less than this fraction of the measured middle is not worth its budget."""
MOST_UNITS = 1e5
"""Prior deviation of a class size: far above what noise hides, so that it matters only where noise is larger still."""
DRAWS = 512
SMALLEST = 1e-12
CERTAIN, IMPOSSIBLE = 30.0, 1e3
"""Deviations beyond which a count is as measured, and beyond which it is no measurement."""


@dataclass(frozen=True, slots=True, eq=False)
class Noisy:
    """Numbers with independent Gaussian noise of one known variance."""

    values: Vector
    variance: float


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ClassMeans:
    """The posterior of class means.

    Attributes:
        means: (classes, d) posterior means.
        middle: (d,) posterior mean of the midpoint between them.
        middle_std: posterior standard deviation of each coordinate of the middle.
        weight: the fraction of the plain midpoint that noise leaves, in [0, 1]: 1 without noise.
    """

    means: Vector
    middle: Vector
    middle_std: float
    weight: float


def combined(one: Noisy, other: Noisy) -> Noisy:
    """The precision-weighted mean of two releases of the same numbers; an exact one is taken alone."""
    if min(one.variance, other.variance) < SMALLEST:
        return one if one.variance <= other.variance else other
    weights = np.array([1 / one.variance, 1 / other.variance])
    values = (weights[0] * one.values + weights[1] * other.values) / weights.sum()
    return Noisy(values, float(1 / weights.sum()))


def counts_of(released: Noisy) -> Vector:
    """Posterior means of counts; never negative.

    >>> counts_of(Noisy(np.array([-50.0, 0.0, 900.0]), 100.0**2)).round(1).tolist()
    [64.1, 79.8, 900.0]
    """
    if released.variance < SMALLEST:
        return np.maximum(released.values, 0.0)
    std, ratio = _standardised(released)
    # phi(x) / Phi(x), without underflow where x is very negative.
    near = np.minimum(ratio, CERTAIN)
    hazard = np.exp(-(near**2) / 2 - special.log_ndtr(near)) / np.sqrt(2 * np.pi)
    result: Vector = np.maximum(std * (ratio + hazard), 0.0)
    return result


def means_of(sums: Noisy, counts: Noisy, around: Vector | None = None) -> ClassMeans:
    """Class means (classes, d) from noisy sums (classes, d) and noisy counts (classes,), jointly.

    Args:
        sums: of the scores of each class.
        counts: of the units of each class.
        around: (d,) prior mean of the middle; 0 if None.
    """
    numbers = drawn_counts(counts)
    origin = np.zeros(sums.values.shape[1]) if around is None else around
    apart = sums.values - numbers[:, :, None] * origin
    prior = _prior(len(sums.values))
    covariance = _covariance(numbers, sums.variance)
    solved = np.linalg.solve(covariance, apart)
    means = prior @ (numbers[:, :, None] * solved)
    fit = -0.5 * np.einsum("rkd,rkd->r", solved, apart)
    fit -= 0.5 * apart.shape[2] * np.linalg.slogdet(covariance)[1]
    weights = special.softmax(fit)
    middles = means.mean(axis=1)
    middle = weights @ middles
    kept = _kept(numbers, covariance)
    inside = float(weights @ (1 - kept)) * MIDDLE**2
    between = float((weights @ np.square(middles - middle)).mean())
    return ClassMeans(
        means=origin + np.tensordot(weights, means, axes=1),
        middle=origin + middle,
        middle_std=float(np.sqrt(max(inside, 0.0) + between)),
        weight=float(np.clip(weights @ kept, 0.0, 1.0)),
    )


def weight_of(numbers: Vector, variance: float) -> float:
    """The fraction of the measured middle that noise of this variance in sums over these class sizes would leave.

    >>> [round(weight_of(np.full(2, n), 20.0**2), 2) for n in (20.0, 50.0)]
    [0.02, 0.11]
    """
    sizes = np.maximum(numbers, SMALLEST)[None, :]
    return float(np.clip(_kept(sizes, _covariance(sizes, variance))[0], 0.0, 1.0))


def _prior(classes: int) -> Vector:
    """Sigma."""
    result: Vector = MIDDLE**2 + DIFFERENCE**2 * (np.eye(classes) - 1 / classes)
    return result


def _covariance(numbers: Vector, variance: float) -> Vector:
    """G for each draw of class sizes, (draws, classes, classes)."""
    classes = numbers.shape[1]
    signal = numbers[:, :, None] * _prior(classes) * numbers[:, None, :]
    result: Vector = signal + max(variance, SMALLEST) * np.eye(classes)
    return result


def _kept(numbers: Vector, covariance: Vector) -> Vector:
    """1 - Var(M | S, n) / MIDDLE^2 for each draw: ``MIDDLE^2 n' G^-1 n``, the same for each coordinate."""
    solved = np.linalg.solve(covariance, numbers[:, :, None])[:, :, 0]
    result: Vector = MIDDLE**2 * (numbers * solved).sum(axis=1)
    return result


def moved(common: Vector, own: Vector, variance: float, prior: float) -> Vector:
    """The common value, moved towards an own estimate; both variances are per coordinate.

    >>> moved(np.array([0.0]), np.array([0.4]), 0.01, 0.03).round(3).tolist()
    [0.3]
    """
    result: Vector = common + (own - common) * (prior / (prior + variance))
    return result


def shrunk(vector: Vector, variance: float, longest: float) -> Vector:
    """A vector whose exact value is at most ``longest`` long, with noise of this variance in each coordinate.

    >>> shrunk(np.array([3.0, 4.0]), 0.0, 10.0).tolist(), shrunk(np.ones(4), 1e9, 1.0).round(3).tolist()
    ([3.0, 4.0], [0.0, 0.0, 0.0, 0.0])
    """
    if variance == 0:
        return vector
    power = longest**2 * np.exp(np.linspace(-18, 0, 512))  # t; as measured by dt, so that log t has density t
    total = power + len(vector) * variance
    fit = np.log(power) - len(vector) / 2 * (np.log(total) + float(vector @ vector) / total)
    result: Vector = vector * float(special.softmax(fit) @ (power / total))
    return result


def _standardised(counts: Noisy) -> tuple[float, Vector]:
    """The deviation of the normal distribution of counts before it is truncated, and its means in units of it.

    The measured counts are averaged with the prior around 0. Counts that are impossibly negative are raised.
    """
    share = MOST_UNITS**2 / (MOST_UNITS**2 + counts.variance)
    std = float(np.sqrt(counts.variance * share))
    return std, np.maximum(counts.values * share / std, -IMPOSSIBLE)


def drawn_counts(counts: Noisy) -> Vector:
    """Draws (DRAWS, classes) from the posterior of the counts: a fixed sequence, so that results are reproducible."""
    if counts.variance < SMALLEST:
        return np.maximum(counts.values, SMALLEST)[None, :]
    std, ratio = _standardised(counts)
    uniform = np.random.default_rng(0).random((DRAWS, len(ratio)))
    # The normal quantile of the part of the distribution above 0, in logarithms: log(1 - F) = log(u) + log(Phi(c/std)).
    above = np.log(uniform) + special.log_ndtr(ratio)
    drawn: Vector = np.maximum(std * (ratio - special.ndtri_exp(above)), SMALLEST)
    return drawn
