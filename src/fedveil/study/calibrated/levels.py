"""The two parts of a calibrated study: its pilot, the grid of levels, and the rule's constants.

`fedveil.federation.levels.grid` states what sites check, and `fedveil.federation.levels.rule` how a level is picked.
"""

import math

from fedveil.errors import InvalidValue
from fedveil.federation.levels.rule import Law, Rule
from fedveil.federation.noise import Noise
from fedveil.federation.release import Release
from fedveil.learning import Sizes
from fedveil.study.settings.schema import Study

__all__ = ["GRID", "MOST_PILOT", "grid_of", "rule_of", "strength"]

GRID = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0, 11.0, 16.0)
"""The public grid: epsilons a factor sqrt 2 apart, rounded. The maximum of a study is its dearest level."""
MOST_PILOT = 0.75
"""A level whose epsilon the pilot uses by more than this fraction is left out: what is left to train on has more noise
than the pilot, and the accuracy of single runs varies too much to be predicted."""
SEPARATION = (math.log(2.15), 0.3)
NOISE = (math.log(26.0), 0.5)
"""Prior of log D and of log (b / sqrt k) of one round: mean and spread over the tasks of `fedveil plan`."""
LAWS = {
    "gradient": Law(separation=1.1, noise=0.8, patients=55.0, power=2.2, error=0.1),
    "one-shot": Law(separation=1.0, noise=1.0, patients=40.0, power=2.0),
    "tuned": Law(separation=1.07, noise=1.2, patients=60.0, power=1.6),
    "network": Law(separation=0.87, noise=5.5, patients=125.0, power=2.8),
}
"""Constants by recipe, from `planning/references.json`; those of networks from one task, so a sketch.

What training by gradients gains over one round differs between tasks. D is larger by 1.06 in these laws, by 1.13 on the
phantom, and by 1.18 on held-out training patients of chest X-rays; b by 0.74, 0.75 and 0.94.
"""


def grid_of(study: Study) -> tuple[float, ...]:
    """The epsilons of a calibrated study's levels, ascending.

    Raises:
        InvalidValue: the pilot leaves nothing for any level.
    """
    most, pilot = study.privacy.largest_epsilon, study.privacy.pilot_epsilon
    found = tuple(
        one for one in (*(level for level in GRID if level < most), most) if pilot <= MOST_PILOT * one
    )
    if not found:
        raise InvalidValue(
            f"privacy.pilot_epsilon is {pilot:g} and privacy.max_epsilon {most:g}",
            f"the pilot may use {MOST_PILOT:g} of the maximum at most: the rest trains the model",
            "reduce pilot_epsilon, or increase max_epsilon",
        )
    return found


def strength(noise: Noise, release: Release, sites: int) -> float:
    """mu / f: the signal-to-noise ratio nu of a release's sums over all sites, for one unit."""
    mechanism = release.mechanism
    factor = math.sqrt(sites) if release.noise_inside else noise.factor(sites)
    return mechanism.sampling_rate * math.sqrt(mechanism.steps) / (mechanism.noise_multiplier * factor)


def rule_of(study: Study, model: Sizes) -> Rule:
    """The rule of a calibrated study, from public settings alone."""
    network, method = study.model.network, study.training.method
    kind: str = "one-shot" if method == "one-shot" else "gradient"
    if network != "linear":
        kind = "tuned" if network.startswith("efficientnet-lite0") else "network"
    return Rule(
        classes=model.classes,
        features=model.statistics_size // model.classes - 1,
        histogram=network == "linear",
        tolerance=study.privacy.tolerance,
        law=LAWS[kind],
        separation=SEPARATION,
        noise=NOISE,
    )
