"""Calibration: the classes' mean scores, for the decision threshold; released after training."""

from dataclasses import dataclass, replace
from typing import ClassVar, final

from fedveil.federation.queries.query import HospitalUnits, Indices, ModelState, NoisySum, OneSum, Vector
from fedveil.learning import Sizes, drowned

__all__ = ["CalibrationQuery"]


@final
@dataclass(frozen=True)
class CalibrationQuery(OneSum):
    """Class statistics of a trained model's scores, averaged over each image and its degraded view.

    **Bound: 1.** As for `StatisticsQuery`, with the score of an image instead of its features: scores are clipped to
    norm 1 per image, for any model; the mean of two of them also has norm at most 1.
    """

    name: ClassVar[str] = "calibration"
    title: ClassVar[str] = "calibration"
    setting: ClassVar[str] = "calibration_share"
    adds: ClassVar[str] = "its class and score, norm 1"
    purpose: ClassVar[str] = "the decision threshold"
    optional: ClassVar[bool] = True

    def length(self, model: Sizes) -> int:
        """Class statistics of scores."""
        return model.calibration_size

    def contribution(
        self, hospital: HospitalUnits, parameters: Vector, clip_norm: float, units: Indices | None
    ) -> Vector:
        """Sum the units' class statistics of scores."""
        del clip_norm
        return hospital.training.statistics(parameters, units)

    def sent(self, state: ModelState) -> Vector:
        """The trained model, before any threshold."""
        return state.model.unshifted(state.parameters)

    def decode(self, released: NoisySum, state: ModelState) -> ModelState:
        """Set the threshold to the midpoint between the classes' mean scores: its posterior mean."""
        whole, certainty = state.model.calibrated(
            self.sent(state), released.total, released.variance, state.statistics
        )
        return replace(state, parameters=whole, certainty=certainty)

    def drowned(self, model: Sizes, variance: float, groups: Vector) -> bool:
        """If noise would leave less than a tenth of the measured middle."""
        return drowned(variance / model.score_share, groups)
