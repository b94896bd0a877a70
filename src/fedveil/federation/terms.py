"""What a study asks of a site, whole and fixed before the first round; both sides derive everything from it.

A site computes the noise, the clip norm and the cost of every round from the terms that it admitted, never from a
request. So a coordinator that wants less noise has to change the terms, whose digest then changes, and which the
site has not admitted.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from fedveil.errors import InvalidValue
from fedveil.names import check_site_names
from fedveil.privacy import Charge, Guarantee, IntegerMechanism, Mechanism, Trust, epsilon, is_mixture

__all__ = [
    "CALIBRATION",
    "EVALUATION",
    "KEPT",
    "PERSONAL",
    "PERSONAL_CALIBRATION",
    "PROGRESS",
    "STATISTICS",
    "TRAINING",
    "LocalSteps",
    "Release",
    "Terms",
    "default_min_honest",
    "noise_share",
    "phase_name",
]

STATISTICS = "statistics"
TRAINING = "training"
CALIBRATION = "calibration"
PROGRESS = "progress"
EVALUATION = "evaluation"
PERSONAL = "personal"
"""Local steps that a hospital takes from the finished model, for a model of its own."""
PERSONAL_CALIBRATION = "personal-calibration"
"""A hospital's own class sizes and mean scores, for a threshold and class frequencies of its own."""
KEPT = (PERSONAL, PERSONAL_CALIBRATION)
"""What a hospital makes for itself, with all of the noise: nobody can ask for it, and no sum hides it."""
BOUNDED = (STATISTICS, PROGRESS, CALIBRATION, EVALUATION, PERSONAL_CALIBRATION)
"""Releases whose contributions have norm 1 at most by construction, whatever the mechanism's clip norm says."""


def phase_name(number: int) -> str:
    """The release of a phase of training, counted from 1, where training spends unevenly over its rounds.

    >>> phase_name(1), phase_name(2)
    ('training', 'training-2')
    """
    return TRAINING if number == 1 else f"{TRAINING}-{number}"


def default_min_honest(sites: int) -> int:
    """The fewest noise shares that an adversary is assumed not to know: two thirds of the sites, rounded down.

    A sum is opened when more than two thirds of the sites survive a round (Bonawitz et al. 2017, section 6.2, against
    an active server); one survivor may always be curious, since each knows its own share.

    >>> [default_min_honest(n) for n in (3, 5, 10, 50)]
    [2, 3, 6, 33]
    """
    return max(1, 2 * sites // 3)


def noise_share(trust: Trust, mechanism: Mechanism, honest: int) -> float:
    """Standard deviation of the noise that one site adds to its own sum, in the unit of the contributions.

    With noise multiplier z, clip norm C and h honest shares: ``z C`` where nobody outside the site is trusted;
    ``z C / sqrt(h)`` under secure aggregation, so that any h shares together carry ``z C``; 0 where the server
    adds the noise or nobody does.
    """
    full = mechanism.noise_multiplier * mechanism.clip_norm
    match trust:
        case "site":
            return full
        case "secure-aggregation":
            return full / math.sqrt(honest)
        case _:
            return 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSteps:
    """What a site does within one round of federated averaging; all of it is public.

    From the parameters x_0 that it is sent, a site takes ``steps`` steps (McMahan et al., 1602.05629, and Li et al.,
    1812.06127, for the proximal term):

        x <- x - learning_rate (s(x) / units + proximal (x - x_0)),

    where s(x) is the sum of clipped gradients over a Poisson sample of its units, and releases x - x_0.

    Where the unit is a patient or an image, **every step carries the whole noise of the mechanism at every site**,
    whatever the trust: a step's result is what the next step's gradient is taken at, so it has to be private by
    itself before anything can be summed. Noise in local steps cannot be shared between sites. What is released is
    post-processing of the steps, and a round costs ``steps`` steps of the mechanism. Where the unit is the site, steps
    have no noise; the difference as a whole is clipped, and the sum of differences is the mechanism (McMahan et al.,
    1710.06963).

    Attributes:
        steps: private steps a round.
        learning_rate: local step size.
        units: what sums are divided by: a public estimate of the units that take part in one step of one site.
        proximal: pull towards the parameters that the round began with.
        clip_norm: bound on one step's gradient where the unit is the site; elsewhere the mechanism's own holds.
        reach: bound on the norm of the released difference, so that it fits the whole numbers of a masked sum.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One kind of noisy sum that a study makes, and the mechanism that all its rounds together are.

    Attributes:
        name: what is released: `STATISTICS`, one sum before training; `TRAINING`, and further phases of it (see
            `phase_name`); `PROGRESS`, how many units the model has right so far; `CALIBRATION`, one sum after;
            `EVALUATION`, one sum over the patients held out; `PERSONAL` and `PERSONAL_CALIBRATION`, what a site makes
            of the finished model for itself.
        mechanism: one unit's bound, the noise of the sum, and the number of sums in all rounds (``mechanism.steps``).
        dimension: length of the released vector.
        parameters: length of the parameter vector that the coordinator sends.
        integer: under secure aggregation, the sum of whole numbers that ``mechanism`` prices; None elsewhere. Where
            local steps carry the noise, it is how their results are masked, and no part of the price.
        local: what a site does in a round of federated averaging; None where it answers with one sum.
    """

    name: str
    mechanism: Mechanism
    dimension: int
    parameters: int
    integer: IntegerMechanism | None = None
    local: LocalSteps | None = None

    def __post_init__(self) -> None:
        self._check_price()
        if self.local is None:
            return
        if self.mechanism.unit == "site" and self.mechanism.sampling_rate < 1:
            raise InvalidValue(
                f"sites are sampled at a rate of {self.mechanism.sampling_rate} in federated averaging",
                "a site takes all its local steps of a round, or none",
                "let every site take part: sampling_rate 1",
            )
        if self.mechanism.steps % self.steps_per_round:
            raise InvalidValue(
                f"{self.mechanism.steps} steps are split into rounds of {self.steps_per_round}",
                "every round takes all its local steps",
                "choose a multiple",
            )

    def _check_price(self) -> None:
        """The mechanism has to price what is executed."""
        if self.name in BOUNDED and self.mechanism.clip_norm < 1:
            raise InvalidValue(
                f"{self.name} has a clip norm of {self.mechanism.clip_norm:g}",
                "one unit's contribution to it may have norm 1, and noise is a multiple of the clip norm",
                "state a clip norm of 1",
            )
        integer = self.integer
        if integer is None:
            return
        priced = self.local_noise or integer.mechanism.with_steps(self.mechanism.steps) == self.mechanism
        if not priced or integer.dimension != self.dimension:
            raise InvalidValue(
                f"{self.name} states a mechanism that is not that of its whole numbers",
                "what is charged has to be what is executed",
                "take both from calibrate_integer, or from IntegerMechanism.fit",
            )

    @property
    def local_noise(self) -> bool:
        """Whether the noise is in a site's local steps, rather than in what it answers."""
        return self.local is not None and self.mechanism.unit != "site"

    @property
    def steps_per_round(self) -> int:
        """Steps of the mechanism that one round takes, and is charged for."""
        return self.local.steps if self.local is not None and self.local_noise else 1

    @property
    def rounds(self) -> int:
        """Number of rounds."""
        return self.mechanism.steps // self.steps_per_round


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Everything about a study that touches privacy.

    Attributes:
        name: the study's name, for ledgers and logs.
        settings: the resolved study file as plain data; part of the digest, so that a site admits all of it.
        sites: every site that takes part, in a fixed order.
        target: the guarantee that the releases were calibrated to; its epsilon is infinite without privacy.
        releases: in the order in which they are made.
        min_sites: fewest participants of a round.
        min_honest: fewest honest noise shares under secure aggregation; None for the default rule.
    """

    name: str
    settings: Mapping[str, Any]
    sites: tuple[str, ...]
    target: Guarantee
    releases: tuple[Release, ...]
    min_sites: int
    min_honest: int | None = None

    def __post_init__(self) -> None:
        if len(set(self.sites)) != len(self.sites) or not self.sites:
            raise InvalidValue(
                f"sites are {', '.join(self.sites) or 'none'}",
                "a study needs sites with different names",
                "name each hospital once",
            )
        check_site_names(self.sites)
        if not 1 <= self.min_sites <= len(self.sites):
            raise InvalidValue(
                f"min_sites is {self.min_sites}",
                f"it must lie between 1 and the {len(self.sites)} sites of the study",
                "lower it, or add sites",
            )
        if self.trust == "secure-aggregation":
            self._check_secure_aggregation()

    def _check_secure_aggregation(self) -> None:
        if len(self.sites) < 3:
            raise InvalidValue(
                f"the study has {len(self.sites)} sites",
                "secure aggregation needs 3 or more: with fewer, a site learns the other's sum from the total",
                'add sites, or set privacy.trust to "site"',
            )
        if not all(release.integer for release in self.releases if release.name not in KEPT):
            raise InvalidValue(
                "a release under secure aggregation has no integer mechanism",
                "only whole numbers can be masked",
                "calibrate it with calibrate_integer",
            )
        if self.min_honest is not None and not 1 <= self.min_honest < len(self.sites):
            raise InvalidValue(
                f"min_honest is {self.min_honest}",
                f"it must lie between 1 and {len(self.sites) - 1}: every site knows its own noise share",
                "lower it, or leave it out for two thirds of the sites",
            )

    @property
    def trust(self) -> Trust:
        """Who could see an un-noised sum."""
        return self.target.trust

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the terms in canonical JSON; a site admits terms by it."""
        body = {
            "name": self.name,
            "settings": self.settings,
            "sites": self.sites,
            "target": self.target.to_dict(),
            "releases": [
                [
                    r.name,
                    r.mechanism.to_dict(),
                    r.dimension,
                    r.parameters,
                    [r.integer.units, r.integer.radix] if r.integer else None,
                    *([asdict(r.local)] if r.local else []),
                ]
                for r in self.releases
            ],
            "min_sites": self.min_sites,
            "min_honest": self.min_honest,
        }
        return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @property
    def title(self) -> str:
        """The study in a ledger: its name, and its whole digest, which alone tells it from every other study."""
        return f"{self.name} {self.digest}"

    @property
    def titles(self) -> tuple[str, str]:
        """What a ledger may call it: its title, and what earlier versions wrote, with 12 digits of the digest.

        Studies that agree in those are made in minutes: such a line counts both against this study and beside it.
        """
        return self.title, f"{self.name} {self.digest[:12]}"

    def charged_to(self, charge: Charge) -> bool:
        """Whether a ledger's charge is this study's, or may be: counted against its limits, never in its favour."""
        return charge.study in self.titles

    @property
    def main(self) -> Release:
        """The release that the model is made from: training's first, or the statistics of a study without it."""
        return next(iter(self.phases), self.releases[0])

    @property
    def phases(self) -> tuple[Release, ...]:
        """The releases that training consists of, in order: one, unless it spends unevenly over its rounds."""
        return tuple(one for one in self.releases if one.name.partition("-")[0] == TRAINING)

    def release(self, name: str) -> Release:
        """The release of that name; `InvalidValue` if the terms hold none."""
        for release in self.releases:
            if release.name == name:
                return release
        raise InvalidValue(
            f"release is {name!r}", "the study makes no such release", "use one that its terms name"
        )

    @property
    def honest(self) -> int:
        """Fewest honest noise shares under secure aggregation; what one share is sized by."""
        return default_min_honest(len(self.sites)) if self.min_honest is None else self.min_honest

    @property
    def holds(self) -> bool:
        """Whether all releases together meet the target."""
        return self._meets(one.mechanism for one in self.releases)

    def affords(self, asked: Mapping[str, int]) -> bool:
        """Whether the target, which holds, pays for so many steps of each release, by name.

        It does for as many as were planned. More of one, since requests were repeated, are paid for by fewer of others.
        """
        if all(asked.get(one.name, 0) <= one.mechanism.steps for one in self.releases):
            return True
        return self._meets(
            one.mechanism.with_steps(asked[one.name]) for one in self.releases if asked.get(one.name)
        )

    def _meets(self, mechanisms: Iterable[Mechanism]) -> bool:
        """Whether the target pays for these, one way for all courses: two ways would have its delta each."""
        if self.trust == "none":
            return True
        mixed = is_mixture(release.mechanism for release in self.releases)
        return epsilon(mechanisms, self.target.delta, adaptive=True, mixed=mixed) <= self.target.epsilon

    def enough(self, survivors: int) -> bool:
        """Whether so many sites may open a round: masked, they must hold the honest shares beside a curious site's."""
        if survivors < self.min_sites:
            return False
        return self.trust != "secure-aggregation" or survivors > self.honest

    def noise_std(self, release: Release) -> float:
        """Standard deviation of the noise that one site adds to its sum, or to each of its local steps."""
        if release.local_noise or release.name in KEPT:
            return release.mechanism.noise_std
        return noise_share(self.trust, release.mechanism, self.honest)

    def noise_variance(self, mechanism: Mechanism, survivors: int) -> float:
        """Variance of the noise in each coordinate of a sum over so many surviving sites: a public number."""
        if self.trust == "server":
            return mechanism.noise_std**2
        return survivors * noise_share(self.trust, mechanism, self.honest) ** 2

    def alone(self, release: Release, steps: int | None = None) -> Mechanism | None:
        """What a site's own noise earns if everyone else colludes; None if it adds none.

        Args:
            release: one of the terms'.
            steps: of its mechanism; all where None.
        """
        mechanism = release.mechanism if steps is None else release.mechanism.with_steps(steps)
        if release.integer is not None and not release.local_noise:
            return release.integer.alone.with_steps(mechanism.steps)
        own = self.noise_std(release) / mechanism.clip_norm
        return replace(mechanism, noise_multiplier=own) if own > 0 else None

    def epsilon_alone(self) -> float:
        """Total epsilon of a site's own noise shares over the whole study, at the target's delta; infinite if none."""
        shares = [self.alone(release) for release in self.releases]
        if any(share is None for share in shares):
            return math.inf
        return epsilon([share for share in shares if share is not None], self.target.delta)
