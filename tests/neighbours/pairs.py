"""A data set and its neighbour without one unit, asked for the same sums: how far one unit moves them.

With A the sum over everyone, B the sum in the data set without the unit, and D what the unit adds where it alone is
drawn, two figures are measured, as multiples of the bound that noise is calibrated to:

    moved  = |A - B|                    at most 1
    others = max(|A - B - D|, |C - B|)  0 but for rounding,

where C is the sum in the larger data set if the unit is there but not drawn. Noise is off; who is drawn is written down
by name, so that both data sets draw the same others. Where noise is added within local steps, each step's sum is
measured, and both data sets are given the same outcome of it, as the composition of mechanisms has it.
"""

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest import mock

import numpy as np
from tests.deploy.hospital import SITES
from tests.neighbours.cohorts import Cohort
from tests.neighbours.harness import Hospital, Opened, Vector, make_offer

from fedveil.errors import FedveilError
from fedveil.federation import Agreement, Release, Request
from fedveil.federation.noise import LocalNoise
from fedveil.study import Study

__all__ = ["Figures", "Pair", "open_pair"]

Drawn = frozenset[str] | None
LATER = 10**9
"""An attempt that no request came before."""


@dataclass(frozen=True)
class Figures:
    """Multiples of the bound; see the module."""

    moved: float
    others: float


class _Script:
    """Stands for a site's generator: draws the units that it is told, by name."""

    def __init__(self, names: Sequence[str], drawn: Drawn) -> None:
        self._values = np.array([0.0 if drawn is None or name in drawn else 0.999 for name in names])

    def random(self, count: int) -> Vector:
        return np.resize(self._values, count) if len(self._values) else np.zeros(count)


@dataclass(frozen=True, eq=False)
class _Asked:
    """What a request gave: the exact sums that noise protects, and what was made of them."""

    sums: list[Vector]
    answer: Vector


@dataclass(eq=False)
class Pair:
    """Two data sets behind one hospital's learner; None is a hospital that its images keep out.

    Attributes:
        terms: as admitted.
        whole: with the unit.
        less: without it.
        gone: the unit's name.
    """

    agreement: Agreement
    whole: Opened | None
    less: Opened | None
    gone: str = ""
    _names: dict[tuple[int, bool], list[str]] = field(default_factory=dict)

    @property
    def open(self) -> Opened:
        """One of the two that is open, with a model of the size that was admitted if either has one."""
        sent = {one.parameters for one in self.agreement.releases}
        found = [one for one in (self.whole, self.less) if one is not None]
        return next((one for one in found if one.task.model.parameters in sent), found[0])

    def accepts(self, release: Release, parameters: Vector) -> bool:
        """Whether the site takes a request with these parameters, by its own check."""
        site = self.open.site
        assert site is not None
        request = Request(
            study=self.agreement.digest,
            release=release.name,
            round=1,
            attempt=LATER,
            participants=SITES,
            parameters=parameters,
        )
        try:
            site._check(request, self.agreement)
        except FedveilError:
            return False
        return True

    def measure(self, release: Release, parameters: Vector, others: Drawn = None) -> Figures:
        """How far the unit moves the sum over these others, everyone where None."""
        with_it = None if others is None else others | {self.gone}
        staying = self._everyone(release) if others is None else others
        first = self._ask(self.whole, release, parameters, with_it)
        outcomes = first.sums
        rest = self._ask(self.less, release, parameters, others, outcomes)
        idle = self._ask(self.whole, release, parameters, staying, outcomes)
        alone = self._ask(self.whole, release, parameters, frozenset({self.gone}), outcomes)
        bound = release.query.bound(release.mechanism.clip_norm)
        moved, shifted = 0.0, 0.0
        for a, b, c, d in zip(first.sums, rest.sums, idle.sums, alone.sums, strict=True):
            moved = max(moved, _length(a - b))
            shifted = max(shifted, _length(a - b - d), _length(c - b))
        if release.noise_inside:  # the same outcome of every step, so what is made of it is the same
            shifted = max(shifted, _length(first.answer - rest.answer) if self.whole and self.less else 0.0)
        if self.whole is None or self.less is None:
            shifted = moved
        return Figures(moved / bound, shifted / bound)

    def alone(self, release: Release, parameters: Vector) -> Figures:
        """The same where all of a hospital is the unit: without it there is no sum."""
        whole = self._ask(self.whole, release, parameters, None)
        bound = release.query.bound(release.mechanism.clip_norm)
        moved = max(_length(one) for one in whole.sums) / bound
        if release.name == "local-steps":  # a site takes all of its local steps: it is never drawn
            return Figures(moved, 0.0)
        idle = self._ask(self.whole, release, parameters, frozenset(), whole.sums)
        return Figures(moved, max(_length(one) for one in idle.sums) / bound)

    def totals(self, release: Release, parameters: Vector) -> tuple[Vector, Vector]:
        """Both exact sums over everyone."""
        first = self._ask(self.whole, release, parameters, None)
        return first.sums[0], self._ask(self.less, release, parameters, None, first.sums).sums[0]

    def others(self, release: Release) -> list[str]:
        """Names of the units that stay."""
        return sorted(self._everyone(release))

    def _everyone(self, release: Release) -> frozenset[str]:
        found = self._units(self.whole, release) if self.whole else self._units(self.less, release)
        return frozenset(found) - {self.gone}

    def _units(self, opened: Opened | None, release: Release) -> list[str]:
        """Units by the number that the site knows them by."""
        assert opened is not None
        tested = release.query.part == "held-out"
        key = (id(opened), tested)
        if key not in self._names:
            self._names[key] = opened.names(opened.test if tested else opened.train)
        return self._names[key]

    def _ask(
        self,
        opened: Opened | None,
        release: Release,
        parameters: Vector,
        drawn: Drawn,
        outcomes: list[Vector] | None = None,
    ) -> _Asked:
        """The exact sums; every unit is drawn where ``drawn`` is None, as at a rate of 1."""
        if opened is None:
            steps = release.steps_per_round
            nothing = np.zeros(release.dimension)
            return _Asked([nothing] * steps, nothing)
        rate = 1.0 if drawn is None else 0.5
        steps, contributions = replace(release.mechanism, sampling_rate=rate), opened.contributions
        contributions._generator = _Script(self._units(opened, release), drawn)
        sums: list[Vector] = []

        def outcome(self: LocalNoise, total: Vector, made: object, generator: object) -> Vector:
            sums.append(total.copy())
            return (total if outcomes is None else outcomes[len(sums) - 1]).copy()

        with np.errstate(all="ignore"), mock.patch.object(LocalNoise, "protect", outcome):
            answer = contributions.of(replace(release, mechanism=steps), parameters, private=True)
        return _Asked(sums or [answer], answer)


def _length(vector: Vector) -> float:
    return float(np.linalg.norm(vector))


@contextlib.contextmanager
def open_pair(
    folder: Path,
    study: Study,
    write: Callable[[Path, Cohort], str],
    both: tuple[Cohort, Cohort],
    **settings: object,
) -> Iterator[Pair]:
    """Open a study over both data sets, features computed anew for each: a cache would hide how they round.

    Args:
        folder: an empty one, which is removed.
        study: as resolved.
        write: writes images into a folder and returns the source.
        both: the images, and those that are left without the unit.
        settings: of the hospital.
    """
    (folder / "north").mkdir(parents=True)
    log = logging.getLogger("fedveil.site")
    level = log.level
    log.setLevel(logging.CRITICAL)
    hospital, offer = Hospital(folder / "north", write, study.privacy.unit, **settings), make_offer(study)
    agreement, opened = offer.agreement(), []
    try:
        for number, images in enumerate(both):
            with mock.patch.dict(os.environ, {"FEDVEIL_CACHE": str(folder / f"cache-{number}")}):
                try:
                    opened.append(hospital.open(offer, agreement, images))
                except Exception:  # noqa: BLE001 - a hospital that its images keep out, in whatever way
                    opened.append(None)
        yield Pair(agreement, opened[0], opened[1])
    finally:
        log.setLevel(level)
        shutil.rmtree(folder, ignore_errors=True)
