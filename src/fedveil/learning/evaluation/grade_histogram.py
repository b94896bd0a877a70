"""Evaluation of a model of ordered grades on patients that hospitals hold out, from one noisy sum of histograms.

As `.score_histogram`, with one table for each cut point between grades, as the AUROC of grades is defined: an image of
grade y with probabilities q under equal frequencies adds ``onehot(y >= k, bin of sum_(j >= k) q_j)`` for each of the
K - 1 cut points k, and ``onehot(y, predicted grade)``, all divided by sqrt(K). Its norm is exactly 1, and a unit adds
the average over its images: norm at most 1 (convexity). Two grades are two classes. From the table of true and
predicted grades follows the quadratic weighted kappa.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt

from fedveil.learning.evaluation.grades import above
from fedveil.learning.evaluation.noisy_ratios import NORMAL
from fedveil.learning.evaluation.score_histogram import ClassHistogram, at_middles
from fedveil.learning.models.learner import Vector

__all__ = ["GradeHistogram"]


@final
@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class GradeHistogram(ClassHistogram):
    """The histogram of ordered grades; see the module's text."""

    @staticmethod
    def tables(classes: int) -> int:
        """One for each cut point."""
        return classes - 1

    @staticmethod
    def sides(labels: npt.NDArray[np.int64], balanced: Vector) -> list[tuple[npt.NDArray[np.bool_], Vector]]:
        """The images above a cut point, and the probability of that."""
        return above(labels, balanced)

    def metrics(self, classes: Sequence[str], priors: npt.ArrayLike) -> dict[str, Any]:
        """The metrics with 95 % intervals that include the noise and the choice of patients; plain values for JSON.

        Args:
            classes: names of the grades, in order.
            priors: their frequencies in training, as in `contribution`; for calibration.
        """
        kappa = self.matrix().quadratic_kappa()
        reach = NORMAL * kappa.std
        low, high = np.clip([kappa.value - reach, kappa.value + reach], -1.0, 1.0).tolist()
        return self._plain(classes, priors) | {
            "quadratic_kappa": float(np.clip(kappa.value, -1.0, 1.0)),
            "quadratic_kappa_std": kappa.std,
            "quadratic_kappa_interval": (low, high),
        }

    def _said(self, k: int, priors: Vector) -> Vector:
        shares, grades = priors / priors.sum(), len(priors)
        return at_middles(float(shares[k + 1 :].sum()), 1 - (k + 1) / grades)
