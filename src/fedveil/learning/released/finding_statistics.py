"""The release before training where images have several findings: counts, and one mean; see `..models.findings`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fedveil.errors import InvalidValue
from fedveil.learning.exact import SHORTER, lengths, on_grid
from fedveil.learning.models.learner import Vector
from fedveil.learning.models.public_start import centre_towards
from fedveil.learning.ranges import bounded_blocks, class_sizes
from fedveil.learning.released.posterior import Noisy, counts_of, shrunk

__all__ = ["COUNT_WEIGHT", "RAREST", "FindingStatistics", "check_finding_frequencies"]

COUNT_WEIGHT = 0.6
"""b above: the part of a contribution's length that counts. Counts are few numbers, but K of them share it. Without
features it is 1."""
RAREST = 1e-3
"""A finding, or its absence, is taken to be at least this frequent."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FindingStatistics:
    """The release before training with its noise, hence public.

    Attributes:
        units: their number.
        counts: (K, 2) units without and with each finding, where it is known: posterior means.
        mean: (d,) of the features.
        noise_variance: of each number in the released vector.
        measured: the counts as released, with their noise.
    """

    units: float
    counts: Vector
    mean: Vector
    noise_variance: float
    measured: Noisy

    @property
    def groups(self) -> Vector:
        """(K, 2) the counts: absence and presence of each finding."""
        return self.counts

    @property
    def units_std(self) -> float:
        """Standard deviation of the noise in the number of units."""
        return float(np.sqrt((len(self.counts) + 1) * self.noise_variance)) / _count_weight(len(self.mean))

    @property
    def priors(self) -> Vector:
        """(K,) frequency of each finding among the images where it is known."""
        shares = self.counts[:, 1] / self.counts.sum(axis=1)
        result: Vector = np.clip(shares, RAREST, 1 - RAREST)
        return result

    def centre(self, blocks: Sequence[int], towards: Vector | None = None) -> Vector:
        """(d,) the posterior mean, block by block as in `ClassStatistics.centre`."""
        variance = self.noise_variance / ((1 - COUNT_WEIGHT**2) * self.units**2)
        if towards is not None:
            return centre_towards(self.mean, towards, blocks, variance)
        parts, longest = np.split(self.mean, np.cumsum(blocks)[:-1]), len(blocks) ** -0.5
        return bounded_blocks(np.concatenate([shrunk(part, variance, longest) for part in parts]), blocks)

    @staticmethod
    def size(findings: int, dimension: int) -> int:
        """Length of the released vector."""
        return dimension + 1 + 2 * findings

    @staticmethod
    def contribution(features: npt.NDArray[Any], labels: npt.NDArray[Any], weights: Vector) -> Vector:
        """Sum the units' contributions; exact, so it stays in the hospital.

        Args:
            features: (n, d), rows of norm at most 1; longer ones are scaled down, and rows that are not finite count as
                zero. With d = 0 the whole contribution counts.
            labels: (n, K) of 1, 0 and -1.
            weights: (n,) each image's share in its unit; they sum to 1 within a unit.
        """
        finite = np.isfinite(features).all(axis=1, keepdims=True)
        points = np.where(finite, features, 0.0).astype(np.float64)
        if points.shape[1]:
            points *= np.sqrt(1 - COUNT_WEIGHT**2) / np.maximum(lengths(points), 1.0)[:, None]
        one = _count_weight(points.shape[1]) / np.sqrt(labels.shape[1] + 1)
        told = one * np.concatenate([np.ones((len(labels), 1)), labels == 0, labels == 1], axis=1)
        terms = on_grid(np.concatenate([points, told], axis=1) * (SHORTER * weights)[:, None])
        total: Vector = terms.sum(axis=0)
        return total

    @classmethod
    def from_released(cls, vector: Vector, findings: int, noise_variance: float) -> Self:
        """Read the noisy sum over all sites; its noise has this variance in each number."""
        total, told = np.split(vector, [len(vector) - 1 - 2 * findings])
        scale = np.sqrt(findings + 1) / _count_weight(len(total))
        measured = Noisy(told * scale, noise_variance * scale**2)
        counts = class_sizes(counts_of(measured))
        return cls(
            units=float(counts[0]),
            counts=counts[1:].reshape(2, findings).T,
            measured=Noisy(measured.values[1:].reshape(2, findings).T, measured.variance),
            mean=total / (np.sqrt(1 - COUNT_WEIGHT**2) * counts[0]),
            noise_variance=noise_variance,
        )


def _count_weight(dimension: int) -> float:
    return COUNT_WEIGHT if dimension else 1.0


def check_finding_frequencies(frequencies: Vector) -> None:
    """Refuse frequencies of findings that are no released ones."""
    if not ((frequencies >= RAREST) & (frequencies <= 1 - RAREST)).all():
        raise InvalidValue(
            f"frequencies are {np.round(frequencies, 6).tolist()}",
            f"the model's lie between {RAREST:g} and {1 - RAREST:g}",
            "send the model of the study",
        )
