"""Several findings per image: one linear head per finding, with one clip norm over all of them together.

Findings do not exclude each other, and some may be unknown for an image: label 1, 0, or -1. Each finding has a binary
logistic regression of its own on the same features, and all of them are one model: one patient's gradient over all
findings is clipped as a whole, and every release below has one bound for all findings.

**Before training**, a unit adds the average over its images of

    (sqrt(1 - b^2) x, b / sqrt(K + 1) (1, onehot(y_1), ..., onehot(y_K))),

where x is the image's features, ``||x|| <= 1``, and ``onehot(y_j)`` counts absence or presence of finding j, and is 0
if it is unknown. The norm is at most ``sqrt(1 - b^2 + b^2 (K + 1) / (K + 1)) = 1``, and an average of such vectors has
norm at most 1. All images share one centre, their mean: a mean per finding and value would need 2 K times the numbers.

With one round of statistics, the release is that of `..released.finding_means` instead, and the heads follow from it.

**After training**, it adds scores and counts per finding, see `..released.finding_scores`.

Terms are cut to the grid of `fedveil.learning.exact`, so that sums are exact and no unit changes another's part.
"""

from collections.abc import Sequence
from typing import Any, final

import numpy as np
import numpy.typing as npt

from fedveil.learning.models.feature_head import (
    LONGEST_SHIFT,
    SMALLEST_SCALE,
    FeatureHead,
    FeatureLearner,
)
from fedveil.learning.models.learner import Vector
from fedveil.learning.models.logistic import LinearHead
from fedveil.learning.models.losses.findings import loss_offsets, loss_weights
from fedveil.learning.models.protocol import check_sent
from fedveil.learning.models.public_start import PublicStart
from fedveil.learning.ranges import check_centre, check_length
from fedveil.learning.released.finding_means import FindingMeans
from fedveil.learning.released.finding_scores import FindingScores
from fedveil.learning.released.finding_statistics import FindingStatistics, check_finding_frequencies
from fedveil.learning.released.score_statistics import Certainty

__all__ = ["FindingsHead", "FindingsLearner"]

DISTANCE = 0.25
"""d below: on average 0.28 on held-out training patients of `phantom:findings` at epsilon 1, and larger where there is
less noise; then the release of scores decides."""


@final
class FindingsHead(FeatureHead):
    """The model: parameters are the released centre, the findings' frequencies, shifts of the logits, and the heads.

    Training adds an offset to each finding's logit z_j, so that z_j is what the image says beside the finding's
    frequency p_j, see `.losses.findings`. Probabilities are ``logit(P_j) = z_j - shift_j + log(p_j / (1 - p_j))``.

    Args:
        blocks: lengths of the blocks of features, as the extractor makes them.
        classes: number of findings K.
        centred: whether features are centred; heads from one round of statistics use them uncentred, and the release
            before training is then `..released.finding_means`.
        start: the public model that training is pulled towards; None for none.
    """

    def __init__(
        self, blocks: Sequence[int], classes: int, *, centred: bool = True, start: PublicStart | None = None
    ) -> None:
        super().__init__(LinearHead(sum(blocks), classes, findings=True), blocks, start)
        self.centred = centred

    @property
    def release(self) -> type[FindingStatistics | FindingMeans]:
        """What is released before training."""
        return FindingStatistics if self.centred else FindingMeans

    @property
    def thresholds(self) -> tuple[int, int]:
        """One per finding, between its absence and presence."""
        return self.classes, 2

    @property
    def score_share(self) -> float:
        """One finding's; see `FindingScores`."""
        return FindingScores.share(self.classes)

    @property
    def statistics_size(self) -> int:
        """Length of the release before training."""
        return self.release.size(self.classes, self.features)

    @property
    def calibration_size(self) -> int:
        """Length of the release after training."""
        return FindingScores.size(self.classes)

    def read_statistics(self, released: Vector, noise_variance: float) -> FindingStatistics | FindingMeans:
        """Counts, and the mean of features or one per finding."""
        return self.release.from_released(released, self.classes, noise_variance)

    def one_shot(self, statistics: FindingMeans) -> tuple[Vector, Vector]:
        """The trained part and the shifts of the logits from statistics alone, for a head that does not centre."""
        weights, thresholds = statistics.heads()
        longest = LONGEST_SHIFT * self._scale(weights)
        return weights.ravel(), np.clip(thresholds, -longest, longest)

    def join(
        self,
        statistics: FindingStatistics | FindingMeans | None,
        trained: Vector,
        shift: Vector | None = None,
    ) -> Vector:
        """The whole parameter vector; without statistics the centre is that of the start, or the origin, and
        frequencies are one half. Without a shift it is the one that is expected."""
        if statistics is None:
            return self.joined(None, np.full(self.classes, 0.5), trained, shift)
        public, frequencies = None if self.start is None else self.start.centre, statistics.priors
        if shift is None:
            shift = _expected(frequencies) * self._scale(trained)
        centre = None if isinstance(statistics, FindingMeans) else statistics.centre(self.blocks, public)
        return self.joined(centre, frequencies, trained, shift)

    def check_parameters(self, parameters: Vector) -> None:
        """Refuse a vector that `join` cannot have made; see `fedveil.learning.Model.check_parameters`."""
        centre, frequencies, shift, _ = self.split(parameters)
        check_centre(centre, self.blocks)
        self.check_frequencies(frequencies)
        for one, scale in zip(shift, self.scale(parameters), strict=True):
            check_length("the shift", np.array([one]), LONGEST_SHIFT * float(scale))

    def check_frequencies(self, frequencies: Vector) -> None:
        """Refuse frequencies of findings outside (0, 1); see `fedveil.learning.Model.check_frequencies`."""
        check_finding_frequencies(frequencies)

    def scale(self, parameters: Vector) -> Vector:
        """(K,) half the norm of each finding's weights; public."""
        return self._scale(self.split(parameters)[3])

    def _scale(self, trained: Vector) -> Vector:
        heads = trained.reshape(self.classes, self.features)
        result: Vector = np.maximum(np.linalg.norm(heads, axis=1) / 2, SMALLEST_SCALE)
        return result

    def scores(self, parameters: Vector, features: npt.NDArray[Any]) -> Vector:
        """Logits (n, K) before any shift, in units of `scale`, cut to [-1, 1]."""
        result: Vector = np.clip(self.logits(parameters, features) / self.scale(parameters), -1.0, 1.0)
        return result

    def probabilities(self, parameters: Vector, features: npt.NDArray[Any]) -> Vector:
        """The probability of each finding, (n, K), for raw features (n, d)."""
        _, frequencies, shift, _ = self.split(parameters)
        logits = self.logits(parameters, features) - shift
        return self.head.probabilities_of(logits + np.log(frequencies / (1 - frequencies)))

    def calibrated(
        self,
        parameters: Vector,
        released: Vector,
        noise_variance: float,
        statistics: FindingStatistics | FindingMeans | None,
    ) -> tuple[Vector, Certainty]:
        """The model with a shift per finding: the middle between the mean logits without and with it."""
        centre, frequencies, _, trained = self.split(parameters)
        earlier, expected = None if statistics is None else statistics.measured, _expected(frequencies)
        if isinstance(statistics, FindingMeans):
            expected = self.one_shot(statistics)[1] / self._scale(trained)
        found = FindingScores.from_released(released, noise_variance, earlier)
        middles, certainty = found.middles(expected)
        whole = np.concatenate([centre, frequencies, middles * self.scale(parameters), trained])
        return whole, certainty

    def recalibrated(
        self, parameters: Vector, frequencies: Vector, released: Vector, noise_variance: float
    ) -> tuple[Vector, Vector]:
        """The model with one hospital's shifts and frequencies; see `fedveil.learning.Model.recalibrated`."""
        centre, _, shift, trained = self.split(parameters)
        scale = self.scale(parameters)
        found = FindingScores.from_released(released, noise_variance, None)
        middles, own = found.own(np.clip(shift / scale, -LONGEST_SHIFT, LONGEST_SHIFT), frequencies)
        return np.concatenate([centre, own, middles * scale, trained]), own


def _expected(frequencies: Vector) -> Vector:
    """(K,) the middles of scores that are expected without a release of scores.

    A head has no intercept, and features are centred at their mean: so the mean score over all images is about 0. If a
    finding's mean scores without and with it are a distance d apart, their middle is ``(1/2 - p) d``.
    """
    result: Vector = (0.5 - frequencies) * DISTANCE
    return result


@final
class FindingsLearner(FeatureLearner[FindingsHead]):
    """One cohort's features behind a `FindingsHead`; labels are (n, K) of 1, 0, and -1 for unknown."""

    even = 0.5

    def check_parameters(self, parameters: Vector, *, judged: bool = False) -> None:
        """Refuse parameters that the model cannot have; see `Learner.check_parameters`."""
        check_sent(self._model, parameters, judged=judged)

    def _class_weights(self, numbers: Vector) -> Vector:
        return loss_weights(numbers)

    def _offsets(self, numbers: Vector, clip_norm: float) -> Vector:
        return loss_offsets(numbers, clip_norm)

    def _statistics(self, parameters: Vector, shares: Vector, plain: bool) -> Vector:
        """The model's release before training; or the mean score of each image and its degraded view."""
        if not parameters.size:
            return self._model.release.contribution(self._features, self._labels, shares)
        scores = np.mean(self._scored(parameters, plain), axis=0)
        return FindingScores.contribution(scores, self._labels, shares)
