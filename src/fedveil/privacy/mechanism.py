"""A past or future release: everything that affects privacy, and nothing else."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self, get_args

from fedveil.errors import InvalidValue
from fedveil.lazy import later
from fedveil.privacy.accounting.composition import epsilon
from fedveil.privacy.guarantee import Guarantee, Trust, Unit, check_choice, check_number

if TYPE_CHECKING:
    from dp_accounting import DpEvent

__all__ = ["Mechanism"]

dp_accounting = later("dp_accounting")

_KIND = "gaussian"
_LEAST_EPSILON = 1e-9  # stated if delta alone covers everything, since a guarantee's epsilon is above 0
_FINER: dict[str, tuple[str, ...]] = {"image": (), "patient": ("image",), "site": ("patient", "image")}


@dataclass(frozen=True, slots=True)
class Mechanism:
    """`steps` noisy sums, each over a fresh Poisson sample of the units.

    In each step every unit takes part with probability ``sampling_rate``, independently. The contributions c_i of
    those that take part have ||c_i||_2 <= ``clip_norm``, and the release is sum_i c_i + N(0, (noise_multiplier *
    clip_norm)^2 I). Neighbours differ by adding or removing one unit. A noise multiplier of 0 means no noise and no
    privacy.

    ``epsilon_slack`` and ``delta_slack`` are for noise that only approximates a Gaussian, such as integer
    noise: per step, except on an event of probability at most ``delta_slack``, the law of what is
    released and that of the Gaussian step differ by a factor within exp(+-epsilon_slack / 2). Accounting
    turns them into an upper bound (see `fedveil.privacy.accounting.composition`); for true Gaussian noise both are 0.
    """

    noise_multiplier: float
    clip_norm: float
    steps: int
    sampling_rate: float = 1.0
    unit: Unit = "patient"
    epsilon_slack: float = 0.0
    delta_slack: float = 0.0

    def __post_init__(self) -> None:
        check_choice("unit", self.unit, get_args(Unit))
        self._check(
            "noise_multiplier", 0 <= self._number("noise_multiplier") < math.inf, "at least 0 and finite"
        )
        self._check("clip_norm", 0 < self._number("clip_norm") < math.inf, "greater than 0 and finite")
        self._check("sampling_rate", 0 < self._number("sampling_rate") <= 1, "in (0, 1]")
        self._check("epsilon_slack", 0 <= self._number("epsilon_slack") < math.inf, "at least 0 and finite")
        self._check("delta_slack", 0 <= self._number("delta_slack") <= 1, "in [0, 1]")
        steps = self._number("steps")
        self._check(
            "steps", steps >= 1 and steps < 2**53 and steps == int(steps), "a whole number, at least 1"
        )
        object.__setattr__(self, "steps", int(steps))

    def _number(self, name: str) -> float:
        number = check_number(name, getattr(self, name))
        object.__setattr__(self, name, number)
        return number

    def _check(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise InvalidValue(f"{name} is {getattr(self, name)}", f"it must be {rule}", _REMEDY[name])

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise on each coordinate of a sum, in the units of the sum."""
        return self.noise_multiplier * self.clip_norm

    def with_steps(self, steps: int) -> Self:
        """The same mechanism with another number of steps."""
        return replace(self, steps=steps)

    def for_unit(self, unit: Unit) -> Self:
        """This mechanism for `unit`, which is its own or a finer one.

        Adding or removing one image of a patient changes that patient's contribution from c to c' rather than
        from c to nothing, so the sum changes by up to ||c - c'||_2 <= 2 clip_norm: for the finer unit the noise
        multiplier is halved. Raises InvalidValue if `unit` is coarser (nothing bounds what a patient contributes
        when single images are clipped), or finer under Poisson sampling, which is not priced.
        """
        check_choice("unit", unit, get_args(Unit))
        if unit == self.unit:
            return self
        if unit not in _FINER[self.unit]:
            raise InvalidValue(
                f"a mechanism that protects one {self.unit} was given, but one {unit} has to be protected",
                f"the contribution of a {unit} is not bounded if each {self.unit} is clipped separately",
                f'train with unit "{unit}"',
            )
        if self.sampling_rate < 1:
            raise InvalidValue(
                f"a mechanism that samples by {self.unit} was given, but one {unit} has to be protected",
                f"the price per {unit} of sampling by {self.unit} is not known",
                f'train with unit "{unit}", or with a sampling_rate of 1',
            )
        return replace(self, unit=unit, noise_multiplier=self.noise_multiplier / 2)

    def event(self) -> "DpEvent":
        """The event in dp-accounting's types, without the slack (which no event expresses)."""
        step: DpEvent = dp_accounting.GaussianDpEvent(self.noise_multiplier)
        if self.sampling_rate < 1:
            step = dp_accounting.PoissonSampledDpEvent(self.sampling_rate, step)
        return dp_accounting.SelfComposedDpEvent(step, self.steps)

    def guarantee(self, delta: float, trust: Trust) -> Guarantee:
        """The guarantee of this mechanism alone for its unit; raises InvalidValue if there is none.

        >>> Mechanism(28.9, 1.0, steps=60).guarantee(1e-5, "server").epsilon < 1
        True
        """
        price = math.inf if trust == "none" else max(epsilon([self], delta), _LEAST_EPSILON)
        return Guarantee(price, delta, self.unit, trust)

    def to_dict(self) -> dict[str, Any]:
        """The mechanism as plain numbers and strings, for JSON; ``kind`` names the kind of noise."""
        return {
            "kind": _KIND,
            "noise_multiplier": self.noise_multiplier,
            "clip_norm": self.clip_norm,
            "steps": self.steps,
            "sampling_rate": self.sampling_rate,
            "unit": self.unit,
            "epsilon_slack": self.epsilon_slack,
            "delta_slack": self.delta_slack,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; raises InvalidValue on anything else."""
        fields = dict(values)
        kind = fields.pop("kind", _KIND)
        check_choice("kind of mechanism", kind, (_KIND,))
        try:
            return cls(**fields)
        except TypeError as error:
            raise InvalidValue(
                f"a mechanism was given as {fields}",
                "it must have noise_multiplier, clip_norm, steps, sampling_rate, unit, epsilon_slack, delta_slack",
                "give exactly these",
            ) from error


_REMEDY = {
    "noise_multiplier": "give the noise's standard deviation divided by the clip norm; 0 means no privacy",
    "clip_norm": "give the largest L2 norm that one unit may contribute",
    "sampling_rate": "give the fraction of units in one step",
    "steps": "give the number of sums released",
    "epsilon_slack": "0 for true Gaussian noise",
    "delta_slack": "0 for true Gaussian noise",
}
