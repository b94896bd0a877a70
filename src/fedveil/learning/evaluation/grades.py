"""Metrics where classes are ordered grades.

**Quadratic weighted kappa** (Cohen, 1968): with the confusion matrix O of n images, its marginals r and c, and
``d_ij = (i - j)^2``,

    kappa = 1 - A / B,    A = sum_ij d_ij O_ij / n,    B = sum_ij d_ij r_i c_j / n^2.

It is 1 for perfect agreement and 0 for that of independent decisions. A and B are sums over images, so an image of
grade y that is called p has the influence ``(kappa_A (d_yp - A) + kappa_B b) / n`` with ``kappa_A = -1 / B``,
``kappa_B = A / B^2`` and ``b = sum_j d_yj c_j / n + sum_i d_ip r_i / n - 2 B``; the interval is that of `.intervals`.

**AUROC.** The mean over cut points of the area for "above the cut point".
"""

import math

import numpy as np
import numpy.typing as npt

from fedveil.learning.evaluation.intervals import Interval, Labels, wilson
from fedveil.learning.models.learner import Vector

__all__ = ["above", "kappa_interval", "quadratic_kappa"]

SMALLEST = 1e-12


def above(labels: Labels, probabilities: Vector) -> list[tuple[npt.NDArray[np.bool_], Vector]]:
    """For each cut point whether images are above it, and the probability of that."""
    higher = np.cumsum(probabilities[:, ::-1], axis=1)[:, ::-1]
    return [(labels >= grade, higher[:, grade]) for grade in range(1, probabilities.shape[1])]


def quadratic_kappa(labels: Labels, predicted: Labels, grades: int) -> float:
    """Agreement of true and predicted grades; NaN if all of both are one grade."""
    matrix = np.bincount(labels * grades + predicted, minlength=grades**2).reshape(grades, grades)
    observed, expected = _disagreement(matrix)
    return 1 - observed / expected if expected > SMALLEST else math.nan


def kappa_interval(
    labels: Labels, predicted: Labels, grades: int, patients: Labels, noise: float = 0.0
) -> Interval:
    """95 % for the quadratic weighted kappa: `.intervals.wilson`, of (1 + kappa) / 2, which lies in [0, 1].

    Args:
        labels: (n,) true grades.
        predicted: (n,) predicted grades.
        grades: their number K.
        patients: (n,) patient codes 0 .. P-1.
        noise: standard deviation over the noise of training.
    """
    kappa = quadratic_kappa(labels, predicted, grades)
    influences = np.zeros(len(labels))
    if not math.isnan(kappa):
        matrix = np.bincount(labels * grades + predicted, minlength=grades**2).reshape(grades, grades)
        observed, expected = _disagreement(matrix)
        apart, size = _apart(grades), len(labels)
        one = apart @ matrix.sum(axis=0) / size
        other = apart @ matrix.sum(axis=1) / size
        parts = -(apart[labels, predicted] - observed) / expected
        parts += observed / expected**2 * (one[labels] + other[predicted] - 2 * expected)
        influences = parts / size
    low, high = wilson((1 + kappa) / 2, influences / 2, patients, noise / 2)
    return 2 * low - 1, 2 * high - 1


def _apart(grades: int) -> Vector:
    """d, (K, K)."""
    steps = np.arange(grades, dtype=np.float64)
    result: Vector = np.square(steps[:, None] - steps)
    return result


def _disagreement(matrix: npt.NDArray[np.int64]) -> tuple[float, float]:
    """A and B of a confusion matrix."""
    apart, shares = _apart(len(matrix)), matrix / matrix.sum()
    return float((apart * shares).sum()), float(shares.sum(axis=1) @ apart @ shares.sum(axis=0))
