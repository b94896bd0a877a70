"""Accuracy by subgroup on a public test set, and each group's gap to everybody else.

Groups are small, so a gap without its uncertainty would be read as a fact. Intervals resample patients, as in
`fedveil.learning.evaluation.metrics`; a gap is the difference of two metrics in the same resample, since one patient's
images may lie in both parts.

Nothing in this file provides privacy: it is for images that need none.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedveil.data.annotations.columns import Column
from fedveil.data.annotations.groups import grouped
from fedveil.learning.evaluation.metrics import (
    NO_INTERVAL,
    Interval,
    _percentiles,
    _weighted_auroc,
    _weighted_balanced,
    decide,
)
from fedveil.learning.models.learner import Vector

__all__ = ["Subgroup", "subgroups"]

Labels = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subgroup:
    """One group of one attribute; NaN if undefined, such as the AUROC of a group with one class.

    Attributes:
        attribute: its name.
        group: the name of the group.
        n: test images of the group.
        patients: their patients.
        auroc: as in `Metrics`, within the group.
        auroc_interval: 95 % bootstrap interval over patients.
        auroc_gap: the group's AUROC minus that of all other images.
        auroc_gap_interval: as above.
        balanced_accuracy: within the group.
        balanced_accuracy_interval: as above.
        balanced_accuracy_gap: minus that of all other images.
        balanced_accuracy_gap_interval: as above.
    """

    attribute: str
    group: str
    n: int
    patients: int
    auroc: float
    auroc_interval: Interval
    auroc_gap: float
    auroc_gap_interval: Interval
    balanced_accuracy: float
    balanced_accuracy_interval: Interval
    balanced_accuracy_gap: float
    balanced_accuracy_gap_interval: Interval

    def to_dict(self) -> dict[str, Any]:
        """Plain values by name, as in `result.json`."""
        return asdict(self)


def subgroups(
    labels: Labels,
    probabilities: Vector,
    attributes: Mapping[str, Column],
    *,
    patients: npt.NDArray[np.int64],
    priors: npt.ArrayLike | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[Subgroup, ...]:
    """Every group of every attribute that has test images.

    Args:
        labels: (n,) true classes.
        probabilities: (n, classes).
        attributes: columns (n,) by public names.
        patients: (n,) patient codes.
        priors: class frequencies of training, as in `decide`.
        resamples: bootstrap resamples; 0 leaves the intervals out.
        seed: of the bootstrap.
    """
    codes = np.unique(patients, return_inverse=True)[1]
    predicted = decide(probabilities, priors)
    count = int(codes.max()) + 1
    drawn = np.random.default_rng(seed).integers(0, count, (resamples, count))
    times = np.stack([np.ones(count), *(np.bincount(one, minlength=count) for one in drawn)])
    weights = times[:, codes]  # the first row is the test set itself
    found = []
    for name, column in attributes.items():
        places, names = grouped(name, column)
        for code in np.unique(places):
            own = places == code
            scored = [
                _gap(
                    own, weights, lambda rows, part: _weighted_auroc(labels[rows], probabilities[rows], part)
                ),
                _gap(
                    own, weights, lambda rows, part: _weighted_balanced(labels[rows], predicted[rows], part)
                ),
            ]
            (auroc, auroc_gap), (balanced, balanced_gap) = scored
            found.append(
                Subgroup(
                    attribute=name,
                    group=names[code],
                    n=int(own.sum()),
                    patients=len(np.unique(codes[own])),
                    auroc=float(auroc[0]),
                    auroc_interval=_interval(auroc),
                    auroc_gap=float(auroc_gap[0]),
                    auroc_gap_interval=_interval(auroc_gap),
                    balanced_accuracy=float(balanced[0]),
                    balanced_accuracy_interval=_interval(balanced),
                    balanced_accuracy_gap=float(balanced_gap[0]),
                    balanced_accuracy_gap_interval=_interval(balanced_gap),
                )
            )
    return tuple(found)


def _gap(own: Mask, weights: Vector, metric: Any) -> tuple[Vector, Vector]:
    """The metric of a group, and its gap to the rest, for each row of weights."""
    inside: Vector = metric(own, weights[:, own])
    if own.all():
        return inside, np.full(len(inside), math.nan)
    return inside, inside - metric(~own, weights[:, ~own])


def _interval(values: Vector) -> Interval:
    """Of all but the first value, which is the estimate; none if that is undefined."""
    return _percentiles(values[1:]) if math.isfinite(values[0]) else NO_INTERVAL
