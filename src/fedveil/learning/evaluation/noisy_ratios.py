"""Ratios of noisy counts, with their uncertainty from noise and from the choice of units.

Each count x_i is released as x_i + e_i with independent noise of known variance v. Shares are ratios of sums, AUROC
is the ratio of a product of two independent vectors to the product of their sums. Counts are not clipped before:
negative counts stay negative, because the sums are then unbiased, and raising them to 0 would bias every metric
towards chance. The bias of a ratio is removed to second order.

Standard deviations are those of the delta method. They include the noise, and the choice of units as if each cell
were a Poisson variable: a unit of weight 1 that is spread over several cells varies less (Jensen), so this does not
underestimate. If units took part with probability r and counts were divided by it, a cell varies by x_i / r.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedveil.learning.models.learner import Vector

__all__ = ["Estimate", "NoisyCounts", "isotonic", "mean_of"]

LEAST = 3.0
"""A total below this many standard deviations of its noise is not used as a divisor."""
NORMAL = 1.96


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and its standard deviation; both NaN if the noise is too large."""

    value: float
    std: float

    @property
    def clipped(self) -> float:
        """The value, cut to [0, 1]."""
        return float(np.clip(self.value, 0.0, 1.0))

    def interval(self, upper: float = 1.0) -> tuple[float, float]:
        """95 % interval within [0, upper]."""
        reach = NORMAL * self.std
        low, high = np.clip([self.value - reach, self.value + reach], 0.0, upper)
        return float(low), float(high)


UNDEFINED = Estimate(math.nan, math.nan)


@dataclass(frozen=True, slots=True, eq=False)
class NoisyCounts:
    """A table of counts (rows, columns) with noise.

    Attributes:
        values: as released.
        noise_variance: of each cell.
        sampling_rate: probability that each unit took part.
    """

    values: Vector
    noise_variance: float
    sampling_rate: float = 1.0

    def total(self) -> Estimate:
        """The number of units: for these units, so the variance of their choice is not included."""
        resampled = max(float(self.values.sum()), 0.0) * (1 / self.sampling_rate - 1)
        return Estimate(
            float(self.values.sum()), math.sqrt(self.values.size * self.noise_variance + resampled)
        )

    def share(self, weights: npt.ArrayLike) -> Estimate:
        """Mean over the units of a number per cell."""
        return self._ratio(
            np.asarray(weights, dtype=np.float64).ravel(), np.ones(self.values.size), self.values.ravel()
        )

    def row_share(self, row: int, column: int) -> Estimate:
        """Share of a row's units in one column."""
        part = np.zeros(self.values.shape[1])
        part[column] = 1.0
        return self._ratio(part, np.ones_like(part), self.values[row])

    def column_share(self) -> Estimate:
        """Share of the second of a single column's two cells."""
        return self._ratio(np.array([0.0, 1.0]), np.ones(2), self.values.ravel())

    def auroc(self) -> Estimate:
        """Probability that a unit of row 1 is in a later column than one of row 0, ties counted half."""
        columns, variance = self.values.shape[1], self.noise_variance
        below = np.tril(np.ones((columns, columns)), -1) + np.eye(columns) / 2
        rest, own = self.values
        less, more = below @ rest, below.T @ own
        sums = rest.sum(), own.sum()
        if min(sums) <= LEAST * math.sqrt(columns * variance):
            return UNDEFINED
        plain = float(own @ less / (sums[0] * sums[1]))
        # E[U/D] - U/D is A Var(D)/D^2 - Cov(U, D)/D^2 to second order, with U and D as in the definition.
        bias = variance * ((columns * plain - less.sum() / sums[0]) / sums[1] ** 2)
        bias += variance * ((columns * plain - more.sum() / sums[1]) / sums[0] ** 2)
        slopes = np.stack([(more / sums[1] - plain) / sums[0], (less / sums[0] - plain) / sums[1]])
        both = variance**2 * float(np.square(below - plain).sum()) / (sums[0] * sums[1]) ** 2
        return Estimate(plain - bias, math.sqrt(self._spread(slopes, self.values) + both))

    def quadratic_kappa(self) -> Estimate:
        """Quadratic weighted kappa (`.grades`) of a square table by true (row) and predicted grade.

        With ``d_ij = (i - j)^2``, the total n, ``S = sum d_ij x_ij`` and the marginals r and c, it is ``1 - n S / T``
        for ``T = sum d_ij r_i c_j``.
        """
        x, steps = self.values, np.arange(len(self.values), dtype=np.float64)
        apart, variance = np.square(steps[:, None] - steps), self.noise_variance
        total, rows, columns = float(x.sum()), x.sum(axis=1), x.sum(axis=0)
        found, expected = float((apart * x).sum()), float(rows @ apart @ columns)
        by = (apart @ columns)[:, None] + rows @ apart  # the derivatives of T
        noise = math.sqrt(variance * float(np.square(by).sum()))
        if total <= LEAST * math.sqrt(x.size * variance) or expected <= LEAST * noise:
            return UNDEFINED
        upper, top = total * found, found + total * apart  # n S and its derivatives
        slopes = -top / expected + upper * by / expected**2
        # Half of the trace of the Hessian; the second derivatives of both n S and T are 2 d_ij.
        curved = -apart / expected + top * by / expected**2
        curved += upper * apart / expected**2 - upper * np.square(by) / expected**3
        bias = variance * float(curved.sum())
        return Estimate(1 - upper / expected - bias, math.sqrt(self._spread(slopes, x)))

    def _ratio(self, part: Vector, whole: Vector, values: Vector) -> Estimate:
        """part . x / whole . x."""
        variance, bottom = self.noise_variance, float(whole @ values)
        if bottom <= LEAST * math.sqrt(variance * float(whole @ whole)):
            return UNDEFINED
        plain = float(part @ values) / bottom
        bias = variance * float(plain * (whole @ whole) - part @ whole) / bottom**2
        return Estimate(plain - bias, math.sqrt(self._spread((part - plain * whole) / bottom, values)))

    def _spread(self, slopes: Vector, values: Vector) -> float:
        """Variance of a quantity with derivatives ``slopes`` by the counts."""
        cells = self.noise_variance + np.maximum(values, 0.0) / self.sampling_rate
        return float((np.square(slopes) * cells).sum())


def mean_of(estimates: Sequence[Estimate], *, independent: bool = False) -> Estimate:
    """The mean of the defined ones; their errors count as fully correlated, unless they are independent."""
    defined = [one for one in estimates if not math.isnan(one.value)]
    if not defined:
        return UNDEFINED
    stds = np.array([one.std for one in defined])
    std = math.sqrt(float(np.square(stds).sum())) if independent else float(stds.sum())
    return Estimate(float(np.mean([one.value for one in defined])), std / len(defined))


def isotonic(values: Vector) -> Vector:
    """The nearest non-decreasing sequence with the same ends: pooled adjacent violators."""
    blocks: list[list[float]] = []
    for value in values[1:-1]:
        blocks.append([float(value), 1.0])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            last = blocks.pop()
            size = blocks[-1][1] + last[1]
            blocks[-1] = [(blocks[-1][0] * blocks[-1][1] + last[0] * last[1]) / size, size]
    inside = np.concatenate([np.full(int(size), mean) for mean, size in blocks] or [np.empty(0)])
    result: Vector = np.concatenate([values[:1], inside, values[-1:]])
    return result
