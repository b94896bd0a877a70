"""Evaluation of a model on patients that hospitals hold out, from one noisy sum of histograms.

This is the histogram of classes that exclude each other; `.grade_histogram` is that of ordered ones, and
`.finding_histogram` that of several findings per image.

An exact AUROC of private images is not private. Instead, a hospital releases a histogram of scores by true class,
summed over its held-out units, with noise like every sum. AUROC, ROC curve, confusion, calibration and Brier score
are post-processing of the total, with intervals that include the noise.

An image with label y and class probabilities p is scored by q, the probabilities under equal class frequencies
(q_k proportional to p_k / priors_k), cut into `BINS` equal bins of [0, 1]; one half, the threshold between two
classes, is an edge. With two classes the image contributes ``onehot(y, bin of q_1)``. With K > 2 it contributes one
such histogram for each class against the rest and ``onehot(y, predicted class)``: K + 1 onehot vectors, all divided
by sqrt(K + 1). In both cases its norm is exactly 1, and a unit contributes the average over its images, whose norm
is at most 1 (convexity), for any number of images, classes and bins. An image's contribution to a cell is rounded to
the grid of `fedveil.learning.exact`, so that sums are exact. Each unit has weight 1 in every count: a patient with
ten images counts as one.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, final

import numpy as np
import numpy.typing as npt

from fedveil.errors import InvalidValue
from fedveil.learning.evaluation.noisy_ratios import Estimate, NoisyCounts, isotonic, mean_of
from fedveil.learning.exact import first_sums, on_grid
from fedveil.learning.models.learner import Vector

__all__ = ["BINS", "ClassHistogram", "Histogram", "ScoreHistogram", "at_middles", "entry"]

BINS = 10
"""More bins mean more noise (AUROC's standard deviation grows with their square root), fewer mean more ties."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Histogram(ABC):
    """A release about held-out units with its noise, hence public; counts are units, and may be negative.

    Attributes:
        counts: (k, 2, BINS), one table for each class or finding: images without it, then with it. For two classes k is
            1 and the class is 1.
        noise_variance: of each number.
        sampling_rate: probability with which each unit took part; counts are already divided by it.
    """

    counts: Vector
    noise_variance: float
    sampling_rate: float = 1.0

    @staticmethod
    @abstractmethod
    def size(classes: int) -> int:
        """Length of the released vector."""

    @staticmethod
    @abstractmethod
    def contribution(
        probabilities: Vector, labels: npt.NDArray[Any], weights: Vector, priors: Vector
    ) -> Vector:
        """Sum the units' contributions; exact, so it stays in the hospital."""

    @classmethod
    @abstractmethod
    def from_released(
        cls, vector: Vector, classes: int, noise_variance: float, sampling_rate: float = 1.0
    ) -> Self:
        """Read the noisy sum over all sites, divided by the sampling rate, and its noise variance."""

    @abstractmethod
    def metrics(self, classes: Sequence[str], priors: npt.ArrayLike) -> dict[str, Any]:
        """The metrics with 95 % intervals that include the noise and the choice of patients; plain values for JSON."""

    @abstractmethod
    def balanced_accuracy(self) -> Estimate:
        """As in `metrics`."""

    @abstractmethod
    def units(self) -> Estimate:
        """The number of units."""

    @classmethod
    @abstractmethod
    def of_all(cls, parts: Sequence[Self]) -> Self:
        """That of several disjoint groups together, whose noise is independent."""

    def auroc(self) -> Estimate:
        """Mean over the tables, as in `metrics`."""
        return mean_of([self.table(k).auroc() for k in range(len(self.counts))])

    def table(self, k: int) -> NoisyCounts:
        """Counts (2, BINS) by label and score."""
        return NoisyCounts(self.counts[k], self.noise_variance, self.sampling_rate)

    def brier(self, k: int, said: Vector) -> Estimate:
        """Mean squared error of the probability that each bin stands for."""
        return self.table(k).share(np.stack([said**2, (1 - said) ** 2]))

    def roc(self, k: int) -> dict[str, list[float]]:
        """The curve, from (0, 0) to (1, 1), made monotone as a ROC curve is."""
        rates = []
        for row in self.counts[k]:
            above = np.append(0.0, np.cumsum(row[::-1]))
            whole = above[-1] if above[-1] > 0 else 1.0
            rates.append(isotonic(np.clip(above / whole, 0.0, 1.0)).tolist())
        return {"false_positive_rate": rates[0], "true_positive_rate": rates[1]}

    def reliability(self, k: int, said: Vector) -> list[dict[str, Any]]:
        """Predicted and observed frequency per bin; null if the noise is too large."""
        rows = []
        for column in range(BINS):
            of = NoisyCounts(self.counts[k][:, column : column + 1], self.noise_variance, self.sampling_rate)
            rows.append({"predicted": float(said[column])} | entry("observed", of.column_share()))
        return rows


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ClassHistogram(Histogram):
    """What histograms of classes that exclude each other share, ordered or not; see the module's text.

    Attributes:
        confusion: (classes, classes) units by true (row) and predicted class; None for two classes, whose confusion
            follows from ``counts``.
    """

    confusion: Vector | None

    @staticmethod
    @abstractmethod
    def tables(classes: int) -> int:
        """Number of tables, each of two sides."""

    @staticmethod
    @abstractmethod
    def sides(labels: npt.NDArray[np.int64], balanced: Vector) -> list[tuple[npt.NDArray[np.bool_], Vector]]:
        """For each table which images are on its second side, and their scores in [0, 1]; each image by itself."""

    @abstractmethod
    def _said(self, k: int, priors: Vector) -> Vector:
        """(BINS,) the probability that each bin of a table stands for, under the frequencies of training."""

    @classmethod
    def size(cls, classes: int) -> int:
        """Length of the released vector."""
        return cls.tables(classes) * 2 * BINS + (classes**2 if classes > 2 else 0)

    @classmethod
    def contribution(
        cls, probabilities: Vector, labels: npt.NDArray[np.int64], weights: Vector, priors: Vector
    ) -> Vector:
        """Sum the units' contributions; exact, so it stays in the hospital.

        Args:
            probabilities: (n, classes). An image with invalid probabilities, after an overflow, counts as zero:
                refusing it would reveal its presence.
            labels: (n,) class codes.
            weights: (n,) each image's share in its unit; they sum to 1 within a unit.
            priors: (classes,) positive; public.

        Raises:
            InvalidValue: invalid priors.
        """
        balanced, proper = _balanced(probabilities, priors)
        classes = balanced.shape[1]
        weights = on_grid(weights * proper / np.sqrt(cls._blocks(classes)))
        blocks = []
        for second, scores in cls.sides(labels, balanced):
            bins = np.clip((scores * BINS).astype(np.int64), 0, BINS - 1)
            blocks.append(np.bincount(second * BINS + bins, weights, 2 * BINS))
        if classes > 2:
            hits = labels * classes + balanced.argmax(axis=1)
            blocks.append(np.bincount(hits, weights, classes**2))
        return np.concatenate(blocks)

    @classmethod
    def from_released(
        cls, vector: Vector, classes: int, noise_variance: float, sampling_rate: float = 1.0
    ) -> Self:
        """Read the noisy sum over all sites, divided by the sampling rate, and its noise variance."""
        blocks = cls._blocks(classes)
        whole, tables = vector * np.sqrt(blocks), cls.tables(classes) * 2 * BINS
        return cls(
            counts=whole[:tables].reshape(-1, 2, BINS),
            confusion=whole[tables:].reshape(classes, classes) if classes > 2 else None,
            noise_variance=noise_variance * blocks,
            sampling_rate=sampling_rate,
        )

    @classmethod
    def of_all(cls, parts: Sequence[Self]) -> Self:
        """That of several disjoint groups together, whose noise is independent."""
        matrices = [part.confusion for part in parts if part.confusion is not None]
        return cls(
            counts=np.sum([part.counts for part in parts], axis=0),
            confusion=np.sum(matrices, axis=0) if matrices else None,
            noise_variance=float(np.sum([part.noise_variance for part in parts])),
            sampling_rate=parts[0].sampling_rate,
        )

    @classmethod
    def _blocks(cls, classes: int) -> int:
        """Onehot vectors that an image adds."""
        return cls.tables(classes) + (classes > 2)

    def _plain(self, classes: Sequence[str], priors: npt.ArrayLike) -> dict[str, Any]:
        """The metrics that all such histograms have."""
        matrix, recalls = self.matrix(), self._recalls()
        units, frequencies = matrix.total(), np.asarray(priors, dtype=np.float64)
        return {
            "what": "held-out units of the hospitals, from one noisy histogram",
            "units": units.value,
            "units_interval": units.interval(upper=np.inf),
            "noise_std": float(np.sqrt(self.noise_variance)),
            **entry("auroc", self.auroc()),
            **entry("balanced_accuracy", self.balanced_accuracy()),
            **entry("accuracy", matrix.share(np.eye(len(classes)))),
            "confusion_estimate": matrix.values.tolist(),
            "per_class": [
                {"name": name, "units": float(matrix.values[code].sum())}
                | entry("sensitivity", recalls[code])
                for code, name in enumerate(classes)
            ],
            "roc": [self.roc(k) for k in range(len(self.counts))],
            "reliability": [self.reliability(k, self._said(k, frequencies)) for k in range(len(self.counts))],
        }

    def balanced_accuracy(self) -> Estimate:
        """As in `metrics`."""
        return mean_of(self._recalls(), independent=True)

    def units(self) -> Estimate:
        """The number of units."""
        return self.matrix().total()

    def matrix(self) -> NoisyCounts:
        """Units by true (row) and predicted class."""
        if self.confusion is not None:
            return NoisyCounts(self.confusion, self.noise_variance, self.sampling_rate)
        halves = self.counts[0].reshape(2, 2, BINS // 2).sum(axis=2)
        return NoisyCounts(halves, self.noise_variance * (BINS // 2), self.sampling_rate)

    def _recalls(self) -> list[Estimate]:
        matrix = self.matrix()
        return [matrix.row_share(code, code) for code in range(len(matrix.values))]


@final
@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ScoreHistogram(ClassHistogram):
    """The histogram of classes without an order: each against the rest; see the module's text."""

    @staticmethod
    def tables(classes: int) -> int:
        """One for two classes, otherwise one for each."""
        return 1 if classes == 2 else classes

    @staticmethod
    def sides(labels: npt.NDArray[np.int64], balanced: Vector) -> list[tuple[npt.NDArray[np.bool_], Vector]]:
        """The images of a class, and its probability."""
        classes = balanced.shape[1]
        told = range(1, 2) if classes == 2 else range(classes)
        return [(labels == code, balanced[:, code]) for code in told]

    def metrics(self, classes: Sequence[str], priors: npt.ArrayLike) -> dict[str, Any]:
        """The metrics with 95 % intervals that include the noise and the choice of patients; plain values for JSON.

        Args:
            classes: their names.
            priors: class frequencies of training, as in `contribution`; for the Brier score and calibration, which
                are those of probabilities under them.
        """
        found = self._plain(classes, priors)
        if len(classes) > 2:
            for k, one in enumerate(found["per_class"]):
                one.update(entry("auroc", self.table(k).auroc()))
        return found | entry("brier", self._all_brier(np.asarray(priors, dtype=np.float64)))

    def _all_brier(self, priors: Vector) -> Estimate:
        """Mean squared error of a probability that is known up to a bin; summed over more than two classes."""
        parts = [self.brier(k, self._said(k, priors)) for k in range(len(self.counts))]
        value = float(np.sum([part.value for part in parts]))
        return Estimate(value, float(np.sum([part.std for part in parts])))

    def _said(self, k: int, priors: Vector) -> Vector:
        share = (priors / priors.sum())[k if len(self.counts) > 1 else 1]
        return at_middles(float(share), 1 / len(priors))


def entry(name: str, estimate: Estimate) -> dict[str, Any]:
    """A metric with its standard deviation and interval."""
    return {name: estimate.clipped, f"{name}_std": estimate.std, f"{name}_interval": estimate.interval()}


def _balanced(probabilities: Vector, priors: Vector) -> tuple[Vector, npt.NDArray[np.bool_]]:
    """Probabilities under equal class frequencies, and which rows were valid; the others are uniform."""
    fits = priors.shape == probabilities.shape[1:]
    if not fits or not (np.isfinite(priors) & (priors >= 1e-9) & (priors <= 1e9)).all():
        raise InvalidValue(
            f"priors have shape {priors.shape}, or are not positive numbers",
            f"there are {probabilities.shape[1]} classes",
            "send the class frequencies that were released",
        )
    weighted = probabilities / priors
    proper = (np.isfinite(weighted) & (weighted >= 0)).all(axis=1) & (weighted.max(axis=1) > 0)
    even = np.where(proper[:, None], weighted, 1.0)
    result: Vector = (even.T / first_sums(even.T.copy())).T
    return result, proper


def at_middles(share: float, even: float) -> Vector:
    """(BINS,) a probability under the frequencies of training, where that under equal ones is the middle of each bin.

    Args:
        share: of one side under the frequencies of training; what is on either side keeps its mixture.
        even: of that side under equal frequencies.

    >>> at_middles(0.5, 0.5)[:2].round(2).tolist(), at_middles(0.9, 0.5)[:2].round(2).tolist()
    ([0.05, 0.15], [0.32, 0.61])
    """
    middles = (np.arange(BINS) + 0.5) / BINS
    present, absent = middles * share / even, (1 - middles) * (1 - share) / (1 - even)
    result: Vector = present / (present + absent)
    return result
