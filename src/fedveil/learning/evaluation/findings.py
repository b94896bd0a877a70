"""Decisions and metrics where images have several findings: each finding against its absence, and means over them.

Intervals are those of `.intervals`, with the mean of the findings' influences.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedveil.errors import InvalidValue
from fedveil.lazy import later
from fedveil.learning.evaluation.intervals import NO_INTERVAL, Interval, Spread, wilson
from fedveil.learning.evaluation.metrics import ClassMetrics, Metrics, expected_calibration_error
from fedveil.learning.models.learner import Vector

__all__ = ["decide_findings", "evaluate_findings", "findings_point"]

stats = later("scipy.stats")

SMALLEST = 1e-12
Labels = npt.NDArray[Any]


def decide_findings(probabilities: Vector, frequencies: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Which findings are called present, (n, K) of 1 and 0: those more probable than they are frequent in training.

    That is the decision under equal frequencies of presence and absence, which maximises balanced accuracy.
    """
    result: npt.NDArray[np.int64] = (probabilities > np.asarray(frequencies, np.float64)).astype(np.int64)
    return result


def findings_point(labels: Labels, probabilities: Vector, frequencies: npt.ArrayLike) -> dict[str, float]:
    """Macro AUROC and balanced accuracy, for a learning curve."""
    predicted = decide_findings(probabilities, frequencies)
    found = [_Finding.of(labels[:, k], probabilities[:, k], predicted[:, k]) for k in range(labels.shape[1])]
    return {
        "auroc": _mean([one.auroc for one in found]),
        "balanced_accuracy": _mean([one.balanced for one in found]),
    }


def evaluate_findings(
    labels: Labels,
    probabilities: Vector,
    *,
    classes: Sequence[str],
    patients: npt.ArrayLike,
    frequencies: npt.ArrayLike,
    spread: Spread | None = None,
) -> Metrics:
    """Evaluate predictions of findings on a test set.

    Args:
        labels: (n, K) of 1, 0, and -1 for unknown, which is left out.
        probabilities: (n, K) of each finding.
        classes: names of the findings.
        patients: (n,) patient codes for the intervals.
        frequencies: (K,) of the findings in training, for decisions.
        spread: of the metrics over the noise of training; None leaves it out of the intervals.

    Raises:
        InvalidValue: no images, or inconsistent columns.
    """
    if not len(labels) or labels.shape != probabilities.shape or labels.shape[1] != len(classes):
        raise InvalidValue(
            f"labels have the shape {labels.shape}, probabilities {probabilities.shape}",
            f"both must be (images, {len(classes)}), with at least one image",
            "give one label and one probability per image and finding",
        )
    codes = np.unique(np.asarray(patients), return_inverse=True)[1]
    predicted = decide_findings(probabilities, frequencies)
    found = [
        _Finding.of(labels[:, k], probabilities[:, k], predicted[:, k], codes) for k in range(len(classes))
    ]
    noise = spread or Spread()
    auroc, balanced = _mean([one.auroc for one in found]), _mean([one.balanced for one in found])
    return Metrics(
        n=len(labels),
        patients=int(codes.max()) + 1,
        auroc=auroc,
        auroc_interval=_interval(auroc, [one.auroc_influence for one in found], noise.auroc),
        balanced_accuracy=balanced,
        balanced_accuracy_interval=_interval(
            balanced, [one.balanced_influence for one in found], noise.balanced_accuracy
        ),
        accuracy=_mean([one.accuracy for one in found]),
        brier=_mean([one.brier for one in found]),
        log_loss=_mean([one.log_loss for one in found]),
        calibration_error=_mean([one.calibration_error for one in found]),
        threshold=math.nan,
        majority={
            "accuracy": _mean([max(one.share, 1 - one.share) for one in found]),
            "balanced_accuracy": 0.5,
        },
        confusion=(),
        per_class=tuple(
            ClassMetrics(
                name=name,
                n=one.positives,
                sensitivity=one.sensitivity,
                specificity=one.specificity,
                auroc=one.auroc,
            )
            for name, one in zip(classes, found, strict=True)
        ),
    )


class _Finding:
    """One finding against its absence, over the images where it is known."""

    def __init__(self, truth: npt.NDArray[np.bool_], scores: Vector, called: npt.NDArray[np.bool_]) -> None:
        self.positives, self.share = int(truth.sum()), float(truth.mean()) if len(truth) else math.nan
        self.sensitivity = float(called[truth].mean()) if truth.any() else math.nan
        self.specificity = float((~called[~truth]).mean()) if not truth.all() else math.nan
        self.balanced = (self.sensitivity + self.specificity) / 2
        self.accuracy = float((called == truth).mean()) if len(truth) else math.nan
        self.brier = float(np.square(scores - truth).mean()) if len(truth) else math.nan
        sure = np.clip(np.where(truth, scores, 1 - scores), SMALLEST, 1)
        self.log_loss = float(-np.log(sure).mean()) if len(truth) else math.nan
        self.calibration_error = (
            expected_calibration_error(truth.astype(np.int64), np.stack([1 - scores, scores], axis=1))
            if len(truth)
            else math.nan
        )
        self.auroc = math.nan
        self.auroc_influence: Vector = np.empty(0)
        self.balanced_influence: Vector = np.empty(0)

    @classmethod
    def of(
        cls,
        labels: Labels,
        scores: Vector,
        predicted: npt.NDArray[np.int64],
        codes: npt.NDArray[np.int64] | None = None,
    ) -> "_Finding":
        """The metrics, with the influence of each patient (those of ``codes``) on them."""
        known = labels >= 0
        truth, scores, called = labels[known] == 1, scores[known], predicted[known] == 1
        found = cls(truth, scores, called)
        if not truth.any() or truth.all():
            return found
        below = _below(scores, truth)
        found.auroc = float(below[truth].mean())
        if codes is not None:
            whose, patients = codes[known], int(codes.max()) + 1
            counts = np.where(truth, truth.sum(), (~truth).sum())
            ranked: Vector = np.where(truth, below - found.auroc, 1 - below - found.auroc) / counts
            hit = np.where(truth, called - found.sensitivity, ~called - found.specificity) / (2 * counts)
            found.auroc_influence = np.bincount(whose, ranked, patients).astype(np.float64)
            found.balanced_influence = np.bincount(whose, hit, patients).astype(np.float64)
        return found


def _below(scores: Vector, truth: npt.NDArray[np.bool_]) -> Vector:
    """For each positive the share of negatives below it, for each negative that of positives below; ties half."""
    everyone = stats.rankdata(scores)
    result = np.empty(len(scores))
    for side in (True, False):
        own = truth == side
        result[own] = (everyone[own] - stats.rankdata(scores[own])) / (len(scores) - own.sum())
    return result


def _mean(values: Sequence[float]) -> float:
    """Over those that are defined; NaN if none is."""
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan


def _interval(value: float, influences: Sequence[Vector], noise: float) -> Interval:
    """95 % for a mean over findings, from the influence of each patient on each."""
    defined = [one for one in influences if len(one)]
    if not defined:
        return NO_INTERVAL
    mean: Vector = np.mean(defined, axis=0)
    return wilson(value, mean, np.arange(len(mean)), noise)
