"""One hospital's held-out patients, which are used only for testing."""

from collections.abc import Callable
from typing import Any, final

import numpy as np
import numpy.typing as npt

from fedveil.learning.evaluation.finding_histogram import FindingHistogram
from fedveil.learning.evaluation.grade_histogram import GradeHistogram
from fedveil.learning.evaluation.score_histogram import Histogram, ScoreHistogram
from fedveil.learning.exact import bounded
from fedveil.learning.models.learner import Indices, Vector
from fedveil.learning.models.logistic import Unit
from fedveil.learning.unit_weights import image_shares

__all__ = ["HeldOut", "histogram_of"]


def histogram_of(*, findings: bool, grades: bool) -> type[Histogram]:
    """The histogram of several findings per image, of ordered grades, or of classes without an order."""
    if findings:
        return FindingHistogram
    return GradeHistogram if grades else ScoreHistogram


@final
class HeldOut:
    """A hospital's held-out units behind a model; exact, so results may leave only after noise is added.

    Args:
        scores: from the model's whole parameter vector, the class probabilities (n, classes) of the images.
        labels: (n,) class codes, or (n, K) findings.
        patients: (n,) patient codes 0 .. P-1.
        classes: number of classes.
        unit: whom one contribution belongs to.
        grades: whether the classes are ordered.
        strata: (n,) codes of the images' subgroups; None if no release is about them.
    """

    def __init__(
        self,
        scores: Callable[[Vector], Vector],
        labels: npt.NDArray[Any],
        patients: npt.NDArray[Any],
        *,
        classes: int,
        unit: Unit = "patient",
        grades: bool = False,
        strata: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self._scores, self._classes, self._unit, self._strata = scores, classes, unit, strata
        self._labels = np.asarray(labels, dtype=np.int64)
        groups = np.arange(len(self._labels)) if unit == "image" else np.asarray(patients)
        self._kind = histogram_of(findings=self._labels.ndim == 2, grades=grades)
        self._groups: Indices = np.unique(groups, return_inverse=True)[1].astype(np.int64)

    @property
    def units(self) -> int:
        """Number of protected units: patients, images, or 1 if the unit is the site."""
        return 1 if self._unit == "site" else int(self._groups.max()) + 1

    def histogram(self, parameters: Vector, units: Indices | None = None) -> Vector:
        """Sum the units' contributions, each of norm at most 1; see `histogram_of`.

        Args:
            parameters: class frequencies (classes,), then the model's whole parameter vector.
            units: indices of the units that take part; all if None.

        Raises:
            InvalidValue: frequencies or parameters that are impossible for the model.
        """
        return self.histograms(parameters, 1, units)

    def histograms(self, parameters: Vector, strata: int, units: Indices | None = None) -> Vector:
        """The same for each of so many subgroups, one after the other, together of norm at most 1.

        An image is in one subgroup: with one, or none known, in the last. So a unit's vector is an average over its
        images of vectors of norm 1 or 0, as in one histogram.

        Raises:
            InvalidValue: as `histogram` does.
        """
        priors, whole = np.split(parameters, [self._classes])
        weights = image_shares(self._groups, None if self._unit == "site" else units)
        last = np.full(len(self._labels), strata - 1)
        places = last if strata == 1 or self._strata is None else np.minimum(self._strata, last)
        probabilities = self._scores(whole)
        total = np.concatenate(
            [
                self._kind.contribution(probabilities, self._labels, weights * (places == place), priors)
                for place in range(strata)
            ]
        )
        if self._unit == "site":
            total = bounded(total, 1.0)
            total *= units is None or len(units) > 0
        return total
