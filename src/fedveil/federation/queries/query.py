"""What a query is: one kind of bounded sum that a study asks of every site, with everything specific to it.

A query defines whose data it sums, the bound on one unit's contribution and its proof, what is sent and returned,
and the meaning of the noisy total. It is independent of budgets, ledgers and transports, which do not know queries
by name: a new query is a class in its own file, and a line in the registry (`fedveil.federation.queries`).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, is_dataclass, replace
from typing import Any, ClassVar, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from fedveil.data import Cohort
from fedveil.errors import FederationError, InvalidValue
from fedveil.learning import (
    Certainty,
    HeldOut,
    Histogram,
    Learner,
    Model,
    ReleasedSubgroups,
    Sizes,
    Statistics,
)
from fedveil.privacy import Mechanism, Unit

__all__ = [
    "Asked",
    "Asking",
    "ClippedGradients",
    "HospitalUnits",
    "ModelState",
    "NoisySum",
    "OneSum",
    "Query",
    "Rounds",
]

Vector: TypeAlias = npt.NDArray[np.float64]
Indices: TypeAlias = npt.NDArray[np.int64]
Part: TypeAlias = Literal["training", "held-out"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class HospitalUnits:
    """One hospital's units, as queries use them.

    Attributes:
        learner: the training units, behind a model.
        held_out: the hospital's test units; None if it holds out none.
        records: labels and patients without any model, for a query that needs no pixel.
    """

    learner: Learner | None = None
    held_out: HeldOut | None = None
    records: Cohort | None = None

    @property
    def training(self) -> Learner:
        """The training units, behind a model."""
        if self.learner is None:
            raise FederationError(
                "there is no learner", "this query sums the outputs of a model on images", "give one"
            )
        return self.learner

    def count(self, part: Part) -> int:
        """Number of training units, or of test units."""
        if part == "held-out":
            return 0 if self.held_out is None else self.held_out.units
        return 0 if self.learner is None else self.learner.units


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Asking:
    """One request to one site, as a query computes its sum.

    Attributes:
        hospital: the owner of the data.
        mechanism: as admitted; it fixes clip norm and sampling.
        parameters: as sent, and checked.
        length: of the released vector.
        generator: draws samples of units, and the noise of local steps.
        guarded: returns a computation's result, or zero if it fails, so that a failure reveals nothing.
    """

    hospital: HospitalUnits
    mechanism: Mechanism
    parameters: Vector
    length: int
    generator: np.random.Generator
    guarded: Callable[[Callable[[], Vector]], Vector]

    def draw(self, part: Part) -> Indices | None:
        """Units drawn independently at the accounted rate; None for all of them."""
        rate = self.mechanism.sampling_rate
        if rate == 1:
            return None
        return np.flatnonzero(self.generator.random(self.hospital.count(part)) < rate)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A study's settings as its queries read them: public, and equal at coordinator and sites.

    Attributes:
        settings: the resolved study file as plain data.
        model: the trained model.
        sites: their number.
        single: noise multiplier of one sum that uses the whole budget; 0 without privacy.
    """

    settings: Mapping[str, Any]
    model: Sizes
    sites: int
    single: float

    @property
    def privacy(self) -> Mapping[str, Any]:
        """The table of that name."""
        table: Mapping[str, Any] = self.settings["privacy"]
        return table

    @property
    def training(self) -> Mapping[str, Any]:
        """The table of that name."""
        table: Mapping[str, Any] = self.settings["training"]
        return table

    def noise_multiplier(self, share: float, steps: int = 1) -> float:
        """Noise multiplier of each of several steps that together use a share of the budget, measured in mu squared."""
        return self.single * math.sqrt(steps / share)


@dataclass(frozen=True, slots=True, eq=False)
class NoisySum:
    """A release: any post-processing is allowed.

    Attributes:
        total: the sum, noise included, divided by the sampling rate.
        variance: of the noise in each coordinate.
        sampling_rate: probability with which each unit took part.
    """

    total: Vector
    variance: float
    sampling_rate: float = 1.0


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ModelState:
    """The model derived from everything released so far, hence public.

    Attributes:
        model: the trained model.
        parameters: its whole parameter vector, which ends with the trained part.
        frequencies: (classes,) frequencies of classes or findings; None if none were released.
        statistics: what was released before training.
        histogram: the release about held-out units.
        certainty: how sure the decision rule is; None if no threshold was released.
        subgroups: the release about subgroups of held-out units.
    """

    model: Model
    parameters: Vector
    frequencies: Vector | None = None
    statistics: Statistics | None = None
    histogram: Histogram | None = None
    certainty: Certainty | None = None
    subgroups: ReleasedSubgroups | None = None

    @property
    def trained(self) -> Vector:
        """The trained part."""
        return self.parameters[-self.model.trained :]

    @property
    def common(self) -> Vector:
        """(classes,) the frequencies that were released; without them equal ones, of a finding and its absence too."""
        if self.frequencies is not None:
            return self.frequencies
        return np.full(self.model.classes, 0.5 if self.model.findings else 1 / self.model.classes)

    @property
    def judged(self) -> Vector:
        """What an evaluation sends: the frequencies, then the parameters."""
        return np.concatenate([self.common, self.parameters])

    def at(self, trained: Vector, shift: Vector | None = None) -> "ModelState":
        """The same with another trained part and another shift of the logits."""
        return replace(self, parameters=self.model.join(self.statistics, trained, shift))


class Query(ABC):
    """One kind of bounded sum. Final classes derive from `OneSum` or `Rounds` and state the proof of their bound."""

    name: ClassVar[str]
    """Name in ledgers, results and requests; never changed, since old ledgers contain it."""
    title: ClassVar[str]
    """Name for people."""
    setting: ClassVar[str]
    """The key of a study file that sets its share of the budget."""
    adds: ClassVar[str]
    """What one unit adds, for people."""
    purpose: ClassVar[str]
    """What it is released for, for people."""
    part: ClassVar[Part] = "training"
    """Whose units are summed."""
    at_site: ClassVar[bool] = False
    """Whether each hospital makes it for itself, with all of the noise: it cannot be requested and is not
    aggregated."""
    optional: ClassVar[bool] = False
    """Whether a study continues without it if its budget is spent."""
    pilot_only: ClassVar[bool] = False
    """Whether only the pilot of a calibrated study makes it."""
    caution: ClassVar[str] = ""
    """A note on it in results that are evaluated on test images."""

    @classmethod
    @abstractmethod
    def of(cls, asked: Asked) -> Self | None:
        """The query as the study configures it; None if the study does not use it."""

    @abstractmethod
    def share(self, asked: Asked) -> float | None:
        """Its share of a study's budget; None for the rest of the budget."""

    def pilot_share(self, asked: Asked) -> float:
        """Its share of the budget of a calibrated study's pilot; 0 if the pilot does not make it."""
        del asked
        return 0.0

    def clip_norm(self, asked: Asked) -> float:
        """The clip norm of its mechanism."""
        del asked
        return 1.0

    def steps(self, asked: Asked) -> int:
        """Steps of its mechanism over the whole study."""
        del asked
        return 1

    @abstractmethod
    def length(self, model: Sizes) -> int:
        """Length of the released vector."""

    def sent_length(self, model: Sizes) -> int:
        """Length of the parameters that sites are sent."""
        return model.parameters

    @abstractmethod
    def bound(self, clip_norm: float) -> float:
        """The largest L2 norm of one unit's contribution, for any images, given the mechanism's clip norm."""

    @abstractmethod
    def contribution(
        self, hospital: HospitalUnits, parameters: Vector, clip_norm: float, units: Indices | None
    ) -> Vector:
        """The exact sum of the contributions of these units, all if None; it may not leave the site without noise."""

    def sum(self, asking: Asking) -> Vector:
        """A site's answer before noise: the sum over the drawn units."""
        units = asking.draw(self.part)
        return self.contribution(asking.hospital, asking.parameters, asking.mechanism.clip_norm, units)

    def carried(self, unit: Unit) -> float | None:
        """None if noise is added to the answer; otherwise the largest norm of an answer made of noisy steps."""
        del unit
        return None

    def steps_per_round(self, unit: Unit) -> int:
        """Steps of the mechanism that one round takes, and is charged for."""
        del unit
        return 1

    def check(self, mechanism: Mechanism) -> None:
        """Raise `InvalidValue` if the mechanism does not match what is executed."""
        bound = self.bound(mechanism.clip_norm)
        if bound > mechanism.clip_norm:
            raise InvalidValue(
                f"{self.name} has a clip norm of {mechanism.clip_norm:g}",
                f"one unit's contribution to it may have norm {bound:g}, and noise is a multiple of the clip norm",
                f"state a clip norm of {bound:g}",
            )
        if mechanism.steps % self.steps_per_round(mechanism.unit):
            raise InvalidValue(
                f"{mechanism.steps} steps are split into rounds of {self.steps_per_round(mechanism.unit)}",
                "every round must take all its local steps",
                "choose a multiple",
            )

    def to_dict(self) -> dict[str, Any]:
        """Name and settings as plain values, which a digest covers."""
        return {"name": self.name} | (asdict(self) if is_dataclass(self) else {})


class ClippedGradients(Query):
    """A query whose sum is one of clipped per-unit gradients (Abadi et al., 1607.00133).

    **Bound: the clip norm C.** A unit adds its own gradient g, the average over its images, times ``min(1, C / ||g||)``
    or, for automatic clipping, ``C / (||g|| + gamma)``: norm at most C for every g, since the factor depends on g
    alone. Learners round the norm up, and for networks the clip norm is reduced slightly, so that floating-point
    errors do not exceed the bound.
    """

    def bound(self, clip_norm: float) -> float:
        """The clip norm, which bounds each unit's gradient."""
        return clip_norm

    def contribution(
        self, hospital: HospitalUnits, parameters: Vector, clip_norm: float, units: Indices | None
    ) -> Vector:
        """Sum the units' clipped gradients."""
        return hospital.training.contribution(parameters, clip_norm=clip_norm, units=units)


class OneSum(Query):
    """A query that is released once. By default it has a share of the budget and contributions of norm at most 1."""

    @classmethod
    def of(cls, asked: Asked) -> Self | None:
        """The query, if the study gives it a share of the budget."""
        return cls() if asked.privacy[cls.setting] > 0 else None

    def share(self, asked: Asked) -> float | None:
        """As the study sets it."""
        return float(asked.privacy[self.setting])

    def bound(self, clip_norm: float) -> float:
        """1, by construction: see the class."""
        del clip_norm
        return 1.0

    def drowned(self, model: Sizes, variance: float, groups: Vector) -> bool:
        """Whether noise is known beforehand to leave too little of it, so that it is not worth its budget.

        Args:
            model: the study's.
            variance: of the noise in each number of the sum.
            groups: units of the classes that each threshold separates, public or released: `Statistics.groups`.
        """
        del model, variance, groups
        return False

    @abstractmethod
    def sent(self, state: ModelState) -> Vector:
        """The parameters that sites are sent."""

    @abstractmethod
    def decode(self, released: NoisySum, state: ModelState) -> ModelState:
        """The model decoded from the noisy total."""


class Rounds(Query):
    """A query that is released in every round of training, and uses the rest of the budget."""

    per_unit: ClassVar[bool]
    """Whether a sum is divided by the number of units; otherwise by the number of sites."""

    def share(self, asked: Asked) -> None:
        """The rest of the budget."""

    def clip_norm(self, asked: Asked) -> float:
        """As the study sets it."""
        return float(asked.privacy["clip_norm"])

    def length(self, model: Sizes) -> int:
        """The length of the trained part."""
        return model.trained

    @abstractmethod
    def direction(self, released: NoisySum, count: float) -> NoisySum:
        """The direction for the server's update rule, from a sum over ``count`` units or sites."""
