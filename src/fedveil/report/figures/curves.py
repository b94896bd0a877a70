"""The content of the figures, as arrays: ROC curves, reliability bins, score histograms, confusion.

All functions are pure and take the test set's labels and scores; none depends on how a figure is drawn.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Reliability", "Roc", "confusion", "histogram", "mean_roc", "reliability", "roc"]

Floats = NDArray[np.float64]
WILSON_Z = 1.959964
"""Standard normal quantile of a two-sided 95 % interval."""


@dataclass(frozen=True, slots=True)
class Roc:
    """True-positive rate against false-positive rate, both from (0, 0) to (1, 1), corners only."""

    false_positive_rate: Floats
    true_positive_rate: Floats

    def at(self, false_positive_rate: float) -> float:
        """The largest true-positive rate at this false-positive rate, linear between thresholds."""
        x, y = self.false_positive_rate, self.true_positive_rate
        left = int(np.searchsorted(x, false_positive_rate, side="right")) - 1
        if left == len(x) - 1:
            return float(y[-1])
        along = (false_positive_rate - x[left]) / (x[left + 1] - x[left])
        return float(y[left] + along * (y[left + 1] - y[left]))


def roc(positive: NDArray[np.bool_], scores: Floats) -> Roc | None:
    """The ROC curve over all thresholds, tied scores together; None if a class is missing."""
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return None
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.append(np.diff(scores[order]) != 0, True)
    hits = np.cumsum(positive[order])[last_of_tie]
    alarms = np.cumsum(~positive[order])[last_of_tie]
    rates = np.concatenate([[[0.0, 0.0]], np.stack([alarms / negatives, hits / positives], axis=1)])
    return Roc(*_corners(rates).T)


def _corners(points: Floats) -> Floats:
    """The polyline without points that lie on a straight segment."""
    if len(points) < 3:
        return points
    before, after = np.diff(points, axis=0)[:-1], np.diff(points, axis=0)[1:]
    turns = np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) > 1e-15
    kept: Floats = points[np.concatenate([[True], turns, [True]])]
    return kept


def mean_roc(curves: list[Roc], points: int = 201) -> Roc:
    """The average true-positive rate of several curves at each false-positive rate (macro average)."""
    grid = np.linspace(0.0, 1.0, points)
    mean = np.mean(
        [np.interp(grid, curve.false_positive_rate, curve.true_positive_rate) for curve in curves], axis=0
    )
    return Roc(np.concatenate([[0.0], grid]), np.concatenate([[0.0], mean]))


@dataclass(frozen=True, slots=True)
class Reliability:
    """Per non-empty bin of predicted probability: mean, share of events, 95 % interval, size."""

    predicted: Floats
    observed: Floats
    low: Floats
    high: Floats
    counts: NDArray[np.int64]

    @property
    def error(self) -> float:
        """Expected calibration error: mean distance of predicted and observed, weighted by bin size."""
        return float(np.average(np.abs(self.predicted - self.observed), weights=self.counts))


def reliability(event: NDArray[np.bool_], probability: Floats, bins: int = 10) -> Reliability:
    """Equal-width bins of `probability`, with Wilson (1927) intervals, which treat images as independent."""
    index = np.minimum((probability * bins).astype(np.int64), bins - 1)
    counts = np.bincount(index, minlength=bins)
    kept = counts > 0
    n = counts[kept].astype(np.float64)
    predicted = np.bincount(index, weights=probability, minlength=bins)[kept] / n
    observed = np.bincount(index, weights=event, minlength=bins)[kept] / n
    z2 = WILSON_Z**2
    centre = (observed + z2 / (2 * n)) / (1 + z2 / n)
    half = WILSON_Z / (1 + z2 / n) * np.sqrt(observed * (1 - observed) / n + z2 / (4 * n**2))
    return Reliability(
        predicted, observed, np.maximum(centre - half, 0), np.minimum(centre + half, 1), counts[kept]
    )


def histogram(scores: Floats, bins: int = 20) -> Floats:
    """Share of `scores` (in [0, 1]) in each of `bins` equal-width bins, shape (bins,); zeros where none."""
    counts, _ = np.histogram(scores, bins=bins, range=(0.0, 1.0))
    return counts / max(len(scores), 1)


def confusion(labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Counts of true class (row) against predicted class (column), shape (classes, classes)."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)
