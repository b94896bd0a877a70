"""One hospital's own threshold and class frequencies: posterior means around the common ones.

A hospital whose scanner shifts all scores, or where disease is rarer, benefits from its own values; but its cohort
is small and its sum is not aggregated with others, so its release (`.score_statistics`) has much noise. What is known
without it is the common model: the prior of both is centred there, and noise takes both back to it.
"""

import numpy as np

from fedveil.learning.exact import bounded
from fedveil.learning.models.learner import Vector
from fedveil.learning.released.posterior import counts_of, moved
from fedveil.learning.released.score_statistics import ScoreStatistics

__all__ = ["own_numbers"]

RAREST = 1e-3
"""Lower bound on class frequencies at a hospital."""
ALIKE = 4.0
"""Prior of a hospital's class frequencies: as those of a Dirichlet distribution around the common ones with this
concentration. Their expected squared distance to the common ones p is ``(1 - |p|^2) / (ALIKE + 1)``."""


def own_numbers(middle: Vector, frequencies: Vector, found: ScoreStatistics) -> tuple[Vector, Vector]:
    """The middle between the classes' mean scores (k,), and class frequencies (K,), at one hospital.

    With released class sizes c_k, posterior sum S and common frequencies p, ``(c - p sum(c)) / S`` is an unbiased
    estimate of the difference to p, up to the error of S. Noise of variance u in each count gives it an expected
    squared error of ``u (K - 2 + K |p|^2) / S^2``. Scores have length 1 at most, so the middle is cut to it.

    Args:
        middle: the common one.
        frequencies: the common ones.
        found: what the hospital released.

    >>> from fedveil.learning.released.posterior import Noisy
    >>> sums, counts = np.array([[-180.0], [60.0]]), np.array([900.0, 100.0])
    >>> found = ScoreStatistics(sums=Noisy(sums, 0.0), counts=Noisy(counts, 0.0))
    >>> [one.round(2).tolist() for one in own_numbers(np.zeros(1), np.array([0.5, 0.5]), found)]
    [[0.2], [0.9, 0.1]]
    """
    classes, released = len(frequencies), found.counts
    total = max(float(counts_of(released).sum()), 1.0)
    square = float(frequencies @ frequencies)
    own = frequencies + (released.values - frequencies * released.values.sum()) / total
    error = released.variance * (classes - 2 + classes * square) / total**2
    mix = np.clip(moved(frequencies, own, error, (1 - square) / (ALIKE + 1)), RAREST, 1.0)
    return bounded(found.means(middle).middle, 1.0), mix / mix.sum()
