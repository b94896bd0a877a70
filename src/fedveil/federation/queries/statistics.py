"""Class statistics: the number of units per class and their mean features; released first."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, final

import numpy as np

from fedveil.federation.queries.query import (
    Asked,
    HospitalUnits,
    Indices,
    ModelState,
    NoisySum,
    OneSum,
    Vector,
)
from fedveil.learning import Sizes

__all__ = ["StatisticsQuery"]


@final
@dataclass(frozen=True)
class StatisticsQuery(OneSum):
    """Class sizes and class means of features, from which centre, class weights and step sizes follow.

    **Bound: 1.** A unit adds the average over its images i of ``onehot(y_i) (x) (sqrt(1 - b^2) x_i, b)``, where
    ``||x_i|| <= 1`` is enforced per image. Each term has norm at most ``sqrt(1 - b^2 + b^2) = 1``, and an average
    of vectors of norm at most 1 has norm at most 1 (the norm is convex), for any number of images. A network without
    centring adds the average of ``onehot(y_i)`` instead. With several findings per image it adds counts per finding and
    its features, or with "one-shot" its features shared among its findings, of norm at most 1 per image as well: see
    `fedveil.learning.FindingStatistics` and `fedveil.learning.FindingMeans`. If the unit is the site, the sum over all
    its patients is scaled down to norm 1.

    With the method "one-shot" the model is made from this sum alone, which then uses the rest of the budget.
    """

    name: ClassVar[str] = "statistics"
    title: ClassVar[str] = "class statistics"
    setting: ClassVar[str] = "statistics_share"
    adds: ClassVar[str] = "its class and its features, norm 1"
    purpose: ClassVar[str] = "class counts, centre, step sizes, weights"

    @classmethod
    def of(cls, asked: Asked) -> Self | None:
        """The query, with "one-shot" or if it has a share."""
        return cls() if _alone(asked.training) else super().of(asked)

    def share(self, asked: Asked) -> float | None:
        """With "one-shot" the rest of the budget."""
        return None if _alone(asked.training) else super().share(asked)

    def pilot_share(self, asked: Asked) -> float:
        """All of a pilot's budget, except what the histogram of a linear head takes."""
        return 1 - HISTOGRAM_SHARE if asked.settings["model"]["network"] == "linear" else 1.0

    def length(self, model: Sizes) -> int:
        """The model's size of statistics."""
        return model.statistics_size

    def sent_length(self, model: Sizes) -> int:
        """0: no model is needed."""
        del model
        return 0

    def contribution(
        self, hospital: HospitalUnits, parameters: Vector, clip_norm: float, units: Indices | None
    ) -> Vector:
        """Sum the units' class statistics."""
        del clip_norm
        return hospital.training.statistics(parameters, units)

    def sent(self, state: ModelState) -> Vector:
        """Nothing."""
        del state
        return np.empty(0)

    def decode(self, released: NoisySum, state: ModelState) -> ModelState:
        """Centre, weights and class frequencies."""
        found = state.model.read_statistics(released.total, released.variance)
        return replace(state, statistics=found, frequencies=found.priors).at(state.trained)


HISTOGRAM_SHARE = 0.35
"""Part of a pilot's budget, in mu squared, for its histogram; the class statistics get the rest."""


def _alone(training: Any) -> bool:
    return bool(training["method"] == "one-shot")
