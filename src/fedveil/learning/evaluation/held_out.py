"""One hospital's held-out patients, which are used only for testing."""

from collections.abc import Callable
from typing import Any, final

import numpy as np
import numpy.typing as npt

from fedveil.learning.evaluation.finding_histogram import FindingHistogram
from fedveil.learning.evaluation.score_histogram import Histogram, ScoreHistogram
from fedveil.learning.exact import bounded
from fedveil.learning.models.learner import Indices, Vector
from fedveil.learning.models.logistic import Unit
from fedveil.learning.unit_weights import image_shares

__all__ = ["HeldOut"]


@final
class HeldOut:
    """A hospital's held-out units behind a model; exact, so results may leave only after noise is added.

    Args:
        scores: from the model's whole parameter vector, the class probabilities (n, classes) of the images.
        labels: (n,) class codes, or (n, K) findings.
        patients: (n,) patient codes 0 .. P-1.
        classes: number of classes.
        unit: whom one contribution belongs to.
    """

    def __init__(
        self,
        scores: Callable[[Vector], Vector],
        labels: npt.NDArray[Any],
        patients: npt.NDArray[Any],
        *,
        classes: int,
        unit: Unit = "patient",
    ) -> None:
        self._scores, self._classes, self._unit = scores, classes, unit
        self._labels = np.asarray(labels, dtype=np.int64)
        groups = np.arange(len(self._labels)) if unit == "image" else np.asarray(patients)
        self._kind: type[Histogram] = FindingHistogram if self._labels.ndim == 2 else ScoreHistogram
        self._groups: Indices = np.unique(groups, return_inverse=True)[1].astype(np.int64)

    @property
    def units(self) -> int:
        """Number of protected units: patients, images, or 1 if the unit is the site."""
        return 1 if self._unit == "site" else int(self._groups.max()) + 1

    def histogram(self, parameters: Vector, units: Indices | None = None) -> Vector:
        """Sum the units' contributions, each of norm at most 1; see `ScoreHistogram` and `FindingHistogram`.

        Args:
            parameters: class frequencies (classes,), then the model's whole parameter vector.
            units: indices of the units that take part; all if None.

        Raises:
            InvalidValue: frequencies or parameters that are impossible for the model.
        """
        priors, whole = np.split(parameters, [self._classes])
        weights = image_shares(self._groups, None if self._unit == "site" else units)
        total = self._kind.contribution(self._scores(whole), self._labels, weights, priors)
        if self._unit == "site":
            total = bounded(total, 1.0)
            total *= units is None or len(units) > 0
        return total
