"""Gradients: the sum of the units' clipped gradients, released in every round of training."""

from dataclasses import dataclass
from typing import ClassVar, Self, final

from fedveil.federation.queries.query import Asked, HospitalUnits, Indices, NoisySum, Rounds, Vector

__all__ = ["GradientQuery"]


@final
@dataclass(frozen=True)
class GradientQuery(Rounds):
    """Gradient descent with clipped per-unit gradients (Abadi et al., 1607.00133).

    **Bound: the clip norm C.** A unit adds its own gradient g, the average over its images, times ``min(1, C / ||g||)``
    or, for automatic clipping, ``C / (||g|| + gamma)``: norm at most C for every g, since the factor depends on g
    alone. Learners round the norm up, and for networks the clip norm is reduced slightly, so that floating-point
    errors do not exceed the bound.
    """

    name: ClassVar[str] = "training"
    title: ClassVar[str] = "gradients"
    setting: ClassVar[str] = ""
    adds: ClassVar[str] = "its clipped gradient, norm clip_norm"
    purpose: ClassVar[str] = "the model"
    per_unit: ClassVar[bool] = True

    @classmethod
    def of(cls, asked: Asked) -> Self | None:
        """The query, if the study trains by gradients."""
        return cls() if asked.training["method"] == "gradient" else None

    def steps(self, asked: Asked) -> int:
        """One step per round."""
        return int(asked.training["rounds"])

    def bound(self, clip_norm: float) -> float:
        """The clip norm, which bounds each unit's gradient."""
        return clip_norm

    def contribution(
        self, hospital: HospitalUnits, parameters: Vector, clip_norm: float, units: Indices | None
    ) -> Vector:
        """Sum the units' clipped gradients."""
        return hospital.training.contribution(parameters, clip_norm=clip_norm, units=units)

    def direction(self, released: NoisySum, count: float) -> NoisySum:
        """The mean gradient."""
        return NoisySum(released.total / count, released.variance / count**2)
