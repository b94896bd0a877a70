"""The step size of each round, from released and public numbers; `fedveil.learning.step_size` states the rule."""

import math
from dataclasses import dataclass
from typing import Self

from fedveil.errors import StudyError
from fedveil.federation import Agreement, NoisySum, Release, Rounds, RoundSum
from fedveil.learning import (
    Adam,
    Averaged,
    ClassStatistics,
    FindingStatistics,
    Optimizer,
    PublicStart,
    Pulled,
    Sgd,
    Shrunk,
    Statistics,
)
from fedveil.learning.models.learner import Vector
from fedveil.learning.step_size import head_length, learning_rate
from fedveil.study.settings.schema import Study

__all__ = ["Steps", "signal_to_noise", "units_per_round"]

NETWORK_RATES = {"sgd": 0.5, "adam": 2e-3}
"""Step sizes for networks, whose gradients are clipped to length 1."""


def _trains_a_head(study: Study) -> bool:
    """Whether the rule applies: to a linear head, and to pretrained networks whose last blocks are tuned."""
    tuned = study.model.network.startswith("efficientnet-lite0") and study.training.optimizer == "sgd"
    return study.model.network == "linear" or tuned


def signal_to_noise(agreement: Agreement, units: float) -> float:
    """The ratio nu of training under this agreement, if all sites take part."""
    return units * agreement.main.mechanism.sampling_rate * _strength(agreement)


def _strength(agreement: Agreement) -> float:
    """mu / f: the root of the sum over rounds of (clip norm / standard deviation of the noise) squared."""
    mechanism = agreement.main.mechanism
    variance = agreement.noise_variance(agreement.main, len(agreement.sites)) / mechanism.clip_norm**2
    return math.sqrt(mechanism.steps / variance) if variance > 0 else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """The server's update rule and the divisor of sums.

    Attributes:
        normalizer: number of units that a sum of gradients is divided by: released, or stated in the study file.
            None if sites send differences, which are averaged with equal weights.
        optimizer: the update rule.
    """

    normalizer: float | None
    optimizer: Optimizer

    def gradient(
        self, collected: RoundSum, agreement: Agreement, release: Release, query: Rounds
    ) -> tuple[Vector, float]:
        """The direction that the update rule descends along in this round, and the noise variance per coordinate.

        The noise from local steps has no known variance: 0 is returned, and nothing is corrected.
        """
        sites = len(collected.survivors)
        variance = 0.0 if release.noise_inside else agreement.noise_variance(release, sites)
        count = float(sites) if self.normalizer is None else self.normalizer
        found = query.direction(NoisySum(collected.total, variance), count)
        return found.total, found.variance

    @classmethod
    def plan(
        cls,
        study: Study,
        agreement: Agreement,
        query: Rounds,
        statistics: Statistics | None,
        start: PublicStart | None = None,
    ) -> Self:
        """Set the steps of a study from its settings, its releases and the public model that it starts from."""
        training = study.training
        normalizer = units_per_round(study, agreement, statistics) if query.per_unit else None
        if training.learning_rate is not None:
            rate = training.learning_rate
        elif normalizer is None:
            rate = 1.0
        elif not _trains_a_head(study):
            rate = NETWORK_RATES[training.optimizer]
        else:
            one = agreement.main.mechanism
            ratio = normalizer * _strength(agreement)
            rate = learning_rate(ratio, one.steps, one.clip_norm) / head_length(study.model.network)
        optimizer = _optimizer(study, rate)
        if start is not None and study.model.network != "linear" and isinstance(optimizer, Sgd | Averaged):
            optimizer = Shrunk(optimizer=optimizer, start=start.trained, rounds=training.rounds)
        elif start is not None and isinstance(optimizer, Sgd):
            bound = agreement.main.mechanism.clip_norm * _certain(study, statistics)
            optimizer = Pulled(optimizer=optimizer, start=start.trained, clip_norm=bound)
        return cls(normalizer=normalizer, optimizer=optimizer)


def _certain(study: Study, statistics: Statistics | None) -> float:
    """The part of the released number of units that its noise does not explain, by two standard deviations.

    A mean gradient is no longer than the clip norm times the true number of units over the divisor. A divisor that is
    mostly noise would make the longest possible displacement look long.
    """
    released = study.training.units is None and study.privacy.unit != "site"
    if not released or not isinstance(statistics, ClassStatistics | FindingStatistics):
        return 1.0
    return max(statistics.units - 2 * statistics.units_std, 1.0) / max(statistics.units, 1.0)


def units_per_round(study: Study, agreement: Agreement, statistics: Statistics | None) -> float:
    """The expected number of units in a round, from public numbers."""
    rate = study.training.sampling_rate
    if study.training.units is not None:
        return study.training.units * rate
    if study.privacy.unit == "site":
        return len(agreement.sites) * rate
    if statistics is not None:
        return statistics.units * rate
    raise StudyError(
        "privacy.statistics_share is 0 and training.units is not set",
        "sums must be divided by a released or a public number of units",
        "set training.units to the approximate number of units that take part",
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
