"""Levels of a calibrated study: a fixed public grid of which released values choose one.

A study whose epsilon is "calibrated" has two parts. The pilot releases class statistics and, for a linear head, a
histogram of scores. A rule (`fedveil.federation.levels.rule`) picks a level from these noisy sums; every level has
releases of its own, with more noise than those of the level above. Sites admit the agreement with all its levels, so
with its dearest one. A request names a release of one level. Its parameters begin with the evidence: the noisy sums of
the pilot, as the coordinator states them. A site applies the rule to them and refuses a dearer level.

The guarantee is that of the dearest level. The levels are Gaussian mechanisms, chosen in view of earlier releases;
their composition is bounded by a budget that was fixed beforehand (a privacy filter), and ledgers charge what was
used. A site cannot verify the evidence under secure aggregation, since no site sees a sum: a coordinator that lies
about it reaches the dearest level at most, which was admitted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedveil.errors import InvalidValue, Refused
from fedveil.federation.levels.rule import Forecast, Rule
from fedveil.federation.messages import Vector
from fedveil.federation.release import Release

__all__ = ["SCALE", "Calibration", "Evidence", "Level", "Shown"]

SCALE = 2.0**-10
"""Evidence is sent multiplied by this power of two, which rounds nothing, so that sums of many units fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One point of the grid.

    Attributes:
        epsilon: of the pilot and this level's releases together.
        releases: after the pilot, in order.
        strength: mu / f of the release that the model is made from: the ratio nu divided by the number of units.
    """

    epsilon: float
    releases: tuple[Release, ...]
    strength: float


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """The pilot's noisy sums as the coordinator states them.

    Attributes:
        survivors: the number of sites in each sum, in order of the releases; the noise follows from it.
        totals: each sum.
    """

    survivors: tuple[int, ...]
    totals: tuple[Vector, ...]

    def to_vector(self) -> Vector:
        """The numbers that precede a request's parameters."""
        return np.concatenate([np.array(self.survivors, dtype=np.float64), *self.totals]) * SCALE


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The levels of a calibrated study, the cheapest first, and its rule.

    Attributes:
        pilot: the releases that the rule reads.
        levels: numbered from 1 in this order.
        rule: picks a level.
        sites: number of sites of the study.
        variances: noise variance per coordinate of each pilot release for one to all sites.
    """

    pilot: tuple[Release, ...]
    levels: tuple[Level, ...]
    rule: Rule
    sites: int
    variances: tuple[tuple[float, ...], ...]

    def level(self, number: int) -> Level:
        """The level of that number, from 1."""
        if not 1 <= number <= len(self.levels):
            raise InvalidValue(
                f"level {number} was named",
                f"the grid has levels 1 to {len(self.levels)}",
                "run the study that was admitted",
            )
        return self.levels[number - 1]

    @property
    def releases(self) -> tuple[Release, ...]:
        """Of all levels."""
        return tuple(release for level in self.levels for release in level.releases)

    @property
    def length(self) -> int:
        """Length of the evidence in a request."""
        return len(self.pilot) + sum(release.dimension for release in self.pilot)

    def read(self, vector: Vector) -> Evidence:
        """The evidence in the first numbers of a request's parameters.

        Raises:
            Refused: a number of sites that is impossible.
        """
        values = vector[: self.length] / SCALE
        count = len(self.pilot)
        survivors = tuple(int(one) if float(one).is_integer() else 0 for one in values[:count])
        if not all(1 <= one <= self.sites for one in survivors):
            raise Refused(
                f"the evidence states sums over {', '.join(f'{one:g}' for one in values[:count])} sites",
                f"they must be whole numbers from 1 to {self.sites}",
                "send the pilot's sums as they were released",
            )
        ends = np.cumsum([release.dimension for release in self.pilot])[:-1]
        return Evidence(survivors, tuple(np.split(values[count:], ends)))

    def forecast(self, evidence: Evidence) -> Forecast:
        """What the rule derives from the evidence: accuracy at every level, and the level that it picks."""
        variances = [
            by_sites[count - 1] for by_sites, count in zip(self.variances, evidence.survivors, strict=True)
        ]
        return self.rule.forecast(evidence.totals, variances, [level.strength for level in self.levels])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, which an agreement's digest covers."""
        return {
            "rule": self.rule.to_dict(),
            "levels": [
                [level.epsilon, level.strength, [release.to_list() for release in level.releases]]
                for level in self.levels
            ],
        }


class Shown:
    """One site's view of a calibrated study: the evidence that it was shown, and the level that followed."""

    def __init__(self, calibration: Calibration) -> None:
        self._calibration = calibration
        self._seen: bytes | None = None
        self._picked = 0

    def check(self, release: Release, parameters: Vector, charged: Mapping[str, int]) -> None:
        """Check that the level follows from the evidence before the parameters.

        Args:
            release: of a level.
            parameters: as sent.
            charged: steps of this study in the site's ledger, by release name.

        Raises:
            Refused: a level dearer than the rule picks, evidence other than that shown before, or a second level.
        """
        level, length = release.level or 0, self._calibration.length
        seen = parameters[:length].tobytes()
        if self._seen is None:
            found = self._calibration.forecast(self._calibration.read(parameters))
            picked = found.level
        elif seen != self._seen:
            raise Refused(
                "the request states other sums of the pilot than requests before it",
                "all requests of a study rest on one pilot",
                "send the pilot's sums as they were released",
            )
        else:
            picked = self._picked
        if level > picked:
            raise Refused(
                f"the request names level {level}",
                f"the rule picks level {picked} from the pilot's sums that it states",
                "ask for the level that the rule picks",
            )
        others = {
            name.rpartition("-level-")[2] for name, count in charged.items() if count and "-level-" in name
        }
        if others - {str(level)}:
            raise Refused(
                f"the request names level {level}, and level {', '.join(sorted(others))} was charged before",
                "a study runs at one level",
                "continue at that level",
            )
        self._seen, self._picked = seen, picked
