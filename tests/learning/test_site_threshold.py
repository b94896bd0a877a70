"""A hospital's own threshold and class frequencies: its own as far as noise lets them be told from everyone's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedveil.learning import CentredHead, CentredLearner, ClassStatistics, NetworkModel
from fedveil.learning.models.class_statistics import COUNT_WEIGHT
from fedveil.learning.models.site_threshold import own_numbers


def statistics(counts, means, variance=0.0):
    return ClassStatistics(
        counts=np.array(counts, float),
        means=np.array(means, float).reshape(len(counts), -1),
        noise_variance=variance,
    )


def test_without_noise_the_hospital_has_its_own_numbers():
    middle, mix = own_numbers(np.array([0.3]), np.array([0.5, 0.5]), statistics([30, 90], [-0.1, 0.5]))
    np.testing.assert_allclose(middle, [0.2])
    np.testing.assert_allclose(mix, [0.25, 0.75])


def test_what_is_mostly_noise_moves_nothing():
    common = np.array([0.3]), np.array([0.5, 0.5])
    for found in (statistics([500, 700], [-0.1, 0.5], 1e6), statistics([12, 700], [-0.1, 0.5], 1.0)):
        for before, after in zip(common, own_numbers(*common, found), strict=True):
            np.testing.assert_array_equal(before, after)


def test_a_difference_that_is_smaller_than_the_noise_in_it_moves_nothing():
    common = np.array([0.3]), np.array([0.42, 0.58])
    found = statistics([500, 700], [-0.1, 0.702], 100.0)
    assert (found.counts > 10 + 3 * 10 / COUNT_WEIGHT).all(), "both classes are there"
    for before, after in zip(common, own_numbers(*common, found), strict=True):
        np.testing.assert_array_equal(before, after)


@given(
    counts=st.lists(st.floats(10, 1e4), min_size=2, max_size=4),
    variance=st.floats(0, 1e4),
    seed=st.integers(0, 2**31),
)
def test_numbers_lie_between_the_common_and_the_own_ones(counts, variance, seed):
    generator, classes = np.random.default_rng(seed), len(counts)
    found = statistics(counts, generator.uniform(-1, 1, classes), variance)
    common, mix = generator.uniform(-1, 1, 1), generator.dirichlet(np.ones(classes) * 5) * 0.9 + 0.1 / classes
    middle, own = own_numbers(common, mix, found)
    assert min(common, found.means.mean()) - 1e-9 <= middle <= max(common, found.means.mean()) + 1e-9
    assert own.sum() == pytest.approx(1)
    low, high = np.minimum(mix, found.priors), np.maximum(mix, found.priors)
    assert (own >= np.minimum(low, 1e-3) * 0.99).all()
    assert (own <= high * 1.01 + 1e-9).all()


def test_the_stated_noise_in_frequencies_is_the_noise_that_is_there():
    """The expected squared error in the docstring, against many draws; with far-off common values nothing is shrunk."""
    generator, counts, std = np.random.default_rng(3), np.array([300.0, 200.0, 500.0]), 3.0
    draws = counts + generator.normal(0, std / COUNT_WEIGHT, (4000, 3))
    error = np.square(draws / draws.sum(1, keepdims=True) - counts / counts.sum()).sum(1).mean()
    own = counts / counts.sum()
    stated = (std / COUNT_WEIGHT) ** 2 * (1 + 3 * own @ own) / counts.sum() ** 2
    assert error == pytest.approx(stated, rel=0.1)


def test_a_head_gets_the_middle_of_the_hospitals_plain_scores():
    generator, blocks = np.random.default_rng(1), [6]
    features, labels = generator.normal(size=(400, 6)).astype(np.float32), generator.integers(0, 2, 400)
    labels[:250] = 1
    head = CentredHead(blocks, 2)
    learner = CentredLearner(head, features, labels, np.arange(400), degraded=features[::-1])
    whole = head.join(None, generator.normal(size=head.trained), np.array([0.7]))
    released = learner.statistics(head.unshifted(whole), plain=True)
    parameters, own = head.recalibrated(whole, np.array([0.5, 0.5]), released, 0.0)
    centre, weights, shift, trained = head.split(parameters)
    logits = head.head.logits_of(trained, head.view(features, centre))[:, 0] / head.scale(whole)
    cut = np.clip(logits, -1, 1) * head.scale(whole)
    expected = (cut[labels == 0].mean() + cut[labels == 1].mean()) / 2
    assert shift == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(own, np.bincount(labels) / 400)
    np.testing.assert_allclose(weights, 1 / (2 * own))
    np.testing.assert_array_equal(trained, head.split(whole)[3])


def test_a_network_gets_the_offset_that_its_own_calibration_would_have_given():
    """Were all images one hospital's, its own numbers would be the common ones."""
    model = NetworkModel("cnn", classes=2, channels=1, image_size=16)
    generator = np.random.default_rng(2)
    found = statistics([40, 160], generator.uniform(-0.3, 0.3, (2, 2)))
    rows = np.concatenate([found.means * np.sqrt(1 - COUNT_WEIGHT**2), np.full((2, 1), COUNT_WEIGHT)], axis=1)
    released = (rows * found.counts[:, None]).ravel()
    shift = model.read_shift(released, 0.0, np.empty(0), found)
    whole = model.join(None, model.initial(), shift)
    elsewhere = model.join(None, model.initial(), np.array([1.0, -2.0]))
    for before in (whole, elsewhere):
        parameters, own = model.recalibrated(before, np.array([0.3, 0.7]), released, 0.0)
        np.testing.assert_allclose(own, found.priors)
        np.testing.assert_allclose(parameters, whole)
    np.testing.assert_array_equal(model.unshifted(whole), model.join(None, model.initial()))
