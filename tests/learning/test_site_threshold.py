"""A hospital's own threshold and class frequencies: its own as far as noise lets them be told from everyone's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedveil.learning import CentredHead, CentredLearner, ClassStatistics, NetworkModel, ScoreStatistics
from fedveil.learning.released.posterior import Noisy
from fedveil.learning.released.site_threshold import own_numbers


def found(counts, means, of_sums=0.0, of_counts=0.0):
    sizes, middles = np.array(counts, float), np.array(means, float).reshape(len(counts), -1)
    return ScoreStatistics(
        sums=Noisy(sizes[:, None] * middles, of_sums),
        counts=Noisy(sizes, of_counts),
    )


def test_without_noise_the_hospital_has_its_own_numbers():
    middle, mix = own_numbers(np.array([0.3]), np.array([0.5, 0.5]), found([30, 90], [-0.1, 0.5]))
    np.testing.assert_allclose(middle, [0.2])
    np.testing.assert_allclose(mix, [0.25, 0.75])


def test_noise_takes_the_numbers_back_to_the_common_ones():
    """The more noise, the closer; there is no noise at which they jump."""
    common = np.array([0.3]), np.array([0.42, 0.58])
    away = []
    for noise in (0.0, 30.0, 1e3, 1e5, 1e7, 1e10, 1e13):
        middle, mix = own_numbers(*common, found([500, 700], [-0.1, 0.2], noise, noise))
        away.append([abs(middle - common[0])[0], abs(mix - common[1])[0]])
    assert (np.diff(away, axis=0) <= 1e-9).all()
    np.testing.assert_allclose(away[0], [0.25, 0.42 - 500 / 1200], atol=1e-9)
    np.testing.assert_allclose(away[-1], 0, atol=1e-3)


@given(
    counts=st.lists(st.floats(10, 1e4), min_size=2, max_size=4),
    variance=st.floats(0, 1e4),
    seed=st.integers(0, 2**31),
)
def test_frequencies_lie_between_the_common_and_the_own_ones(counts, variance, seed):
    generator, classes = np.random.default_rng(seed), len(counts)
    common = generator.dirichlet(np.ones(classes) * 5) * 0.9 + 0.1 / classes
    one = found(counts, np.zeros(classes), variance, variance)
    middle, own = own_numbers(np.zeros(1), common, one)
    assert np.abs(middle) <= 1
    assert own.sum() == pytest.approx(1)
    if variance == 0:
        np.testing.assert_allclose(own, np.array(counts) / sum(counts), atol=2e-3)
    assert (own >= 0.9e-3).all()


def test_a_head_gets_the_middle_of_the_hospitals_plain_scores():
    generator, blocks = np.random.default_rng(1), [6]
    features, labels = generator.normal(size=(400, 6)).astype(np.float32), generator.integers(0, 2, 400)
    labels[:250] = 1
    head = CentredHead(blocks, 2)
    learner = CentredLearner(head, features, labels, np.arange(400), degraded=features[::-1])
    whole = head.join(None, generator.normal(size=head.trained), np.array([0.4]))
    released = learner.statistics(head.unshifted(whole), plain=True)
    parameters, own = head.recalibrated(whole, np.array([0.5, 0.5]), released, 0.0)
    centre, weights, shift, trained = head.split(parameters)
    logits = head.head.logits_of(trained, head.view(features, centre))[:, 0] / head.scale(whole)
    cut = np.clip(logits, -1, 1) * head.scale(whole)
    expected = (cut[labels == 0].mean() + cut[labels == 1].mean()) / 2
    assert shift == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(own, np.bincount(labels) / 400, rtol=1e-6)
    np.testing.assert_allclose(weights, 1 / (2 * own))
    np.testing.assert_array_equal(trained, head.split(whole)[3])


def test_a_network_gets_the_offset_that_its_own_calibration_would_have_given():
    """Were all images one hospital's, its own numbers would be the common ones."""
    model = NetworkModel("cnn", classes=2, channels=1, image_size=16)
    generator = np.random.default_rng(2)
    scores, labels = generator.uniform(-0.5, 0.5, (200, 2)), np.repeat([0, 1], [40, 160])
    released = ClassStatistics.contribution(scores, labels, np.ones(200), 2)
    counts = np.array([40.0, 160.0])
    statistics = ClassStatistics(counts=counts, means=np.zeros((2, 0)), noise_variance=0.0)
    plain = model.join(None, model.initial())
    whole, _ = model.calibrated(plain, released, 0.0, statistics)
    elsewhere = whole.copy()
    elsewhere[:2] = [1.0, -2.0]
    for before in (whole, elsewhere):
        parameters, own = model.recalibrated(before, np.array([0.3, 0.7]), released, 0.0)
        np.testing.assert_allclose(own, counts / 200, rtol=1e-6)
        np.testing.assert_allclose(parameters, whole, rtol=1e-5)
    np.testing.assert_array_equal(model.unshifted(whole), plain)
