"""A head for ordered grades from one round of class statistics: one direction, and the grades' mean scores along it.

With S_k the sums of features and c_k the units of grade k, and ``a_k = k - sum_j c_j j / sum_j c_j``, the direction is
``sum_k a_k S_k``, the covariance of grade and features. Its noise does not depend on how rare a grade is. Since ``sum_k
a_k c_k = 0`` it is a multiple of the difference of two weighted means H and L, of the grades above and below the
average one, so that length and steepness follow from the discriminant between them (`.discriminant`), with the noise of
each. H and L are ``sum_k c_k a_k^2 / A`` grades apart, for ``A = sum_k max(a_k, 0) c_k``.

The mean score of each grade is the posterior one of `.grade_means`. Noise in S_k is in the direction, too, which would
add ``a_k d v`` to ``direction . S_k``, with v its variance in each of d numbers: that is subtracted.
"""

import numpy as np

from fedveil.learning.models.learner import Vector
from fedveil.learning.released.class_statistics import COUNT_WEIGHT, ClassStatistics
from fedveil.learning.released.discriminant import discriminant
from fedveil.learning.released.grade_means import grade_means
from fedveil.learning.released.posterior import Noisy

__all__ = ["direction_of", "means_along"]

SMALLEST = 1e-12


def direction_of(statistics: ClassStatistics) -> Vector:
    """(d,) the log odds of neighbouring grades, per feature."""
    counts, away = statistics.counts, _away(statistics.counts)
    sides, sizes = [], []
    for part in (np.maximum(-away, 0.0), np.maximum(away, 0.0)):
        whole = float(part @ counts)
        sides.append((part * counts) @ statistics.means / whole)
        sizes.append(whole / float(np.linalg.norm(part)))
    pair = ClassStatistics(
        counts=np.array(sizes), means=np.stack(sides), noise_variance=statistics.noise_variance
    )
    weights, _ = discriminant(pair)
    apart = float(counts @ away**2) / float(np.maximum(away, 0.0) @ counts)
    result: Vector = (weights[1] - weights[0]) / apart
    return result


def means_along(statistics: ClassStatistics, direction: Vector, unit: float) -> Vector:
    """(K,) posterior mean scores of the grades, where a score is ``direction . x / unit``; ``unit`` is positive."""
    counts, away = statistics.counts, _away(statistics.counts)
    sums = statistics.means * counts[:, None]
    variance = statistics.noise_variance / (1 - COUNT_WEIGHT**2)
    covariance = away @ sums
    length = max(float(np.linalg.norm(covariance)), SMALLEST)
    own = sums @ covariance - away * covariance.size * variance
    scale = float(np.linalg.norm(direction)) / unit
    found = grade_means(
        Noisy((scale * own / length)[:, None], variance * scale**2), statistics.released_counts
    )
    return found.values


def _away(counts: Vector) -> Vector:
    """a, (K,): each grade less the mean one."""
    grades = np.arange(len(counts), dtype=np.float64)
    result: Vector = grades - float(counts @ grades) / float(counts.sum())
    return result
