"""Gradients: the sum of the units' clipped gradients, released in every round of training."""

from dataclasses import dataclass
from typing import ClassVar, Self, final

from fedveil.federation.queries.query import Asked, ClippedGradients, NoisySum, Rounds

__all__ = ["GradientQuery"]


@final
@dataclass(frozen=True)
class GradientQuery(ClippedGradients, Rounds):
    """Gradient descent with clipped per-unit gradients. **Bound: the clip norm C**; see `ClippedGradients`."""

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

    def direction(self, released: NoisySum, count: float) -> NoisySum:
        """The mean gradient."""
        return NoisySum(released.total / count, released.variance / count**2)
