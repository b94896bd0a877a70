"""Second moments of features, released with class statistics, and the linear map that evens them out.

Where features vary more along some directions than along others, a step along the gradient goes too far in those and
not far enough in the rest, and a discriminant that takes them for alike weighs them wrongly. Second moments tell, but
a d x d matrix takes much noise: what is below the largest eigenvalue that noise alone has (2 t sqrt(d) for a symmetric
matrix with standard deviation t beside the diagonal: Wigner 1955) is taken for noise, and its directions are left
alone. So a release too noisy to tell anything changes nothing.

A unit contributes the average over its images of x x^T, as the upper triangle with sqrt(2) beside the diagonal: its
norm is that of x squared, at most 1. Of the two factors of a product, x and x times the image's share, one is cut
towards zero to multiples of 2^-16, the other of 2^-20: products are multiples of 2^-36, and sums of them over up to
2^17 units exact in double precision. So is what one unit moves them by; a last rounding of the total moves it by
2^-51 of itself at most. (Sufficient statistics with noise: Vu and Slavkovic 2009; Wang, 1803.02596.)
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from fedveil.learning.learner import Vector

__all__ = ["SecondMoments", "contribution", "size"]

SMALLEST = 1e-2
"""Part of the features' squared length, 1, that is no mean, at least."""

_POINT_BITS, _SHARE_BITS = 16, 20

Matrix = npt.NDArray[np.float64]


def size(dimension: int) -> int:
    """Length of the released vector."""
    return dimension * (dimension + 1) // 2


def contribution(points: Matrix, weights: Vector) -> Vector:
    """Sum the units' contributions; exact, so it stays in the hospital.

    Args:
        points: (n, d), of norm at most 1.
        weights: (n,) each image's share in its unit.

    >>> np.round(contribution(np.array([[0.6, 0.8]]), np.ones(1)), 3).tolist()
    [0.36, 0.679, 0.64]
    """
    rows, columns = np.triu_indices(points.shape[1])
    shares = _cut(points * weights[:, None], _SHARE_BITS)
    products = shares.T @ _cut(points, _POINT_BITS)
    result: Vector = products[rows, columns] * np.where(rows == columns, 1.0, np.sqrt(2))
    return result


def _cut(values: Matrix, bits: int) -> Matrix:
    """Towards zero, to multiples of 2^-bits."""
    result: Matrix = np.trunc(values * 2.0**bits)
    return result * 2.0**-bits


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SecondMoments:
    """The covariance of features over units, with noise.

    Attributes:
        covariance: (d, d), symmetric.
        noise_std: of each number beside the diagonal; sqrt(2) times as much on it.
        total: the trace that it has without noise.
    """

    covariance: Matrix
    noise_std: float
    total: float

    @classmethod
    def from_released(cls, vector: Vector, mean: Vector, units: float, noise_variance: float) -> Self:
        """Read the noisy sum over all sites.

        Args:
            vector: as released.
            mean: (d,) of the features, from the same release.
            units: how many there are.
            noise_variance: of each number in the vector.
        """
        rows, columns = np.triu_indices(len(mean))
        products = np.zeros((len(mean), len(mean)))
        products[rows, columns] = vector / units * np.where(rows == columns, 1.0, np.sqrt(0.5))
        products[columns, rows] = products[rows, columns]
        return cls(
            covariance=products - np.outer(mean, mean),
            noise_std=float(np.sqrt(noise_variance / 2)) / units,
            total=max(1 - float(mean @ mean), SMALLEST),
        )

    @property
    def edge(self) -> float:
        """The largest variance that noise alone shows, in units of the mean one."""
        dimension = len(self.covariance)
        return float(2 * self.noise_std * dimension**1.5 / self.total)

    def spectrum(self) -> tuple[Vector, Matrix]:
        """Variances (d,) that stand out from the noise, in units of the mean one, and their axes (d, d) as columns.

        Features have length 1, so the mean variance is known beforehand. One that does not stand out is 0.
        """
        variances, axes = np.linalg.eigh(self.covariance)
        return np.maximum(variances * len(variances) / self.total - self.edge, 0.0), axes

    def damping(self, variances: Vector, ridge: float) -> Vector:
        """What P leaves of each axis, 1 / (1 + variance / r).

        r is ``ridge``, or half the edge if that is more: as much may vary along axes that are left alone, and to damp
        the others below them would weigh them too little.
        """
        return 1 / (1 + variances / max(ridge, self.edge / 2))

    def evened(self, ridge: float) -> Matrix:
        """The map P, whose axes are those of `spectrum`; the identity where noise hides them all."""
        variances, axes = self.spectrum()
        result: Matrix = (axes * self.damping(variances, ridge)) @ axes.T
        return result
