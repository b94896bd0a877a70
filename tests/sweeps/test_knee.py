"""The recommendation that a sweep ends with."""

import math
from dataclasses import replace

import pytest

from fedveil.sweeps import NO_PRIVACY, Measurement, Setting, knees

BASE = Setting(epsilon=1.0, trust="site", unit="patient", sites=5, alpha=0.5)
EPSILONS = (0.5, 1.0, 2.0, 4.0)


def measured(setting, auroc):
    return Measurement(
        setting=setting,
        units=1000,
        patients=1000,
        ratio=200.0,
        epsilon_spent=setting.epsilon,
        true_positive_rate=0.1,
        advantage=0.1,
        auroc=auroc,
        balanced_accuracy=auroc - 0.1,
        seconds=0.5,
    )


def swept(values, *, bare=0.95, **changes):
    """One curve per seed; each list holds the AUROC at every epsilon."""
    found = []
    for seed, aurocs in enumerate(values):
        at = replace(BASE, seed=seed, **changes)
        found += [measured(replace(at, epsilon=e), a) for e, a in zip(EPSILONS, aurocs, strict=True)]
        found.append(measured(replace(at, epsilon=NO_PRIVACY, trust="none"), bare))
    return found


def test_the_least_epsilon_within_the_tolerance_of_no_privacy():
    (found,) = knees(swept([(0.8, 0.93, 0.941, 0.95)] * 3))
    assert (found.epsilon, found.bare, found.runs) == (2.0, pytest.approx(0.95), 3)
    assert found.auroc == pytest.approx(0.941)
    assert (found.low, found.high) == (2.0, 2.0)
    assert knees(swept([(0.8, 0.93, 0.941, 0.95)]), tolerance=0.03)[0].epsilon == 1.0


def test_where_no_swept_epsilon_is_enough_there_is_none():
    (found,) = knees(swept([(0.6, 0.7, 0.8, 0.9)] * 3))
    assert math.isinf(found.epsilon)
    assert found.auroc == pytest.approx(0.9)


def test_a_chance_dip_between_two_epsilons_decides_nothing():
    """Means over repeats may fall a little as epsilon grows."""
    (found,) = knees(swept([(0.8, 0.945, 0.938, 0.95)]))
    assert found.epsilon == 1.0
    (fell,) = knees(swept([(0.8, 0.945, 0.90, 0.95)]))
    assert fell.epsilon == 4.0, "a real loss does"


def test_repeats_that_disagree_leave_an_interval_and_two_repeats_none():
    curves = [
        (0.8, 0.95, 0.95, 0.95),
        (0.8, 0.90, 0.95, 0.95),
        (0.8, 0.93, 0.93, 0.95),
        (0.8, 0.95, 0.95, 0.95),
    ]
    (found,) = knees(swept(curves))
    assert found.low < found.high
    assert found.low <= found.epsilon <= found.high
    assert math.isnan(knees(swept(curves[:2]))[0].low)


def test_every_trust_and_number_of_hospitals_has_its_own():
    curve, better = (0.8, 0.93, 0.941, 0.95), (0.8, 0.945, 0.95, 0.95)
    results = swept([curve], sites=5) + swept([better], trust="server", sites=5) + swept([better], sites=3)
    found = {(one.trust, one.setting.sites): one.epsilon for one in knees(results)}
    assert found == {("site", 5): 2.0, ("server", 5): 1.0, ("site", 3): 1.0}


def test_unfinished_repeats_and_settings_without_a_comparison_are_left_out():
    whole = swept([(0.8, 0.93, 0.941, 0.95)] * 3)
    assert knees(whole[:-3])[0].runs == 2
    assert knees([one for one in whole if one.setting.trust != "none"]) == []
