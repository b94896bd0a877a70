"""Local steps: the result of a site's own gradient steps, released in every round of federated averaging."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self, final

from fedveil.errors import InvalidValue, StudyError
from fedveil.federation.noise import Calibrated, LocalNoise
from fedveil.federation.queries.query import Asked, Asking, ClippedGradients, NoisySum, Rounds, Vector
from fedveil.learning.exact import bounded
from fedveil.privacy import Mechanism, Unit

__all__ = ["LocalSteps", "LocalStepsQuery"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSteps:
    """The settings of one round of federated averaging at a site; all of them are public.

    From the received parameters x_0, a site takes ``steps`` steps (McMahan et al., 1602.05629, and Li et al.,
    1812.06127, for the proximal term):

        x <- x - learning_rate (s(x) / units + proximal (x - x_0)),

    where s(x) is the sum of clipped gradients over a Poisson sample of its units, and releases x - x_0.

    If the unit is a patient or an image, **every step has the whole noise of the mechanism at every site**, at every
    trust level: the next step's gradient is computed at a step's result, so the result has to be private before
    anything can be summed. Noise in local steps cannot be shared between sites. The release is post-processing of
    the steps, and a round costs ``steps`` steps of the mechanism. If the unit is the site, steps have no noise; the
    difference as a whole is clipped, and the sum of differences is the mechanism (McMahan et al., 1710.06963).

    Attributes:
        steps: private steps per round.
        learning_rate: local step size.
        units: the divisor of sums: a public estimate of the number of units in one step of one site.
        proximal: weight of the term that keeps parameters close to those at the start of the round.
        clip_norm: bound on one step's gradient if the unit is the site; otherwise the mechanism's clip norm applies.
        reach: bound on the norm of the released difference, so that it fits the integers of a masked sum.
    """

    steps: int
    learning_rate: float
    units: float
    proximal: float = 0.0
    clip_norm: float = 1.0
    reach: float = 10.0

    def __post_init__(self) -> None:
        positive = {"learning_rate": self.learning_rate, "units": self.units}
        positive |= {"steps": self.steps, "clip_norm": self.clip_norm, "reach": self.reach}
        for name, value in positive.items():
            if not 0 < value < math.inf:
                raise InvalidValue(f"{name} is {value}", "it must be positive and finite", "change it")
        if not 0 <= self.proximal < math.inf:
            raise InvalidValue(
                f"proximal is {self.proximal}", "it must be finite, not negative", "0 means none"
            )

    def walk(self, asking: Asking) -> Vector:
        """The change of the trained part by the steps; each step has noise unless the unit is the site."""
        mechanism, start, length = asking.mechanism, asking.parameters, asking.length
        noisy = mechanism.unit != "site"
        clip_norm = mechanism.clip_norm if noisy else self.clip_norm
        parameters = start.copy()
        trained, origin = parameters[-length:], start[-length:]
        for _ in range(self.steps):
            total = asking.guarded(partial(self._gradient, asking, parameters.copy(), clip_norm))
            if noisy:
                total = LocalNoise().protect(total, Calibrated(mechanism), asking.generator)
            trained -= self.learning_rate * (total / self.units + self.proximal * (trained - origin))
        return bounded(trained - origin, self.reach if noisy else mechanism.clip_norm)

    @staticmethod
    def _gradient(asking: Asking, parameters: Vector, clip_norm: float) -> Vector:
        return asking.hospital.training.contribution(
            parameters, clip_norm=clip_norm, units=asking.draw("training")
        )


@final
@dataclass(frozen=True)
class LocalStepsQuery(ClippedGradients, Rounds):
    """Federated averaging; see `LocalSteps`.

    **Bound: the clip norm C.** If the unit is a patient or an image, each step is a sum of gradients that are
    clipped to C per unit, as in `ClippedGradients`, and has all of the noise; the answer is post-processing of the
    steps. If the unit is the site, the whole difference is scaled down to norm C, and a difference that is not
    finite counts as zero.
    """

    local: LocalSteps

    name: ClassVar[str] = "local-steps"
    title: ClassVar[str] = "local steps"
    setting: ClassVar[str] = ""
    adds: ClassVar[str] = "its clipped gradient in each local step, norm clip_norm"
    purpose: ClassVar[str] = "the model, by federated averaging"
    per_unit: ClassVar[bool] = False

    @classmethod
    def of(cls, asked: Asked) -> Self | None:
        """The query, if the study trains by averaging."""
        training = asked.training
        if training["method"] != "averaging":
            return None
        return cls(
            LocalSteps(
                steps=training["local_steps"],
                learning_rate=training["local_learning_rate"],
                units=_units(asked, training),
                proximal=training["proximal"],
            )
        )

    def steps(self, asked: Asked) -> int:
        """All steps of all rounds, or one per round if the unit is the site."""
        return int(asked.training["rounds"]) * self.steps_per_round(asked.privacy["unit"])

    def sum(self, asking: Asking) -> Vector:
        """The change by the local steps."""
        return self.local.walk(asking)

    def carried(self, unit: Unit) -> float | None:
        """The reach of the steps, which contain the noise; None if the unit is the site."""
        return None if unit == "site" else self.local.reach

    def steps_per_round(self, unit: Unit) -> int:
        """All local steps of a round, or one if the whole difference is the mechanism's output."""
        return 1 if unit == "site" else self.local.steps

    def check(self, mechanism: Mechanism) -> None:
        """Sites are not sampled: a site takes all its local steps of a round, or none."""
        if mechanism.unit == "site" and mechanism.sampling_rate < 1:
            raise InvalidValue(
                f"sites are sampled at a rate of {mechanism.sampling_rate} in federated averaging",
                "a site takes all its local steps of a round, or none",
                "set sampling_rate to 1",
            )
        super().check(mechanism)

    def direction(self, released: NoisySum, count: float) -> NoisySum:
        """The negative average difference serves as a gradient (Reddi et al., 2003.00295)."""
        return NoisySum(-released.total / count, released.variance / count**2)


def _units(asked: Asked, training: Mapping[str, Any]) -> float:
    """The expected number of units in one step of one site, from public numbers."""
    if asked.privacy["unit"] == "site":
        return 1.0
    if training["units"] is None:
        raise StudyError(
            'training.method is "averaging" and training.units is not set',
            "a site's local steps must be divided by a public number, never by its own count",
            "set training.units to the approximate number of units that take part, over all sites",
        )
    return float(training["units"] * training["sampling_rate"] / asked.sites)
