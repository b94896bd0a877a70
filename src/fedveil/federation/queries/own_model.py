"""A hospital's own model: private steps from the finished one, which stay at the hospital."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self, final

from fedveil.errors import StudyError
from fedveil.federation.queries.local_steps import LocalSteps
from fedveil.federation.queries.query import (
    Asked,
    Asking,
    ClippedGradients,
    ModelState,
    NoisySum,
    OneSum,
    Vector,
)
from fedveil.learning import Sizes
from fedveil.learning.step_size import head_length, learning_rate
from fedveil.privacy import Unit

__all__ = ["OwnModelQuery"]

STEPS = 30
"""Number of steps from the common model to a hospital's own; it affects neither price nor reach."""
UNBOUNDED = 1e9
"""A difference that is not masked needs no bound on its size."""


@final
@dataclass(frozen=True)
class OwnModelQuery(ClippedGradients, OneSum):
    """Mean-regularised personalisation (Liu et al., 2206.07902): private local steps with a proximal term towards
    the common model.

    The step size follows from the hospital's signal-to-noise ratio as in `fedveil.learning.step_size`. With the
    proximal strength p and T steps of size eta the proximal weight is ``p / (eta T)``: after T steps without a
    gradient a hospital's difference to the common model has shrunk to about ``exp(-p)`` of itself.

    **Bound: the clip norm C** of a unit in one step, as in `ClippedGradients`. Every step has all of the noise, so the
    result is itself private. The unit must be the patient or the image, not the site.
    """

    local: LocalSteps

    name: ClassVar[str] = "personal"
    title: ClassVar[str] = "own model"
    setting: ClassVar[str] = "personal_share"
    adds: ClassVar[str] = "its clipped gradient in each local step, norm clip_norm"
    purpose: ClassVar[str] = "a model that stays at its hospital"
    at_site: ClassVar[bool] = True

    @classmethod
    def of(cls, asked: Asked) -> Self | None:
        """If it has a share of the budget."""
        share, training = asked.privacy[cls.setting], asked.training
        if share == 0:
            return None
        if training["units"] is None:
            raise StudyError(
                "privacy.personal_share is set and training.units is not",
                "a hospital's own steps must be divided by a public number, never by its own count",
                "set training.units to the approximate number of units that take part, over all sites",
            )
        units, noise = training["units"] / asked.sites, asked.noise_multiplier(share)
        ratio = units / noise if noise > 0 else math.inf
        rate = learning_rate(ratio, STEPS, asked.privacy["clip_norm"])
        rate /= head_length(asked.settings["model"]["network"])
        proximal = training["personal_pull"] / (rate * STEPS)
        return cls(
            LocalSteps(steps=STEPS, learning_rate=rate, units=units, proximal=proximal, reach=UNBOUNDED)
        )

    def clip_norm(self, asked: Asked) -> float:
        """As in training."""
        return float(asked.privacy["clip_norm"])

    def steps(self, asked: Asked) -> int:
        """Of its mechanism: all local steps."""
        del asked
        return self.local.steps

    def length(self, model: Sizes) -> int:
        """The length of the trained part."""
        return model.trained

    def sum(self, asking: Asking) -> Vector:
        """The change by the local steps."""
        return self.local.walk(asking)

    def carried(self, unit: Unit) -> float | None:
        """The noise is in the steps."""
        del unit
        return self.local.reach

    def steps_per_round(self, unit: Unit) -> int:
        """All of them."""
        del unit
        return self.local.steps

    def sent(self, state: ModelState) -> Vector:
        """The finished model."""
        return state.parameters

    def decode(self, released: NoisySum, state: ModelState) -> ModelState:
        """The finished model, moved by the difference."""
        parameters = state.parameters.copy()
        parameters[-len(released.total) :] += released.total
        return replace(state, parameters=parameters)
