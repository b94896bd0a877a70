"""The rule that picks a level: what it learns from the pilot's sums, and what it cannot."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import ndtr

from fedveil.federation.levels.rule import VERSION, Rule
from fedveil.learning import CentredHead, ClassStatistics, NetworkSizes
from fedveil.learning.released.pilot_scores import directions, pilot_counts
from fedveil.study import Study, make_agreement
from fedveil.study.calibrated.levels import LAWS, NOISE, SEPARATION

DIMENSION = 40
RULE = Rule(
    classes=2,
    features=DIMENSION,
    histogram=True,
    tolerance=0.01,
    law=LAWS["one-shot"],
    separation=SEPARATION,
    noise=NOISE,
)
STRENGTHS = (0.03, 0.1, 0.3, 1.0)


def pilot(shift, units=4000, classes=2, noise=1.0, seed=0):
    """The sums of units whose classes lie so far apart, with noise of this standard deviation in every number."""
    generator = np.random.default_rng(seed)
    labels = np.arange(units) % classes
    points = generator.normal(size=(units, DIMENSION))
    points[np.arange(units), labels] += shift
    points /= np.linalg.norm(points, axis=1)[:, None]
    weights = np.ones(units)
    statistics = ClassStatistics.contribution(points, labels, weights, classes)
    statistics = statistics + noise * generator.normal(size=statistics.shape)
    trained, middle = directions(ClassStatistics.from_released(statistics, classes, noise**2))
    scores = points @ trained.reshape(-1, DIMENSION).T - middle
    counted = pilot_counts(scores, labels, weights, classes, DIMENSION)
    counted = counted + noise * generator.normal(size=counted.shape)
    return [statistics, counted], [noise**2, noise**2]


WIDE = 224
"""Features of the default encoder."""


def medical(seed, positive=0.5, units=2800):
    """Units whose features vary most along the difference between classes, as those of medical images do.

    Returns features, labels, and the AUROC of a score along any direction.
    """
    generator = np.random.default_rng(seed)
    along = np.full(WIDE, WIDE**-0.5)
    labels = (np.arange(units) < positive * units).astype(np.int64)
    variance, length = 0.4 / WIDE, 0.3
    points = math.sqrt(variance) * generator.normal(size=(units, WIDE))
    points += math.sqrt(7 * variance) * generator.normal(size=(units, 1)) * along
    points += length * (labels - 0.5)[:, None] * along
    points[:, 0] += math.sqrt(1 - 0.45)  # the mean that all images share

    def auroc(direction):
        spread = math.sqrt(variance * (direction @ direction) + 7 * variance * (direction @ along) ** 2)
        return float(ndtr(length * (direction @ along) / spread / math.sqrt(2)))

    return points, labels, auroc


def released(points, labels, seed):
    """The pilot of five hospitals at epsilon 0.2 under secure aggregation."""
    generator, weights = np.random.default_rng([seed, 1]), np.ones(len(labels))
    noise, counted_noise = 26.1, 35.6
    statistics = ClassStatistics.contribution(points, labels, weights, 2)
    statistics = statistics + noise * generator.normal(size=statistics.shape)
    trained, middle = directions(ClassStatistics.from_released(statistics, 2, noise**2))
    scores = points @ trained.reshape(-1, WIDE).T - middle
    counted = pilot_counts(scores, labels, weights, 2, WIDE)
    counted = counted + counted_noise * generator.normal(size=counted.shape)
    return [statistics, counted], [noise**2, counted_noise**2]


@pytest.mark.parametrize(("positive", "units"), [(0.5, 2800), (0.65, 4500)])
def test_a_pilot_of_thousands_of_patients_predicts_the_auroc(positive, units):
    """To about 0.015 on average at epsilon 0.2, without bias, and inside the intervals."""
    errors, inside = [], []
    for seed in range(8):
        points, labels, auroc = medical(seed, positive, units)
        totals, variances = released(points, labels, seed)
        found = replace(RULE, features=WIDE).forecast(totals, variances, (0.1, 1.0))
        generator = np.random.default_rng([seed, 2])
        sums = ClassStatistics.contribution(points, labels, np.ones(len(labels)), 2)
        read = ClassStatistics.from_released(sums + 10.0 * generator.normal(size=sums.shape), 2, 100.0)
        reached = auroc(read.means[1] - read.means[0])
        errors.append(found.levels[0].expected - reached)
        inside.append(found.levels[0].low <= reached <= found.levels[0].high)
    assert np.mean(np.abs(errors)) < 0.018
    assert np.abs(np.mean(errors)) < 0.012
    assert np.mean(inside) > 0.9


def test_another_version_of_the_rule_is_another_agreement():
    """A hospital whose rule picks otherwise does not admit the study: its digest differs."""
    study = Study.parse('[privacy]\nepsilon = "calibrated"\nmax_epsilon = 8.0\ntrust = "site"\n')
    sizes = CentredHead([WIDE], 2)
    agreement = make_agreement(study, sites=("a", "b", "c"), model=sizes)
    other = replace(agreement.calibration, rule=replace(agreement.calibration.rule, version=VERSION - 1))
    assert agreement.calibration.to_dict()["rule"]["version"] == VERSION
    assert replace(agreement, calibration=other).digest != agreement.digest


def test_the_number_of_units_is_estimated_and_more_units_need_less():
    picked = []
    for units in (400, 4000, 40_000):
        found = RULE.forecast(*pilot(2.0, units), STRENGTHS)
        assert found.units == pytest.approx(units, abs=60)
        picked.append(found.level)
    assert picked == sorted(picked, reverse=True)
    assert picked[0] > picked[-1]


def test_a_pilot_with_little_noise_tells_hard_tasks_from_easy_ones():
    weak, middle, strong = (RULE.forecast(*pilot(shift, 40_000), STRENGTHS) for shift in (0.5, 1.5, 4.0))
    assert weak.bare.expected < middle.bare.expected - 0.02 < strong.bare.expected - 0.04
    assert weak.level >= strong.level


def test_a_pilot_that_is_all_noise_leaves_the_prior():
    """Then the number of units decides, and predictions are those of an average public task."""
    totals, variances = pilot(2.0, 4000, noise=1000.0)
    found = RULE.forecast(totals, variances, STRENGTHS)
    blind = replace(RULE, separation=(SEPARATION[0], 1e-6), noise=(NOISE[0], 1e-6))
    alone = blind.forecast(totals, variances, STRENGTHS)
    assert found.bare.expected == pytest.approx(alone.bare.expected, abs=0.03)
    assert found.bare.high - found.bare.low > alone.bare.high - alone.bare.low


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_predictions_rise_with_the_level_and_stay_finite(classes):
    for noise in (1.0, 30.0, 1e4):
        totals, variances = pilot(2.0, 1000, classes, noise)
        found = replace(RULE, classes=classes).forecast(totals, variances, STRENGTHS)
        values = [one.expected for one in found.levels] + [found.bare.expected]
        assert all(math.isfinite(value) and 0 < value <= 1 for value in values)
        assert values == sorted(values)
        assert 1 <= found.level <= len(STRENGTHS)
        losses = [found.bare.expected - one.expected for one in found.levels]
        assert found.within is (min(losses) <= RULE.tolerance + 1e-9)
        if found.within:
            assert losses[found.level - 1] <= RULE.tolerance + 1e-9
            assert all(loss > RULE.tolerance - 1e-9 for loss in losses[: found.level - 1])


@pytest.mark.parametrize("more", ["[training]\nsampling_rate = 1.0\nrounds = 20", ""])
def test_networks_are_calibrated_by_their_class_sizes(more):
    """Levels of the noise multiplier, also where steps sample their units; all within their epsilons."""
    text = '[model]\nnetwork = "cnn"\n[privacy]\nepsilon = "calibrated"\nmax_epsilon = 2.0\npilot_epsilon = 1.0\n'
    study = Study.parse(f'{text}trust = "site"\n{more}')
    sizes = NetworkSizes.of("cnn", classes=2, channels=1, image_size=28)
    agreement = make_agreement(study, sites=("a", "b", "c"), model=sizes)
    assert agreement.holds
    calibration = agreement.calibration
    assert [release.name for release in calibration.pilot] == ["statistics"]
    assert [level.epsilon for level in calibration.levels] == [1.4, 2.0]
    for number, level in enumerate(calibration.levels, 1):
        assert agreement.at_level(number).planned.epsilon <= level.epsilon
    first, last = calibration.levels
    assert first.strength < last.strength
    few, many = (
        calibration.rule.forecast(
            [np.array([n / 2, n / 2])], [100.0], [one.strength for one in calibration.levels]
        )
        for n in (300, 100_000)
    )
    assert (few.level, few.within, many.level, many.within) == (2, False, 1, True)
