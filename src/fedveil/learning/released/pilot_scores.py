"""Scores along the noisy differences between classes' means, and their histogram.

For each class k against the rest (with two classes only for class 1) the direction is the difference between the
noisy mean of the class and that of the rest, scaled to length 1, and a score is ``w . x - c``: c is the middle between
both means along w. Features have length 1. The three bins are fixed: scores below, within and above plus and minus
`REACH` times sqrt(8 / d), the public guess of a score's standard deviation in d dimensions. Each further bin would add
noise to what the histogram is for, the distance of the classes and the spread within them.
"""

import math

import numpy as np
import numpy.typing as npt

from fedveil.learning.exact import on_grid
from fedveil.learning.models.learner import Vector
from fedveil.learning.released.class_statistics import ClassStatistics
from fedveil.learning.released.discriminant import ANISOTROPY

__all__ = ["BINS", "bin_edges", "differences", "directions", "pilot_counts", "pilot_size", "tables"]

BINS = 3
REACH = 0.2
SHORTEST = 1e-9
LONGEST = 0.999
"""A middle score along a direction of length 1 is at most 1; less, so that sites' checks never meet rounding."""


def tables(classes: int) -> int:
    """The number of histograms: one for two classes, otherwise one per class."""
    return 1 if classes == 2 else classes


def pilot_size(classes: int) -> int:
    """Length of the released vector.

    >>> pilot_size(2), pilot_size(5)
    (6, 30)
    """
    return tables(classes) * 2 * BINS


def bin_edges(dimension: int) -> Vector:
    """(BINS + 1,) the edges of the bins, for features of this dimension; the outer bins are unbounded."""
    inner = REACH * math.sqrt(ANISOTROPY / dimension)
    return np.array([-math.inf, -inner, inner, math.inf])


def differences(statistics: ClassStatistics) -> tuple[Vector, Vector]:
    """Differences (tables, d) between the mean of a class and that of the rest, and the middles (tables, d)."""
    counts, means = statistics.counts, statistics.means
    told = [1] if len(counts) == 2 else list(range(len(counts)))
    found, middles = [], []
    for code in told:
        rest = np.delete(np.arange(len(counts)), code)
        other = counts[rest] @ means[rest] / counts[rest].sum()
        found.append(means[code] - other)
        middles.append((means[code] + other) / 2)
    return np.stack(found), np.stack(middles)


def directions(statistics: ClassStatistics) -> tuple[Vector, Vector]:
    """Directions (tables x d,) of length 1, flattened, and the middle scores (tables,) along them, at most 1."""
    found, middles = differences(statistics)
    unit = found / np.maximum(np.linalg.norm(found, axis=1), SHORTEST)[:, None]
    return unit.ravel(), np.clip((unit * middles).sum(axis=1), -LONGEST, LONGEST)


def pilot_counts(
    scores: Vector, labels: npt.NDArray[np.int64], weights: Vector, classes: int, dimension: int
) -> Vector:
    """Sum the units' contributions; exact, so it stays in the hospital.

    Args:
        scores: (n, tables) along the directions, less the middle. An image whose scores are not finite adds nothing.
        labels: (n,) class codes.
        weights: (n,) each image's share in its unit; they sum to 1 within a unit.
        classes: number of classes.
        dimension: number of features.
    """
    finite: npt.NDArray[np.bool_] = np.asarray(np.isfinite(scores).all(axis=1))
    share = on_grid(weights * finite / math.sqrt(tables(classes)))
    bins = np.searchsorted(bin_edges(dimension)[1:-1], np.where(finite.reshape(-1, 1), scores, 0.0))
    told = [1] if classes == 2 else range(classes)
    blocks = [
        np.bincount((labels == code) * BINS + bins[:, column], share, 2 * BINS)
        for column, code in enumerate(told)
    ]
    return np.concatenate(blocks)
