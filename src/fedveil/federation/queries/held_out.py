"""What queries about the patients that hospitals hold out have in common."""

from abc import abstractmethod
from typing import ClassVar

import numpy as np

from fedveil.errors import FederationError
from fedveil.federation.queries.query import (
    Asking,
    HospitalUnits,
    Indices,
    ModelState,
    OneSum,
    Part,
    Vector,
)
from fedveil.learning import HeldOut, Sizes

__all__ = ["HeldOutSum"]


class HeldOutSum(OneSum):
    """One sum of histograms over held-out units, of the finished model; clip norms do not concern it."""

    part: ClassVar[Part] = "held-out"
    optional: ClassVar[bool] = True

    @abstractmethod
    def summed(self, held_out: HeldOut, parameters: Vector, units: Indices | None) -> Vector:
        """The sum of the histograms of these units; of all by default."""

    def sent_length(self, model: Sizes) -> int:
        """Class frequencies, then the model."""
        return model.classes + model.parameters

    def sent(self, state: ModelState) -> Vector:
        """Class frequencies (equal if none were released) and the model."""
        return state.judged

    def contribution(
        self, hospital: HospitalUnits, parameters: Vector, clip_norm: float, units: Indices | None
    ) -> Vector:
        """Sum the held-out units' histograms."""
        del clip_norm
        if hospital.held_out is None:
            raise FederationError(
                "no patient is held out", "the histogram needs held-out units", "hold out some patients"
            )
        return self.summed(hospital.held_out, parameters, units)

    def sum(self, asking: Asking) -> Vector:
        """The sum over the drawn held-out units; zero if the hospital holds out none."""
        if asking.hospital.held_out is None:
            return np.zeros(asking.length)
        return super().sum(asking)
