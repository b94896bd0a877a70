"""A linear head from one round of sufficient statistics: a linear discriminant on noisy class means.

The class means that `ClassStatistics` holds are all that Fisher's discriminant needs where features are whitened
already, by public images (`fedveil.learning.encoders.Whitened`): with class means m_k of features of length 1 and
within-class covariance v I, the log odds at equal class frequencies are differences of

    score_k(x) = m_k . x / v - |m_k|^2 / (2 v).

|x| = 1 determines v: ``d v = 1 - sum_k pi_k |m_k|^2``. Noise of variance s_k^2 in each of d coordinates
adds d s_k^2 to |m_k|^2, which would move the threshold towards the rarer class, whose mean is noisier; it is
subtracted. What is left varies by 2 d s_k^4, whereas |m_k|^2 lies between 0 and 1, so it is divided by 1 + 2 d s_k^4:
lengths dominated by noise have no effect. The steepness of the scores depends on the noise in the difference between
the means, and on the covariance along the rest, see `ANISOTROPY`.
"""

import numpy as np

from fedveil.learning.models.learner import Vector
from fedveil.learning.released.class_statistics import COUNT_WEIGHT, ClassStatistics

__all__ = ["discriminant"]

ANISOTROPY = 8.0
"""Within-class variance along the difference between class means, in units of its average over all directions.

Features vary most where classes differ. 2 on the phantom set, 10 on chest X-rays and 10 on breast ultrasound, as
measured on training patients. It scales probabilities only: ranking and threshold do not depend on it.
"""
LEAST_SIGNAL = 0.05
"""The part of the squared difference between means that is taken to be no noise, at least; less where means of length 1
cannot differ by so much. Steeper scores would round to probabilities of 0 and 1, which rank nothing."""
SMALLEST = 1e-2


def discriminant(statistics: ClassStatistics) -> tuple[Vector, Vector]:
    """Weights (classes, d) and thresholds (classes,) of scores ``weights x - thresholds``: log odds at equal priors."""
    means = statistics.means
    noise = statistics.noise_variance / (1 - COUNT_WEIGHT**2) / statistics.counts**2
    classes, dimension = means.shape
    lengths = (np.square(means).sum(axis=1) - dimension * noise) / (1 + 2 * dimension * noise**2)
    within = 1 - float(statistics.priors @ np.maximum(lengths, 0.0))
    variance = max(within, SMALLEST) / dimension
    power = max(float(np.square(means - means.mean(axis=0)).sum()), SMALLEST**2)
    false = dimension * float(noise.sum()) * (1 - 1 / classes)
    signal = min(max(1 - false / power, LEAST_SIGNAL), classes / power)
    slope = signal / (variance * (ANISOTROPY * signal + 1 - signal))
    return slope * means, slope * lengths / 2
