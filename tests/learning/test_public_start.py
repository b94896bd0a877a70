"""The pull towards a public model: the posterior mean that its text states, and its two limits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedveil.learning import CentredHead, FindingsHead, PublicStart, Pulled, Sgd
from fedveil.learning.models.public_start import centre_towards, pulled
from fedveil.learning.ranges import bounded_blocks

D = 400


def drawn(seed, likeness, noise, length=10.0):
    """True weights, a public direction of this cosine with them, and a noisy displacement."""
    generator = np.random.default_rng(seed)
    public, other = np.linalg.qr(generator.normal(size=(D, 2)))[0].T
    truth = length * (likeness * public + np.sqrt(1 - likeness**2) * other)
    return truth, 3 * public, truth + noise * generator.normal(size=D)


def cosine(one, other):
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def test_without_noise_nothing_is_pulled():
    truth, public, _ = drawn(0, 0.2, 0)
    np.testing.assert_array_equal(pulled(truth, public, 0.0, 50.0), truth)
    np.testing.assert_allclose(pulled(truth, public, 1e-12, 50.0), truth, atol=1e-6)


@pytest.mark.parametrize("likeness", [-0.9, 0.0, 0.9])
def test_as_the_budget_approaches_zero_the_direction_becomes_that_of_the_start(likeness):
    """With less budget the same noise hides a shorter displacement."""
    near = []
    for longest in (10.0, 0.1, 1e-3):
        truth, public, _ = drawn(1, likeness, 0, length=longest / 2)
        noisy = truth + 0.75 * np.random.default_rng(2).normal(size=D)
        near.append(cosine(pulled(noisy, public, 0.75**2, longest), public))
    assert near[1] > 0.99
    assert near[2] > 0.9999


@pytest.mark.parametrize(("likeness", "gain"), [(0.9, 0.3), (0.5, 0.08), (0.0, -0.04), (-0.5, 0.08)])
def test_a_like_start_helps_and_a_useless_one_does_little_harm(likeness, gain):
    """The mean cosine with the true weights, over 50 draws, against that of what was released."""
    before, after = [], []
    for seed in range(50):
        truth, public, noisy = drawn(seed, likeness, 0.75)
        before.append(cosine(noisy, truth))
        after.append(cosine(pulled(noisy, public, 0.75**2, 75.0), truth))
    assert np.mean(after) - np.mean(before) > gain


def test_released_sums_that_look_like_noise_still_count():
    """Shorter than its expected noise: the estimate would be 0, and a useless start would decide alone."""
    public, noise = np.eye(D)[0], 0.75 * np.ones(D)
    noise[D // 2 :] *= 0.9
    found = pulled(noise, public, 0.75**2, 75.0)
    assert 0.05 < found[1] / noise[1] < 0.2


def test_a_centre_far_outside_what_features_have_is_noise():
    """James-Stein alone would retain half of a vector of length 1e4."""
    away = np.array([1e4, 0.0, 0.0])
    found = centre_towards(away, np.zeros(3), (3,), 1e8 / 6)
    assert 0 < np.linalg.norm(found) < 1e-3


def test_the_pull_recovers_each_row_and_counts_the_noise_of_every_step():
    start = np.random.default_rng(3).normal(size=(3, D))
    plain, rule = Sgd(learning_rate=2.0), Pulled(optimizer=Sgd(learning_rate=2.0), start=start, clip_norm=0.2)
    quiet, noisy, exact = rule.init(np.zeros(3 * D)), rule.init(np.zeros(3 * D)), plain.init(np.zeros(3 * D))
    for gradient in np.random.default_rng(4).normal(0, 0.01, (5, 3 * D)):
        quiet, noisy = rule.step(quiet, gradient), rule.step(noisy, gradient, noise_variance=1e-4)
        exact = plain.step(exact, gradient)
    np.testing.assert_array_equal(rule.released(quiet), exact.parameters)
    rows = [
        pulled(row, one, 5 * 4.0 * 1e-4, 2.0 * 5 * 0.2)
        for row, one in zip(exact.parameters.reshape(3, D), start, strict=True)
    ]
    np.testing.assert_allclose(rule.released(noisy), np.concatenate(rows), rtol=1e-9)
    np.testing.assert_array_equal(rule.query(noisy), rule.released(noisy))


NOISY = {
    "seed": st.integers(0, 2**32 - 1),
    "noise": st.sampled_from([1e-9, 1.0, 300.0, 1e9]),
    "size": st.sampled_from([0.0, 200.0, 1e6]),
}


@settings(max_examples=100, deadline=None)
@given(findings=st.booleans(), **NOISY)
def test_a_site_accepts_every_head_with_a_start(findings, seed, noise, size):
    """Whatever the noise."""
    generator = np.random.default_rng(seed)
    kind = FindingsHead if findings else CentredHead
    start = PublicStart(bounded_blocks(generator.normal(size=7), (4, 3)), np.zeros((3, 7)))
    model = kind((4, 3), 3, start=start)
    total = size * generator.uniform(-0.2, 1, model.statistics_size)
    total += noise * generator.normal(size=len(total))
    statistics = model.read_statistics(total, noise**2)
    model.check_parameters(model.join(statistics, generator.normal(size=21)))
    model.check_parameters(model.join(None, generator.normal(size=21)))


def test_the_centre_is_the_public_one_in_noise_and_the_hospitals_own_without():
    public, own = np.array([0.3, 0.1, 0.2]), np.array([0.1, 0.4, -0.3])
    model, plain = CentredHead((3,), 2, start=PublicStart(public, np.ones((1, 3)))), CentredHead((3,), 2)
    total = np.repeat([[*(1e3 * own), 0.3 * 1e3]], 2, axis=0).ravel()
    quiet = model.join(model.read_statistics(total, 0.0), np.ones(3))
    np.testing.assert_allclose(quiet, plain.join(plain.read_statistics(total, 0.0), np.ones(3)), atol=1e-12)
    loud = total + 1e9 * np.random.default_rng(0).normal(size=8)
    centre = model.split(model.join(model.read_statistics(loud, 1e18), np.ones(3)))[0]
    np.testing.assert_allclose(centre, public, atol=1e-6)
