"""95 % intervals of test metrics: the choice of test patients, and the noise of training.

**Patients.** AUROC and balanced accuracy are smooth functions of sums over patients, so their variance over draws of
patients is the sum of their squared influences (the infinitesimal jackknife; for the AUROC the structural components
of DeLong et al. 1988, clustered as in Obuchowski 1997). A patient's influence is the sum of those of their images:
images of one patient are alike. With V_i the share of negatives that a positive i outscores, ties half, and likewise
for negatives, an image adds ``(V_i - A) / n`` with n the images of its side. This takes memory proportional to the
images, where resampling takes the product with the number of resamples.

**Training.** The same study run again draws other noise. `Spread` holds the standard deviations of the metrics over
it, see `fedveil.study.results.training_noise`. Both are independent, so variances add.

**Interval.** Wilson's (1927), with the effective number ``m = A (1 - A) / variance`` of independent trials: it stays
within [0, 1] and does not collapse where a metric is 1 on few patients.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedveil.learning.models.learner import Vector

__all__ = [
    "NO_INTERVAL",
    "Interval",
    "Labels",
    "Spread",
    "auroc_influences",
    "difference",
    "recall_influences",
    "wilson",
]

Interval = tuple[float, float]
NO_INTERVAL: Interval = (math.nan, math.nan)
NORMAL = 1.96
ROUNDING = 1e-9
"""A mean of ones may be less than 1 by so much."""
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Standard deviations of metrics over the noise of training."""

    auroc: float = 0.0
    balanced_accuracy: float = 0.0
    quadratic_kappa: float = 0.0


def wilson(value: float, influences: Vector, patients: Labels, noise: float = 0.0) -> Interval:
    """The interval of a metric.

    Args:
        value: the metric, in [0, 1]; NaN gives no interval.
        influences: (n,) of the images.
        patients: (n,) patient codes 0 .. P-1.
        noise: standard deviation over the noise of training.

    >>> [round(end, 3) for end in wilson(1.0 - 1e-16, np.full(30, 1e-18), np.arange(30))]
    [0.886, 1.0]
    """
    if math.isnan(value):
        return NO_INTERVAL
    own = np.bincount(patients, influences)
    count = len(own)
    variance = float(np.square(own).sum()) * count / max(count - 1, 1) + noise**2
    most = float(count)
    inside = ROUNDING < value < 1 - ROUNDING and variance > 0
    size = max(min(value * (1 - value) / variance, 1e12), 1e-9) if inside else most
    centre = (value + NORMAL**2 / (2 * size)) / (1 + NORMAL**2 / size)
    reach = (
        NORMAL / (1 + NORMAL**2 / size) * math.sqrt(value * (1 - value) / size + (NORMAL / (2 * size)) ** 2)
    )
    return max(0.0, min(value, centre - reach)), min(1.0, max(value, centre + reach))


def difference(
    values: tuple[float, float],
    intervals: tuple[Interval, Interval],
    influences: tuple[Vector, Vector],
    patients: Labels,
) -> Interval:
    """The interval of the first metric minus the second, each on its part of the images.

    From both intervals, as Newcombe (1998) and Zou & Donner (2008) combine them: with l and u their ends and r the
    correlation over patients, whose images may lie in both parts, the lower end is ``d - sqrt(a^2 + b^2 - 2 r a b)``
    with ``a = A_1 - l_1`` and ``b = u_2 - A_2``, and the upper end likewise.

    Args:
        values: the metrics; NaN in either gives no interval.
        intervals: of both.
        influences: (n,) of all images on each metric, 0 for those of the other part.
        patients: (n,) patient codes.
    """
    if math.isnan(values[0] + values[1]):
        return NO_INTERVAL
    (low, high), (others_low, others_high) = intervals
    one, other = (np.bincount(patients, part) for part in influences)
    both = math.sqrt(float(one @ one) * float(other @ other))
    shared = float(one @ other) / both if both else 0.0
    down, up = (
        math.sqrt(max(a * a + b * b - 2 * shared * a * b, 0.0))
        for a, b in ((values[0] - low, others_high - values[1]), (high - values[0], values[1] - others_low))
    )
    gap = values[0] - values[1]
    return max(-1.0, gap - down), min(1.0, gap + up)


def auroc_influences(sides: Sequence[tuple[npt.NDArray[np.bool_], Vector]], images: int) -> Vector:
    """Influence (n,) of each image on the mean AUROC of those (positive, scores) in which both sides occur."""
    parts = [_one_against_rest(positive, scores) for positive, scores in sides]
    defined = [part for part in parts if part is not None]
    if not defined:
        return np.zeros(images)
    total: Vector = np.sum(defined, axis=0) / len(defined)
    return total


def recall_influences(labels: Labels, predicted: Labels) -> Vector:
    """Influence (n,) of each image on the mean sensitivity of the classes that occur."""
    total = np.zeros(len(labels))
    present = np.unique(labels)
    for code in present:
        own = labels == code
        hits = (predicted[own] == code).astype(np.float64)
        total[own] = (hits - hits.mean()) / (len(hits) * len(present))
    return total


def _one_against_rest(positive: npt.NDArray[np.bool_], scores: Vector) -> Vector | None:
    """Influences on one AUROC; None if a side is empty."""
    if positive.all() or not positive.any():
        return None
    placed = np.empty(len(scores))
    sides = np.sort(scores[positive]), np.sort(scores[~positive])
    placed[positive] = _outscored(scores[positive], sides[1])
    placed[~positive] = 1 - _outscored(scores[~positive], sides[0])
    placed[positive] = (placed[positive] - placed[positive].mean()) / len(sides[0])
    placed[~positive] = (placed[~positive] - placed[~positive].mean()) / len(sides[1])
    return placed


def _outscored(scores: Vector, others: Vector) -> Vector:
    """Share of sorted others that each score exceeds, ties half."""
    low, high = (np.searchsorted(others, scores, side) for side in ("left", "right"))
    result: Vector = (low + high) / (2 * len(others))
    return result
