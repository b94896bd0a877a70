"""Several findings per image: one linear head per finding, with one clip norm over all of them together.

Findings do not exclude each other, and some may be unknown for an image: label 1, 0, or -1. Each finding has a binary
logistic regression of its own on the same features, and all of them are one model: one patient's gradient over all
findings is clipped as a whole, and every release below has one bound for all findings.

**Before training**, a unit adds the average over its images of

    (sqrt(1 - b^2) x, b / sqrt(K + 1) (1, onehot(y_1), ..., onehot(y_K))),

where x is the image's features, ``||x|| <= 1``, and ``onehot(y_j)`` counts absence or presence of finding j, and is 0
if it is unknown. The norm is at most ``sqrt(1 - b^2 + b^2 (K + 1) / (K + 1)) = 1``, and an average of such vectors has
norm at most 1. All images share one centre, their mean: a mean per finding and value would need 2 K times the numbers.

**After training**, a unit adds the average over its images of ``(sqrt(1 - b^2) s_j, b) / sqrt(K)`` for each finding j
that is known, in one of two places, for absence or presence; ``|s_j| <= 1`` is the image's score. Norm at most 1 again.

Terms are cut to the grid of `fedveil.learning.exact`, so that sums are exact and no unit changes another's part.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedveil.errors import InvalidValue
from fedveil.learning.evaluation.posterior import Noisy, combined, means_of
from fedveil.learning.exact import SHORTER, bounded, on_grid
from fedveil.learning.models.class_statistics import unit_blocks
from fedveil.learning.models.finding_statistics import COUNT_WEIGHT, RAREST, FindingStatistics
from fedveil.learning.models.learner import Indices, Vector
from fedveil.learning.models.logistic import LinearHead, LinearLearner, Unit, checked_findings
from fedveil.learning.models.public_start import PublicStart
from fedveil.learning.models.score_statistics import Certainty
from fedveil.learning.ranges import check_centre, check_length
from fedveil.learning.unit_weights import image_shares

__all__ = ["FindingsHead", "FindingsLearner"]

SMALLEST_SCALE = 1e-9
LONGEST_SHIFT = 2.0
"""Bound of a finding's shift, in units of `FindingsHead.scales`."""


class FindingsHead:
    """The model: parameters are the released centre, the findings' frequencies, shifts of the logits, and the heads.

    The loss of a finding weighs its presence and absence equally, however rare it is. Probabilities are converted to
    the frequencies p_j of training: ``logit(P_j) = z_j - shift_j + log(p_j / (1 - p_j))``.

    Args:
        blocks: lengths of the blocks of features, as the extractor makes them.
        classes: number of findings K.
        start: the public model that training is pulled towards; None for none.
    """

    findings = True

    def __init__(self, blocks: Sequence[int], classes: int, *, start: PublicStart | None = None) -> None:
        self.blocks, self.start = tuple(blocks), start
        self.head = LinearHead(sum(blocks), classes, findings=True)

    @property
    def features(self) -> int:
        """Number of features."""
        return self.head.features

    @property
    def classes(self) -> int:
        """Number of findings."""
        return self.head.classes

    @property
    def thresholds(self) -> tuple[int, int]:
        """One per finding, between its absence and presence."""
        return self.classes, 2

    @property
    def score_share(self) -> float:
        """K findings share what is not for counts."""
        return (1 - COUNT_WEIGHT**2) / self.classes

    @property
    def trained(self) -> int:
        """Length of the trained part, and so of a gradient."""
        return self.head.dimension

    @property
    def parameters(self) -> int:
        """Length of the whole parameter vector."""
        return self.features + 2 * self.classes + self.head.dimension

    @property
    def statistics_size(self) -> int:
        """Length of the release before training."""
        return FindingStatistics.size(self.classes, self.features)

    @property
    def calibration_size(self) -> int:
        """Length of the release after training."""
        return 4 * self.classes

    def initial(self) -> Vector:
        """The trained part before training."""
        return self.head.initial()

    def read_statistics(self, released: Vector, noise_variance: float) -> FindingStatistics:
        """Counts, and the mean of features."""
        return FindingStatistics.from_released(released, self.classes, noise_variance)

    def join(
        self, statistics: FindingStatistics | None, trained: Vector, shift: Vector | None = None
    ) -> Vector:
        """The whole parameter vector; without statistics the centre is the origin and frequencies are one half."""
        public = None if self.start is None else self.start.centre
        centre = np.zeros(self.features) if public is None else public
        if statistics is not None:
            centre = statistics.centre(self.blocks, public)
        frequencies = np.full(self.classes, 0.5) if statistics is None else statistics.priors
        moved = np.zeros(self.classes) if shift is None else shift
        return np.concatenate([centre, frequencies, moved, trained])

    def split(self, parameters: Vector) -> tuple[Vector, Vector, Vector, Vector]:
        """Centre, frequencies, shifts and trained part of a parameter vector."""
        if parameters.shape != (self.parameters,):
            raise InvalidValue(
                f"parameters have shape {parameters.shape}",
                f"this model has {self.parameters} of them in one vector",
                "use the same features and findings as in training",
            )
        ends = np.cumsum([self.features, self.classes, self.classes])
        centre, frequencies, shift, trained = np.split(parameters, ends)
        return centre, frequencies, shift, trained

    def check_parameters(self, parameters: Vector) -> None:
        """Refuse a vector that `join` cannot have made; see `fedveil.learning.Model.check_parameters`."""
        centre, frequencies, shift, _ = self.split(parameters)
        check_centre(centre, self.blocks)
        self.check_frequencies(frequencies)
        for one, scale in zip(shift, self.scales(parameters), strict=True):
            check_length("the shift", np.array([one]), LONGEST_SHIFT * float(scale))

    def check_frequencies(self, frequencies: Vector) -> None:
        """Refuse frequencies that are no released ones."""
        if not ((frequencies >= RAREST) & (frequencies <= 1 - RAREST)).all():
            raise InvalidValue(
                f"frequencies are {np.round(frequencies, 6).tolist()}",
                f"the model's lie between {RAREST:g} and {1 - RAREST:g}",
                "send the model of the study",
            )

    def unshifted(self, parameters: Vector) -> Vector:
        """The same model with shifts of 0."""
        centre, frequencies, shift, trained = self.split(parameters)
        return np.concatenate([centre, frequencies, np.zeros_like(shift), trained])

    def scales(self, parameters: Vector) -> Vector:
        """(K,) half the norm of each finding's weights; public."""
        heads = self.split(parameters)[3].reshape(self.classes, self.features)
        result: Vector = np.maximum(np.linalg.norm(heads, axis=1) / 2, SMALLEST_SCALE)
        return result

    def view(self, features: npt.NDArray[Any], centre: Vector) -> npt.NDArray[np.float32]:
        """The heads' inputs: blocks of unit length, centred, and scaled to unit length again."""
        return unit_blocks(unit_blocks(features, self.blocks), self.blocks, centre)

    def scores(self, parameters: Vector, features: npt.NDArray[Any]) -> Vector:
        """Logits (n, K) before any shift, in units of `scales`, cut to [-1, 1]."""
        centre, _, _, trained = self.split(parameters)
        logits = self.head.logits_of(trained, self.view(features, centre))
        result: Vector = np.clip(logits / self.scales(parameters), -1.0, 1.0)
        return result

    def probabilities(self, parameters: Vector, features: npt.NDArray[Any]) -> Vector:
        """The probability of each finding, (n, K), for raw features (n, d)."""
        centre, frequencies, shift, trained = self.split(parameters)
        logits = self.head.logits_of(trained, self.view(features, centre)) - shift
        return self.head.probabilities_of(logits + np.log(frequencies / (1 - frequencies)))

    def calibrated(
        self,
        parameters: Vector,
        released: Vector,
        noise_variance: float,
        statistics: FindingStatistics | None,
    ) -> tuple[Vector, Certainty]:
        """The model with a shift per finding: the middle between the mean logits without and with it."""
        sums, counts = _scores_of(released, noise_variance)
        if statistics is not None:
            counts = combined(counts, statistics.measured)
        found = [
            means_of(Noisy(one[:, None], sums.variance), Noisy(sizes, counts.variance))
            for one, sizes in zip(sums.values, counts.values, strict=True)
        ]
        centre, frequencies, _, trained = self.split(parameters)
        middles = np.clip([float(one.middle[0]) for one in found], -1.0, 1.0)
        whole = np.concatenate([centre, frequencies, middles * self.scales(parameters), trained])
        return whole, Certainty.of_all([Certainty.of(one) for one in found])

    def redrawn(self, parameters: Vector, trained_std: float, middle_std: Vector, seed: int) -> Vector:
        """The model with fresh noise; see `fedveil.learning.Model.redrawn`."""
        generator = np.random.default_rng(seed)
        centre, frequencies, shift, trained = self.split(parameters)
        moved = shift + self.scales(parameters) * middle_std * generator.standard_normal(len(shift))
        noisy = trained + trained_std * generator.standard_normal(len(trained))
        return np.concatenate([centre, frequencies, moved, noisy])

    def recalibrated(
        self, parameters: Vector, frequencies: Vector, released: Vector, noise_variance: float
    ) -> tuple[Vector, Vector]:
        """Thresholds of one hospital's own are not made for findings: the common ones stay."""
        del released, noise_variance
        return parameters, frequencies


def _scores_of(released: Vector, noise_variance: float) -> tuple[Noisy, Noisy]:
    """Sums of scores and counts, each (K, 2), from the release after training."""
    values = released.reshape(-1, 2, 2)
    of_sums, of_counts = (1 - COUNT_WEIGHT**2) / len(values), COUNT_WEIGHT**2 / len(values)
    return (
        Noisy(values[:, :, 0] / np.sqrt(of_sums), noise_variance / of_sums),
        Noisy(values[:, :, 1] / np.sqrt(of_counts), noise_variance / of_counts),
    )


class FindingsLearner:
    """One cohort's features behind a `FindingsHead`; implements `fedveil.learning.Learner`.

    Args:
        model: the model.
        features: (n, d) raw features of the cohort's images.
        labels: (n, K) of 1, 0, and -1 for unknown.
        patients: (n,) patient codes 0 .. P-1.
        unit: whom one contribution belongs to.
        degraded: (n, d) raw features of the images' degraded views, for the last release; None for none.
    """

    def __init__(
        self,
        model: FindingsHead,
        features: npt.NDArray[Any],
        labels: npt.NDArray[Any],
        patients: npt.NDArray[Any],
        *,
        unit: Unit = "patient",
        degraded: npt.NDArray[Any] | None = None,
    ) -> None:
        self._model, self._patients, self._unit = model, patients, unit
        self._labels = checked_findings(labels, len(features), model.classes)
        self._groups: Indices = np.arange(len(labels)) if unit == "image" else np.asarray(patients)
        self._features = unit_blocks(features, model.blocks)
        self._degraded = None if degraded is None else unit_blocks(degraded, model.blocks)
        self._centre, self._frequencies = np.zeros(model.features), np.full(model.classes, 0.5)
        self._learner = self._centred()

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
        if judged:
            frequencies, parameters = np.split(parameters, [self._model.classes])
            self._model.check_frequencies(frequencies)
        self._model.check_parameters(parameters)

    def contribution(self, parameters: Vector, *, clip_norm: float, units: Indices | None = None) -> Vector:
        """Sum the units' clipped gradients of all heads together; see `Learner.contribution`."""
        centre, frequencies, _, trained = self._model.split(parameters)
        if not (np.array_equal(centre, self._centre) and np.array_equal(frequencies, self._frequencies)):
            self._centre, self._frequencies = centre, frequencies
            self._learner = self._centred()
        return self._learner.contribution(trained, clip_norm=clip_norm, units=units)

    def statistics(self, parameters: Vector, units: Indices | None = None, *, plain: bool = False) -> Vector:
        """Sum the units' releases before training, or after it if there is a trained model; see the module's text."""
        shares = image_shares(self._groups, None if self._unit == "site" else units)
        if parameters.size:
            total = self._scored(parameters, shares, plain)
        else:
            total = FindingStatistics.contribution(self._features, self._labels, shares)
        if self._unit == "site":
            total = bounded(total, 1.0)
            total *= units is None or len(units) > 0
        return total

    def _scored(self, parameters: Vector, shares: Vector, plain: bool) -> Vector:
        """The release after training, (4 K,): for each finding, without and with it, the sum of scores and a count."""
        views = [self._features] if self._degraded is None or plain else [self._features, self._degraded]
        scores = np.mean([self._model.scores(parameters, view) for view in views], axis=0)
        scale = SHORTER * shares[:, None] / np.sqrt(self._model.classes)
        scored = on_grid(np.sqrt(1 - COUNT_WEIGHT**2) * scores * scale)
        counted = on_grid(COUNT_WEIGHT * np.ones_like(scores) * scale)
        found = [
            [(scored * (self._labels == value)).sum(axis=0), (counted * (self._labels == value)).sum(axis=0)]
            for value in (0, 1)
        ]
        total: Vector = np.array(found).transpose(2, 0, 1).ravel()
        return total

    def _centred(self) -> LinearLearner:
        model, rarity = self._model, np.stack([1 - self._frequencies, self._frequencies], axis=1)
        return LinearLearner(
            model.head,
            unit_blocks(self._features, model.blocks, self._centre),
            self._labels,
            self._patients,
            unit=self._unit,
            class_weights=1 / (2 * rarity),
        )
