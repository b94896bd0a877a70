"""The agreed, priced instance of a query: its sums, their mechanism and their sizes."""

from dataclasses import dataclass
from typing import Any

from fedveil.errors import InvalidValue
from fedveil.federation.messages import Vector
from fedveil.federation.noise import Calibrated
from fedveil.federation.queries import Query
from fedveil.privacy import IntegerMechanism, Mechanism

__all__ = ["Release"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One kind of noisy sum of a study, and the mechanism of all its rounds together.

    Attributes:
        query: the query that is summed.
        mechanism: one unit's bound, the noise of the sum, and the number of sums in all rounds (``mechanism.steps``).
        dimension: length of the released vector.
        parameters: length of the parameter vector that the coordinator sends.
        integer: under secure aggregation, the integer sum that ``mechanism`` prices; otherwise None. If local steps
            contain the noise, it only masks their results and is not part of the price.
        level: the level of a calibrated study that it belongs to (`.levels.grid`); None if to none.
        evidence: number of the parameters that are the pilot's sums, sent first.
    """

    query: Query
    mechanism: Mechanism
    dimension: int
    parameters: int
    integer: IntegerMechanism | None = None
    level: int | None = None
    evidence: int = 0

    def __post_init__(self) -> None:
        self.query.check(self.mechanism)
        integer = self.integer
        if integer is None:
            return
        priced = self.noise_inside or integer.mechanism.with_steps(self.mechanism.steps) == self.mechanism
        if not priced or integer.dimension != self.dimension:
            raise InvalidValue(
                f"{self.name} states a mechanism that is not that of its integers",
                "the charged mechanism must be the executed one",
                "take both from calibrate_integer, or from IntegerMechanism.fit",
            )

    @property
    def name(self) -> str:
        """The query's, and the level if there is one."""
        return self.query.name if self.level is None else f"{self.query.name}-level-{self.level}"

    def own_parameters(self, parameters: Vector) -> Vector:
        """The query's parameters, after the evidence."""
        return parameters[self.evidence :]

    def to_list(self) -> list[Any]:
        """Plain values, which an agreement's digest covers."""
        integer = self.integer.to_list() if self.integer else None
        return [self.query.to_dict(), self.mechanism.to_dict(), self.dimension, self.parameters, integer]

    @property
    def calibrated(self) -> Calibrated:
        """The mechanism with its integer version."""
        return Calibrated(self.mechanism, self.integer)

    @property
    def noise_inside(self) -> bool:
        """Whether the noise is in a site's local steps, rather than in its answer."""
        return self.query.carried(self.mechanism.unit) is not None

    @property
    def steps_per_round(self) -> int:
        """Steps of the mechanism that one round takes, and is charged for."""
        return self.query.steps_per_round(self.mechanism.unit)

    @property
    def rounds(self) -> int:
        """Number of rounds."""
        return self.mechanism.steps // self.steps_per_round
