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
from fedveil.federation import Release, RoundSum, Terms
from fedveil.learning import Adam, Averaged, ClassStatistics, Optimizer, Sgd
from fedveil.learning.learner import Vector
from fedveil.learning.networks import HEAD_LENGTH
from fedveil.study.settings import Study

__all__ = ["Steps", "head_length", "learning_rate", "signal_to_noise", "units_per_round"]

REACH = 0.75
"""eta T C / nu. Between 0.5 and 1 nothing changes: the noise then stays below the margin of the logistic loss."""
LARGEST_RATIO = 1500.0
"""Larger signal-to-noise ratios are taken for this one, so that a study without noise also stops in time."""
NETWORK_RATES = {"sgd": 0.5, "adam": 2e-3}
"""Step sizes for networks, whose gradients are clipped to length 1."""


def learning_rate(ratio: float, rounds: int, clip_norm: float) -> float:
    """The step size for a signal-to-noise ratio nu, T rounds and clip norm C.

    >>> learning_rate(600.0, 30, 0.2)
    75.0
    """
    return REACH * min(ratio, LARGEST_RATIO) / (rounds * clip_norm)


def head_length(study: Study) -> float:
    """Norm of the features under a study's linear head, which step sizes are divided by."""
    return 1.0 if study.model.network == "linear" else HEAD_LENGTH


def _trains_a_head(study: Study) -> bool:
    """Whether the rule holds: for a linear head, and for public weights that are tuned a little under one."""
    tuned = study.model.network.startswith("efficientnet-lite0") and study.training.optimizer == "sgd"
    return study.model.network == "linear" or tuned


def signal_to_noise(terms: Terms, units: int) -> float:
    """The ratio nu of training under these terms, if all sites take part."""
    return units * terms.main.mechanism.sampling_rate * _strength(terms)


def _strength(terms: Terms) -> float:
    """mu / f: the root of the sum over rounds of (clip norm / standard deviation of the noise) squared.

    Where sites add the noise to steps of their own, a step's sum over all sites has the noise of each of them.
    """
    release, sites = terms.main, len(terms.sites)
    mechanism = release.mechanism
    summed = sites * terms.noise_std(release) ** 2
    noise = summed if release.local_noise else terms.noise_variance(mechanism, sites)
    variance = noise / mechanism.clip_norm**2
    return math.sqrt(mechanism.steps / variance) if variance > 0 else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """The server's update rule and what it divides sums by.

    Attributes:
        normalizer: number of units that a sum of gradients is divided by: released, or stated in the study file. None
            where sites send differences, which are averaged with equal weights.
        optimizer: the update rule.
    """

    normalizer: float | None
    optimizer: Optimizer

    def gradient(self, collected: RoundSum, terms: Terms, release: Release) -> tuple[Vector, float]:
        """What the update rule descends along in this round, and the variance of the noise in each coordinate.

        An average of differences counts as a gradient with the sign turned (Reddi et al., 2003.00295). The noise that
        local steps left in it has no known variance: 0 is stated, and nothing is corrected.
        """
        sites = len(collected.survivors)
        variance = 0.0 if release.local_noise else terms.noise_variance(release.mechanism, sites)
        if release.local is not None:
            return -collected.total / sites, variance / sites**2
        if self.normalizer is None:
            raise StudyError(
                "there is no number of units", "sums of gradients are divided by one", "state it"
            )
        return collected.total / self.normalizer, variance / self.normalizer**2

    @classmethod
    def plan(cls, study: Study, terms: Terms, statistics: ClassStatistics | None) -> Self:
        """Fix the steps of a study from its settings and what it has released."""
        training, averaging = study.training, study.training.method == "averaging"
        normalizer = None if averaging else units_per_round(study, terms, statistics)
        if training.learning_rate is not None:
            rate = training.learning_rate
        elif normalizer is None:
            rate = 1.0
        elif not _trains_a_head(study):
            rate = NETWORK_RATES[training.optimizer]
        else:
            one = terms.main.mechanism
            ratio = normalizer * _strength(terms)
            rate = learning_rate(ratio, one.steps, one.clip_norm) / head_length(study)
        return cls(normalizer=normalizer, optimizer=_optimizer(study, rate))


def units_per_round(study: Study, terms: Terms, statistics: ClassStatistics | None) -> float:
    """Units that take part in a round on average, as far as the public knows."""
    rate = study.training.sampling_rate
    if study.training.units is not None:
        return study.training.units * rate
    if study.privacy.unit == "site":
        return len(terms.sites) * rate
    if statistics is not None:
        return float(statistics.counts.sum()) * rate
    raise StudyError(
        "privacy.statistics_share is 0 and training.units is not set",
        "sums are divided by a released or a public number of units",
        "state roughly how many units take part in training.units",
    )


def _optimizer(study: Study, rate: float) -> Optimizer:
    training = study.training
    rule: Optimizer
    if training.optimizer == "adam":
        rule = Adam(learning_rate=rate, weight_decay=training.weight_decay)
    else:
        rule = Sgd(learning_rate=rate, momentum=training.momentum, weight_decay=training.weight_decay)
    if training.average_from == 1:
        return rule
    skip = int(training.average_from * training.rounds)
    return Averaged(optimizer=rule, skip=skip, decay=training.average_decay)
