"""Calibration: never above the target, and no more noise than it takes."""

import math

import dp_accounting
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedveil.errors import InvalidValue
from fedveil.privacy import Guarantee, Mechanism, calibrate, epsilon

epsilons = st.floats(-2, 2).map(lambda exponent: 10.0**exponent)
deltas = st.floats(-10, -2).map(lambda exponent: 10.0**exponent)


def target(eps: float, delta: float = 1e-5) -> Guarantee:
    return Guarantee(eps, delta, "patient", "site")


@given(epsilons, deltas, st.integers(1, 5000), st.lists(st.floats(100, 10000), max_size=3))
def test_full_participation_never_lands_above_the_target(
    eps: float, delta: float, steps: int, noises: list[float]
) -> None:
    spent = [Mechanism(noise, 1.0, 3) for noise in noises]
    if epsilon(spent, delta) > 0.9 * eps:
        return
    mechanism = calibrate(target(eps, delta), steps=steps, spent=spent)
    assert epsilon([*spent, mechanism], delta) <= eps
    less = Mechanism(mechanism.noise_multiplier * (1 - 1e-6), 1.0, steps)
    assert epsilon([*spent, less], delta) > eps


@settings(max_examples=5, deadline=None)
@given(st.floats(0.3, 8), st.floats(0.01, 0.9), st.integers(1, 500))
def test_sampling_never_lands_above_the_target(eps: float, rate: float, steps: int) -> None:
    mechanism = calibrate(target(eps), steps=steps, sampling_rate=rate)
    assert epsilon([mechanism], 1e-5) <= eps
    less = Mechanism(mechanism.noise_multiplier * (1 - 5e-4), 1.0, steps, rate)
    assert epsilon([less], 1e-5) > eps * (1 - 1e-4)


@pytest.mark.parametrize("eps", [0.05, 1.0, 3.0, 8.0, 100.0])
def test_noise_is_that_of_balle_and_wang(eps: float) -> None:
    expected = dp_accounting.get_sigma_gaussian(eps, 1e-5) * math.sqrt(60)
    assert calibrate(target(eps), steps=60).noise_multiplier == pytest.approx(expected, rel=1e-9)


def test_design_document_figures() -> None:
    assert calibrate(target(1.0), steps=60).noise_multiplier == pytest.approx(28.897, abs=1e-3)


def test_spent_leaves_less_room() -> None:
    first = calibrate(target(0.5), steps=30)
    second = calibrate(target(1.0), steps=30, spent=[first])
    alone = calibrate(target(1.0), steps=30)
    assert second.noise_multiplier > alone.noise_multiplier
    assert epsilon([first, second], 1e-5) == pytest.approx(1.0, abs=1e-9)


def test_spent_with_sampling_is_priced_as_a_ledger_prices_it() -> None:
    spent = [Mechanism(2.0, 1.0, 20, 0.05)]
    for rate in (1.0, 0.2):
        mechanism = calibrate(target(1.5), steps=10, sampling_rate=rate, spent=spent)
        price = epsilon([*spent, mechanism], 1e-5, adaptive=True)
        assert price <= 1.5
        assert price == pytest.approx(1.5, rel=1e-3)


def test_slack_that_was_spent_is_made_up_for() -> None:
    spent = [Mechanism(60.0, 1.0, 40, epsilon_slack=1e-3, delta_slack=1e-8)]
    mechanism = calibrate(target(1.0), steps=10, spent=spent)
    less = Mechanism(mechanism.noise_multiplier * (1 - 1e-6), 1.0, 10)
    assert epsilon([*spent, mechanism], 1e-5) <= 1.0 < epsilon([*spent, less], 1e-5)


def test_nothing_left_is_refused() -> None:
    spent = [Mechanism(1.0, 1.0, 10)]
    with pytest.raises(InvalidValue, match="already cost epsilon"):
        calibrate(target(1.0), steps=1, spent=spent)
    with pytest.raises(InvalidValue, match="already cost epsilon"):
        calibrate(target(0.1), steps=1, sampling_rate=0.5, spent=[Mechanism(1.0, 1.0, 10, 0.5)])


def test_spent_of_a_finer_unit_is_refused() -> None:
    with pytest.raises(InvalidValue, match="one image"):
        calibrate(target(1.0), steps=1, spent=[Mechanism(50.0, 1.0, 1, unit="image")])


def test_no_trust_means_no_noise() -> None:
    baseline = Guarantee(math.inf, 1e-5, "patient", "none")
    assert calibrate(baseline, steps=3, clip_norm=2.0) == Mechanism(0.0, 2.0, 3)


def test_clip_norm_and_unit_are_carried() -> None:
    mechanism = calibrate(Guarantee(2.0, 1e-4, "site", "server"), steps=4, clip_norm=0.5)
    assert (mechanism.clip_norm, mechanism.unit, mechanism.steps) == (0.5, "site", 4)
    assert mechanism.noise_std == 0.5 * mechanism.noise_multiplier
