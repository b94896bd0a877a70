"""A linear head on features that are centred with the study's first release; see `.class_statistics`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedveil.errors import InvalidValue
from fedveil.learning.evaluation.pilot_scores import pilot_counts
from fedveil.learning.exact import bounded, first_sums, lengths
from fedveil.learning.models.class_statistics import COUNT_WEIGHT, ClassStatistics, unit_blocks
from fedveil.learning.models.discriminant import discriminant
from fedveil.learning.models.learner import Indices, Vector
from fedveil.learning.models.logistic import LinearHead, LinearLearner, Unit
from fedveil.learning.models.protocol import check_sent
from fedveil.learning.models.public_start import PublicStart
from fedveil.learning.models.score_statistics import Certainty, ScoreStatistics
from fedveil.learning.models.site_threshold import own_numbers
from fedveil.learning.ranges import check_centre, check_frequencies, check_length
from fedveil.learning.unit_weights import image_shares

__all__ = ["CentredHead", "CentredLearner"]

SMALLEST_SCALE = 1e-9
SCALE = 0.5
"""Logits of a score of length 1, as a fraction of the weights' norm: few images exceed it."""
LONGEST_SHIFT = 2.0
"""Length of a shift, in units of `CentredHead.scale`: middles of scores have length 1 at most, and a threshold beyond
the norm of the weights decides nothing."""


class CentredHead:
    """The model: parameters are the released centre and class weights, a shift of the logits, and the trained head.

    Weights w_y make all classes count equally in training, however rare; so does the centre, the midpoint between
    the classes' means, which replaces an intercept. Probabilities are converted to the class frequencies of
    training: ``p(y | x)`` is proportional to ``softmax(logits - shift)_y / w_y``. The shift is 0 in training;
    afterwards it may be set to the midpoint between the classes' mean logits, see `..evaluation.posterior`.

    Args:
        blocks: lengths of the blocks of features, as the extractor makes them.
        classes: number of classes.
        centred: whether features are centred; a head from one round of statistics uses them uncentred.
        start: the public model that training is pulled towards; None for none.
    """

    def __init__(
        self, blocks: Sequence[int], classes: int, *, centred: bool = True, start: PublicStart | None = None
    ) -> None:
        self.blocks, self.centred, self.start = tuple(blocks), centred, start
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
    def thresholds(self) -> tuple[int, int]:
        """One, between all classes."""
        return 1, self.classes

    @property
    def score_share(self) -> float:
        """That of features in class statistics."""
        return 1 - COUNT_WEIGHT**2

    @property
    def trained(self) -> int:
        """Length of the trained part, and so of a gradient."""
        return self.head.dimension

    @property
    def parameters(self) -> int:
        """Length of the whole parameter vector."""
        return self.features + self.classes + self.head.logits + self.head.dimension

    @property
    def statistics_size(self) -> int:
        """Length of the class statistics that are released before training."""
        return ClassStatistics.size(self.classes, self.features)

    @property
    def calibration_size(self) -> int:
        """Length of the class statistics of scores that are released after training."""
        return ClassStatistics.size(self.classes, self.head.logits)

    def initial(self) -> Vector:
        """The trained part before training."""
        return self.head.initial()

    def read_statistics(self, released: Vector, noise_variance: float) -> ClassStatistics:
        """Class sizes and means of features."""
        return ClassStatistics.from_released(released, self.classes, noise_variance)

    def calibrated(
        self,
        parameters: Vector,
        released: Vector,
        noise_variance: float,
        statistics: ClassStatistics | None,
    ) -> tuple[Vector, Certainty]:
        """The model with a shift of the logits: the middle between the classes' mean logits."""
        earlier = None if statistics is None else statistics.released_counts
        found = ScoreStatistics.from_released(released, self.classes, noise_variance, earlier).means()
        centre, weights, _, trained = self.split(parameters)
        shift = bounded(found.middle, 1.0) * self.scale(parameters)
        return np.concatenate([centre, weights, shift, trained]), Certainty.of(found)

    def join(
        self, statistics: ClassStatistics | None, trained: Vector, shift: Vector | None = None
    ) -> Vector:
        """The whole parameter vector; without statistics the centre is the origin and the weights are 1."""
        public = None if self.start is None else self.start.centre
        centre = np.zeros(self.features) if public is None else public
        if statistics is not None and self.centred:
            centre = statistics.centre(self.blocks, public)
        weights = np.ones(self.classes) if statistics is None else statistics.weights
        moved = np.zeros(self.head.logits) if shift is None else shift
        return np.concatenate([centre, weights, moved, trained])

    def check_parameters(self, parameters: Vector) -> None:
        """Refuse a vector that `join` cannot have made; see `fedveil.learning.Model.check_parameters`.

        The centre is one of `ClassStatistics.centre`, or 0. Weights w are ``1 / (K frequency)`` for class frequencies:
        not below 1/K, and their reciprocals sum to K. The shift is at most `LONGEST_SHIFT` times `scale` long.
        """
        centre, weights, shift, _ = self.split(parameters)
        check_centre(centre, self.blocks)
        with np.errstate(divide="ignore"):
            check_frequencies(1 / (self.classes * weights))
        check_length("the shift", shift, LONGEST_SHIFT * self.scale(parameters))

    def unshifted(self, parameters: Vector) -> Vector:
        """The same model with a shift of 0; `scores` take none into account."""
        centre, weights, shift, trained = self.split(parameters)
        return np.concatenate([centre, weights, np.zeros_like(shift), trained])

    def recalibrated(
        self, parameters: Vector, frequencies: Vector, released: Vector, noise_variance: float
    ) -> tuple[Vector, Vector]:
        """The model with one hospital's shift and class weights; see `fedveil.learning.Model.recalibrated`."""
        centre, _, shift, trained = self.split(parameters)
        found, scale = (
            ScoreStatistics.from_released(released, self.classes, noise_variance, None),
            self.scale(parameters),
        )
        middle, own = own_numbers(bounded(shift / scale, LONGEST_SHIFT), frequencies, found)
        return np.concatenate([centre, 1 / (self.classes * own), middle * scale, trained]), own

    def redrawn(self, parameters: Vector, trained_std: float, middle_std: Vector, seed: int) -> Vector:
        """The model with fresh noise; see `fedveil.learning.Model.redrawn`."""
        generator = np.random.default_rng(seed)
        centre, weights, shift, trained = self.split(parameters)
        moved = shift + self.scale(parameters) * middle_std * generator.standard_normal(len(shift))
        noisy = trained + trained_std * generator.standard_normal(len(trained))
        return np.concatenate([centre, weights, moved, noisy])

    def one_shot(self, statistics: ClassStatistics) -> tuple[Vector, Vector]:
        """The trained part and the shift of the logits from statistics alone, for a head that does not centre."""
        weights, thresholds = discriminant(statistics)
        trained, shift = weights.ravel(), thresholds
        if self.classes == 2:
            trained, shift = weights[1] - weights[0], thresholds[1:] - thresholds[:1]
        scale = max(float(np.linalg.norm(trained)) * SCALE, SMALLEST_SCALE)
        return trained, bounded(shift, LONGEST_SHIFT * scale)

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
        result: Vector = (probabilities.T / first_sums(probabilities.T.copy())).T
        return result

    def scores(self, parameters: Vector, features: npt.NDArray[Any]) -> Vector:
        """Logits (n, logits) before any shift, divided by `scale`."""
        centre, _, _, trained = self.split(parameters)
        result: Vector = self.head.logits_of(trained, self.view(features, centre)) / self.scale(parameters)
        return result

    def scale(self, parameters: Vector) -> float:
        """The logits of a score of length 1, `SCALE` times the norm of the trained weights; a public number."""
        return max(float(np.linalg.norm(self.split(parameters)[3])) * SCALE, SMALLEST_SCALE)

    def view(self, features: npt.NDArray[Any], centre: Vector) -> npt.NDArray[np.float32]:
        """The head's inputs: blocks of unit length, centred, and scaled to unit length again."""
        return unit_blocks(unit_blocks(features, self.blocks), self.blocks, centre)


class CentredLearner:
    """One cohort's features behind a `CentredHead`; implements `fedveil.learning.Learner`.

    Args:
        model: the model.
        features: (n, d) raw features of the cohort's images.
        labels: (n,) class codes.
        patients: (n,) patient codes 0 .. P-1.
        unit: whom one contribution belongs to.
        degraded: (n, d) raw features of the images' degraded views, for the last release; None for none.
    """

    def __init__(
        self,
        model: CentredHead,
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

    def check_parameters(self, parameters: Vector, *, judged: bool = False) -> None:
        """Refuse parameters that the model cannot have; see `Learner.check_parameters`."""
        check_sent(self._model, parameters, judged=judged)

    def contribution(self, parameters: Vector, *, clip_norm: float, units: Indices | None = None) -> Vector:
        """Sum the units' clipped gradients of the trained part; see `Learner.contribution`."""
        centre, weights, _, trained = self._model.split(parameters)
        if not (np.array_equal(centre, self._centre) and np.array_equal(weights, self._weights)):
            self._learner = self._centred(centre, weights)
            self._centre, self._weights = centre, weights
        return self._learner.contribution(trained, clip_norm=clip_norm, units=units)

    def statistics(self, parameters: Vector, units: Indices | None = None, *, plain: bool = False) -> Vector:
        """Sum the units' class statistics: of their features, or of their scores if there is a trained model."""
        points = self._mean_scores(parameters, plain) if parameters.size else self._features
        weights = image_shares(self._groups, None if self._unit == "site" else units)
        total = ClassStatistics.contribution(points, self._labels, weights, self._model.classes)
        if self._unit == "site":
            total = bounded(total, 1.0)
            total *= units is None or len(units) > 0
        return total

    def pilot_histogram(self, parameters: Vector, units: Indices | None = None) -> Vector:
        """Sum the units' histograms of scores, each of norm at most 1; see `..evaluation.pilot_scores`."""
        model = self._model
        centre, _, shift, trained = model.split(parameters)
        scores = model.head.logits_of(trained, unit_blocks(self._features, model.blocks, centre)) - shift
        weights = image_shares(self._groups, None if self._unit == "site" else units)
        total = pilot_counts(scores, self._labels, weights, model.classes, model.features)
        if self._unit == "site":
            total = bounded(total, 1.0)
            total *= units is None or len(units) > 0
        return total

    def _mean_scores(self, parameters: Vector, plain: bool) -> Vector:
        """Each image's score, averaged with that of its degraded view unless plain; both are cut to length 1 first."""
        views = [self._features] if self._degraded is None or plain else [self._features, self._degraded]
        scores = [self._model.scores(parameters, view) for view in views]
        cut = [one / np.maximum(lengths(one), 1.0)[:, None] for one in scores]
        result: Vector = np.mean(cut, axis=0)
        return result

    def _centred(self, centre: Vector, weights: Vector) -> LinearLearner:
        return LinearLearner(
            self._model.head,
            unit_blocks(self._features, self._model.blocks, centre),
            self._labels,
            self._patients,
            unit=self._unit,
            class_weights=weights,
        )
