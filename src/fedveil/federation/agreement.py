"""Everything that a study asks of a site, fixed before the first round; both sides derive everything from it.

A site computes the noise, the clip norm and the cost of every round from the agreement that it admitted, never from
a request. A coordinator that wants less noise has to change the agreement. Its digest then changes, and the site has
not admitted it.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from fedveil.errors import InvalidValue
from fedveil.federation.levels.grid import Calibration
from fedveil.federation.noise import LocalNoise, Noise, default_min_honest, noise_by
from fedveil.federation.queries import Rounds
from fedveil.federation.release import Release
from fedveil.names import check_site_names
from fedveil.privacy import Charge, Guarantee, Mechanism, Trust, epsilon, is_mixture

__all__ = ["Agreement"]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Everything about a study that affects privacy.

    Attributes:
        name: the study's name, for ledgers and logs.
        settings: the resolved study file as plain data; part of the digest, so that a site admits all of it.
        sites: every site that takes part, in a fixed order.
        target: the guarantee that the releases were calibrated to; its epsilon is infinite without privacy.
        releases: in the order in which they are made; of a calibrated study, the pilot's and the dearest level's.
        min_sites: smallest number of participants in a round.
        min_honest: smallest number of honest noise shares under secure aggregation; None for the default rule.
        calibration: the levels of a calibrated study and its rule; None for a study with a fixed epsilon.
    """

    name: str
    settings: Mapping[str, Any]
    sites: tuple[str, ...]
    target: Guarantee
    releases: tuple[Release, ...]
    min_sites: int
    min_honest: int | None = None
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        if len(set(self.sites)) != len(self.sites) or not self.sites:
            raise InvalidValue(
                f"sites are {', '.join(self.sites) or 'none'}",
                "the sites of a study must have different names",
                "name each hospital once",
            )
        check_site_names(self.sites)
        if not 1 <= self.min_sites <= len(self.sites):
            raise InvalidValue(
                f"min_sites is {self.min_sites}",
                f"it must be between 1 and the {len(self.sites)} sites of the study",
                "reduce it, or add sites",
            )
        if self.trust == "secure-aggregation":
            self._check_secure_aggregation()
        if self.trust == "none" and any(one.mechanism.noise_multiplier > 0 for one in self.releases):
            raise InvalidValue(
                'a release of a study with trust "none" states noise',
                "no party adds any",
                "state a noise multiplier of 0",
            )

    def _check_secure_aggregation(self) -> None:
        if len(self.sites) < 3:
            raise InvalidValue(
                f"the study has {len(self.sites)} sites",
                "secure aggregation needs 3 or more: with fewer, a site learns the other's sum from the total",
                'add sites, or set privacy.trust to "site"',
            )
        if not all(release.integer for release in self.releases if not release.query.at_site):
            raise InvalidValue(
                "a release under secure aggregation has no integer mechanism",
                "only integers can be masked",
                "calibrate it with calibrate_integer",
            )
        if self.min_honest is not None and not 1 <= self.min_honest < len(self.sites):
            raise InvalidValue(
                f"min_honest is {self.min_honest}",
                f"it must be between 1 and {len(self.sites) - 1}: every site knows its own noise share",
                "reduce it, or remove it for two thirds of the sites",
            )

    @property
    def trust(self) -> Trust:
        """Who could see an un-noised sum."""
        return self.target.trust

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the agreement in canonical JSON; a site admits an agreement by this digest."""
        body = {
            "name": self.name,
            "settings": self.settings,
            "sites": self.sites,
            "target": self.target.to_dict(),
            "releases": [release.to_list() for release in self.releases],
            "min_sites": self.min_sites,
            "min_honest": self.min_honest,
        }
        if self.calibration is not None:
            body["calibration"] = self.calibration.to_dict()
        return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @property
    def title(self) -> str:
        """The study's title in a ledger: its name and its full digest, which identifies it."""
        return f"{self.name} {self.digest}"

    @property
    def titles(self) -> tuple[str, str]:
        """Its possible titles in a ledger: the current one, and that of earlier versions with 12 digits of the digest.

        A study with the same 12 digits can be constructed in minutes: such a line counts both for this study and as
        another one.
        """
        return self.title, f"{self.name} {self.digest[:12]}"

    def charged_to(self, charge: Charge) -> bool:
        """Whether a ledger's charge is or may be this study's: counted against its limits, never in its favour."""
        return charge.study in self.titles

    @property
    def main(self) -> Release:
        """The release that the model is made from: training, or the statistics of a study without it."""
        made = [one for one in self.releases if one.level is not None] or self.releases
        return next((one for one in made if isinstance(one.query, Rounds)), made[0])

    @property
    def possible(self) -> tuple[Release, ...]:
        """All releases that can be requested, of every level."""
        others = () if self.calibration is None else self.calibration.releases
        return tuple({release.name: release for release in (*self.releases, *others)}.values())

    def at_level(self, level: int) -> "Agreement":
        """The same study at one of its levels: the pilot and that level's releases, for arithmetic.

        It has another digest: sites admit only the whole.
        """
        if self.calibration is None:
            raise InvalidValue(
                f"level {level} was named", "the study has a fixed epsilon", "run the study that was admitted"
            )
        chosen = self.calibration.level(level)
        pilot = tuple(one for one in self.releases if one.level is None)
        target = Guarantee(chosen.epsilon, self.target.delta, self.target.unit, self.target.trust)
        return replace(self, target=target, releases=pilot + chosen.releases, calibration=None)

    def release(self, name: str) -> Release:
        """The release of that name; `InvalidValue` if the agreement has none."""
        for release in self.possible:
            if release.name == name:
                return release
        raise InvalidValue(
            f"release is {name!r}", "it must be a release of the study", "use one that its agreement names"
        )

    @property
    def honest(self) -> int:
        """Smallest number of honest noise shares under secure aggregation, which determines the size of a share."""
        return default_min_honest(len(self.sites)) if self.min_honest is None else self.min_honest

    def price(self, mechanisms: Iterable[Mechanism]) -> float:
        """Epsilon of some of the study's steps together, at the target's delta, as a ledger prices its charges.

        Plans, reviews, coordinators and results state this number; infinite without privacy. A ledger does not know
        the later steps, so mechanisms count as chosen adaptively. All possible sequences of a study are priced by
        one accountant: two accountants would each spend the target's delta.
        """
        if self.trust == "none":
            return math.inf
        mixed = is_mixture([release.mechanism for release in self.possible])
        return epsilon(mechanisms, self.target.delta, adaptive=True, mixed=mixed)

    @property
    def mechanisms(self) -> tuple[Mechanism, ...]:
        """Of all releases, in order."""
        return tuple(release.mechanism for release in self.releases)

    @property
    def planned(self) -> Guarantee | None:
        """The guarantee of all releases together; None without privacy."""
        target = self.target
        if self.trust == "none":
            return None
        return Guarantee(self.price(self.mechanisms), target.delta, target.unit, target.trust)

    @property
    def holds(self) -> bool:
        """Whether all releases together meet the target."""
        return self.trust == "none" or self.price(self.mechanisms) <= self.target.epsilon

    def asked(self, counts: Mapping[str, int]) -> list[Mechanism]:
        """The mechanisms of the given numbers of steps, by release name."""
        return [self.release(name).mechanism.with_steps(count) for name, count in counts.items() if count]

    def affords(self, counts: Mapping[str, int]) -> bool:
        """Whether the target covers the given numbers of steps, by release name.

        It covers the planned numbers. Additional steps of one release, from repeated requests, reduce those of others.
        Once releases of a level were made, the limit is that level's epsilon.
        """
        planned = {one.name: one.mechanism.steps for one in self.releases}
        if self.trust == "none" or all(count <= planned.get(name, 0) for name, count in counts.items()):
            return True
        levels = {self.release(name).level for name, count in counts.items() if count} - {None}
        if self.calibration is not None and levels:
            views = [self.at_level(level) for level in levels if level is not None]
            return len(views) == 1 and views[0].affords(counts)
        return self.price(self.asked(counts)) <= self.target.epsilon

    def enough(self, survivors: int) -> bool:
        """Whether this number of sites may open a round: under secure aggregation enough shares must be honest,
        without a curious site's."""
        if survivors < self.min_sites:
            return False
        return self.trust != "secure-aggregation" or survivors > self.honest

    @cached_property
    def noise(self) -> Noise:
        """The noise of sums over all sites."""
        return noise_by(self.trust, len(self.sites), self.honest)

    def noise_of(self, release: Release) -> Noise:
        """The noise of a release: local if it is in a site's own steps, or if the sum stays at the site."""
        return LocalNoise() if release.noise_inside or release.query.at_site else self.noise

    def noise_std(self, release: Release) -> float:
        """Standard deviation of the noise that one site adds to its sum, or to each of its local steps."""
        return self.noise_of(release).site_std(release.mechanism)

    def noise_variance(self, release: Release, sites: int) -> float:
        """Variance of the noise per coordinate of a sum over this number of sites, of answers or of local steps."""
        return self.noise_of(release).variance(release.mechanism, sites)

    def alone(self, release: Release, steps: int | None = None) -> Mechanism | None:
        """The guarantee of a site's own noise if everyone else colludes; None if it adds none.

        Args:
            release: one of the agreement's.
            steps: number of steps of its mechanism; all if None.
        """
        own = self.noise_of(release).alone(release.calibrated)
        return own if own is None or steps is None else own.with_steps(steps)

    def epsilon_alone(self) -> float:
        """Total epsilon of a site's own noise shares over the whole study, at the target's delta; infinite if none."""
        shares = [self.alone(release) for release in self.releases]
        if any(share is None for share in shares):
            return math.inf
        return self.price(share for share in shares if share is not None)
