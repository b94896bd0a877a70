"""One release of mean features per finding: its bound for any labels, plain definitions, and the heads made from it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from fedveil.learning import FindingMeans, FindingsHead, FindingsLearner
from fedveil.learning.released.discriminant import discriminant
from fedveil.learning.released.finding_means import COUNTED

D, K = 12, 4


def cohort(seed, images=40, patients=15):
    """Features of any length, findings of which a fifth is unknown, and patients of one to many images."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(images, D)) * 10.0 ** generator.uniform(-3, 3, (images, 1))
    owners = np.concatenate([np.arange(patients), generator.integers(0, patients, images - patients)])
    labels = generator.choice([-1, 0, 1], (images, K), p=[0.2, 0.4, 0.4]).astype(np.int8)
    return features.astype(np.float32), labels, owners


def once(blocks=(D,)):
    return FindingsHead(blocks, K, centred=False)


@given(seed=st.integers(0, 2**32 - 1), spoilt=st.sampled_from([0.0, np.nan, np.inf, 1e30]))
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("unit", ["patient", "image"])
def test_one_unit_adds_norm_1_at_most_and_moves_nobody(unit, seed, spoilt):
    features, labels, owners = cohort(seed)
    features[::3, 1] = spoilt
    labels[owners == owners.max()] = np.random.default_rng(seed).choice([-1, 0, 1], K)
    last = owners == owners.max() if unit == "patient" else np.arange(len(owners)) == len(owners) - 1
    if unit == "image":
        owners = np.arange(len(owners))
    head = once((D // 2, D // 2))
    whole = FindingsLearner(head, features, labels, owners, unit=unit)
    fewer = FindingsLearner(head, features[~last], labels[~last], owners[~last], unit=unit)
    alone = FindingsLearner(head, features[last], labels[last], np.zeros(last.sum(), int), unit=unit)
    own = alone.statistics(np.empty(0))
    assert own.shape == (head.statistics_size,)
    assert np.linalg.norm(own) <= 1
    np.testing.assert_array_equal(whole.statistics(np.empty(0)) - fewer.statistics(np.empty(0)), own)


@pytest.mark.parametrize("present", [0, 1, K])
def test_where_everything_is_known_the_whole_bound_is_used(present):
    labels = (np.arange(K) < present).astype(np.int8)[None, :]
    own = FindingMeans.contribution(np.eye(D)[:1], labels, np.ones(1))
    assert np.linalg.norm(own) == pytest.approx(1)


def test_without_noise_sizes_and_means_are_those_of_their_definitions():
    features, labels, owners = cohort(3, images=400, patients=400)
    points = features / np.linalg.norm(features.astype(float), axis=1, keepdims=True)
    vector = FindingsLearner(once(), features, labels, owners).statistics(np.empty(0))
    found = once().read_statistics(vector, 0.0)
    number = (labels == 1).sum(axis=1)
    shares = [(labels[:, k] == 1) / np.sqrt(np.maximum(number, 1)) for k in range(K)]
    shares.append(((labels == 0).any(axis=1) & (number == 0)).astype(float))
    for k, share in enumerate(shares):
        assert found.places.counts[k] == pytest.approx(max(share.sum(), 10.0), rel=1e-6)
        if share.sum() > 10:
            np.testing.assert_allclose(found.places.means[k], share @ points / share.sum(), atol=1e-6)
    np.testing.assert_allclose(found.groups[:, 1], (labels == 1).sum(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.groups[:, 0], (labels == 0).sum(axis=0), rtol=1e-6)
    assert found.units == pytest.approx(400)


def test_noise_in_each_part_has_the_variance_that_decisions_assume():
    """Seeded: two thousand draws of pure noise."""
    generator, variance = np.random.default_rng(5), 4.0
    read = [
        once().read_statistics(2.0 * generator.normal(size=once().statistics_size), variance)
        for _ in range(2000)
    ]
    counts = np.array([one.measured.values for one in read])
    assert counts.var() == pytest.approx(read[0].measured.variance, rel=0.1)
    assert read[0].measured.variance == pytest.approx(variance * (K + 1) / COUNTED**2)
    sizes = np.array([one.places.measured.values for one in read])
    assert sizes.var() == pytest.approx(read[0].places.measured.variance, rel=0.1)


def test_of_one_finding_the_head_is_the_discriminant_between_it_and_none():
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 2, (500, 1))
    points = generator.normal(size=(500, D)) + 2 * labels
    head = FindingsHead((D,), 1, centred=False)
    found = head.read_statistics(
        FindingsLearner(head, points, labels, np.arange(500)).statistics(np.empty(0)), 0.0
    )
    weights, thresholds = found.heads()
    assert found.places.counts.tolist() == pytest.approx([labels.sum(), 500 - labels.sum()])
    rows, cuts = discriminant(found.places)
    np.testing.assert_allclose(weights[0], rows[0] - rows[1], rtol=1e-6)
    np.testing.assert_allclose(thresholds[0], cuts[0] - cuts[1], atol=1e-9)


def test_heads_rank_and_decide_findings_that_occur_together():
    generator = np.random.default_rng(2)
    labels = (generator.random((4000, K)) < [0.5, 0.3, 0.2, 0.05]).astype(np.int8)
    centres = np.linalg.qr(generator.normal(size=(D, K)))[0].T
    points = labels @ (1.5 * centres) + generator.normal(size=(4000, D)) * 0.5
    head, learner = once(), FindingsLearner(once(), points, labels, np.arange(4000))
    statistics = head.read_statistics(learner.statistics(np.empty(0)), 0.0)
    parameters = head.join(statistics, *head.one_shot(statistics))
    head.check_parameters(parameters)
    assert not head.split(parameters)[0].any(), "features are not centred"
    told = head.probabilities(parameters, points)
    for k in range(K):
        assert roc_auc_score(labels[:, k], told[:, k]) > 0.9
        odds = told[:, k] / (1 - told[:, k]) * (1 - statistics.priors[k]) / statistics.priors[k]
        called, truth = odds > 1, labels[:, k] == 1
        assert (called[truth].mean() + 1 - called[~truth].mean()) / 2 > 0.8
    unshifted = head.unshifted(parameters)
    whole, sure = head.calibrated(unshifted, learner.statistics(unshifted), 0.0, statistics)
    assert sure.weight == pytest.approx(1, abs=1e-3)
    head.check_parameters(whole)
    drowned, unsure = head.calibrated(unshifted, learner.statistics(unshifted), 1e12, statistics)
    assert unsure.weight < 1e-3
    np.testing.assert_allclose(head.split(drowned)[2], head.split(parameters)[2], rtol=1e-3)


@given(seed=st.integers(0, 2**32 - 1), noise=st.floats(0, 1e9))
@settings(max_examples=60, deadline=None)
def test_a_site_accepts_whatever_an_honest_coordinator_sends(seed, noise):
    head, generator = once((D // 2, D // 2)), np.random.default_rng(seed)
    statistics = head.read_statistics(noise * generator.normal(size=head.statistics_size), noise**2)
    parameters = head.join(statistics, *head.one_shot(statistics))
    head.check_parameters(parameters)
    head.check_parameters(head.unshifted(parameters))
    told = head.probabilities(parameters, generator.normal(size=(9, D)).astype(np.float32))
    assert ((told >= 0) & (told <= 1)).all()
