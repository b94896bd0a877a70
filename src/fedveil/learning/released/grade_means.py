"""Mean scores of ordered grades, from noisy sums of scores: posterior means, as in `.posterior`.

Grades are in order, so the prior of their mean scores is a line with deviations from it: ``m_k = M + s t_k + e_k`` for
``t_k = (2 k - K + 1) / (K - 1)``, from -1 to 1, with ``M ~ N(0, MIDDLE^2)``, ``s ~ N(SLOPE, SLOPE^2)`` and ``e_k ~ N(0,
BENT^2)``. A rare grade, which noise hides, lies where the others' line says; without noise each mean is the plain one;
and where noise hides all of them they are the prior means ``SLOPE t_k``, as in a study without this release.

Sums are ``S_k = n_k m_k + N(0, v)``; the unknown counts n are integrated over as for other thresholds. With Sigma the
prior covariance, m_0 the prior mean and N = diag(n), m is normal given n and S: mean ``m_0 + Sigma N G^-1 (S - N m_0)``
and covariance ``Sigma - Sigma N G^-1 N Sigma``, with ``G = N Sigma N + v I``.
"""

from dataclasses import dataclass

import numpy as np

from fedveil.lazy import later
from fedveil.learning.models.learner import Vector
from fedveil.learning.released.posterior import MIDDLE, Noisy, drawn_counts
from fedveil.learning.released.score_statistics import NEAREST, Certainty

__all__ = ["GradeMeans", "grade_means", "usual_means"]

special = later("scipy.special")

SLOPE = 0.15
"""Half of the distance between the mean scores of the first and the last grade, in units of the longest score. It was
0.08 to 0.26 on training patients of the graded phantom, at 300 and 1,200 patients and epsilon 0.25 to 1."""
BENT = 0.05
"""Standard deviation of a grade's mean about the line; it was 0.01 to 0.03 there."""
SMALLEST = 1e-12


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class GradeMeans:
    """The posterior of the grades' mean scores.

    Attributes:
        values: (K,) posterior means, non-decreasing.
        weight: (K,) the fraction of the prior variance that the release removed from each, in [0, 1].
        between: (K - 1,) posterior standard deviations of the middles between neighbours.
    """

    values: Vector
    weight: Vector
    between: Vector

    @property
    def certainty(self) -> Certainty:
        """How sure the decision rule is: that of the least certain grade, and the noise of each mean."""
        distance = float(self.values[-1] - self.values[0]) / (len(self.values) - 1)
        noise = np.sqrt(np.diag(_prior(len(self.values))) * self.weight * (1 - self.weight))
        return Certainty(
            weight=float(self.weight.min()),
            error=float(self.between.max()) / max(distance, NEAREST),
            noise=tuple(noise.tolist()),
        )


def usual_means(grades: int) -> Vector:
    """(K,) the mean scores that are expected before any release.

    >>> usual_means(3).tolist()
    [-0.15, 0.0, 0.15]
    """
    return np.linspace(-SLOPE, SLOPE, grades)


def grade_means(sums: Noisy, counts: Noisy) -> GradeMeans:
    """From noisy sums of scores (K, 1) and noisy numbers of units (K,) of the grades, jointly."""
    numbers, grades = drawn_counts(counts), len(counts.values)
    prior, expected = _prior(grades), usual_means(grades)
    scaled = prior * numbers[:, None, :]  # Sigma N, (draws, K, K)
    covariance = numbers[:, :, None] * scaled + max(sums.variance, SMALLEST) * np.eye(grades)
    apart = sums.values[:, 0] - numbers * expected
    solved = np.linalg.solve(covariance, apart[:, :, None])[:, :, 0]
    means = expected + (scaled @ solved[:, :, None])[:, :, 0]
    weights = special.softmax(-0.5 * (solved * apart).sum(axis=1) - 0.5 * np.linalg.slogdet(covariance)[1])
    left = prior - scaled @ np.linalg.solve(covariance, scaled.transpose(0, 2, 1))
    value = weights @ means
    inside = np.tensordot(weights, left, axes=1)
    whole = inside + np.einsum("r,rk,rl->kl", weights, means - value, means - value)
    middles = (np.eye(grades)[1:] + np.eye(grades)[:-1]) / 2
    return GradeMeans(
        values=np.sort(value),
        weight=np.clip(1 - np.diag(inside) / np.diag(prior), 0.0, 1.0),
        between=np.sqrt(np.maximum(np.einsum("ck,kl,cl->c", middles, whole, middles), 0.0)),
    )


def _prior(grades: int) -> Vector:
    """Sigma, (K, K)."""
    line = np.linspace(-1.0, 1.0, grades)
    result: Vector = MIDDLE**2 + SLOPE**2 * np.outer(line, line) + BENT**2 * np.eye(grades)
    return result
