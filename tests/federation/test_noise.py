"""Who adds the noise of a sum, and how much of it a sum then holds."""

from dataclasses import replace

import numpy as np
import pytest

from fedveil.errors import Refused
from fedveil.federation import CentralNoise, DistributedNoise, LocalNoise
from fedveil.federation.noise import Calibrated, Sums, noise_by
from fedveil.privacy import Guarantee, Mechanism, epsilon

MECHANISM = Mechanism(6.0, 0.5, 3)
SUMS = Sums(steps=3, dimension=20_000, units=50, clip_norm=0.5)
EACH = [LocalNoise(), DistributedNoise(6, 4), CentralNoise()]


@pytest.mark.parametrize("noise", EACH, ids=["local", "distributed", "central"])
def test_a_sum_holds_the_noise_that_is_stated(noise):
    """Drawn, encoded, added up and completed as in a round, over six sites."""
    made, generator = noise.fit(MECHANISM, SUMS), np.random.default_rng(1)
    answers = [noise.protect(np.zeros(SUMS.dimension), made, generator) for _ in range(6)]
    if isinstance(noise, DistributedNoise):
        with np.errstate(over="ignore"):
            total = made.integer.decode(np.sum(answers, axis=0, dtype=np.uint32))
    else:
        total = noise.complete(np.sum(answers, axis=0), made.mechanism)
    assert np.var(total) == pytest.approx(noise.variance(made.mechanism, 6), rel=0.05)
    assert np.std(total) == pytest.approx(noise.factor(6) * MECHANISM.noise_std, rel=0.03)
    if not isinstance(noise, DistributedNoise):
        assert np.std(answers[0]) == pytest.approx(noise.site_std(made.mechanism), rel=0.03)


@pytest.mark.parametrize("trust", ["site", "secure-aggregation", "server"])
def test_what_is_calibrated_meets_the_target_and_no_share_is_missing(trust):
    noise, target = noise_by(trust, 6, 4), Guarantee(1.0, 1e-5, "patient", trust)
    spent = [Mechanism(20.0, 1.0, 1)]
    made = noise.calibrate(target, SUMS, spent)
    assert 0.999 < epsilon([made.mechanism, *spent], 1e-5) <= 1
    honest = {"site": 1, "secure-aggregation": 4}.get(trust)
    if honest is None:
        assert noise.alone(made) is None
    else:
        assert noise.alone(made).noise_multiplier ** 2 * honest == pytest.approx(
            made.mechanism.noise_multiplier**2
        )


def test_answers_whose_noise_is_inside_are_masked_on_a_fine_grid():
    target = Guarantee(1.0, 1e-5, "patient", "secure-aggregation")
    inside = replace(SUMS, reach=10.0)
    made = DistributedNoise(6, 4).calibrate(target, inside)
    assert 0.999 < epsilon([made.mechanism], 1e-5) <= 1
    assert made.integer.mechanism.noise_std == pytest.approx(1e-4)
    plain = LocalNoise().calibrate(target, inside)
    assert plain.integer is None
    assert plain.mechanism.noise_multiplier == pytest.approx(made.mechanism.noise_multiplier, rel=1e-4)


def test_nothing_leaves_under_secure_aggregation_but_whole_numbers():
    with pytest.raises(Refused, match="no integer mechanism"):
        DistributedNoise(6, 4).protect(np.zeros(3), Calibrated(MECHANISM), np.random.default_rng(0))
