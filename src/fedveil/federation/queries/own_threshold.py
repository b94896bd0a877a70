"""A hospital's own threshold and class frequencies, which stay at the hospital."""

from dataclasses import dataclass, replace
from typing import ClassVar, final

from fedveil.federation.queries.query import HospitalUnits, Indices, ModelState, NoisySum, OneSum, Vector
from fedveil.learning import Sizes

__all__ = ["OwnThresholdQuery"]


@final
@dataclass(frozen=True)
class OwnThresholdQuery(OneSum):
    """Class sizes and mean scores of one hospital's images as they are; see `fedveil.learning.released.site_threshold`.

    **Bound: 1.** As for `CalibrationQuery`, for the image alone, also for findings. The hospital adds all of the noise.
    """

    name: ClassVar[str] = "personal-calibration"
    title: ClassVar[str] = "own threshold"
    setting: ClassVar[str] = "personal_calibration_share"
    adds: ClassVar[str] = "its class and score, norm 1"
    purpose: ClassVar[str] = "a threshold and class frequencies that stay at their hospital"
    at_site: ClassVar[bool] = True
    caution: ClassVar[str] = (
        "Each hospital's own threshold is set for its own scans as they are. Test images from elsewhere do not measure "
        "it: the common threshold may be better on those, and the own one at home."
    )

    def length(self, model: Sizes) -> int:
        """Class statistics of scores."""
        return model.calibration_size

    def contribution(
        self, hospital: HospitalUnits, parameters: Vector, clip_norm: float, units: Indices | None
    ) -> Vector:
        """Sum the units' class statistics of scores, without degraded views."""
        del clip_norm
        return hospital.training.statistics(parameters, units, plain=True)

    def sent(self, state: ModelState) -> Vector:
        """The model before any threshold."""
        return state.model.unshifted(state.parameters)

    def decode(self, released: NoisySum, state: ModelState) -> ModelState:
        """Threshold and frequencies, posterior means around the common ones."""
        parameters, own = state.model.recalibrated(
            state.parameters, state.common, released.total, released.variance
        )
        return replace(state, parameters=parameters, frequencies=own)
