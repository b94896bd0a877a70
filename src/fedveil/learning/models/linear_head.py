"""A linear head on features that are centred with the study's first release; see `..released.class_statistics`."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, final

import numpy as np
import numpy.typing as npt

from fedveil.learning.exact import bounded, first_sums, lengths
from fedveil.learning.models.feature_head import (
    LONGEST_SHIFT,
    SMALLEST_SCALE,
    FeatureHead,
    FeatureLearner,
)
from fedveil.learning.models.learner import Indices, Vector
from fedveil.learning.models.logistic import LinearHead
from fedveil.learning.models.protocol import check_sent
from fedveil.learning.models.public_start import PublicStart
from fedveil.learning.ranges import check_centre, check_frequencies, check_length
from fedveil.learning.released.class_statistics import COUNT_WEIGHT, ClassStatistics, unit_blocks
from fedveil.learning.released.discriminant import discriminant
from fedveil.learning.released.pilot_scores import pilot_counts
from fedveil.learning.released.score_statistics import Certainty, ScoreStatistics
from fedveil.learning.released.site_threshold import own_numbers

__all__ = ["SCALE", "CentredHead", "CentredLearner", "ClassHead"]

SCALE = 0.5
"""Logits of a score of length 1, as a fraction of the weights' norm: few images exceed it."""


class ClassHead(FeatureHead):
    """What linear heads for classes that exclude each other share, ordered or not: their releases, and class weights.

    Weights w_y make all classes count equally in training, however rare; so does the centre, the midpoint between
    the classes' means, which replaces an intercept.
    """

    centred = True
    """Whether features are centred; a head from one round of statistics uses them uncentred."""

    @abstractmethod
    def _shift(self, scores: ScoreStatistics) -> tuple[Vector, Certainty]:
        """The shift, in units of `scale`, that released scores give; and how sure it is."""

    @abstractmethod
    def recalibrated(
        self, parameters: Vector, frequencies: Vector, released: Vector, noise_variance: float
    ) -> tuple[Vector, Vector]:
        """See `fedveil.learning.Model.recalibrated`."""

    @property
    def thresholds(self) -> tuple[int, int]:
        """One, between all classes."""
        return 1, self.classes

    @property
    def score_share(self) -> float:
        """That of features in class statistics."""
        return 1 - COUNT_WEIGHT**2

    @property
    def statistics_size(self) -> int:
        """Length of the class statistics that are released before training."""
        return ClassStatistics.size(self.classes, self.features)

    @property
    def calibration_size(self) -> int:
        """Length of the class statistics of scores that are released after training."""
        return ClassStatistics.size(self.classes, self.head.logits)

    def read_statistics(self, released: Vector, noise_variance: float) -> ClassStatistics:
        """Class sizes and means of features."""
        return ClassStatistics.from_released(released, self.classes, noise_variance)

    def join(
        self, statistics: ClassStatistics | None, trained: Vector, shift: Vector | None = None
    ) -> Vector:
        """The whole parameter vector; without statistics the centre is that of the start, or the origin, and the
        weights are 1."""
        if statistics is None:
            return self.joined(None, np.ones(self.classes), trained, shift)
        public = None if self.start is None else self.start.centre
        centre = statistics.centre(self.blocks, public) if self.centred else None
        return self.joined(centre, statistics.weights, trained, shift)

    def calibrated(
        self,
        parameters: Vector,
        released: Vector,
        noise_variance: float,
        statistics: ClassStatistics | None,
    ) -> tuple[Vector, Certainty]:
        """The model with the shift of its logits that released scores give."""
        earlier = None if statistics is None else statistics.released_counts
        read = ScoreStatistics.from_released(released, self.classes, noise_variance, earlier)
        centre, weights, _, trained = self.split(parameters)
        shift, certainty = self._shift(read)
        return np.concatenate([centre, weights, shift * self.scale(parameters), trained]), certainty

    def scores(self, parameters: Vector, features: npt.NDArray[Any]) -> Vector:
        """Logits (n, logits) before any shift, divided by `scale`."""
        result: Vector = self.logits(parameters, features) / self.scale(parameters)
        return result

    def scale(self, parameters: Vector) -> float:
        """The logits of a score of length 1, `SCALE` times the norm of the trained weights; a public number."""
        return max(float(np.linalg.norm(self.split(parameters)[3])) * SCALE, SMALLEST_SCALE)

    def check_parameters(self, parameters: Vector) -> None:
        """Refuse a vector that `join` cannot have made; see `fedveil.learning.Model.check_parameters`.

        The centre is one of `ClassStatistics.centre`, or 0. Weights w are ``1 / (K frequency)`` for class frequencies:
        not below 1/K, and their reciprocals sum to K.
        """
        centre, weights, shift, _ = self.split(parameters)
        check_centre(centre, self.blocks)
        with np.errstate(divide="ignore"):
            check_frequencies(1 / (self.classes * weights))
        self._check_shift(shift, LONGEST_SHIFT * self.scale(parameters))

    def check_frequencies(self, frequencies: Vector) -> None:
        """Refuse frequencies of classes that do not sum to 1; see `fedveil.learning.Model.check_frequencies`."""
        check_frequencies(frequencies)

    def _check_shift(self, shift: Vector, longest: float) -> None:
        """Refuse a shift that is longer than any."""
        check_length("the shift", shift, longest)


@final
class CentredHead(ClassHead):
    """The model: parameters are the released centre and class weights, a shift of the logits, and the trained head.

    Probabilities are converted to the class frequencies of training: ``p(y | x)`` is proportional to
    ``softmax(logits - shift)_y / w_y``. The shift is 0 in training; afterwards it may be set to the midpoint between
    the classes' mean logits, see `..released.posterior`.

    Args:
        blocks: lengths of the blocks of features, as the extractor makes them.
        classes: number of classes.
        centred: whether features are centred; a head from one round of statistics uses them uncentred.
        start: the public model that training is pulled towards; None for none.
    """

    def __init__(
        self, blocks: Sequence[int], classes: int, *, centred: bool = True, start: PublicStart | None = None
    ) -> None:
        super().__init__(LinearHead(sum(blocks), classes), blocks, start)
        self.centred = centred

    def _shift(self, scores: ScoreStatistics) -> tuple[Vector, Certainty]:
        """The middle between the classes' mean scores."""
        found = scores.means()
        return bounded(found.middle, 1.0), Certainty.of(found)

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

    def one_shot(self, statistics: ClassStatistics) -> tuple[Vector, Vector]:
        """The trained part and the shift of the logits from statistics alone, for a head that does not centre."""
        weights, thresholds = discriminant(statistics)
        trained, shift = weights.ravel(), thresholds
        if self.classes == 2:
            trained, shift = weights[1] - weights[0], thresholds[1:] - thresholds[:1]
        scale = max(float(np.linalg.norm(trained)) * SCALE, SMALLEST_SCALE)
        return trained, bounded(shift, LONGEST_SHIFT * scale)

    def probabilities(self, parameters: Vector, features: npt.NDArray[Any]) -> Vector:
        """Class probabilities (n, classes) for raw features (n, d)."""
        _, weights, shift, _ = self.split(parameters)
        probabilities = self.head.probabilities_of(self.logits(parameters, features) - shift) / weights
        result: Vector = (probabilities.T / first_sums(probabilities.T.copy())).T
        return result


@final
class CentredLearner(FeatureLearner[ClassHead]):
    """One cohort's features behind a `ClassHead`; labels are (n,) class codes."""

    even = 1.0

    def check_parameters(self, parameters: Vector, *, judged: bool = False) -> None:
        """Refuse parameters that the model cannot have; see `Learner.check_parameters`."""
        check_sent(self._model, parameters, judged=judged)

    def pilot_histogram(self, parameters: Vector, units: Indices | None = None) -> Vector:
        """Sum the units' histograms of scores, each of norm at most 1; see `..released.pilot_scores`."""
        model = self._model
        centre, _, shift, trained = model.split(parameters)
        scores = model.head.logits_of(trained, unit_blocks(self._features, model.blocks, centre)) - shift
        total = pilot_counts(scores, self._labels, self._shares(units), model.classes, model.features)
        return self._of_units(total, units)

    def _class_weights(self, numbers: Vector) -> Vector:
        return numbers

    def _statistics(self, parameters: Vector, shares: Vector, plain: bool) -> Vector:
        """Class statistics of features, or of scores: each image's, averaged with that of its degraded view unless
        plain; both are cut to length 1 first."""
        points = self._features
        if parameters.size:
            scores = self._scored(parameters, plain)
            points = np.mean([one / np.maximum(lengths(one), 1.0)[:, None] for one in scores], axis=0)
        return ClassStatistics.contribution(points, self._labels, shares, self._model.classes)
