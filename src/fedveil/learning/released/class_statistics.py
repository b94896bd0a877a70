"""One noisy sum before training: the number of units per class, and their mean features.

Frozen features of medical images share one large mean; it dominates the directions in which classes differ. Removing
it from each block of features, and scaling blocks to unit length again, is worth several points of AUROC at small
epsilon. The mean of private images is private, so it is released first, with noise, together with the class sizes that
thresholds and step sizes need: one vector, one charge.

A unit contributes the average over its images i of ``onehot(y_i) (x) (sqrt(1 - b^2) x_i, b)``. With ``||x_i|| <= 1``
each term has norm at most 1, so the average has too (convexity), for any number of images and classes. Terms are
rounded to the grid of `fedveil.learning.exact`: their sum is exact, so omitting a unit does not change the rounding
of others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fedveil.errors import InvalidValue
from fedveil.learning.exact import SHORTER, lengths, on_grid
from fedveil.learning.models.learner import Vector
from fedveil.learning.models.public_start import centre_towards
from fedveil.learning.ranges import bounded_blocks, class_sizes
from fedveil.learning.released.posterior import Noisy, counts_of, shrunk

__all__ = ["ClassStatistics", "unit_blocks"]

COUNT_WEIGHT = 0.3
"""b above: the part of a contribution's length that counts the unit; the rest is for its features."""
SMALLEST_NORM = 1e-12


def unit_blocks(
    features: npt.NDArray[Any], blocks: Sequence[int], centre: Vector | None = None
) -> npt.NDArray[np.float32]:
    """Subtract a public centre, then scale each block of every row to the same length, and the row to length 1.

    Args:
        features: (n, d).
        blocks: lengths of consecutive blocks of columns, d in total.
        centre: (d,) subtracted first; None for the origin.

    Returns:
        float32 (n, d); a block that is zero stays zero, and a row that is not finite counts as zero before the centre
        is subtracted. Each row is a function of that row alone, to the last bit.
    """
    if sum(blocks) != features.shape[1]:
        raise InvalidValue(
            f"blocks of {sum(blocks)} columns were given for {features.shape[1]} features",
            "blocks must cover all features",
            "use the blocks of the extractor that made them",
        )
    result = np.array(features, dtype=np.float32)
    result[~np.isfinite(result).all(axis=1)] = 0.0
    if centre is not None:
        result -= centre.astype(np.float32)
    start = 0
    for length in blocks:
        block = result[:, start : start + length]
        norms = lengths(block)[:, None].astype(np.float32)
        block /= np.maximum(norms, SMALLEST_NORM) * np.float32(np.sqrt(len(blocks)))
        start += length
    return result


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ClassStatistics:
    """The release with its noise, hence public.

    Attributes:
        counts: (classes,) units of each class: posterior means, as `class_sizes` cuts them; a unit with images of
            several classes is shared among them.
        means: (classes, d) average features.
        noise_variance: of each number in the released vector.
        measured: the class sizes as released, with their noise; None stands for exact counts.
    """

    counts: Vector
    means: Vector
    noise_variance: float
    measured: Noisy | None = None

    @property
    def released_counts(self) -> Noisy:
        """The class sizes with their noise, for a later release of the same units."""
        return Noisy(self.counts, 0.0) if self.measured is None else self.measured

    @property
    def units(self) -> float:
        """Number of units."""
        return float(self.counts.sum())

    @property
    def units_std(self) -> float:
        """Standard deviation of the noise in the number of units, before class sizes are cut."""
        return float(np.sqrt(len(self.counts) * self.noise_variance)) / COUNT_WEIGHT

    @property
    def priors(self) -> Vector:
        """(classes,) class frequencies."""
        result: Vector = self.counts / self.counts.sum()
        return result

    @property
    def groups(self) -> Vector:
        """(1, classes) class sizes."""
        return self.counts[None, :]

    @property
    def weights(self) -> Vector:
        """(classes,) loss weights under which all classes count equally, with mean 1 over the units."""
        result: Vector = self.counts.sum() / (len(self.counts) * self.counts)
        return result

    def centre(self, blocks: Sequence[int], towards: Vector | None = None) -> Vector:
        """(d,) the midpoint between the classes' means, all classes counting equally: its posterior mean.

        Block by block, see `..released.posterior.shrunk`: a centre that is mostly noise is shrunk towards 0. Blocks
        are then clipped to the length of feature blocks, which no mean exceeds (`fedveil.learning.ranges`). With a
        public centre to shrink ``towards``, see `..models.public_start`.
        """
        middle = self.means.mean(axis=0)
        variance = self.noise_variance / (1 - COUNT_WEIGHT**2) * float(np.mean(1 / self.counts**2))
        variance /= len(self.counts)
        if towards is not None:
            return centre_towards(middle, towards, blocks, variance)
        longest = len(blocks) ** -0.5
        parts = np.split(middle, np.cumsum(blocks)[:-1])
        return bounded_blocks(np.concatenate([shrunk(part, variance, longest) for part in parts]), blocks)

    @staticmethod
    def size(classes: int, dimension: int) -> int:
        """Length of the released vector."""
        return classes * (dimension + 1)

    @staticmethod
    def contribution(
        features: npt.NDArray[Any],
        labels: npt.NDArray[np.int64],
        weights: Vector,
        classes: int,
    ) -> Vector:
        """Sum the units' contributions; exact, so it stays in the hospital.

        Each image's term is cut to a grid and its part for classes added up without rounding.

        Args:
            features: (n, d), rows of norm at most 1, as `unit_blocks` makes them; longer ones are scaled down, and
                rows that are not finite count as zero.
            labels: (n,) class codes.
            weights: (n,) each image's share in its unit; they sum to 1 within a unit.
            classes: number of classes.
        """
        finite = np.isfinite(features).all(axis=1, keepdims=True)
        points = np.where(finite, features, 0.0).astype(np.float64)
        points /= np.maximum(lengths(points), 1.0)[:, None]
        extended = np.concatenate(
            [points * np.sqrt(1 - COUNT_WEIGHT**2), np.full((len(points), 1), COUNT_WEIGHT)], axis=1
        )
        agreement = on_grid(extended * (SHORTER * weights)[:, None])
        total: Vector = (np.eye(classes)[labels].T @ agreement).ravel()
        return total

    @classmethod
    def of_counts(cls, measured: Noisy) -> Self:
        """Class sizes alone, from noisy ones; there are no features."""
        return cls(
            counts=class_sizes(counts_of(measured)),
            means=np.zeros((len(measured.values), 0)),
            noise_variance=measured.variance,
            measured=measured,
        )

    @classmethod
    def from_released(
        cls, vector: Vector, classes: int, noise_variance: float, counts: Vector | None = None
    ) -> Self:
        """Read the noisy sum over all sites.

        Args:
            vector: as released.
            classes: number of classes.
            noise_variance: of the noise in each number, which is public.
            counts: class sizes from more than this release; None reads them here.
        """
        rows = vector.reshape(classes, -1)
        measured = Noisy(rows[:, -1] / COUNT_WEIGHT, noise_variance / COUNT_WEIGHT**2)
        if counts is not None:
            measured = Noisy(counts, 0.0)
        sizes = class_sizes(counts_of(measured))
        means = rows[:, :-1] / (np.sqrt(1 - COUNT_WEIGHT**2) * sizes[:, None])
        return cls(counts=sizes, means=means, noise_variance=noise_variance, measured=measured)
