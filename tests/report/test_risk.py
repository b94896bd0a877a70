import math

import numpy as np
import pytest
from scipy.stats import norm

from fedveil.privacy import Guarantee, Mechanism, epsilon, operational_risk
from fedveil.report.figures.risk import attack_chart, attack_curve, icon_array

DELTA = 1e-5
RATES = np.array([0.0, 1e-4, 0.01, 0.1, 0.5, 0.9, 1.0])


def guarantee_of(*mechanisms: Mechanism) -> Guarantee:
    return Guarantee(epsilon(mechanisms, DELTA), DELTA, "patient", "site")


def test_the_curve_is_that_of_the_best_test_between_two_gaussians() -> None:
    mechanism = Mechanism(10.0, 1.0, steps=25)
    curve = attack_curve(RATES, guarantee_of(mechanism), [mechanism])
    best = norm.sf(norm.isf(RATES), loc=math.sqrt(25) / 10.0)
    np.testing.assert_allclose(curve, best, atol=1e-12)


def test_the_curve_of_sampling_lies_on_or_above_the_best_test_and_close_to_it() -> None:
    rate, noise = 0.2, 0.8
    mechanism = Mechanism(noise, 1.0, steps=1, sampling_rate=rate)
    present = norm.isf(RATES)
    added = rate * norm.sf(present - 1 / noise) + (1 - rate) * norm.sf(present)
    x = np.linspace(-9, 9, 20_001)
    removed = np.interp(RATES, rate * norm.cdf(x - 1 / noise) + (1 - rate) * norm.cdf(x), norm.cdf(x))
    best = np.maximum(added, removed)
    curve = attack_curve(RATES, guarantee_of(mechanism), [mechanism])
    assert np.all(curve >= best - 1e-6)
    assert np.all(curve <= best + 0.02)


@pytest.mark.parametrize("sampling_rate", [1.0, 0.1])
def test_the_curve_meets_the_risk_that_is_quoted_in_words(sampling_rate: float) -> None:
    mechanism = Mechanism(2.0, 1.0, steps=40, sampling_rate=sampling_rate)
    guarantee = guarantee_of(mechanism)
    risk = operational_risk(guarantee, [mechanism])
    at_one_percent = attack_curve(np.array([risk.false_positive_rate]), guarantee, [mechanism])
    assert at_one_percent[0] == pytest.approx(risk.true_positive_rate, rel=0.02)


def test_a_curve_rises_from_guessing_and_never_falls() -> None:
    mechanism = Mechanism(1.0, 1.0, steps=30, sampling_rate=0.05)
    rates = np.linspace(0, 1, 101)
    curve = attack_curve(rates, guarantee_of(mechanism), [mechanism])
    assert np.all(np.diff(curve) >= -1e-12)
    assert np.all(curve >= rates - 1e-12)
    assert curve.max() <= 1


def test_dots_never_show_fewer_than_the_bound() -> None:
    for noise in (0.2, 1.0, 3.0, 10.0, 1000.0):
        mechanism = Mechanism(noise, 1.0, steps=1)
        risk = operational_risk(guarantee_of(mechanism), [mechanism])
        icons = icon_array(risk)
        assert len(icons.states) == 100
        assert 100 - icons.states.count("hidden") >= 100 * risk.true_positive_rate - 1e-6
        assert icons.states.count("guess") == 1
        assert icons.added == icons.states.count("added")


def test_the_chart_says_the_bound_in_words() -> None:
    mechanism = Mechanism(28.9, 1.0, steps=60)
    guarantee = guarantee_of(mechanism)
    chart = attack_chart(guarantee, [mechanism], operational_risk(guarantee, [mechanism]))
    assert "at most 2.0" in chart.alt


def test_the_curve_of_a_mixture_follows_from_its_guarantee_alone() -> None:
    guarantee, rates = Guarantee(1.0, 1e-5, "patient", "site"), np.linspace(0, 1, 11)
    mixed = [Mechanism(20.0, 1.0, 1), Mechanism(8.0, 1.0, 60, 0.25)]
    stated = np.minimum(np.minimum(np.e * rates + 1e-5, 1 - np.exp(-1.0) * (1 - 1e-5 - rates)), 1.0)
    np.testing.assert_allclose(attack_curve(rates, guarantee, mixed), stated)
