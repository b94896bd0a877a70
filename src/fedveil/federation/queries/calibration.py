"""Calibration: the classes' mean scores and their spread, for threshold and temperature; released after training."""

from dataclasses import dataclass, replace
from typing import ClassVar, final

from fedveil.federation.queries.query import HospitalUnits, Indices, ModelState, NoisySum, OneSum, Vector
from fedveil.learning import Sizes
from fedveil.learning.models.calibration import SCORES
from fedveil.learning.models.posterior import LEAST_WEIGHT, weight_of

__all__ = ["CalibrationQuery"]


@final
@dataclass(frozen=True)
class CalibrationQuery(OneSum):
    """Sums of a trained model's scores by class, and of their squares; see `fedveil.learning.models.calibration`.

    **Bound: 1.** With s the score of an image, averaged over the image and its degraded view, each clipped to norm 1,
    and q the mean of their squared norms, a unit adds the average over its images i of ``onehot(y_i) (x) (a s_i, b)``
    and ``c q_i`` with ``a^2 + b^2 + c^2 = 1``. |s| and q are at most 1 for any model, so each term has norm at most 1,
    and so has an average of them (the norm is convex). If the unit is the site, the sum over all its patients is
    scaled down to norm 1.
    """

    name: ClassVar[str] = "calibration"
    title: ClassVar[str] = "calibration"
    setting: ClassVar[str] = "calibration_share"
    adds: ClassVar[str] = "its class and score, norm 1"
    purpose: ClassVar[str] = "the decision threshold, and calibrated probabilities"
    optional: ClassVar[bool] = True

    def length(self, model: Sizes) -> int:
        """Scores by class, and their squares."""
        return model.calibration_size

    def contribution(
        self, hospital: HospitalUnits, parameters: Vector, clip_norm: float, units: Indices | None
    ) -> Vector:
        """Sum the units' scores."""
        del clip_norm
        return hospital.training.statistics(parameters, units)

    def sent(self, state: ModelState) -> Vector:
        """The trained model, before any threshold."""
        return state.model.unshifted(state.parameters)

    def decode(self, released: NoisySum, state: ModelState) -> ModelState:
        """Set threshold and temperature to their posterior means."""
        whole, certainty = state.model.calibrated(
            self.sent(state), released.total, released.variance, state.statistics
        )
        return replace(state, parameters=whole, certainty=certainty)

    def drowned(self, variance: float, sizes: Vector) -> bool:
        """If noise would leave less than a tenth of the measured middle."""
        return weight_of(sizes, variance / SCORES**2) < LEAST_WEIGHT
