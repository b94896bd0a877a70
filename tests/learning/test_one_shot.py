"""One round of class means: a discriminant that agrees with the textbook's; noise does not move its threshold."""

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from fedveil.learning import CentredHead, ClassStatistics
from fedveil.learning.released.discriminant import ANISOTROPY, discriminant


def statistics(means, counts, variance=0.0):
    return ClassStatistics(
        counts=np.asarray(counts, float), means=np.asarray(means, float), noise_variance=variance
    )


@pytest.mark.parametrize("classes", [2, 3])
def test_without_noise_it_ranks_and_decides_as_scikit_learn_does(classes):
    """Features of length near 1 whose within-class covariance is a multiple of the identity, equal priors."""
    generator = np.random.default_rng(0)
    centres = 0.3 * np.linalg.qr(generator.normal(size=(40, classes)))[0].T
    labels = generator.integers(0, classes, 20_000)
    points = centres[labels] + generator.normal(size=(20_000, 40)) * np.sqrt((1 - 0.09) / 40)
    means = [points[labels == code].mean(0) for code in range(classes)]
    weights, thresholds = discriminant(statistics(means, np.bincount(labels)))
    found = points @ weights.T - thresholds
    oracle = LinearDiscriminantAnalysis(priors=[1 / classes] * classes).fit(points, labels)
    expected = oracle.decision_function(points)
    gaps = ANISOTROPY * (found[:, 1] - found[:, 0] if classes == 2 else found[:, [1]] - found[:, [0]]).ravel()
    wanted = expected if classes == 2 else expected[:, 1] - expected[:, 0]
    assert np.corrcoef(gaps, wanted)[0, 1] > 0.999
    assert np.polyfit(wanted, gaps, 1) == pytest.approx([1, 0], abs=0.06)
    assert (found.argmax(1) == oracle.predict(points)).mean() > 0.99


def test_noise_does_not_move_the_threshold_to_the_rarer_class():
    """The mean of a rare class is noisier, and so longer: over many draws the threshold stays where it is."""
    generator = np.random.default_rng(1)
    centres, counts, std = np.zeros((2, 100)), np.array([100.0, 1000.0]), 5.0
    centres[0, 0], centres[1, 1] = 0.3, 0.3
    plain, raw = [], []
    spread = std / np.sqrt(1 - 0.3**2) / counts[:, None]
    for _ in range(400):
        means = centres + spread * generator.standard_normal(centres.shape)
        weights, thresholds = discriminant(statistics(means, counts, std**2))
        scale = np.linalg.norm(weights[0]) / np.linalg.norm(means[0])
        plain.append((thresholds[1] - thresholds[0]) / scale)
        raw.append((np.square(means[1]).sum() - np.square(means[0]).sum()) / 2)
    assert abs(np.mean(plain)) < 5 * np.std(plain) / 20
    assert np.mean(raw) < -0.1, "what the noise would do otherwise"


def test_noise_makes_scores_flatter_and_never_turns_them_round():
    means = np.eye(2, 50) * 0.3
    steep, flat, drowned = (
        np.linalg.norm(discriminant(statistics(means, [500, 500], variance))[0])
        for variance in (0.0, 100.0, 1e6)
    )
    assert steep > flat > 0
    assert steep > drowned > 0


def test_means_that_noise_drowns_still_rank():
    """Noise of length 40 in means of length 1: probabilities that round to 0 or 1 would tell no two images apart."""
    generator = np.random.default_rng(4)
    means = 0.3 * np.eye(2, 1600) + generator.standard_normal((2, 1600))
    variance = float((1 - 0.3**2) * 50**2)
    head = CentredHead((1600,), 2, centred=False)
    found = statistics(means, [50, 50], variance)
    whole = head.join(found, *head.one_shot(found))
    features = generator.normal(size=(200, 1600))
    probabilities = head.probabilities(whole, features)[:, 1]
    assert len(np.unique(probabilities)) == 200
    assert 0.1 < probabilities.mean() < 0.9, "nor do drowned lengths call all images the same"


def test_the_head_takes_features_as_they_are():
    head = CentredHead((3, 2), 2, centred=False)
    generator = np.random.default_rng(2)
    found = statistics(generator.normal(size=(2, 5)) / 3, [30, 60])
    trained, shift = head.one_shot(found)
    whole = head.join(found, trained, shift)
    centre, weights, _, _ = head.split(whole)
    assert not centre.any()
    np.testing.assert_allclose(weights, found.weights)
    features = generator.normal(size=(7, 5))
    view = head.view(features, np.zeros(5))
    rows, thresholds = discriminant(found)
    odds = view @ (rows[1] - rows[0]) - (thresholds[1] - thresholds[0]) + np.log(60 / 30)
    np.testing.assert_allclose(head.probabilities(whole, features)[:, 1], 1 / (1 + np.exp(-odds)), rtol=1e-5)
