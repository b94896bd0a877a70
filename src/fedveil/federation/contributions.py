"""What a site computes for a round: from the terms to its learner. Exact sums, which the site protects afterwards."""

import logging
from collections.abc import Callable
from functools import partial
from typing import final

import numpy as np
import numpy.typing as npt

from fedveil.federation.messages import Vector
from fedveil.federation.terms import (
    CALIBRATION,
    EVALUATION,
    PERSONAL_CALIBRATION,
    PROGRESS,
    STATISTICS,
    LocalSteps,
    Release,
)
from fedveil.learning import HeldOut, Learner
from fedveil.privacy import release as release_noisy

__all__ = ["Contributions", "within"]

log = logging.getLogger("fedveil.site")


@final
class Contributions:
    """One hospital's cohort, as the releases of a study ask for it.

    Args:
        site: the hospital's name, for its log.
        learner: the only code that sees the cohort's pixels; None where no image can be used, and every sum is 0.
        held_out: the patients that the hospital tests on; None if it holds out none.
        generator: draws samples of units, and the noise of local steps.
    """

    def __init__(
        self, site: str, learner: Learner | None, held_out: HeldOut | None, generator: np.random.Generator
    ) -> None:
        self._site, self._learner, self._held_out, self._generator = site, learner, held_out, generator

    def of(self, release: Release, parameters: Vector, *, private: bool) -> Vector:
        """What a round of the release is about: exact, so it stays at the site, unless local steps had noise.

        Args:
            release: as admitted.
            parameters: as sent, and checked.
            private: whether noise will hide it; then nothing about it may be told in any other way either.
        """
        return self._shielded(partial(self._sum_of, release, parameters, private), release, private)

    def local_steps(self, release: Release, local: LocalSteps, start: Vector, *, private: bool) -> Vector:
        """The difference that local steps make to the trained part, the end of the vector; see `LocalSteps`."""
        std = release.mechanism.noise_std if release.local_noise else 0.0
        clip_norm = release.mechanism.clip_norm if release.local_noise else local.clip_norm
        parameters = start.copy()
        trained, origin = parameters[-release.dimension :], start[-release.dimension :]
        for _ in range(local.steps):
            step = partial(self._gradients, release, parameters.copy(), clip_norm)
            total = self._shielded(step, release, private)
            if std > 0:
                total = release_noisy(total, std, self._generator)
            trained -= local.learning_rate * (total / local.units + local.proximal * (trained - origin))
        bound = local.reach if release.local_noise else release.mechanism.clip_norm
        return within(trained - origin, bound)

    def _shielded(self, compute: Callable[[], Vector], release: Release, private: bool) -> Vector:
        """What ``compute`` gives; zero if it fails or is no vector of finite numbers, which only the site's log tells.

        Whether images can be read, or a number overflows, depends on who is in the cohort. To decline, or to reply
        NaN, would tell the coordinator, and no noise is on that. Learners bound each unit by itself whatever its
        images are, so that this is for what nobody foresaw; without privacy it is told, as everything is.
        """
        try:
            total = compute()
        except Exception as error:
            if not private:
                raise
            log.error("%s: %s contributes nothing but noise: %s", self._site, release.name, error)
            return np.zeros(release.dimension)
        if private and not (total.shape == (release.dimension,) and np.isfinite(total).all()):
            log.error("%s: %s contributes nothing but noise: it is not finite", self._site, release.name)
            return np.zeros(release.dimension)
        return total

    def _sum_of(self, release: Release, parameters: Vector, private: bool) -> Vector:
        if release.name == EVALUATION:
            if self._held_out is None:
                return np.zeros(release.dimension)
            return self._held_out.histogram(parameters, self._sample(release, self._held_out.units))
        if release.local is not None:
            return self.local_steps(release, release.local, parameters, private=private)
        if self._learner is None:
            return np.zeros(release.dimension)
        if release.name == PROGRESS:
            return self._learner.hits(parameters, self._sample(release, self._learner.units))
        if release.name in (STATISTICS, CALIBRATION, PERSONAL_CALIBRATION):
            chosen = self._sample(release, self._learner.units)
            own = release.name == PERSONAL_CALIBRATION
            return self._learner.statistics(parameters, chosen, plain=own)
        return self._gradients(release, parameters, release.mechanism.clip_norm)

    def _gradients(self, release: Release, parameters: Vector, clip_norm: float) -> Vector:
        """The sum over the sampled units of their clipped contributions; each unit is drawn by itself."""
        if self._learner is None:
            return np.zeros(release.dimension)
        return self._learner.contribution(
            parameters, clip_norm=clip_norm, units=self._sample(release, self._learner.units)
        )

    def _sample(self, release: Release, units: int) -> npt.NDArray[np.int64] | None:
        """Each unit by itself, at the rate that is accounted; None for all of them."""
        rate = release.mechanism.sampling_rate
        if rate == 1:
            return None
        return np.flatnonzero(self._generator.random(units) < rate)


def within(vector: Vector, bound: float) -> Vector:
    """The vector, scaled down to the bound if it is longer; zero if it is not finite.

    That is the projection onto a ball, which takes no two vectors further apart.
    """
    norm = float(np.linalg.norm(vector))
    if not np.isfinite(norm):
        return np.zeros_like(vector)
    return vector if norm <= bound else vector * (bound / norm)
