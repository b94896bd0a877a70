"""Decisions from noisy releases: exact without noise, the prior's under much of it, and right on average between."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedveil.learning import ClassStatistics
from fedveil.learning.released.posterior import (
    LEAST_WEIGHT,
    MIDDLE,
    Noisy,
    combined,
    counts_of,
    means_of,
    shrunk,
    weight_of,
)


def sample_middles(counts, noise, runs, seed):
    """Middles drawn from the prior, and what the rule makes of their noisy sums and counts."""
    generator, sizes = np.random.default_rng(seed), np.array(counts)
    for _ in range(runs):
        middle = MIDDLE * generator.standard_normal(1)
        apart = generator.normal(0, 0.3, (len(sizes), 1))
        means = middle + apart - apart.mean(axis=0)
        sums = means * sizes[:, None] + noise * generator.standard_normal((len(sizes), 1))
        released = Noisy(sizes + 3 * noise * generator.standard_normal(len(sizes)), 9 * noise**2)
        yield middle[0], means_of(Noisy(sums, noise**2), released), sums, released.values


@pytest.mark.parametrize(("counts", "noise"), [([255.0, 24.0, 21.0], 21.0), ([90.0, 60.0], 12.0)])
def test_noise_takes_the_middle_back_to_no_shift(counts, noise):
    """The kind: a quotient of noisy sums and noisy counts that is accepted wherever it is long enough."""
    ours, none, quotient, stated = [], [], [], []
    for middle, found, sums, released in sample_middles(counts, noise, 400, 0):
        ours.append((found.middle[0] - middle) ** 2)
        none.append(middle**2)
        stated.append(found.middle_std**2)
        plain = (sums[:, 0] / np.maximum(released, 10.0)).mean()
        quotient.append((plain - middle) ** 2)
    assert np.mean(ours) <= 1.02 * np.mean(none)
    assert np.mean(ours) < 0.5 * np.mean(quotient)
    assert np.mean(ours) <= 1.3 * np.mean(stated)


@settings(max_examples=50, deadline=None)
@given(
    counts=st.lists(st.floats(5, 1e4), min_size=2, max_size=5),
    logits=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_without_noise_the_middle_is_the_mean_of_class_means(counts, logits, seed):
    sizes = np.array(counts)
    means = np.random.default_rng(seed).uniform(-0.7, 0.7, (len(sizes), logits))
    found = means_of(Noisy(sizes[:, None] * means, 0.0), Noisy(sizes, 0.0))
    np.testing.assert_allclose(found.middle, means.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(found.means, means, atol=1e-6)
    assert found.weight == pytest.approx(1)


def test_a_hidden_class_leaves_the_middle_where_it_was():
    """However well the common class is known: its mean alone says nothing about the midpoint."""
    counts, sums = Noisy(np.array([1e4, 20.0]), 100.0**2), Noisy(np.array([[-4e3], [9.0]]), 100.0**2)
    found = means_of(sums, counts)
    assert abs(found.middle[0]) < 0.1, "the plain quotient says 0.2 or more"
    assert found.weight < 0.25
    assert means_of(sums, counts, np.array([0.3])).middle[0] == pytest.approx(0.3, abs=0.15)


@pytest.mark.parametrize("noise", [0.0, 10.0, 1e3, 1e7])
def test_counts_of_equal_noise_go_to_equal_frequencies(noise):
    values = np.array([60.0, 20.0, 220.0]) + (noise > 0) * noise * np.array([-2.5, 0.1, -0.2])
    found = counts_of(Noisy(values, noise**2))
    assert (found >= 0).all()
    if noise == 0:
        np.testing.assert_array_equal(found, values)
    if noise == 1e7:
        statistics = ClassStatistics.of_counts(Noisy(np.array([-5e6, 4e6, 0.0]), 1e20))
        np.testing.assert_allclose(statistics.priors, 1 / 3, rtol=1e-3)


def test_the_posterior_mean_of_a_count_is_that_of_a_truncated_normal_distribution():
    for value in (-40.0, 5.0, 80.0):
        grid = np.linspace(0, 600, 200_001)
        weights = np.exp(-((grid - value) ** 2) / (2 * 35.0**2))
        expected = (weights * grid).sum() / weights.sum()
        assert counts_of(Noisy(np.array([value]), 35.0**2))[0] == pytest.approx(expected, rel=1e-3)


def test_two_releases_of_the_same_counts_weigh_by_precision():
    both = combined(Noisy(np.array([10.0]), 1.0), Noisy(np.array([40.0]), 9.0))
    assert both.values[0] == pytest.approx(13)
    assert both.variance == pytest.approx(0.9)
    assert combined(Noisy(np.array([10.0]), 0.0), Noisy(np.array([40.0]), 9.0)).values[0] == 10


@pytest.mark.parametrize("length", [1, 3, 1000])
def test_a_shrunk_vector_is_nearer_on_average_than_what_was_released(length):
    generator, released, ours, origin = np.random.default_rng(1), 0.0, 0.0, 0.0
    for _ in range(300):
        truth = generator.standard_normal(length) * np.sqrt(generator.random() / length) * 0.5
        noisy = truth + 0.5 * generator.standard_normal(length) / np.sqrt(length)
        found = shrunk(noisy, 0.25 / length, 1.0)
        released += np.square(noisy - truth).sum()
        ours += np.square(found - truth).sum()
        origin += np.square(truth).sum()
    assert ours < released
    assert ours < 1.1 * origin


def test_a_release_that_noise_drowns_is_known_beforehand():
    assert weight_of(np.full(3, 100.0), 1e4**2) < LEAST_WEIGHT < weight_of(np.full(3, 100.0), 10.0**2)
    assert weight_of(np.array([1e6, 2.0]), 10.0**2) < LEAST_WEIGHT
