"""Ordered grades that share one logit: the proportional-odds model, with public cut points.

McCullagh, "Regression models for ordinal data" (1980). An image with logit z has a grade above k with the probability
``sigma(z - theta_k)``, for K grades and cut points ``theta_0 < .. < theta_(K-2)``. The direction of all cut points is
the same, so a model has one weight per feature, as for two classes, where a softmax has K: under the same clip norm
noise is added to K times fewer numbers.

The loss weighs all grades equally, so that theta_k is public: ``log((k + 1) / (K - k - 1))``, where each grade is
equally likely at z = 0. The negative log-likelihood of grade y has the derivative

    sigma(z - theta_(y-1)) + sigma(z - theta_y) - 1,    theta_(-1) = -infinity, theta_(K-1) = infinity,

in z, which lies in [-1, 1] for any z: since sigma' = sigma (1 - sigma), the derivative of ``log(sigma(a) - sigma(b))``
by a common shift of a and b is ``1 - sigma(a) - sigma(b)``. It is convex in z. For two grades it is logistic
regression. What a trained model decides is released after training, see `fedveil.learning.models.grades`.

Each image is computed by itself, by elementwise operations, as `fedveil.learning.exact` requires.
"""

import numpy as np
import numpy.typing as npt

from fedveil.lazy import later
from fedveil.learning.exact import first_sums
from fedveil.learning.models.learner import Vector

__all__ = ["cut_points", "grade_probabilities", "grade_residuals", "neighbours"]

special = later("scipy.special")


def cut_points(grades: int) -> Vector:
    """theta, (K - 1,).

    >>> cut_points(2).tolist(), cut_points(4).round(2).tolist()
    ([0.0], [-1.1, 0.0, 1.1])
    """
    below = np.arange(1, grades)
    result: Vector = np.log(below / (grades - below))
    return result


def neighbours(grades: npt.NDArray[np.int64], cuts: Vector) -> tuple[Vector, Vector]:
    """The cut points below and above each grade, (n,) each, infinite beside the first and the last."""
    edges = np.concatenate([[-np.inf], cuts, [np.inf]])
    return edges[grades], edges[grades + 1]


def grade_residuals(logits: Vector, edges: Vector) -> Vector:
    """Derivatives (1, n) of the loss by the logits (1, n), given the cut points (2, n) about each image's grade."""
    result: Vector = special.expit(logits - edges[:1]) + special.expit(logits - edges[1:]) - 1
    return result


def grade_probabilities(logits: Vector, cuts: Vector) -> Vector:
    """Probabilities (n, K) of the grades under equal frequencies, from logits (n,) and non-decreasing cuts (K - 1,)."""
    above = special.expit(logits[None, :] - cuts[:, None])
    edges = np.concatenate([np.ones((1, len(logits))), above, np.zeros((1, len(logits)))])
    parts = np.maximum(edges[:-1] - edges[1:], 0.0)
    result: Vector = (parts / first_sums(parts.copy())).T
    return result
