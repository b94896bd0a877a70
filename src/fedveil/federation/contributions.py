"""A site's exact sum for a round, which the site protects afterwards."""

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
    """One hospital's units, for the releases of a study.

    Args:
        site: the hospital's name, for its log.
        hospital: the only code that sees the hospital's pixels.
        generator: draws samples of units, and the noise of local steps.
        model: checks parameters if there is no learner: a site's answers do not depend on its images.
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
        """Refuse parameters that no honest coordinator sends, independently of the cohort.

        Raises:
            InvalidValue: they are outside the public ranges of the model.
        """
        if not parameters.size:
            return
        judged = release.query.part == "held-out"
        if self.hospital.learner is not None:
            self.hospital.learner.check_parameters(parameters, judged=judged)
        elif self._model is not None:
            check_sent(self._model, parameters, judged=judged)

    def of(self, release: Release, parameters: Vector, *, private: bool) -> Vector:
        """The exact sum of a round of the release, which stays at the site; only local steps already contain noise.

        Args:
            release: as admitted.
            parameters: as sent, and checked.
            private: whether noise will be added; then nothing about it may be revealed in any other way.
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
        """The result of ``compute``; zero if it fails or is not a vector of finite numbers, which only the site's
        log shows.

        Whether images can be read, or a number overflows, depends on the cohort. A refusal or a NaN would reveal
        that to the coordinator without noise. Learners bound each unit independently of its images, so this handles
        only unforeseen failures; without privacy they are reported.
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
