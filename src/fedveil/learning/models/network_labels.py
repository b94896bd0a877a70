"""What labels mean for a network: one class per image, or any number of findings.

Everything that depends on it is here: the loss, the releases before and after training, the offset of the logits, and
probabilities. A network's logits are z, and its parameters begin with an offset o, one per class or finding.

Clipped gradients leave a network's logits uncalibrated (every patient's gradient has about the same length, however
certain the prediction), so the offset is set last, by the release after training. Mean probabilities are unsuitable for
it: they saturate, so their midpoint is close to the class that the network is less certain of.

**Classes.** The loss is the cross-entropy of z; the offset is 0 in training. Afterwards, with m the middle between the
classes' mean logits, and pi the class frequencies, ``o = log pi - m``. Dividing by pi then puts the threshold at the
middle.

**Findings.** The loss is the sum of the binary cross-entropies of ``z_k + o_k`` over the findings that are known: one
that is unknown adds nothing. All findings together are one contribution, clipped as a whole. In training
``o_k = log(p_k / (1 - p_k))`` with the released frequency p_k, so that z starts at what is known without the images
(logit adjustment, Menon et al., 2007.07314); afterwards ``o_k = log(p_k / (1 - p_k)) - m_k``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
import numpy.typing as npt

from fedveil.errors import InvalidValue
from fedveil.lazy import later
from fedveil.learning.exact import bounded, first_sums, softmax
from fedveil.learning.models.checked import checked_findings
from fedveil.learning.models.learner import Vector
from fedveil.learning.ranges import FEWEST, LARGEST_COUNT, check_frequencies
from fedveil.learning.released.class_statistics import COUNT_WEIGHT, ClassStatistics
from fedveil.learning.released.finding_scores import FindingScores
from fedveil.learning.released.finding_statistics import (
    RAREST,
    FindingStatistics,
    check_finding_frequencies,
)
from fedveil.learning.released.posterior import Noisy
from fedveil.learning.released.score_statistics import Certainty, ScoreStatistics
from fedveil.learning.released.site_threshold import own_numbers

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import functional

    Loss = Callable[[Tensor, Tensor], Tensor]
else:
    torch = later("torch")
    functional = later("torch.nn.functional")

special = later("scipy.special")

__all__ = ["LONGEST_LOGITS", "NetworkLabels", "OfLabels"]

LONGEST_LOGITS = 10.0
"""Length of an image's logits, less their mean, or of a finding's logit, beyond which thresholds count them as no
longer: a public bound."""
Labels = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class NetworkLabels(ABC):
    """See the module's text.

    Attributes:
        classes: number of classes or findings K.
    """

    classes: int

    @staticmethod
    def of(classes: int, *, findings: bool, grades: bool = False) -> NetworkLabels:
        """Those of a study."""
        return FindingLabels(classes) if findings else ClassLabels(classes, grades)

    @property
    def findings(self) -> bool:
        """See `fedveil.learning.Sizes`."""
        return isinstance(self, FindingLabels)

    @property
    @abstractmethod
    def thresholds(self) -> tuple[int, int]:
        """See `fedveil.learning.Sizes`."""

    @property
    @abstractmethod
    def score_share(self) -> float:
        """See `fedveil.learning.Sizes`."""

    @property
    @abstractmethod
    def calibration_size(self) -> int:
        """Length of the release after training."""

    @property
    @abstractmethod
    def farthest(self) -> float:
        """The largest absolute value of an offset that follows from releases."""

    @abstractmethod
    def statistics_size(self, centre: int) -> int:
        """Length of the release before training, of a network that centres so many features."""

    @abstractmethod
    def read_statistics(self, released: Vector, noise_variance: float, centre: int) -> Any:
        """The release before training."""

    @abstractmethod
    def before(self, statistics: Any) -> Vector:
        """(K,) the offset in training; without statistics that of equal frequencies."""

    @abstractmethod
    def calibrated(
        self, released: Vector, noise_variance: float, statistics: Any
    ) -> tuple[Vector, Certainty]:
        """The offset after training, and how sure it is."""

    @abstractmethod
    def own(
        self, offset: Vector, frequencies: Vector, released: Vector, noise_variance: float
    ) -> tuple[Vector, Vector]:
        """The offset and the frequencies of one hospital, from the common ones and its own release."""

    @abstractmethod
    def probabilities(self, logits: Vector) -> Vector:
        """(n, K), from logits with the offset, each image by itself."""

    @abstractmethod
    def check_frequencies(self, frequencies: Vector) -> None:
        """Refuse frequencies that do not follow from a release."""

    @abstractmethod
    def checked(self, labels: Labels, images: int) -> npt.NDArray[np.int64]:
        """A cohort's labels, or InvalidValue."""

    @abstractmethod
    def loss(self, offset: Vector) -> Loss:
        """One loss per image, from the network's output and labels, under the offset in training."""

    @abstractmethod
    def counted(self, features: Vector | None, labels: Labels, shares: Vector) -> Vector:
        """The exact sum of the images' releases before training, with the features that the network centres."""

    @abstractmethod
    def scored(self, logits: Vector, labels: Labels, shares: Vector) -> Vector:
        """The exact sum of the images' releases after training."""


@final
@dataclass(frozen=True, slots=True)
class ClassLabels(NetworkLabels):
    """Classes that exclude each other; labels are (n,) class codes.

    Attributes:
        grades: whether they are ordered, which matters for their evaluation only.
    """

    grades: bool = False

    @property
    def thresholds(self) -> tuple[int, int]:
        """One, between all classes."""
        return 1, self.classes

    @property
    def score_share(self) -> float:
        """That of features in class statistics."""
        return 1 - COUNT_WEIGHT**2

    @property
    def calibration_size(self) -> int:
        """Class statistics of the logits."""
        return ClassStatistics.size(self.classes, self.classes)

    @property
    def farthest(self) -> float:
        """``log pi - m``: frequencies are at least ``FEWEST / (K LARGEST_COUNT)``, the middle's norm is bounded."""
        return LONGEST_LOGITS + float(np.log(self.classes * LARGEST_COUNT / FEWEST))

    def statistics_size(self, centre: int) -> int:
        """One count per class, or class statistics of the features that are centred."""
        return ClassStatistics.size(self.classes, centre) if centre else self.classes

    def read_statistics(self, released: Vector, noise_variance: float, centre: int) -> ClassStatistics:
        """Class counts, and the means of centred features; other networks need no means."""
        if centre:
            return ClassStatistics.from_released(released, self.classes, noise_variance)
        return ClassStatistics.of_counts(Noisy(released, noise_variance))

    def before(self, statistics: Any) -> Vector:
        """0."""
        del statistics
        return np.zeros(self.classes)

    def calibrated(
        self, released: Vector, noise_variance: float, statistics: ClassStatistics | None
    ) -> tuple[Vector, Certainty]:
        """The middle between the classes' mean logits, and the class frequencies."""
        earlier = None if statistics is None else statistics.released_counts
        found = ScoreStatistics.from_released(released, self.classes, noise_variance, earlier).means()
        priors = np.full(self.classes, 1 / self.classes) if statistics is None else statistics.priors
        return np.log(priors) - LONGEST_LOGITS * bounded(found.middle, 1.0), Certainty.of(found)

    def own(
        self, offset: Vector, frequencies: Vector, released: Vector, noise_variance: float
    ) -> tuple[Vector, Vector]:
        """See `..released.site_threshold`."""
        found = ScoreStatistics.from_released(released, self.classes, noise_variance, None)
        common = (np.log(frequencies) - offset) / LONGEST_LOGITS
        middle, own = own_numbers(common, frequencies, found)
        return np.log(own) - middle * LONGEST_LOGITS, own

    def probabilities(self, logits: Vector) -> Vector:
        """They sum to 1."""
        return softmax(logits)

    def check_frequencies(self, frequencies: Vector) -> None:
        """Those of classes sum to 1."""
        check_frequencies(frequencies)

    def checked(self, labels: Labels, images: int) -> npt.NDArray[np.int64]:
        """One code per image."""
        if labels.shape != (images,):
            raise InvalidValue(
                f"labels have shape {labels.shape}",
                f"there must be one class code for each of {images} images",
                "pass one column",
            )
        return np.asarray(labels, dtype=np.int64)

    def loss(self, offset: Vector) -> Loss:
        """Cross-entropy."""
        del offset
        return _cross_entropy

    def counted(self, features: Vector | None, labels: Labels, shares: Vector) -> Vector:
        """Units of each class, or class statistics."""
        if features is not None:
            return ClassStatistics.contribution(features, labels, shares, self.classes)
        total: Vector = np.bincount(labels, shares, self.classes).astype(np.float64)
        return total

    def scored(self, logits: Vector, labels: Labels, shares: Vector) -> Vector:
        """Class statistics of the logits."""
        mean = first_sums(logits.T.copy()) / self.classes
        values = (logits - mean[:, None]) / LONGEST_LOGITS
        return ClassStatistics.contribution(values, labels, shares, self.classes)


@final
class FindingLabels(NetworkLabels):
    """Any number of findings per image; labels are (n, K) of 1, 0, and -1 for unknown."""

    @property
    def thresholds(self) -> tuple[int, int]:
        """One per finding, between its absence and presence."""
        return self.classes, 2

    @property
    def score_share(self) -> float:
        """One finding's."""
        return FindingScores.share(self.classes)

    @property
    def calibration_size(self) -> int:
        """Scores and counts per finding."""
        return FindingScores.size(self.classes)

    @property
    def farthest(self) -> float:
        """``log(p / (1 - p)) - m``: neither a finding nor its absence is taken to be rarer than `RAREST`."""
        return LONGEST_LOGITS + float(np.log(1 / RAREST - 1))

    def statistics_size(self, centre: int) -> int:
        """Counts per finding, and the mean of the features that are centred."""
        return FindingStatistics.size(self.classes, centre)

    def read_statistics(self, released: Vector, noise_variance: float, centre: int) -> FindingStatistics:
        """Counts per finding, and the mean of centred features."""
        del centre
        return FindingStatistics.from_released(released, self.classes, noise_variance)

    def before(self, statistics: FindingStatistics | None) -> Vector:
        """The log-odds of the released frequencies."""
        return np.zeros(self.classes) if statistics is None else _log_odds(statistics.priors)

    def calibrated(
        self, released: Vector, noise_variance: float, statistics: FindingStatistics | None
    ) -> tuple[Vector, Certainty]:
        """The middle between a finding's mean logits, and its frequency."""
        earlier = None if statistics is None else statistics.measured
        middles, certainty = FindingScores.from_released(released, noise_variance, earlier).middles()
        return self.before(statistics) - LONGEST_LOGITS * middles, certainty

    def own(
        self, offset: Vector, frequencies: Vector, released: Vector, noise_variance: float
    ) -> tuple[Vector, Vector]:
        """Each finding by itself."""
        found = FindingScores.from_released(released, noise_variance, None)
        middles, own = found.own((_log_odds(frequencies) - offset) / LONGEST_LOGITS, frequencies)
        return _log_odds(own) - LONGEST_LOGITS * middles, own

    def probabilities(self, logits: Vector) -> Vector:
        """They do not sum to 1."""
        result: Vector = np.asarray(special.expit(logits), dtype=np.float64)
        return result

    def check_frequencies(self, frequencies: Vector) -> None:
        """Each by itself."""
        check_finding_frequencies(frequencies)

    def checked(self, labels: Labels, images: int) -> npt.NDArray[np.int64]:
        """One column per finding."""
        return checked_findings(labels, images, self.classes).astype(np.int64)

    def loss(self, offset: Vector) -> Loss:
        """The sum of the binary cross-entropies of the findings that are known."""
        added = torch.from_numpy(offset).float()

        def summed(outputs: Tensor, labels: Tensor) -> Tensor:
            each = functional.binary_cross_entropy_with_logits(
                outputs + added.to(outputs), (labels == 1).to(outputs), reduction="none"
            )
            return (each * (labels >= 0)).sum(dim=1)

        return summed

    def counted(self, features: Vector | None, labels: Labels, shares: Vector) -> Vector:
        """See `FindingStatistics`."""
        found = np.empty((len(labels), 0)) if features is None else features
        return FindingStatistics.contribution(found, labels, shares)

    def scored(self, logits: Vector, labels: Labels, shares: Vector) -> Vector:
        """See `FindingScores`."""
        return FindingScores.contribution(logits / LONGEST_LOGITS, labels, shares)


class OfLabels:
    """What a network's sizes have from its labels, of the network itself or without it."""

    __slots__ = ()
    labels: NetworkLabels

    @property
    def findings(self) -> bool:
        """Whether an image may have any number of the classes."""
        return self.labels.findings

    @property
    def grades(self) -> bool:
        """Whether the classes are ordered."""
        return isinstance(self.labels, ClassLabels) and self.labels.grades

    @property
    def thresholds(self) -> tuple[int, int]:
        """As `NetworkLabels.thresholds`."""
        return self.labels.thresholds

    @property
    def score_share(self) -> float:
        """As `NetworkLabels.score_share`."""
        return self.labels.score_share

    @property
    def calibration_size(self) -> int:
        """Scores and counts."""
        return self.labels.calibration_size


def _cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, labels, reduction="none")


def _log_odds(frequencies: Vector) -> Vector:
    result: Vector = np.log(frequencies / (1 - frequencies))
    return result
