"""How far each round steps, worked out from public numbers so that nobody has to tune it.

Let N be the (released) number of units, mu the Gaussian-DP parameter that the budget leaves for training, and f the
factor by which trust enlarges the noise: the square root of the variance in a sum over that of the mechanism. Then
``nu = N mu / f`` is the signal-to-noise ratio of a sum to which all units contribute alike, at any number of rounds,
and it alone decides how far T rounds of step size eta with clip norm C can go before noise wins: ``eta T C`` is
proportional to nu.
"""

import math
from dataclasses import dataclass
from typing import Self

from fedveil.errors import StudyError
from fedveil.federation import TRAINING, Terms
from fedveil.learning import Averaged, ClassStatistics, Optimizer, Sgd
from fedveil.study.settings import Study

__all__ = ["Steps", "learning_rate"]

REACH = 0.75
"""eta T C / nu. Between 0.5 and 1 nothing changes: the noise then stays below the margin of the logistic loss."""
LARGEST_RATIO = 1500.0
"""Larger signal-to-noise ratios are taken for this one, so that a study without noise also stops in time."""


def learning_rate(ratio: float, rounds: int, clip_norm: float) -> float:
    """The step size for a signal-to-noise ratio nu, T rounds and clip norm C.

    >>> learning_rate(600.0, 30, 0.2)
    75.0
    """
    return REACH * min(ratio, LARGEST_RATIO) / (rounds * clip_norm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """The server's update rule and what it divides sums by.

    Attributes:
        normalizer: number of units that a sum is divided by: released, or stated in the study file.
        optimizer: the update rule.
    """

    normalizer: float
    optimizer: Optimizer

    @classmethod
    def plan(cls, study: Study, terms: Terms, statistics: ClassStatistics | None) -> Self:
        """Fix the steps of a study from its settings and what it has released."""
        training = study.training
        if training.units is not None:
            normalizer = float(training.units)
        elif statistics is not None:
            normalizer = float(statistics.counts.sum())
        else:
            raise StudyError(
                "privacy.statistics_share is 0 and training.units is not set",
                "sums are divided by a released or a public number of units",
                "state roughly how many units take part in training.units",
            )
        mechanism = terms.release(TRAINING).mechanism
        if training.learning_rate is not None:
            rate = training.learning_rate
        else:
            variance = terms.noise_variance(mechanism, len(terms.sites)) / mechanism.clip_norm**2
            ratio = normalizer * math.sqrt(mechanism.steps / variance) if variance > 0 else math.inf
            rate = learning_rate(ratio, mechanism.steps, mechanism.clip_norm)
        rule: Optimizer = Sgd(
            learning_rate=rate, momentum=training.momentum, weight_decay=training.weight_decay
        )
        if training.average_from < 1:
            rule = Averaged(optimizer=rule, skip=int(training.average_from * training.rounds))
        return cls(normalizer=normalizer, optimizer=rule)
