"""Sums of scores and counts per finding, as released after training: of thresholds, and of a hospital's own ones.

A unit adds the average over its images of ``(sqrt(1 - b^2) s_j, b) / sqrt(K)`` for each of the K findings j that is
known, in one of two places, for absence or presence; ``|s_j| <= 1`` is the image's score. There are at most K such
pairs of norm ``1 / sqrt(K)`` at most, so an image's vector has norm 1 at most, and so has the average.

Terms are cut to the grid of `fedveil.learning.exact`, so that sums are exact and no unit changes another's part.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fedveil.learning.exact import SHORTER, on_grid
from fedveil.learning.models.learner import Vector
from fedveil.learning.released.finding_statistics import COUNT_WEIGHT, RAREST
from fedveil.learning.released.posterior import Noisy, combined
from fedveil.learning.released.score_statistics import Certainty, ScoreStatistics
from fedveil.learning.released.site_threshold import own_numbers

__all__ = ["FindingScores"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FindingScores:
    """The release with its noise, hence public.

    Attributes:
        sums: (K, 2) of the scores of units without and with each finding.
        counts: (K, 2) of those units.
    """

    sums: Noisy
    counts: Noisy

    @staticmethod
    def size(findings: int) -> int:
        """Length of the released vector."""
        return 4 * findings

    @staticmethod
    def share(findings: int) -> float:
        """The squared length that one finding's scores have at most: K findings share what is not for counts."""
        return (1 - COUNT_WEIGHT**2) / findings

    @staticmethod
    def contribution(scores: Vector, labels: npt.NDArray[Any], shares: Vector) -> Vector:
        """Sum the units' contributions, (4 K,): for each finding, without and with it, the sum of scores and a count.

        Exact, so it stays in the hospital.

        Args:
            scores: (n, K); cut to [-1, 1], and a score that is no number counts as 0.
            labels: (n, K) of 1, 0 and -1.
            shares: (n,) each image's share in its unit; they sum to 1 within a unit.
        """
        cut = np.clip(np.where(np.isnan(scores), 0.0, scores), -1.0, 1.0)
        scale = SHORTER * shares[:, None] / np.sqrt(labels.shape[1])
        scored = on_grid(np.sqrt(1 - COUNT_WEIGHT**2) * cut * scale)
        counted = on_grid(COUNT_WEIGHT * np.ones_like(cut) * scale)
        found = [
            [(scored * (labels == value)).sum(axis=0), (counted * (labels == value)).sum(axis=0)]
            for value in (0, 1)
        ]
        total: Vector = np.array(found).transpose(2, 0, 1).ravel()
        return total

    @classmethod
    def from_released(cls, vector: Vector, noise_variance: float, earlier: Noisy | None) -> Self:
        """Read the noisy sum over all sites.

        Args:
            vector: as released.
            noise_variance: of each number in it.
            earlier: the same counts from an earlier release of the same units; None if there is none.
        """
        values = vector.reshape(-1, 2, 2)
        of_sums, of_counts = cls.share(len(values)), COUNT_WEIGHT**2 / len(values)
        counts = Noisy(values[:, :, 1] / np.sqrt(of_counts), noise_variance / of_counts)
        return cls(
            sums=Noisy(values[:, :, 0] / np.sqrt(of_sums), noise_variance / of_sums),
            counts=counts if earlier is None else combined(counts, earlier),
        )

    def middles(self, around: Vector | None = None) -> tuple[Vector, Certainty]:
        """(K,) the middle between a finding's mean scores without and with it, and how sure the least sure one is.

        Args:
            around: (K,) what is expected without the release; 0 if None.
        """
        expected = np.zeros(len(self.sums.values)) if around is None else around
        found = [one.means(middle[None]) for one, middle in zip(self._each(), expected, strict=True)]
        return _cut([float(one.middle[0]) for one in found]), Certainty.of_all(
            [Certainty.of(one) for one in found]
        )

    def own(self, middles: Vector, frequencies: Vector) -> tuple[Vector, Vector]:
        """(K,) middles and frequencies of one hospital: posterior means around the common ones.

        Each finding is decided by itself, as two classes; see `..released.site_threshold`.
        """
        found = [
            own_numbers(np.array([middle]), np.array([1 - share, share]), one)
            for middle, share, one in zip(middles, frequencies, self._each(), strict=True)
        ]
        own = np.clip([float(shares[1]) for _, shares in found], RAREST, 1 - RAREST)
        return _cut([float(middle[0]) for middle, _ in found]), own

    def _each(self) -> list[ScoreStatistics]:
        return [
            ScoreStatistics(
                sums=Noisy(one[:, None], self.sums.variance), counts=Noisy(sizes, self.counts.variance)
            )
            for one, sizes in zip(self.sums.values, self.counts.values, strict=True)
        ]


def _cut(middles: Sequence[float]) -> Vector:
    """No score, and so no middle of scores, is longer than 1."""
    result: Vector = np.clip(middles, -1.0, 1.0)
    return result
