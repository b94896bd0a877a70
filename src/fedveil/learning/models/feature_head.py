"""What linear heads on frozen features share, whatever their labels: the layout of parameters, and the learner.

A whole parameter vector is: the released centre of the features, one released number per class, a shift of the logits,
and the trained weights. `.linear_head` has classes that exclude each other, `.grades` ordered ones, `.findings` any
number of findings.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from fedveil.errors import InvalidValue
from fedveil.learning.exact import bounded
from fedveil.learning.models.learner import Indices, Vector
from fedveil.learning.models.logistic import LinearHead, LinearLearner, Unit
from fedveil.learning.models.public_start import PublicStart
from fedveil.learning.released.class_statistics import unit_blocks
from fedveil.learning.unit_weights import image_shares

__all__ = ["LONGEST_SHIFT", "SMALLEST_SCALE", "FeatureHead", "FeatureLearner"]

SMALLEST_SCALE = 1e-9
LONGEST_SHIFT = 2.0
"""Length of a shift, in units of `FeatureHead.scale`: middles of scores have length 1 at most, and a threshold beyond
the norm of the weights decides nothing."""


class FeatureHead(ABC):
    """The public side of a linear head; see the module's text.

    Args:
        head: the logits.
        blocks: lengths of the blocks of features, as the extractor makes them.
        start: the public model that training is pulled towards; None for none.
    """

    def __init__(self, head: LinearHead, blocks: Sequence[int], start: PublicStart | None) -> None:
        self.head, self.blocks, self.start = head, tuple(blocks), start

    @property
    def features(self) -> int:
        """Number of features."""
        return self.head.features

    @property
    def classes(self) -> int:
        """Number of classes or findings."""
        return self.head.classes

    @property
    def findings(self) -> bool:
        """Whether an image may have any number of the classes."""
        return self.head.findings

    @property
    def grades(self) -> bool:
        """Whether the classes are ordered."""
        return self.head.grades

    @property
    def trained(self) -> int:
        """Length of the trained part, and so of a gradient."""
        return self.head.dimension

    @property
    def parameters(self) -> int:
        """Length of the whole parameter vector."""
        return self.features + self.classes + self.shifts + self.head.dimension

    @property
    def shifts(self) -> int:
        """Length of the shift: one number per logit."""
        return self.head.logits

    def initial(self) -> Vector:
        """The trained part before training."""
        return self.head.initial()

    @abstractmethod
    def scale(self, parameters: Vector) -> Any:
        """The logits of a score of 1, one for all or one per logit; public numbers."""

    @abstractmethod
    def scores(self, parameters: Vector, features: npt.NDArray[Any]) -> Vector:
        """Logits (n, logits) before any shift, divided by `scale`."""

    @abstractmethod
    def probabilities(self, parameters: Vector, features: npt.NDArray[Any]) -> Vector:
        """Class probabilities (n, classes) for raw features (n, d)."""

    def split(self, parameters: Vector) -> tuple[Vector, Vector, Vector, Vector]:
        """Centre, numbers of the classes, shift and trained part of a parameter vector."""
        if parameters.shape != (self.parameters,):
            raise InvalidValue(
                f"parameters have shape {parameters.shape}",
                f"this model has {self.parameters} of them in one vector",
                "use the same features and classes as in training",
            )
        ends = np.cumsum([self.features, self.classes, self.shifts])
        centre, numbers, shift, trained = np.split(parameters, ends)
        return centre, numbers, shift, trained

    def unshifted(self, parameters: Vector) -> Vector:
        """The same model with a shift of 0; `scores` take none into account."""
        centre, numbers, shift, trained = self.split(parameters)
        return np.concatenate([centre, numbers, np.zeros_like(shift), trained])

    def redrawn(self, parameters: Vector, trained_std: float, middle_std: Vector, seed: int) -> Vector:
        """The model with fresh noise; see `fedveil.learning.Model.redrawn`."""
        generator = np.random.default_rng(seed)
        centre, numbers, shift, trained = self.split(parameters)
        moved = shift + self.scale(parameters) * middle_std * generator.standard_normal(len(shift))
        noisy = trained + trained_std * generator.standard_normal(len(trained))
        return np.concatenate([centre, numbers, moved, noisy])

    def view(self, features: npt.NDArray[Any], centre: Vector) -> npt.NDArray[np.float32]:
        """The head's inputs: blocks of unit length, centred, and scaled to unit length again."""
        return unit_blocks(unit_blocks(features, self.blocks), self.blocks, centre)

    def logits(self, parameters: Vector, features: npt.NDArray[Any]) -> Vector:
        """Logits (n, logits) of raw features (n, d), before any shift."""
        centre, _, _, trained = self.split(parameters)
        return self.head.logits_of(trained, self.view(features, centre))

    def joined(self, centre: Vector | None, numbers: Vector, trained: Vector, shift: Vector | None) -> Vector:
        """The whole parameter vector; without a released centre it is that of the start, or the origin."""
        if centre is None:
            centre = np.zeros(self.features) if self.start is None else self.start.centre
        moved = np.zeros(self.shifts) if shift is None else shift
        return np.concatenate([centre, numbers, moved, trained])


M = TypeVar("M", bound=FeatureHead)


class FeatureLearner(ABC, Generic[M]):
    """One cohort's features behind a `FeatureHead`; implements `fedveil.learning.Learner`.

    Args:
        model: the model.
        features: (n, d) raw features of the cohort's images.
        labels: (n,) class codes, or (n, K) findings.
        patients: (n,) patient codes 0 .. P-1.
        unit: whom one contribution belongs to.
        degraded: (n, d) raw features of the images' degraded views, for the last release; None for none.
    """

    even: ClassVar[float]
    """The number of each class before any is released."""

    def __init__(
        self,
        model: M,
        features: npt.NDArray[Any],
        labels: npt.NDArray[Any],
        patients: npt.NDArray[Any],
        *,
        unit: Unit = "patient",
        degraded: npt.NDArray[Any] | None = None,
    ) -> None:
        self._model, self._labels, self._patients, self._unit = model, labels, patients, unit
        self._groups: Indices = np.arange(len(labels)) if unit == "image" else np.asarray(patients)
        self._features = unit_blocks(features, model.blocks)
        self._degraded = None if degraded is None else unit_blocks(degraded, model.blocks)
        self._centre, self._numbers = np.zeros(model.features), np.full(model.classes, self.even)
        self._learner = self._centred()

    @property
    def dimension(self) -> int:
        """Length of a gradient."""
        return self._model.trained

    @property
    def units(self) -> int:
        """Number of protected units."""
        return self._learner.units

    @abstractmethod
    def _class_weights(self, numbers: Vector) -> Vector:
        """Weights of the loss, from the released numbers of the classes."""

    def _offsets(self, numbers: Vector, clip_norm: float) -> Vector | float:
        """What is added to the logits in the loss."""
        del numbers, clip_norm
        return 0.0

    @abstractmethod
    def _statistics(self, parameters: Vector, shares: Vector, plain: bool) -> Vector:
        """The exact sum of the images' releases before training, or after it if there is a trained model."""

    def contribution(self, parameters: Vector, *, clip_norm: float, units: Indices | None = None) -> Vector:
        """Sum the units' clipped gradients of the trained part; see `Learner.contribution`."""
        centre, numbers, _, trained = self._model.split(parameters)
        if not (np.array_equal(centre, self._centre) and np.array_equal(numbers, self._numbers)):
            self._centre, self._numbers = centre, numbers
            self._learner = self._centred()
        offsets = self._offsets(numbers, clip_norm)
        return self._learner.contribution(trained, clip_norm=clip_norm, units=units, offsets=offsets)

    def statistics(self, parameters: Vector, units: Indices | None = None, *, plain: bool = False) -> Vector:
        """Sum the units' releases before training, or after it if there is a trained model."""
        return self._of_units(self._statistics(parameters, self._shares(units), plain), units)

    def _shares(self, units: Indices | None) -> Vector:
        """Each image's share in its unit; see `fedveil.learning.unit_weights`."""
        return image_shares(self._groups, None if self._unit == "site" else units)

    def _of_units(self, total: Vector, units: Indices | None) -> Vector:
        """A sum over units; if the site is the unit, the whole is one contribution, of norm 1 at most."""
        if self._unit == "site":
            total = bounded(total, 1.0)
            total *= units is None or len(units) > 0
        return total

    def _scored(self, parameters: Vector, plain: bool) -> list[Vector]:
        """Scores of the images and, unless plain, of their degraded views."""
        views = [self._features] if self._degraded is None or plain else [self._features, self._degraded]
        return [self._model.scores(parameters, view) for view in views]

    def _centred(self) -> LinearLearner:
        return LinearLearner(
            self._model.head,
            unit_blocks(self._features, self._model.blocks, self._centre),
            self._labels,
            self._patients,
            unit=self._unit,
            class_weights=self._class_weights(self._numbers),
        )
