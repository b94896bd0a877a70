"""One hospital's own threshold and class frequencies, as far as they differ significantly from the common ones.

A hospital whose scanner shifts all scores, or where disease is rarer, benefits from its own values; but its cohort
is small and its sum is not aggregated with others, so its release (class sizes and mean scores, see
`.class_statistics`) has much noise. Both estimates are therefore moved from the common value only as far as the
difference d exceeds the noise in it, whose expected squared length is v: by the positive-part James-Stein rule,
``common + d max(0, 1 - v / ||d||^2)``.
"""

import numpy as np

from fedveil.learning.exact import bounded
from fedveil.learning.models.class_statistics import COUNT_WEIGHT, ClassStatistics
from fedveil.learning.models.learner import Vector
from fedveil.learning.ranges import FEWEST

__all__ = ["own_numbers"]

RAREST = 1e-3
"""Lower bound on class frequencies at a hospital."""


def own_numbers(middle: Vector, frequencies: Vector, found: ClassStatistics) -> tuple[Vector, Vector]:
    """The middle between the classes' mean scores (k,), and class frequencies (K,), at one hospital.

    With released sizes c_k, S their sum and p = c / S, noise of variance u in each c_k gives p an expected squared
    error of ``u (K - 2 + K |p|^2) / S^2``. Noise of variance w in each sum of scores gives the middle one of
    ``w k sum(1 / c_k^2) / K^2``. If a class is very rare its mean is noise, and the common values are used.
    Scores have length 1 at most, so the hospital's middle is cut to it.

    Args:
        middle: the common one.
        frequencies: the common ones.
        found: what the hospital released.

    >>> found = ClassStatistics(counts=np.array([900.0, 100.0]), means=np.array([[-0.2], [0.6]]), noise_variance=1.0)
    >>> [one.round(2).tolist() for one in own_numbers(np.zeros(1), np.array([0.5, 0.5]), found)]
    [[0.2], [0.9, 0.1]]
    """
    classes, total, own = len(frequencies), float(found.counts.sum()), found.priors
    of_counts = found.noise_variance / COUNT_WEIGHT**2
    if (found.counts < FEWEST + 3 * np.sqrt(of_counts)).any():
        return middle, frequencies
    of_scores = found.noise_variance / (1 - COUNT_WEIGHT**2)
    moved = _moved(
        middle,
        bounded(found.means.mean(axis=0), 1.0),
        of_scores * len(middle) * float(np.square(1 / found.counts).sum()) / classes**2,
    )
    mix = _moved(frequencies, own, of_counts * (classes - 2 + classes * float(own @ own)) / total**2)
    mix = np.maximum(mix, RAREST)
    return moved, mix / mix.sum()


def _moved(common: Vector, own: Vector, variance: float) -> Vector:
    """The common value, moved towards the own one as far as the noise allows."""
    difference = own - common
    square = float(difference @ difference)
    if square <= variance:
        return common
    result: Vector = common + difference * (1 - variance / square)
    return result
