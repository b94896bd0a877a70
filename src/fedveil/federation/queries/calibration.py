"""Calibration: where the classes' scores lie on average, for the decision threshold; released after training."""

from dataclasses import dataclass
from typing import ClassVar, final

from fedveil.federation.queries.query import HospitalUnits, Indices, ModelState, NoisySum, OneSum, Vector
from fedveil.learning import Sizes

__all__ = ["CalibrationQuery"]


@final
@dataclass(frozen=True)
class CalibrationQuery(OneSum):
    """Class statistics of a trained model's scores, averaged over each image and its degraded view.

    **Bound: 1.** As for `StatisticsQuery`, with the score of an image in place of its features: scores are cut to norm
    1 image by image, whatever the model is that was sent; the mean of two of them has norm at most 1 too.
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
        """The middle between the classes' mean scores becomes the threshold."""
        whole = self.sent(state)
        shift = state.model.read_shift(released.total, released.variance, whole, state.statistics)
        return state.at(state.trained, shift)
