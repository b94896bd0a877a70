"""Where the noise of a sum is added, and how much of it: local, distributed or central differential privacy.

A mechanism needs noise of standard deviation ``z C`` (noise multiplier times clip norm) in the sum over all sites.
The study's trust level determines who adds it:

| trust | noise | each site adds | a sum over n sites holds |
|---|---|---|---|
| ``site`` | `LocalNoise` | ``z C`` | ``sqrt(n) z C`` |
| ``secure-aggregation`` | `DistributedNoise` | ``z C / sqrt(h)``, in whole numbers, masked | ``sqrt(n / h) z C`` |
| ``server`` | `CentralNoise` | nothing | ``z C``, which the coordinator adds |

where h is the smallest number of honest sites. The noise of a sum in units of ``z C`` is the factor f in the rules
for step sizes and in the planner. Noise is drawn here and nowhere else, and every study, plan and review is
calibrated here.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, final

import numpy as np
import numpy.typing as npt

from fedveil.errors import Refused
from fedveil.learning.exact import bounded
from fedveil.privacy import (
    Guarantee,
    IntegerMechanism,
    Mechanism,
    Trust,
    Words,
    calibrate,
    calibrate_integer,
    release,
    secure_generator,
)

__all__ = [
    "Calibrated",
    "CentralNoise",
    "DistributedNoise",
    "LocalNoise",
    "Noise",
    "Sums",
    "default_min_honest",
    "noise_by",
]

Vector = npt.NDArray[np.float64]
CARRIER = 1e-5
"""Noise in masked answers that are already private, as a fraction of their largest norm."""
ROUNDING = 1e-6
"""Fraction of a target that is reserved for the cost of this integer noise."""


def default_min_honest(sites: int) -> int:
    """The smallest number of noise shares that an adversary is assumed not to know: two thirds of the sites, rounded
    down.

    The secure aggregation opens a sum when more than two thirds of the sites survive a round (Bonawitz et al. 2017,
    section 6.2, against an active server); one of the survivors may always be curious, since each of them sees the
    sum and knows its own share. So the guarantee holds even if a third of the sites are lost.

    >>> [default_min_honest(n) for n in (3, 5, 10, 50)]
    [2, 3, 6, 33]
    """
    return max(1, 2 * sites // 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """The noisy sums of one release, before their noise is known.

    Attributes:
        steps: number of sums.
        dimension: length of each sum.
        clip_norm: bound on the L2 norm of one unit's contribution.
        sampling_rate: probability that a unit takes part in a step.
        units: the largest number of units that one site may sum.
        reach: None if noise is added to the sums; if it is in local steps, the largest norm of the resulting answer.
    """

    steps: int
    dimension: int
    units: int
    clip_norm: float = 1.0
    sampling_rate: float = 1.0
    reach: float | None = None


class Calibrated(NamedTuple):
    """A mechanism, and its integer version under secure aggregation."""

    mechanism: Mechanism
    integer: IntegerMechanism | None = None


class Noise(ABC):
    """Where the noise of a sum is added."""

    share: float
    """Standard deviation of the noise that one site adds, relative to the mechanism's."""

    def factor(self, sites: int) -> float:
        """f: standard deviation of the noise in a sum over this number of sites, relative to the mechanism's.

        >>> round(DistributedNoise(6, 4).factor(6), 3), LocalNoise().factor(4), CentralNoise().factor(4)
        (1.225, 2.0, 1.0)
        """
        return math.sqrt(sites) * self.share

    def site_std(self, mechanism: Mechanism) -> float:
        """Standard deviation of the noise that one site adds, in the units of the sum."""
        return self.share * mechanism.noise_std

    def variance(self, mechanism: Mechanism, sites: int) -> float:
        """Variance of the noise per coordinate of a sum over this number of sites: a public number."""
        return (self.factor(sites) * mechanism.noise_std) ** 2

    def calibrate(self, target: Guarantee, sums: Sums, spent: Sequence[Mechanism] = ()) -> Calibrated:
        """The least noise that meets the target together with what is spent."""
        return Calibrated(_calibrated(target, sums, spent))

    def fit(self, mechanism: Mechanism, sums: Sums) -> Calibrated:
        """A mechanism with given noise."""
        del sums
        return Calibrated(mechanism)

    @abstractmethod
    def alone(self, made: Calibrated) -> Mechanism | None:
        """The guarantee of one site's own noise if everyone else colludes; None if there is none."""

    @abstractmethod
    def protect(self, total: Vector, made: Calibrated, generator: np.random.Generator) -> Vector | Words:
        """A site's protected sum; under secure aggregation it may leave the site only after masking."""

    def complete(self, total: Vector, mechanism: Mechanism) -> Vector:
        """The sum over the sites, with the coordinator's noise if it adds any."""
        del mechanism
        return total


@final
class LocalNoise(Noise):
    """Local differential privacy: each site adds all of the noise, and no other party sees its exact sum."""

    share = 1.0

    def alone(self, made: Calibrated) -> Mechanism | None:
        """The whole guarantee."""
        return made.mechanism if made.mechanism.noise_multiplier > 0 else None

    def protect(self, total: Vector, made: Calibrated, generator: np.random.Generator) -> Vector:
        """The sum with all of the noise."""
        return _noisy(total, made.mechanism, generator)


@final
class CentralNoise(Noise):
    """Central differential privacy: the coordinator sees every exact sum and adds the noise. Also used without
    privacy, with no noise."""

    share = 0.0

    def factor(self, sites: int) -> float:
        """1: a sum has the noise of the mechanism, for any number of sites."""
        del sites
        return 1.0

    def alone(self, made: Calibrated) -> None:
        """Nothing: sites add no noise."""

    def protect(self, total: Vector, made: Calibrated, generator: np.random.Generator) -> Vector:
        """The exact sum."""
        del made, generator
        return total

    def complete(self, total: Vector, mechanism: Mechanism) -> Vector:
        """The sum with all of the noise, from the coordinator's own key."""
        return _noisy(total, mechanism, secure_generator())


@final
class DistributedNoise(Noise):
    """Distributed differential privacy: sites add shares, any h of which suffice, to masked whole numbers.

    Args:
        sites: the largest number of sites in a sum.
        honest: h, the smallest number of sites whose noise an adversary does not know.
    """

    def __init__(self, sites: int, honest: int) -> None:
        self.sites, self.honest = sites, honest
        self.share = 1 / math.sqrt(honest)

    def calibrate(self, target: Guarantee, sums: Sums, spent: Sequence[Mechanism] = ()) -> Calibrated:
        """The least integer noise that meets the target together with what is spent.

        Answers that are already private are masked on a grid. A masked sum needs some noise; this noise is a hundred
        thousandth of the largest answer and not part of the price. The sum is post-processing of private steps,
        clipped at a public bound.
        """
        if sums.reach is not None:
            least = 1 - ROUNDING
            kept = replace(target, epsilon=target.epsilon * least, delta=target.delta * least)
            noise = Mechanism(CARRIER, sums.reach, 1, unit=target.unit)
            carrier = self._fit(noise, sums.dimension, 1, priced=False)
            return Calibrated(_calibrated(kept, sums, spent), carrier)
        integer = calibrate_integer(
            target,
            steps=sums.steps,
            sampling_rate=sums.sampling_rate,
            dimension=sums.dimension,
            sites=self.sites,
            shares=self.honest,
            units=sums.units,
            clip_norm=sums.clip_norm,
            spent=spent,
        )
        return Calibrated(integer.mechanism, integer)

    def fit(self, mechanism: Mechanism, sums: Sums) -> Calibrated:
        """A mechanism with given noise, in whole numbers."""
        integer = self._fit(mechanism, sums.dimension, sums.units)
        return Calibrated(integer.mechanism, integer)

    def alone(self, made: Calibrated) -> Mechanism | None:
        """The guarantee of one share alone."""
        if made.integer is not None:
            return made.integer.alone.with_steps(made.mechanism.steps)
        multiplier = made.mechanism.noise_multiplier * self.share
        return replace(made.mechanism, noise_multiplier=multiplier) if multiplier > 0 else None

    def protect(self, total: Vector, made: Calibrated, generator: np.random.Generator) -> Words:
        """The sum in whole numbers, with this site's share of the noise; it must be masked before it leaves the site.

        The integers have a range for a public number of units. A larger sum is scaled down to that range, which does
        not increase the distance between sums; a refusal would reveal the number of units.
        """
        if made.integer is None:
            raise Refused(
                "a release under secure aggregation has no integer mechanism",
                "only integers can be masked",
                "run the study that was admitted",
            )
        room = made.integer.units * made.integer.mechanism.clip_norm
        return made.integer.encode(bounded(total, room), generator)

    def _fit(
        self, mechanism: Mechanism, dimension: int, units: int, *, priced: bool = True
    ) -> IntegerMechanism:
        sites, shares = self.sites, self.honest
        return IntegerMechanism.fit(
            mechanism, dimension=dimension, sites=sites, shares=shares, units=units, priced=priced
        )


def noise_by(trust: Trust, sites: int, honest: int) -> Noise:
    """The noise for a study's trust level; with trust "none" noise multipliers are 0."""
    match trust:
        case "site":
            return LocalNoise()
        case "secure-aggregation":
            return DistributedNoise(sites, honest)
        case _:
            return CentralNoise()


def _calibrated(target: Guarantee, sums: Sums, spent: Sequence[Mechanism]) -> Mechanism:
    return calibrate(
        target, steps=sums.steps, sampling_rate=sums.sampling_rate, clip_norm=sums.clip_norm, spent=spent
    )


def _noisy(total: Vector, mechanism: Mechanism, generator: np.random.Generator) -> Vector:
    return release(total, mechanism.noise_std, generator) if mechanism.noise_std > 0 else total
