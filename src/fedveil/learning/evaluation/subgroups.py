"""Accuracy by subgroup on a public test set, and each group's gap to everybody else.

Groups are small, so a gap without its uncertainty would be read as a fact. Intervals are those of `.intervals` for the
choice of patients; that of a gap knows that one patient's images may lie in both parts. They leave out the noise of
training.

Nothing in this file provides privacy: it is for images that need none.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedveil.data.annotations.columns import Column
from fedveil.data.annotations.groups import grouped
from fedveil.learning.evaluation.intervals import (
    NO_INTERVAL,
    Interval,
    auroc_influences,
    difference,
    recall_influences,
    wilson,
)
from fedveil.learning.evaluation.metrics import auroc, decide, sides_of
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
        auroc_interval: 95 % interval over patients.
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
    ordered: bool = False,
) -> tuple[Subgroup, ...]:
    """Every group of every attribute that has test images.

    Args:
        labels: (n,) true classes.
        probabilities: (n, classes).
        attributes: columns (n,) by public names.
        patients: (n,) patient codes.
        priors: class frequencies of training, as in `decide`.
        ordered: classes are grades.
    """
    codes = np.unique(patients, return_inverse=True)[1]
    predicted = decide(probabilities, priors)

    def area(rows: Mask) -> tuple[float, Vector]:
        sides = sides_of(labels[rows], probabilities[rows], ordered=ordered)
        value = auroc(labels[rows], probabilities[rows], ordered=ordered)
        return value, auroc_influences(sides, int(rows.sum()))

    def balanced(rows: Mask) -> tuple[float, Vector]:
        truth, called = labels[rows], predicted[rows]
        hits = [(called[truth == code] == code).mean() for code in np.unique(truth)]
        return float(np.mean(hits)), recall_influences(truth, called)

    found = []
    for name, column in attributes.items():
        places, names = grouped(name, column)
        for code in np.unique(places):
            own = places == code
            one, other = _Compared.of(area, own, codes), _Compared.of(balanced, own, codes)
            found.append(
                Subgroup(
                    attribute=name,
                    group=names[code],
                    n=int(own.sum()),
                    patients=len(np.unique(codes[own])),
                    auroc=one.value,
                    auroc_interval=one.interval,
                    auroc_gap=one.gap,
                    auroc_gap_interval=one.gap_interval,
                    balanced_accuracy=other.value,
                    balanced_accuracy_interval=other.interval,
                    balanced_accuracy_gap=other.gap,
                    balanced_accuracy_gap_interval=other.gap_interval,
                )
            )
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Compared:
    """One metric of a group, and its gap to all other images."""

    value: float
    interval: Interval
    gap: float = math.nan
    gap_interval: Interval = NO_INTERVAL

    @classmethod
    def of(cls, metric: Callable[[Mask], tuple[float, Vector]], own: Mask, codes: Labels) -> "_Compared":
        """Compare the images in a mask to the others.

        Args:
            metric: the value on some images, and the influence of each of them.
            own: (n,) the group.
            codes: (n,) patient codes.
        """
        values, intervals, influences = [], [], []
        for part in (own, ~own) if not own.all() else (own,):
            value, parts = metric(part)
            influences.append(np.zeros(len(own)))
            influences[-1][part] = parts
            values.append(value)
            intervals.append(wilson(value, parts, np.unique(codes[part], return_inverse=True)[1]))
        if len(values) == 1:
            return cls(value=values[0], interval=intervals[0])
        (one, other), (inside, outside), (left, right) = values, intervals, influences
        return cls(
            value=one,
            interval=inside,
            gap=one - other,
            gap_interval=difference((one, other), (inside, outside), (left, right), codes),
        )
