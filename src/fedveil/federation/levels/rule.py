"""From the pilot's noisy sums to a level: post-processing, with which coordinator and sites agree.

For each class against the rest let m_1 and m_0 be mean features, n_1 and n_0 units, N their sum, delta = m_1 - m_0,
and C the covariance within classes, of trace tau. A one-round model has the weights delta plus noise of variance s in
each coordinate. Its scores separate the classes by

    d^2 = |delta|^4 / (delta' C delta + s tau) = D^2 / (1 + (b / nu)^2),

the law of `fedveil.planning.laws` with p = 2, where D^2 = |delta|^4 / (delta' C delta) and, since
s = (1 / n_1^2 + 1 / n_0^2) (N / nu)^2 / (1 - c^2) for class statistics with count weight c,

    b^2 = k tau / (delta' C delta),  k = (N^2 / n_1^2 + N^2 / n_0^2) / (1 - c^2),  so  |delta|^2 = D sqrt(k tau) / b.

The pilot measures N from both sums, and two functions of D and b: the squared length of the noisy difference, and how
a histogram of scores along it separates the classes. `.pilot_likelihood` states how likely they are. Neither is known
well from few units, so both update a prior on (log D, log (b / sqrt k)), which comes from the public tasks that
`fedveil plan` knows. The posterior is computed on a grid. For training by gradients, D and b are those of one round
times factors from the same tasks. The rule picks the cheapest level whose expected loss of AUROC, against no noise, is
within the tolerance; the dearest one if none is.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedveil.federation.levels.pilot_likelihood import Measured, log_likelihood
from fedveil.lazy import later
from fedveil.learning.accuracy_law import law_score, law_variance
from fedveil.learning.ranges import class_sizes
from fedveil.learning.released.class_statistics import COUNT_WEIGHT, ClassStatistics
from fedveil.learning.released.pilot_scores import BINS, differences, tables

__all__ = ["Forecast", "Law", "Prediction", "Rule"]

special = later("scipy.special")

Vector = npt.NDArray[np.float64]
POINTS = 41
VERSION = 2
"""Of the rule. The agreement states it: a site whose rule is another version has another digest."""
WIDTH = 3.0
"""The grid of the posterior: points along each axis, and standard deviations of the prior on each side."""
SMALLEST_TRACE = 0.2
DIGITS = 9
"""Losses are rounded to so many digits, so that coordinator and sites agree whatever their processors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """The constants of a recipe that the pilot does not measure, from public tasks.

    Attributes:
        separation: factor from D of one round to D of the recipe.
        noise: factor from b of one round to b of the recipe.
        patients: a.
        power: p.
        spread: s_0.
        scatter: s_1.
        error: relative error of the factor of D.
    """

    separation: float
    noise: float
    patients: float
    power: float
    spread: float = 0.08
    scatter: float = 0.25
    error: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The AUROC at one level: its expectation, and the interval in which 95 % of runs are expected."""

    expected: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What follows from the pilot.

    Attributes:
        units: the estimated number of units.
        levels: the AUROC at every level.
        bare: the AUROC without noise.
        level: the picked level, from 1.
        within: whether its expected loss is within the tolerance.
    """

    units: float
    levels: tuple[Prediction, ...]
    bare: Prediction
    level: int
    within: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """The rule and all that it depends on besides the pilot's sums; public.

    Attributes:
        classes: number of classes.
        features: d; 0 if the pilot releases only class sizes.
        histogram: whether it releases a histogram of scores.
        tolerance: the accepted loss of AUROC against no noise.
        law: of the recipe that is trained.
        separation: mean and standard deviation of log D in the prior.
        noise: mean and standard deviation of log (b / sqrt k).
        version: `VERSION`.
    """

    classes: int
    features: int
    histogram: bool
    tolerance: float
    law: Law
    separation: tuple[float, float]
    noise: tuple[float, float]
    version: int = VERSION

    def to_dict(self) -> dict[str, Any]:
        """Plain values, which an agreement's digest covers."""
        return asdict(self)

    def forecast(
        self, totals: Sequence[Vector], variances: Sequence[float], strengths: Sequence[float]
    ) -> Forecast:
        """Predict the AUROC at every level, and pick one.

        Args:
            totals: class statistics, then the histogram if there is one.
            variances: of the noise in each number of them.
            strengths: mu / f of every level, in ascending order.
        """
        counts, raw = self._counts(totals, variances)
        units = max(raw, float(len(counts)))
        ratios = np.append(units * np.array(strengths), np.inf)
        scores, doubts = [], []
        for table in range(tables(self.classes)):
            seen = self._measured(table, counts, totals, variances) if self.features else None
            score, weight, noise = self._posterior(table, counts, units, seen, ratios)
            doubt = law_variance(self.law.spread, self.law.scatter, noise[:, None], ratios)
            doubt = doubt + np.square(self.law.error * score)
            scores.append((weight @ score, weight @ (score**2 + doubt) - (weight @ score) ** 2))
            doubts.append(weight @ special.ndtr(score / np.sqrt(1 + doubt)))
        expected = np.mean(doubts, axis=0)
        middle, variance = (
            np.mean([one for one, _ in scores], axis=0),
            np.mean([one for _, one in scores], axis=0),
        )
        half = 1.96 * np.sqrt(variance)
        found = [
            Prediction(expected=float(e), low=float(low), high=float(high))
            for e, low, high in zip(
                expected, special.ndtr(middle - half), special.ndtr(middle + half), strict=True
            )
        ]
        losses = np.round(expected[-1] - expected[:-1], DIGITS)
        enough = np.flatnonzero(losses <= self.tolerance)
        level = int(enough[0]) + 1 if len(enough) else len(losses)
        return Forecast(
            units=units, levels=tuple(found[:-1]), bare=found[-1], level=level, within=len(enough) > 0
        )

    def _counts(self, totals: Sequence[Vector], variances: Sequence[float]) -> tuple[Vector, float]:
        """Class sizes, and the number of units before any is cut to its range.

        Histogram and class statistics count the same units; inverse variances weigh the two numbers.
        """
        rows = totals[0].reshape(self.classes, -1)
        if not self.histogram:
            noisy = rows[:, -1] / COUNT_WEIGHT if self.features else rows[:, 0]
            return class_sizes(noisy), float(noisy.sum())
        told = tables(self.classes)
        bins = (totals[1] * math.sqrt(told)).reshape(told, 2, BINS).sum(axis=2)
        seen = bins[0] if self.classes == 2 else bins[:, 1]
        first, second = COUNT_WEIGHT**2 / variances[0], 1 / (BINS * told * variances[1])
        noisy = (first * rows[:, -1] / COUNT_WEIGHT + second * seen) / (first + second)
        whole, all_bins = float(rows[:, -1].sum()) / COUNT_WEIGHT, float(bins.sum()) / told
        first, second = first / self.classes, 1 / (2 * BINS * variances[1])
        return class_sizes(noisy), (first * whole + second * all_bins) / (first + second)

    def _posterior(
        self,
        table: int,
        counts: Vector,
        units: float,
        seen: Measured | None,
        ratios: Vector,
    ) -> tuple[Vector, Vector, Vector]:
        """Scores (points, levels + 1) of one class against the rest, the weights of the points, and b at each."""
        code = 1 if self.classes == 2 else table
        share = counts[code] / counts.sum()
        k = (1 / share**2 + 1 / (1 - share) ** 2) / (1 - COUNT_WEIGHT**2)
        steps = np.linspace(-WIDTH, WIDTH, POINTS)
        one, other = (grid.ravel() for grid in np.meshgrid(steps, steps))
        separation = np.exp(self.separation[0] + self.separation[1] * one)
        relative = np.exp(self.noise[0] + self.noise[1] * other)
        noise = relative * math.sqrt(k)
        logs = -(one**2 + other**2) / 2
        if seen is not None:
            logs = logs + log_likelihood(seen, separation, relative)
        weight = np.exp(logs - logs.max())
        weight /= weight.sum()
        law = self.law
        score = law_score(
            separation[:, None] * law.separation,
            law.patients,
            noise[:, None] * law.noise,
            law.power,
            units,
            ratios,
        )
        return score, weight, noise * law.noise

    def _measured(
        self, table: int, counts: Vector, totals: Sequence[Vector], variances: Sequence[float]
    ) -> Measured:
        """What the sums state of one class against the rest."""
        read = ClassStatistics.from_released(totals[0], self.classes, variances[0], counts)
        code, others = 1 if self.classes == 2 else table, self.classes - 1
        sizes = np.array([counts.sum() - counts[code], counts[code]])
        variance = variances[0] / (1 - COUNT_WEIGHT**2)
        noises = variance / counts**2
        lengths = np.square(read.means).sum(axis=1) - self.features * noises
        difference = differences(read)[0][table]
        counted = totals[0].reshape(self.classes, -1)[:, -1] / COUNT_WEIGHT
        bins, told = None, tables(self.classes)
        if self.histogram:
            bins = totals[1].reshape(told, 2, BINS)[table] * math.sqrt(told)
        return Measured(
            sizes=sizes,
            squares=(others * variance / sizes[0] ** 2, variance / sizes[1] ** 2),
            length=float(difference @ difference),
            features=self.features,
            trace=float(np.clip(1 - read.priors @ np.maximum(lengths, 0), SMALLEST_TRACE, 1.0)),
            bins=bins,
            bin_variance=variances[1] * told if self.histogram else 0.0,
            counted=np.array([counted.sum() - counted[code], counted[code]]),
            counted_variances=(
                others * variances[0] / COUNT_WEIGHT**2,
                variances[0] / COUNT_WEIGHT**2,
            ),
        )
