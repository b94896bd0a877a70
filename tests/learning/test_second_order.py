"""Second moments: bounded, read back as they are, used as far as they stand out from noise, and no further."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from fedveil.learning import CentredHead, CentredLearner, ClassStatistics, NetworkModel
from fedveil.learning.one_shot import ANISOTROPY, discriminant
from fedveil.learning.second_order import SecondMoments, contribution, size


def uneven(count: int, dimension: int = 30, seed: int = 0):
    """Two classes whose features vary ten times as much along a few directions, one of them the difference."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, count)
    spread = np.ones(dimension)
    spread[:3] = 4.0
    points = generator.normal(size=(count, dimension)) * spread
    points[:, 0] += 3.0 * (2 * labels - 1)
    points[:, 10] += 1.0 * (2 * labels - 1)
    return points / np.linalg.norm(points, axis=1, keepdims=True), labels


@given(
    seed=st.integers(0, 2**31), images=st.integers(1, 6), classes=st.integers(2, 4), scale=st.floats(0, 1e6)
)
def test_a_unit_contributes_no_more_than_1(seed, images, classes, scale):
    generator = np.random.default_rng(seed)
    features = scale * generator.normal(size=(images, 5))
    labels = generator.integers(0, classes, images)
    shares = np.full(images, 1 / images)
    total = ClassStatistics.contribution(features, labels, shares, classes, moments=True)
    assert total.shape == (ClassStatistics.size(classes, 5, moments=True),)
    assert np.linalg.norm(total) <= 1 + 1e-12


def test_one_image_of_length_1_uses_all_of_the_bound():
    total = ClassStatistics.contribution(np.eye(4)[:1], np.zeros(1, int), np.ones(1), 2, moments=True)
    assert np.linalg.norm(total) == pytest.approx(1)


def test_without_noise_they_are_read_back():
    points, labels = uneven(200)
    shares = np.ones(200)
    released = ClassStatistics.contribution(points, labels, shares, 2, moments=True)
    found = ClassStatistics.from_released(released, 2, 0.0, dimension=30)
    np.testing.assert_allclose(
        found.moments.covariance, np.cov(points.T, bias=True), atol=2e-5
    )  # cut to a grid
    plain = ClassStatistics.from_released(ClassStatistics.contribution(points, labels, shares, 2), 2, 0.0)
    np.testing.assert_allclose(found.counts, plain.counts)
    np.testing.assert_allclose(found.means, plain.means)


def test_the_stated_noise_is_the_noise_that_is_read():
    """Noise of variance 4 in every number that was released, seen in counts and in the matrix."""
    generator, points = np.random.default_rng(0), np.zeros((1, 30))
    sums = ClassStatistics.contribution(points, np.zeros(1, int), np.zeros(1), 2, moments=True)
    off, counts = [], []
    for _ in range(200):
        released = sums + 2.0 * generator.normal(size=sums.shape)
        released[[30, 61]] += 1000.0  # so that sizes are known
        found = ClassStatistics.from_released(released, 2, 4.0, dimension=30)
        mean = found.priors @ found.means
        products = found.moments.covariance + np.outer(mean, mean)
        off.append(products[np.triu_indices(30, 1)] / found.moments.noise_std)
        counts.append(found.counts * 0.3 / np.sqrt(found.noise_variance))
    assert np.std(off) == pytest.approx(1, rel=0.02)
    assert np.std(counts, axis=0) == pytest.approx([1, 1], rel=0.2)


def test_noise_alone_changes_nothing():
    generator = np.random.default_rng(1)
    kept = []
    for _ in range(20):
        noise = generator.normal(size=size(60)) * 5.0
        moments = SecondMoments.from_released(noise, np.zeros(60), 100.0, 25.0)
        kept.append(np.count_nonzero(moments.spectrum()[0]))
    assert np.mean(kept) < 1, "only by chance is an eigenvalue of noise beyond the edge"


def test_moments_of_the_map_are_even():
    points, _ = uneven(20_000)
    moments = SecondMoments.from_released(contribution(points, np.ones(20_000)), np.zeros(30), 20_000.0, 0.0)
    mapped = moments.evened(1e-3)
    variances = np.linalg.eigvalsh(moments.covariance @ mapped)
    assert variances.max() / variances.min() < 1.1
    before = np.linalg.eigvalsh(moments.covariance)
    assert before.max() / before.min() > 5
    unmoved = moments.evened(1e9)
    np.testing.assert_allclose(unmoved, np.eye(30), atol=1e-6)


def test_one_round_then_weighs_features_as_scikit_learn_does():
    points, labels = uneven(20_000)
    plain, second = (
        ClassStatistics.from_released(
            ClassStatistics.contribution(points, labels, np.ones(20_000), 2, moments=moments),
            2,
            0.0,
            dimension=30 if moments else None,
        )
        for moments in (False, True)
    )
    oracle = LinearDiscriminantAnalysis().fit(points, labels).coef_[0]
    agreement = []
    for statistics in (plain, second):
        weights, _ = discriminant(statistics)
        difference = weights[1] - weights[0]
        agreement.append(difference @ oracle / np.linalg.norm(difference) / np.linalg.norm(oracle))
    assert agreement[1] > 0.95
    assert agreement[0] < 0.9 * agreement[1]


def test_probabilities_of_one_round_are_as_steep_as_the_data_say():
    """What second moments show of the variance along the difference need not be guessed any more."""
    points, labels = uneven(20_000)
    released = ClassStatistics.contribution(points, labels, np.ones(20_000), 2, moments=True)
    statistics = ClassStatistics.from_released(released, 2, 0.0, dimension=30)
    weights, thresholds = discriminant(statistics)
    odds = points @ (weights[1] - weights[0]) - (thresholds[1] - thresholds[0])
    gap = odds[labels == 1].mean() - odds[labels == 0].mean()
    spread = np.mean([odds[labels == code].var() for code in (0, 1)])
    assert 1 / ANISOTROPY < gap / spread < 2, (
        "of log odds, the variance within classes is the gap between them"
    )


def test_steps_follow_the_map_and_a_network_has_none():
    points, labels = uneven(500)
    head = CentredHead([30], 2, second_order=True)
    learner = CentredLearner(head, points.astype(np.float32), labels, np.arange(500))
    statistics = head.read_statistics(learner.statistics(np.empty(0)), 0.0)
    mapped = head.evened(statistics)
    assert mapped.shape == (30, 30)
    assert np.linalg.eigvalsh(mapped).max() <= 1 + 1e-9
    plain = CentredHead([30], 2)
    assert plain.evened(plain.read_statistics(np.zeros(plain.statistics_size), 0.0)) is None
    assert NetworkModel("cnn", classes=2, channels=1, image_size=16).evened(statistics) is None
