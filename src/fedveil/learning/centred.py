"""A linear head on features that are centred by what the study released first; see `fedveil.learning.statistics`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedveil.errors import InvalidValue
from fedveil.learning.learner import Indices, Vector
from fedveil.learning.linear import LinearHead, LinearLearner, Unit
from fedveil.learning.statistics import ClassStatistics, unit_blocks

__all__ = ["CentredHead", "CentredLearner"]


class CentredHead:
    """The model: parameters are the released centre, then those of the linear head that is trained.

    Args:
        blocks: lengths of the blocks of features, as the extractor makes them.
        classes: number of classes.
    """

    def __init__(self, blocks: Sequence[int], classes: int) -> None:
        self.blocks = tuple(blocks)
        self.head = LinearHead(sum(blocks), classes)

    @property
    def features(self) -> int:
        """Number of features."""
        return self.head.features

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.head.classes

    @property
    def trained(self) -> int:
        """Length of the trained part, and so of a gradient."""
        return self.head.dimension

    @property
    def parameters(self) -> int:
        """Length of the whole parameter vector."""
        return self.features + self.head.dimension

    def join(self, centre: Vector | None, trained: Vector) -> Vector:
        """The whole parameter vector; no centre means the origin."""
        start = np.zeros(self.features) if centre is None else centre
        return np.concatenate([start, trained])

    def split(self, parameters: Vector) -> tuple[Vector, Vector]:
        """Centre and trained part of a parameter vector."""
        if parameters.shape != (self.parameters,):
            raise InvalidValue(
                f"parameters have shape {parameters.shape}",
                f"this model has {self.parameters} of them in one vector",
                "use the same features and classes as in training",
            )
        return parameters[: self.features], parameters[self.features :]

    def probabilities(self, parameters: Vector, features: npt.NDArray[Any]) -> Vector:
        """Class probabilities (n, classes) for raw features (n, d)."""
        centre, trained = self.split(parameters)
        return self.head.probabilities(trained, self.view(features, centre))

    def view(self, features: npt.NDArray[Any], centre: Vector) -> npt.NDArray[np.float32]:
        """What the head sees: blocks of unit length, centred, and brought to unit length again."""
        return unit_blocks(unit_blocks(features, self.blocks), self.blocks, centre)


class CentredLearner:
    """One cohort's features behind a `CentredHead`; implements `fedveil.learning.Learner`.

    Args:
        model: the model.
        features: (n, d) raw features of the cohort's images.
        labels: (n,) class codes.
        patients: (n,) patient codes 0 .. P-1.
        unit: whom one contribution belongs to.
    """

    def __init__(
        self,
        model: CentredHead,
        features: npt.NDArray[Any],
        labels: npt.NDArray[Any],
        patients: npt.NDArray[Any],
        *,
        unit: Unit = "patient",
    ) -> None:
        self._model, self._labels, self._patients, self._unit = model, labels, patients, unit
        self._features = unit_blocks(features, model.blocks)
        self._centre = np.zeros(model.features)
        self._learner = self._centred(self._centre)

    @property
    def dimension(self) -> int:
        """Length of a gradient."""
        return self._model.trained

    @property
    def units(self) -> int:
        """Number of protected units."""
        return self._learner.units

    def contribution(self, parameters: Vector, *, clip_norm: float, units: Indices | None = None) -> Vector:
        """Sum the units' clipped gradients of the trained part; see `Learner.contribution`."""
        centre, trained = self._model.split(parameters)
        if not np.array_equal(centre, self._centre):
            self._centre, self._learner = centre, self._centred(centre)
        return self._learner.contribution(trained, clip_norm=clip_norm, units=units)

    def statistics(self) -> Vector:
        """Sum the units' class statistics; see `Learner.statistics`."""
        groups = np.arange(len(self._labels)) if self._unit == "image" else self._patients
        weights = 1 / np.bincount(groups)[groups]
        total = ClassStatistics.contribution(self._features, self._labels, weights, self._model.classes)
        if self._unit == "site":
            total = total / max(1.0, float(np.linalg.norm(total)))
        return total

    def scores(self, parameters: Vector) -> Vector:
        """Class probabilities (n, classes) of the cohort's own images."""
        return self._model.probabilities(parameters, self._features)

    def _centred(self, centre: Vector) -> LinearLearner:
        view = unit_blocks(self._features, self._model.blocks, centre)
        return LinearLearner(self._model.head, view, self._labels, self._patients, unit=self._unit)
