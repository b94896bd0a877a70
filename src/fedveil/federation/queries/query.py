"""What a query is: one kind of bounded sum that a study asks of every site, with all that is specific to it.

A query knows whose data it sums, what one unit adds at most and why, what is sent and what comes back, and what the
noisy total means. It knows no budget, ledger or transport, and those know no query by name: a new one is a class in a
file of its own, and a line in the registry (`fedveil.federation.queries`).
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
from fedveil.learning import ClassStatistics, HeldOut, Learner, Model, ScoreHistogram, Sizes
from fedveil.privacy import Mechanism, Unit

__all__ = ["Asked", "Asking", "HospitalUnits", "ModelState", "NoisySum", "OneSum", "Query", "Rounds"]

Vector: TypeAlias = npt.NDArray[np.float64]
Indices: TypeAlias = npt.NDArray[np.int64]
Part: TypeAlias = Literal["training", "held-out"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class HospitalUnits:
    """One hospital's units, as queries see them.

    Attributes:
        learner: the units that are trained on, behind a model.
        held_out: those that the hospital tests on; None if it holds out none.
        records: labels and patients without any model, for a query that needs no pixel.
    """

    learner: Learner | None = None
    held_out: HeldOut | None = None
    records: Cohort | None = None

    @property
    def training(self) -> Learner:
        """The units that are trained on, behind a model."""
        if self.learner is None:
            raise FederationError(
                "there is no learner", "this query sums what a model makes of images", "give one"
            )
        return self.learner

    def count(self, part: Part) -> int:
        """Number of units that are trained on, or tested on."""
        if part == "held-out":
            return 0 if self.held_out is None else self.held_out.units
        return 0 if self.learner is None else self.learner.units


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Asking:
    """One request to one site, as a query computes its sum.

    Attributes:
        hospital: whose data it is.
        mechanism: as admitted; it fixes clip norm and sampling.
        parameters: as sent, and checked.
        length: of the released vector.
        generator: draws samples of units, and the noise of local steps.
        guarded: gives what a computation gives, or zero where it fails, so that a failure tells nothing.
    """

    hospital: HospitalUnits
    mechanism: Mechanism
    parameters: Vector
    length: int
    generator: np.random.Generator
    guarded: Callable[[Callable[[], Vector]], Vector]

    def draw(self, part: Part) -> Indices | None:
        """Each unit by itself, at the rate that is accounted; None for all of them."""
        rate = self.mechanism.sampling_rate
        if rate == 1:
            return None
        return np.flatnonzero(self.generator.random(self.hospital.count(part)) < rate)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a study wants, as its queries read it: public, and alike at coordinator and sites.

    Attributes:
        settings: the resolved study file as plain data.
        model: what is trained.
        sites: how many.
        single: noise multiplier of one sum that takes the whole budget; 0 without privacy.
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
        """Of each of so many steps that take a share of the budget together, in the Gaussian mechanism's mu squared."""
        return self.single * math.sqrt(steps / share)


@dataclass(frozen=True, slots=True, eq=False)
class NoisySum:
    """What was released: post-processing may do with it what it likes.

    Attributes:
        total: the sum, noise included, divided by the sampling rate.
        variance: of the noise in each number of it.
        sampling_rate: chance at which each unit took part.
    """

    total: Vector
    variance: float
    sampling_rate: float = 1.0


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ModelState:
    """The model as it follows from everything that was released so far, hence public.

    Attributes:
        model: what is trained.
        parameters: its whole parameter vector, which ends with the trained part.
        frequencies: (classes,) class frequencies; None where none were released.
        statistics: what was released before training.
        histogram: what was released of held-out units.
    """

    model: Model
    parameters: Vector
    frequencies: Vector | None = None
    statistics: ClassStatistics | None = None
    histogram: ScoreHistogram | None = None

    @property
    def trained(self) -> Vector:
        """The trained part."""
        return self.parameters[-self.model.trained :]

    def at(self, trained: Vector, shift: Vector | None = None) -> "ModelState":
        """The same with another trained part, and with logits that are shifted by this much."""
        return replace(self, parameters=self.model.join(self.statistics, trained, shift))


class Query(ABC):
    """One kind of bounded sum. Final classes derive from `OneSum` or `Rounds`, and state why their bound holds."""

    name: ClassVar[str]
    """In ledgers, results and requests; never changed, since old ledgers hold it."""
    title: ClassVar[str]
    """For people."""
    setting: ClassVar[str]
    """The key of a study file that it is paid by."""
    adds: ClassVar[str]
    """What one unit adds, for people."""
    purpose: ClassVar[str]
    """What it is released for, for people."""
    part: ClassVar[Part] = "training"
    """Whose units are summed."""
    at_site: ClassVar[bool] = False
    """Whether each hospital makes it for itself, with all of the noise: nobody can ask for it, no sum hides it."""
    optional: ClassVar[bool] = False
    """Whether a study goes on without it if its budget pays for no more."""
    caution: ClassVar[str] = ""
    """What a result that is judged on test images says of it."""

    @classmethod
    @abstractmethod
    def of(cls, asked: Asked) -> Self | None:
        """The query as a study asks for it; None if it does not."""

    @abstractmethod
    def share(self, asked: Asked) -> float | None:
        """Which part of the budget a study gives it; None for all that others leave."""

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
        """The largest L2 norm of what one unit adds, whatever its images are, by this clip norm of the mechanism."""

    @abstractmethod
    def contribution(
        self, hospital: HospitalUnits, parameters: Vector, clip_norm: float, units: Indices | None
    ) -> Vector:
        """The exact sum over these units, all where None, of what each of them adds; it may not leave as it is."""

    def sum(self, asking: Asking) -> Vector:
        """What a site answers with, before noise: the sum over the units that are drawn."""
        units = asking.draw(self.part)
        return self.contribution(asking.hospital, asking.parameters, asking.mechanism.clip_norm, units)

    def carried(self, unit: Unit) -> float | None:
        """None where noise is added to the answer; the largest norm of an answer that is made of noisy steps."""
        del unit
        return None

    def steps_per_round(self, unit: Unit) -> int:
        """Steps of the mechanism that one round takes, and is charged for."""
        del unit
        return 1

    def check(self, mechanism: Mechanism) -> None:
        """Raise `InvalidValue` if the mechanism does not price what is executed."""
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
                "every round takes all its local steps",
                "choose a multiple",
            )

    def to_dict(self) -> dict[str, Any]:
        """Name and settings as plain values: what a digest binds."""
        return {"name": self.name} | (asdict(self) if is_dataclass(self) else {})


class OneSum(Query):
    """A query that is released once. By default it takes its share of the budget, and its contributions have norm 1."""

    @classmethod
    def of(cls, asked: Asked) -> Self | None:
        """The query, if the study gives it a share of the budget."""
        return cls() if asked.privacy[cls.setting] > 0 else None

    def share(self, asked: Asked) -> float | None:
        """As the study says."""
        return float(asked.privacy[self.setting])

    def bound(self, clip_norm: float) -> float:
        """1, by construction: see the class."""
        del clip_norm
        return 1.0

    @abstractmethod
    def sent(self, state: ModelState) -> Vector:
        """The parameters that sites are sent."""

    @abstractmethod
    def decode(self, released: NoisySum, state: ModelState) -> ModelState:
        """What follows from the noisy total."""


class Rounds(Query):
    """A query that is released in every round of training, and takes what the others leave of the budget."""

    per_unit: ClassVar[bool]
    """Whether a sum is divided by the number of units; if not, by that of the sites."""

    def share(self, asked: Asked) -> None:
        """All that is left."""

    def clip_norm(self, asked: Asked) -> float:
        """As the study says."""
        return float(asked.privacy["clip_norm"])

    def length(self, model: Sizes) -> int:
        """That of the trained part."""
        return model.trained

    @abstractmethod
    def direction(self, released: NoisySum, count: float) -> NoisySum:
        """What the server's update rule descends along, from a sum over ``count`` units or sites."""
