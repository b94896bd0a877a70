"""What a site computes for a round: an exact sum, which the site protects afterwards."""

import logging
from collections.abc import Callable
from typing import final

import numpy as np

from fedveil.federation.messages import Vector
from fedveil.federation.queries import Asking, HospitalUnits
from fedveil.federation.release import Release
from fedveil.learning import Model
from fedveil.learning.models.protocol import check_sent

__all__ = ["Contributions"]

log = logging.getLogger("fedveil.site")


@final
class Contributions:
    """One hospital's units, as the releases of a study ask for them.

    Args:
        site: the hospital's name, for its log.
        hospital: the only code that sees the hospital's pixels.
        generator: draws samples of units, and the noise of local steps.
        model: what parameters are checked by where there is no learner: a site says the same whatever its images are.
    """

    def __init__(
        self,
        site: str,
        hospital: HospitalUnits,
        generator: np.random.Generator,
        model: Model | None = None,
    ) -> None:
        self._site, self.hospital, self._generator, self._model = site, hospital, generator, model

    def check(self, release: Release, parameters: Vector) -> None:
        """Refuse parameters, of the right number, that no honest coordinator sends; the cohort is not looked at.

        Raises:
            InvalidValue: they are outside the public ranges of what the model makes.
        """
        if not release.parameters:
            return
        judged = release.query.part == "held-out"
        if self.hospital.learner is not None:
            self.hospital.learner.check_parameters(parameters, judged=judged)
        elif self._model is not None:
            check_sent(self._model, parameters, judged=judged)

    def of(self, release: Release, parameters: Vector, *, private: bool) -> Vector:
        """What a round of the release is about: exact, so it stays at the site, unless steps of its own had noise.

        Args:
            release: as admitted.
            parameters: as sent, and checked.
            private: whether noise will hide it; then nothing about it may be told in any other way either.
        """

        def guarded(compute: Callable[[], Vector]) -> Vector:
            return self._guarded(compute, release, private)

        asking = Asking(
            hospital=self.hospital,
            mechanism=release.mechanism,
            parameters=parameters,
            length=release.dimension,
            generator=self._generator,
            guarded=guarded,
        )
        return guarded(lambda: release.query.sum(asking))

    def _guarded(self, compute: Callable[[], Vector], release: Release, private: bool) -> Vector:
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
