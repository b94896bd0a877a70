"""Class sizes and sums of scores by class, as released after training, and how sure a threshold between them is.

The release is that of `.class_statistics`, with the score of an image in place of its features: a unit adds the average
over its images of ``onehot(y_i) (x) (sqrt(1 - b^2) s_i, b)``, where s_i is at most 1 long. A threshold is the middle
between the classes' mean scores, which is decided from sums and counts jointly: see `..released.posterior`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from fedveil.learning.models.learner import Vector
from fedveil.learning.released.class_statistics import COUNT_WEIGHT
from fedveil.learning.released.posterior import (
    LEAST_WEIGHT,
    MIDDLE,
    ClassMeans,
    Noisy,
    combined,
    means_of,
    weight_of,
)

__all__ = ["NEAREST", "Certainty", "ScoreStatistics", "drowned"]

NEAREST = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Certainty:
    """How sure a decision rule is, from public numbers.

    Attributes:
        weight: the fraction of the measured shift that noise leaves, in [0, 1].
        error: posterior standard deviation of the threshold, in units of the distance between the classes' means.
        noise: standard deviation of the noise in each coordinate of the middle of scores.
    """

    weight: float
    error: float
    noise: tuple[float, ...]

    @classmethod
    def of(cls, found: ClassMeans) -> Self:
        """How sure the middle between class means is.

        A fraction w of the measured middle is left where its noise has variance ``MIDDLE^2 (1 - w) / w``, so w times
        it has noise of variance ``MIDDLE^2 w (1 - w)``.
        """
        error = found.middle_std / max(distance(found.means), NEAREST)
        noise = MIDDLE * float(np.sqrt(found.weight * (1 - found.weight)))
        return cls(weight=found.weight, error=error, noise=(noise,) * len(found.middle))

    @classmethod
    def of_all(cls, parts: Sequence[Self]) -> Self:
        """Of thresholds that are decided one by one: that of the least certain one, and the noise of each."""
        return cls(
            weight=min(one.weight for one in parts),
            error=max(one.error for one in parts),
            noise=tuple(number for one in parts for number in one.noise),
        )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ScoreStatistics:
    """The release with its noise, hence public.

    Attributes:
        sums: (classes, logits) of scores.
        counts: (classes,) of units.
    """

    sums: Noisy
    counts: Noisy

    @classmethod
    def from_released(cls, vector: Vector, classes: int, variance: float, earlier: Noisy | None) -> Self:
        """Read the noisy sum over all sites.

        Args:
            vector: as released.
            classes: number of classes.
            variance: of the noise in each number, which is public.
            earlier: class sizes from an earlier release of the same units; None if there is none.
        """
        rows, of_scores = vector.reshape(classes, -1), 1 - COUNT_WEIGHT**2
        counts = Noisy(rows[:, -1] / COUNT_WEIGHT, variance / COUNT_WEIGHT**2)
        return cls(
            sums=Noisy(rows[:, :-1] / np.sqrt(of_scores), variance / of_scores),
            counts=counts if earlier is None else combined(counts, earlier),
        )

    def means(self, around: Vector | None = None) -> ClassMeans:
        """The posterior of the class means, with the middle's prior around a value, 0 if None."""
        return means_of(self.sums, self.counts, around)


def drowned(variance: float, groups: Vector) -> bool:
    """Whether noise would leave less than `LEAST_WEIGHT` of the measured middle, for every threshold.

    Args:
        variance: of the noise in each sum of scores.
        groups: (thresholds, classes) units of the classes that each threshold separates.
    """
    return all(weight_of(sizes, variance) < LEAST_WEIGHT for sizes in groups)


def distance(means: Vector) -> float:
    """How much higher the own logit of a class is than that of others, on average over the classes.

    >>> distance(np.array([[-1.0], [3.0]])), round(distance(np.eye(3)), 6)
    (4.0, 1.0)
    """
    if means.shape[1] == 1:
        return float(means[1, 0] - means[0, 0])
    return float(np.trace(means - means.mean(axis=0)) / (len(means) - 1))
