"""Evaluation of a model of several findings per image on patients that hospitals hold out, from one noisy sum.

An image with findings y_k of 1 and 0, or unknown, and probabilities P_k is scored for each finding by q_k, the
probability under equal frequencies of its presence and absence: ``q_k / (1 - q_k) = P_k / (1 - P_k) * (1 - p_k) / p_k``
with the frequency p_k in training. It contributes ``onehot(y_k, bin of q_k) / sqrt(K)`` for each of the K findings that
is known. These are at most K vectors of norm ``1 / sqrt(K)`` in different places, so their norm is ``sqrt(known / K)``,
at most 1. A unit contributes the average over its images, whose norm is at most 1 (convexity), for any number of
images, findings and bins, and any pattern of unknown ones. Each finding is a table like that of two classes, see
`.score_histogram`, with its own AUROC; those of the study are means over the findings. The same patients are in all
tables, so the errors of findings count as fully correlated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, final

import numpy as np
import numpy.typing as npt

from fedveil.errors import InvalidValue
from fedveil.learning.evaluation.noisy_ratios import Estimate, NoisyCounts, mean_of
from fedveil.learning.evaluation.score_histogram import BINS, Histogram, at_middles, entry
from fedveil.learning.exact import on_grid
from fedveil.learning.models.learner import Vector

__all__ = ["FindingHistogram"]


@final
@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FindingHistogram(Histogram):
    """The histogram of several findings per image; see the module's text."""

    @staticmethod
    def size(classes: int) -> int:
        """Length of the released vector."""
        return 2 * BINS * classes

    @staticmethod
    def contribution(
        probabilities: Vector, labels: npt.NDArray[Any], weights: Vector, priors: Vector
    ) -> Vector:
        """Sum the units' contributions; exact, so it stays in the hospital.

        Args:
            probabilities: (n, K). One that is not in [0, 1], after an overflow, adds nothing: refusing it would reveal
                its presence.
            labels: (n, K) of 1, 0 and -1 for unknown, which adds nothing.
            weights: (n,) each image's share in its unit; they sum to 1 within a unit.
            priors: (K,) frequencies in (0, 1); public.

        Raises:
            InvalidValue: invalid frequencies.
        """
        if priors.shape != probabilities.shape[1:] or not ((priors > 0) & (priors < 1)).all():
            raise InvalidValue(
                f"frequencies have shape {priors.shape}, or do not lie between 0 and 1",
                f"there are {probabilities.shape[1]} findings",
                "send the frequencies of findings that were released",
            )
        proper = (probabilities >= 0) & (probabilities <= 1)
        sure = np.where(proper, probabilities, 0.5)
        present, absent = sure / priors, (1 - sure) / (1 - priors)
        bins = np.minimum((present / (present + absent) * BINS).astype(np.int64), BINS - 1)
        cells = np.maximum(labels, 0).astype(np.int64) * BINS + bins
        told = on_grid(weights[:, None] * (proper & (labels >= 0)) / np.sqrt(len(priors)))
        tables = [np.bincount(cells[:, k], told[:, k], 2 * BINS) for k in range(len(priors))]
        return np.concatenate(tables)

    @classmethod
    def from_released(
        cls, vector: Vector, classes: int, noise_variance: float, sampling_rate: float = 1.0
    ) -> Self:
        """Read the noisy sum over all sites, divided by the sampling rate, and its noise variance."""
        return cls(
            counts=np.sqrt(classes) * vector.reshape(classes, 2, BINS),
            noise_variance=noise_variance * classes,
            sampling_rate=sampling_rate,
        )

    def metrics(self, classes: Sequence[str], priors: npt.ArrayLike) -> dict[str, Any]:
        """The metrics with 95 % intervals that include the noise and the choice of patients; plain values for JSON.

        The number of units is that of the average finding, where it is known.

        Args:
            classes: names of the findings.
            priors: (K,) their frequencies in training, as in `contribution`; for the Brier score and calibration, which
                are those of probabilities under them.
        """
        each, frequencies = range(len(classes)), np.asarray(priors, dtype=np.float64)
        said = [at_middles(float(one), 0.5) for one in frequencies]
        called = [self._called(k) for k in each]
        sensitivity, specificity = self._recalls(1), self._recalls(0)
        aurocs, units = [self.table(k).auroc() for k in each], self.units()
        return {
            "what": "held-out units of the hospitals, from one noisy histogram per finding",
            "units": units.value,
            "units_interval": units.interval(upper=np.inf),
            "noise_std": float(np.sqrt(self.noise_variance)),
            **entry("auroc", self.auroc()),
            **entry("balanced_accuracy", self.balanced_accuracy()),
            **entry("accuracy", mean_of([one.share(np.eye(2)) for one in called])),
            **entry("brier", mean_of([self.brier(k, said[k]) for k in each])),
            "per_class": [
                {"name": name, "units": float(called[k].values[1].sum())}
                | entry("sensitivity", sensitivity[k])
                | entry("specificity", specificity[k])
                | entry("auroc", aurocs[k])
                for k, name in enumerate(classes)
            ],
            "roc": [self.roc(k) for k in each],
            "reliability": [self.reliability(k, said[k]) for k in each],
        }

    def balanced_accuracy(self) -> Estimate:
        """Mean over the findings of the mean of sensitivity and specificity."""
        both = zip(self._recalls(1), self._recalls(0), strict=True)
        return mean_of([mean_of(one, independent=True) for one in both])

    def units(self) -> Estimate:
        """The number of units of the average finding, where it is known."""
        return mean_of([self.table(k).total() for k in range(len(self.counts))])

    @classmethod
    def of_all(cls, parts: Sequence[Self]) -> Self:
        """That of several disjoint groups together, whose noise is independent."""
        return cls(
            counts=np.sum([part.counts for part in parts], axis=0),
            noise_variance=float(np.sum([part.noise_variance for part in parts])),
            sampling_rate=parts[0].sampling_rate,
        )

    def _recalls(self, row: int) -> list[Estimate]:
        """Of each finding, the share of one row that is called so."""
        return [self._called(k).row_share(row, row) for k in range(len(self.counts))]

    def _called(self, k: int) -> NoisyCounts:
        """Units (2, 2) by label and decision: one half is an edge of bins."""
        halves = self.counts[k].reshape(2, 2, BINS // 2).sum(axis=2)
        return NoisyCounts(halves, self.noise_variance * (BINS // 2), self.sampling_rate)
