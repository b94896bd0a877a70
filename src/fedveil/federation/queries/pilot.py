"""The pilot: a histogram of scores along the direction that the class statistics give; released before training."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self, final

from fedveil.errors import FederationError
from fedveil.federation.queries.query import (
    Asked,
    HospitalUnits,
    Indices,
    ModelState,
    NoisySum,
    OneSum,
    Vector,
)
from fedveil.federation.queries.statistics import HISTOGRAM_SHARE
from fedveil.learning import CentredHead, CentredLearner, ClassStatistics, Sizes
from fedveil.learning.released.pilot_scores import directions, pilot_size

__all__ = ["PilotQuery"]


@final
@dataclass(frozen=True)
class PilotQuery(OneSum):
    """A histogram of the training units' scores along the noisy difference between the classes' means.

    **Bound: 1.** With two classes an image adds one onehot vector of class and score bin; with K > 2 it adds one for
    each class against the rest, divided by sqrt(K). In both cases its norm is at most 1, and a unit adds the average
    over its images, whose norm is at most 1 (convexity). Bins are fixed and public, and each image is scored
    independently, so it does not affect other images' bins. If the unit is the site, the sum over all its patients
    is scaled down to norm 1.

    Only a study whose epsilon is "calibrated" and that trains a linear head makes this release.
    """

    name: ClassVar[str] = "pilot"
    title: ClassVar[str] = "pilot histogram"
    setting: ClassVar[str] = "pilot_epsilon"
    pilot_only: ClassVar[bool] = True
    adds: ClassVar[str] = "its class and score bin, norm 1"
    purpose: ClassVar[str] = "how separable the classes are, from which the level of noise follows"

    @classmethod
    def of(cls, asked: Asked) -> Self | None:
        """The query, if the study's epsilon is calibrated and a linear head is trained."""
        linear = asked.settings["model"]["network"] == "linear"
        return cls() if asked.privacy["epsilon"] == "calibrated" and linear else None

    def share(self, asked: Asked) -> float:
        """No share of a level's budget."""
        del asked
        return 0.0

    def pilot_share(self, asked: Asked) -> float:
        """Its part of the pilot's budget."""
        del asked
        return HISTOGRAM_SHARE

    def length(self, model: Sizes) -> int:
        """Bins by class against the rest."""
        return pilot_size(model.classes)

    def contribution(
        self, hospital: HospitalUnits, parameters: Vector, clip_norm: float, units: Indices | None
    ) -> Vector:
        """Sum the units' histograms."""
        del clip_norm
        learner = hospital.training
        if not isinstance(learner, CentredLearner):
            raise FederationError(
                "the model is not a linear head",
                "a pilot scores images along a direction of features",
                "train a linear head",
            )
        return learner.pilot_histogram(parameters, units)

    def sent(self, state: ModelState) -> Vector:
        """The directions as the trained part of an uncentred model, whose shift is the middle between the classes."""
        if not isinstance(state.model, CentredHead) or not isinstance(state.statistics, ClassStatistics):
            return state.parameters
        trained, shift = directions(state.statistics)
        return state.model.join(None, trained, shift)

    def decode(self, released: NoisySum, state: ModelState) -> ModelState:
        """The same model: the histogram only decides the level of noise; see `fedveil.federation.levels.rule`."""
        del released
        return replace(state)
