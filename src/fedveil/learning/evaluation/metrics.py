"""Evaluation of a released model: metrics on a public test set, with the intervals of `.intervals`.

Nothing in this file provides privacy: metrics of private images must be charged before they leave a hospital.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedveil.errors import InvalidValue
from fedveil.learning.evaluation.grades import above, kappa_interval, quadratic_kappa
from fedveil.learning.evaluation.intervals import (
    NO_INTERVAL,
    Interval,
    Spread,
    auroc_influences,
    recall_influences,
    wilson,
)
from fedveil.learning.models.learner import Vector

__all__ = [
    "ClassMetrics",
    "Metrics",
    "auroc",
    "decide",
    "evaluate",
    "expected_calibration_error",
    "sides_of",
]

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMetrics:
    """One class against the rest; NaN if undefined.

    Attributes:
        name: the class.
        n: test images of this class.
        sensitivity: share of its images that are recognised.
        specificity: share of other images that are not predicted as it.
        auroc: area under the ROC curve of its probability.
    """

    name: str
    n: int
    sensitivity: float
    specificity: float
    auroc: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Test metrics; NaN if undefined, such as the AUROC if only one class occurs.

    Attributes:
        n: images.
        patients: patients.
        auroc: area under the ROC curve; for more than two classes the mean over classes, each against the
            rest, and for grades that over cut points.
        auroc_interval: 95 % interval over test patients and, if its spread was given, the noise of training.
        balanced_accuracy: mean sensitivity of the classes.
        balanced_accuracy_interval: as above.
        accuracy: share of images classified correctly.
        brier: mean squared error of the probabilities: of class 1, or summed over more than two classes.
        log_loss: mean negative logarithm of the true class's probability, in nats.
        calibration_error: expected calibration error, 10 bins.
        quadratic_kappa: of grades, see `.grades`; NaN for classes without an order.
        quadratic_kappa_interval: as above.
        threshold: for two classes, the probability of class 1 above which it is predicted; NaN otherwise.
        majority: accuracy and balanced accuracy of always predicting the most frequent class.
        confusion: images by true class (rows) and predicted class (columns).
        per_class: one entry per class.
    """

    n: int
    patients: int
    auroc: float
    auroc_interval: Interval = NO_INTERVAL
    balanced_accuracy: float
    balanced_accuracy_interval: Interval = NO_INTERVAL
    accuracy: float
    brier: float
    log_loss: float
    calibration_error: float
    threshold: float
    majority: dict[str, float]
    confusion: tuple[tuple[int, ...], ...]
    per_class: tuple[ClassMetrics, ...]
    quadratic_kappa: float = math.nan
    quadratic_kappa_interval: Interval = NO_INTERVAL

    def to_dict(self) -> dict[str, Any]:
        """Plain values by name, as in `result.json`."""
        return asdict(self)


def decide(probabilities: Vector, priors: npt.ArrayLike | None = None) -> Labels:
    """Predict classes from probabilities (n, classes).

    Args:
        probabilities: class probabilities under the class frequencies of training.
        priors: those frequencies, public or privately released. Each probability is divided by its class's
            frequency, so that the prediction is the one under equal frequencies, which maximises balanced accuracy;
            with two classes this is a threshold of ``priors[1]``. None takes the most probable class, a threshold of
            one half.

    >>> decide(np.array([[0.6, 0.4]])), decide(np.array([[0.6, 0.4]]), priors=[0.7, 0.3])
    (array([0]), array([1]))
    """
    weighted = probabilities
    if priors is not None:
        frequencies = np.asarray(priors, dtype=np.float64)
        if frequencies.shape != probabilities.shape[1:] or not (frequencies > 0).all():
            raise InvalidValue(
                f"priors are {frequencies}",
                f"there must be {probabilities.shape[1]} positive numbers",
                "release class counts, and set those that noise made negative to a positive value",
            )
        weighted = probabilities / frequencies
    predicted: Labels = np.argmax(weighted, axis=1)
    return predicted


def sides_of(
    labels: Labels, probabilities: Vector, *, ordered: bool = False
) -> list[tuple[npt.NDArray[np.bool_], Vector]]:
    """What an AUROC is the mean over: which images are positive, and the scores of all; grades are cut in two."""
    if ordered:
        return above(labels, probabilities)
    scored = range(1, 2) if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    return [(labels == code, probabilities[:, code]) for code in scored]


def auroc(labels: Labels, probabilities: Vector, *, ordered: bool = False) -> float:
    """Area under the ROC curve; with more than two classes the mean over them, each against the rest.

    Classes that have no image, or all of them, are left out; NaN if none remains. Of grades it is the mean over cut
    points, of what is above each.
    """
    values = [_auroc_of(*side) for side in sides_of(labels, probabilities, ordered=ordered)]
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan


def expected_calibration_error(labels: Labels, probabilities: Vector, bins: int = 10) -> float:
    """Mean gap between confidence and frequency over equally wide bins, weighted by their images.

    Confidence is that in class 1 of two classes, or in the predicted class of more (Guo et al., 1706.04599).
    """
    if probabilities.shape[1] == 2:
        confidence, hit = probabilities[:, 1], labels == 1
    else:
        confidence, hit = probabilities.max(axis=1), labels == probabilities.argmax(axis=1)
    of = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(of, confidence - hit, bins)
    return float(np.abs(gaps).sum() / len(labels))


def evaluate(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    *,
    classes: Sequence[str],
    patients: npt.ArrayLike | None = None,
    priors: npt.ArrayLike | None = None,
    spread: Spread | None = None,
    ordered: bool = False,
) -> Metrics:
    """Evaluate predictions on a test set.

    Args:
        labels: (n,) true classes.
        probabilities: (n, classes), rows that sum to 1.
        classes: names of the classes.
        patients: (n,) patient codes for the intervals; None counts each image as a patient.
        priors: class frequencies of training, for predictions as `decide` makes them.
        spread: of the metrics over the noise of training; None leaves it out of the intervals.
        ordered: classes are grades, whose quadratic weighted kappa is evaluated.

    Raises:
        InvalidValue: no images, inconsistent columns, or invalid probabilities.
    """
    from sklearn import metrics  # here, because its import would slow down every command

    truth, scores = _checked(labels, probabilities, len(classes))
    codes = np.unique(
        np.arange(len(truth)) if patients is None else np.asarray(patients), return_inverse=True
    )[1]
    predicted = decide(scores, priors)
    confusion = metrics.confusion_matrix(truth, predicted, labels=range(len(classes)))
    present = np.unique(truth)
    noise = spread or Spread()
    area = auroc(truth, scores, ordered=ordered)
    influences = auroc_influences(sides_of(truth, scores, ordered=ordered), len(truth))
    balanced = float(metrics.recall_score(truth, predicted, labels=present, average="macro"))
    threshold = math.nan
    if len(classes) == 2:
        threshold = 0.5 if priors is None else float(np.asarray(priors)[1] / np.sum(priors))
    return Metrics(
        n=len(truth),
        patients=int(codes.max()) + 1,
        auroc=area,
        auroc_interval=wilson(area, influences, codes, noise.auroc),
        balanced_accuracy=balanced,
        balanced_accuracy_interval=wilson(
            balanced, recall_influences(truth, predicted), codes, noise.balanced_accuracy
        ),
        accuracy=float(metrics.accuracy_score(truth, predicted)),
        brier=_brier(truth, scores),
        log_loss=float(metrics.log_loss(truth, scores, labels=range(len(classes)))),
        calibration_error=expected_calibration_error(truth, scores),
        threshold=threshold,
        majority={
            "accuracy": float(np.bincount(truth).max() / len(truth)),
            "balanced_accuracy": 1 / len(present),
        },
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
        per_class=tuple(
            _class_metrics(code, name, truth, scores, predicted) for code, name in enumerate(classes)
        ),
        **(_agreement(truth, predicted, len(classes), codes, noise.quadratic_kappa) if ordered else {}),
    )


def _agreement(truth: Labels, predicted: Labels, grades: int, codes: Labels, noise: float) -> dict[str, Any]:
    return {
        "quadratic_kappa": quadratic_kappa(truth, predicted, grades),
        "quadratic_kappa_interval": kappa_interval(truth, predicted, grades, codes, noise),
    }


def _class_metrics(code: int, name: str, truth: Labels, scores: Vector, predicted: Labels) -> ClassMetrics:
    own = truth == code
    return ClassMetrics(
        name=name,
        n=int(own.sum()),
        sensitivity=float((predicted[own] == code).mean()) if own.any() else math.nan,
        specificity=float((predicted[~own] != code).mean()) if not own.all() else math.nan,
        auroc=_auroc_of(own, scores[:, code]),
    )


def _auroc_of(positive: npt.NDArray[np.bool_], scores: Vector) -> float:
    from sklearn import metrics

    return (
        math.nan if positive.all() or not positive.any() else float(metrics.roc_auc_score(positive, scores))
    )


def _brier(truth: Labels, scores: Vector) -> float:
    errors = np.square(scores - np.eye(scores.shape[1])[truth]).sum(axis=1)
    return float(errors.mean() / (2 if scores.shape[1] == 2 else 1))


def _checked(labels: npt.ArrayLike, probabilities: npt.ArrayLike, classes: int) -> tuple[Labels, Vector]:
    truth, scores = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    if not len(truth) or scores.shape != (len(truth), classes):
        raise InvalidValue(
            f"{len(truth)} labels and probabilities of shape {scores.shape} were given",
            f"there must be at least one image, and {classes} probabilities for each",
            "give one label per test image",
        )
    if truth.dtype.kind not in "iu" or truth.min() < 0 or truth.max() >= classes:
        raise InvalidValue(
            f"labels reach from {truth.min()} to {truth.max()}",
            f"they must be whole numbers in 0 .. {classes - 1}",
            "number the classes from 0",
        )
    if not (scores >= 0).all() or not np.allclose(scores.sum(axis=1), 1, atol=1e-4):
        raise InvalidValue(
            "probabilities are negative, not finite or do not sum to 1",
            "each image needs a distribution over the classes",
            "apply the model's softmax first",
        )
    return truth.astype(np.int64), scores / scores.sum(axis=1, keepdims=True)
