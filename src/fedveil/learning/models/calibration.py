"""One noisy sum after training: class sizes, sums of scores by class, and the sum of squared scores.

A threshold needs the middle between the classes' mean scores, a temperature also the variance within classes; both
are decided from the same release, as `.posterior` says. With s_v the score vectors of an image's views, each cut to
length 1, their mean s and mean square ``q = mean |s_v|^2``, an image i adds

    onehot(y_i) (x) (a s_i, b),  c q_i        with a^2 + b^2 + c^2 = 1.

|s| <= 1 and q <= 1, so its norm is at most 1, and a unit adds the average over its images, of norm at most 1
(convexity), for any number of images, views and classes. Terms are cut to the grid of `fedveil.learning.exact`: their
sum is exact, so omitting a unit does not change the rounding of others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from fedveil.learning.exact import SHORTER, lengths, on_grid
from fedveil.learning.models.learner import Vector
from fedveil.learning.models.posterior import (
    MIDDLE,
    ClassMeans,
    Noisy,
    combined,
    counts_of,
    means_of,
    temperature_of,
)

__all__ = ["Calibration", "Certainty"]

COUNTS = 0.3
"""b above."""
SQUARES = 0.4
"""c above."""
SCORES = float(np.sqrt(1 - COUNTS**2 - SQUARES**2))
"""a above."""
NEAREST = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Certainty:
    """How sure a decision rule is, from public numbers.

    Attributes:
        weight: the fraction of the measured shift that noise leaves, in [0, 1]; 0 if nothing was measured.
        error: posterior standard deviation of the threshold, in units of the distance between the classes' means.
        temperature: the factor that makes logits log odds.
        noise: standard deviation of the noise in each coordinate of the middle of scores.
    """

    weight: float
    error: float
    temperature: float
    noise: float = 0.0


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Calibration:
    """The release with its noise, hence public.

    Attributes:
        sums: (classes, logits) of scores.
        counts: (classes,) of units.
        square: (1,) sum of squared scores.
    """

    sums: Noisy
    counts: Noisy
    square: Noisy

    @staticmethod
    def size(classes: int, logits: int) -> int:
        """Length of the released vector."""
        return classes * (logits + 1) + 1

    @staticmethod
    def contribution(
        views: Sequence[Vector], labels: npt.NDArray[np.int64], weights: Vector, classes: int
    ) -> Vector:
        """Sum the units' contributions; exact, so it stays in the hospital.

        Args:
            views: scores (n, logits) of each image's views; longer ones are scaled down to length 1, and an image
                with a score that is not finite counts as zero.
            labels: (n,) class codes.
            weights: (n,) each image's share in its unit; they sum to 1 within a unit.
            classes: number of classes.
        """
        finite = np.all([np.isfinite(one).all(axis=1) for one in views], axis=0)
        safe = [np.where(finite[:, None], one, 0.0) for one in views]
        cut = [one / np.maximum(lengths(one), 1.0)[:, None] for one in safe]
        mean = _mean(cut)
        square = np.minimum(_mean([lengths(one) ** 2 for one in cut]), 1.0)
        shares = (SHORTER * weights)[:, None]
        named = np.concatenate([SCORES * mean, np.full((len(mean), 1), COUNTS)], axis=1)
        by_class = np.eye(classes)[labels].T @ on_grid(named * shares)
        return np.append(by_class.ravel(), on_grid(SQUARES * square * shares[:, 0]).sum())

    @classmethod
    def from_released(cls, vector: Vector, classes: int, variance: float, earlier: Noisy | None) -> Self:
        """Read the noisy sum over all sites.

        Args:
            vector: as released.
            classes: number of classes.
            variance: of the noise in each number, which is public.
            earlier: class sizes from an earlier release of the same units; None if there is none.
        """
        rows = vector[:-1].reshape(classes, -1)
        counts = Noisy(rows[:, -1] / COUNTS, variance / COUNTS**2)
        return cls(
            sums=Noisy(rows[:, :-1] / SCORES, variance / SCORES**2),
            counts=counts if earlier is None else combined(counts, earlier),
            square=Noisy(vector[-1:] / SQUARES, variance / SQUARES**2),
        )

    def means(self, around: Vector | None = None) -> ClassMeans:
        """The posterior of the class means, with the middle's prior around a value, 0 if None."""
        return means_of(self.sums, self.counts, around)

    def temperature(self, found: ClassMeans, scale: float) -> float:
        """The factor for logits under which they are log odds; see `.posterior`.

        Args:
            found: the class means.
            scale: logits per unit of a score.
        """
        classes, logits = found.means.shape
        degrees = max(1, logits - 1)
        sizes = np.maximum(counts_of(self.counts), NEAREST)
        shares, total = sizes / sizes.sum(), float(sizes.sum())
        between = float(shares @ np.square(found.means).sum(axis=1))
        within = (self.square.values / total - between) / degrees
        noise = self.square.variance / (total * degrees) ** 2
        apart = float(found.means_variance.sum()) / (1 if logits == 1 else classes * (classes - 1))
        return temperature_of(Noisy(np.array([distance(found.means)]), apart), Noisy(within, noise), scale)

    def certainty(self, found: ClassMeans, temperature: float) -> Certainty:
        """How sure the threshold is.

        A fraction w of the measured middle is left where its noise has variance ``MIDDLE^2 (1 - w) / w``, so w times
        it has noise of variance ``MIDDLE^2 w (1 - w)``.
        """
        error = found.middle_std / max(distance(found.means), NEAREST)
        noise = MIDDLE * float(np.sqrt(found.weight * (1 - found.weight)))
        return Certainty(weight=found.weight, error=error, temperature=temperature, noise=noise)


def distance(means: Vector) -> float:
    """How much higher the own logit of a class is than that of others, on average over the classes.

    >>> distance(np.array([[-1.0], [3.0]])), round(distance(np.eye(3)), 6)
    (4.0, 1.0)
    """
    if means.shape[1] == 1:
        return float(means[1, 0] - means[0, 0])
    return float(np.trace(means - means.mean(axis=0)) / (len(means) - 1))


def _mean(parts: Sequence[Vector]) -> Vector:
    """Elementwise mean, so that an image's number does not depend on other images."""
    result: Vector = sum(parts[1:], parts[0]) / len(parts)
    return result
