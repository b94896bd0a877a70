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

SMALLEST_SCALE = 1e-9


class CentredHead:
    """The model: parameters are the released centre and class weights, a shift of the logits, and the trained head.

    Weights w_y make every class count alike in training, however rare; so does the centre, which lies in the middle
    between the classes' means and makes an intercept needless. Probabilities are turned back to the class frequencies
    of training: ``p(y | x)`` is proportional to ``softmax(logits - shift)_y / w_y``. The shift is 0 in training;
    afterwards it may be set to the middle between the classes' mean logits, see `scores`.

    Args:
        blocks: lengths of the blocks of features, as the extractor makes them.
        classes: number of classes.
    """

    def __init__(self, blocks: Sequence[int], classes: int) -> None:
        self.blocks = tuple(blocks)
        self.head = LinearHead(sum(blocks), classes, intercept=False)

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
        return self.features + self.classes + self.head.logits + self.head.dimension

    def join(
        self, statistics: ClassStatistics | None, trained: Vector, shift: Vector | None = None
    ) -> Vector:
        """The whole parameter vector; without statistics the centre is the origin and the weights are 1."""
        centre = np.zeros(self.features) if statistics is None else statistics.centre
        weights = np.ones(self.classes) if statistics is None else statistics.weights
        moved = np.zeros(self.head.logits) if shift is None else shift
        return np.concatenate([centre, weights, moved, trained])

    def split(self, parameters: Vector) -> tuple[Vector, Vector, Vector, Vector]:
        """Centre, class weights, shift and trained part of a parameter vector."""
        if parameters.shape != (self.parameters,):
            raise InvalidValue(
                f"parameters have shape {parameters.shape}",
                f"this model has {self.parameters} of them in one vector",
                "use the same features and classes as in training",
            )
        ends = np.cumsum([self.features, self.classes, self.head.logits])
        centre, weights, shift, trained = np.split(parameters, ends)
        return centre, weights, shift, trained

    def probabilities(self, parameters: Vector, features: npt.NDArray[Any]) -> Vector:
        """Class probabilities (n, classes) for raw features (n, d)."""
        centre, weights, shift, trained = self.split(parameters)
        logits = self.head.logits_of(trained, self.view(features, centre)) - shift
        probabilities = self.head.probabilities_of(logits) / weights
        result: Vector = probabilities / probabilities.sum(axis=1, keepdims=True)
        return result

    def scores(self, parameters: Vector, features: npt.NDArray[Any]) -> Vector:
        """Logits (n, logits) before any shift, divided by the weights' norm: rows of norm at most 1."""
        centre, _, _, trained = self.split(parameters)
        result: Vector = self.head.logits_of(trained, self.view(features, centre)) / self.scale(parameters)
        return result

    def scale(self, parameters: Vector) -> float:
        """The norm of the trained weights, which bounds every logit of a unit vector; a public number."""
        return max(float(np.linalg.norm(self.split(parameters)[3])), SMALLEST_SCALE)

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
        self._centre, self._weights = np.zeros(model.features), np.ones(model.classes)
        self._learner = self._centred(self._centre, self._weights)

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
        centre, weights, _, trained = self._model.split(parameters)
        if not (np.array_equal(centre, self._centre) and np.array_equal(weights, self._weights)):
            self._learner = self._centred(centre, weights)
            self._centre, self._weights = centre, weights
        return self._learner.contribution(trained, clip_norm=clip_norm, units=units)

    def statistics(self, parameters: Vector) -> Vector:
        """Sum the units' class statistics: of their features, or of their scores where there is a model to score by."""
        points = self._model.scores(parameters, self._features) if parameters.size else self._features
        groups = np.arange(len(self._labels)) if self._unit == "image" else self._patients
        weights = 1 / np.bincount(groups)[groups]
        total = ClassStatistics.contribution(points, self._labels, weights, self._model.classes)
        if self._unit == "site":
            total = total / max(1.0, float(np.linalg.norm(total)))
        return total

    def scores(self, parameters: Vector) -> Vector:
        """Class probabilities (n, classes) of the cohort's own images."""
        return self._model.probabilities(parameters, self._features)

    def _centred(self, centre: Vector, weights: Vector) -> LinearLearner:
        return LinearLearner(
            self._model.head,
            unit_blocks(self._features, self._model.blocks, centre),
            self._labels,
            self._patients,
            unit=self._unit,
            class_weights=weights,
        )
