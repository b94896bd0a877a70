"""Several findings per image: bounds for any labels, nobody else moved, and equal to plain definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.metrics import roc_auc_score

from fedveil.errors import InvalidValue
from fedveil.learning import (
    CentredHead,
    CentredLearner,
    FindingsHead,
    FindingsLearner,
    FindingStatistics,
    Spread,
    decide_findings,
    evaluate_findings,
)

D, K = 12, 3
seeds = st.integers(0, 2**32 - 1)


def cohort(seed: int, images: int = 40, patients: int = 15, findings: int = K):
    """Features, labels with a third unknown, and patients of one to many images."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(images, D)) * 10.0 ** generator.uniform(-3, 3, (images, 1))
    labels = generator.choice([-1, 0, 1], (images, findings)).astype(np.int8)
    owners = np.concatenate([np.arange(patients), generator.integers(0, patients, images - patients)])
    return features.astype(np.float32), labels, owners


def released(head: FindingsHead, generator: np.random.Generator, noise: float) -> np.ndarray:
    """A model as a coordinator makes it from noisy sums."""
    vector = noise * generator.normal(size=head.statistics_size)
    statistics = head.read_statistics(vector, noise**2)
    whole = head.join(statistics, generator.normal(size=head.trained))
    scores = noise * generator.normal(size=head.calibration_size)
    return head.calibrated(whole, scores, noise**2, statistics)[0]


@given(seed=seeds, noise=st.sampled_from([0.0, 1.0, 1e3, 1e6]), unit=st.sampled_from(["patient", "image"]))
@settings(max_examples=40, deadline=None)
def test_one_unit_more_adds_its_own_bounded_part_and_moves_nobody(seed, noise, unit):
    features, labels, owners = cohort(seed)
    head = FindingsHead((D // 2, D // 2), K)
    parameters = released(head, np.random.default_rng(seed), noise)
    last = owners == owners.max() if unit == "patient" else np.arange(len(owners)) == len(owners) - 1
    if unit == "image":
        owners = np.arange(len(owners))
    whole = FindingsLearner(head, features, labels, owners, unit=unit)
    fewer = FindingsLearner(head, features[~last], labels[~last], owners[~last], unit=unit)
    alone = FindingsLearner(head, features[last], labels[last], np.zeros(last.sum(), int), unit=unit)
    for sums in (
        lambda one: one.contribution(parameters, clip_norm=0.2) / 0.2,
        lambda one: one.statistics(np.empty(0)),
        lambda one: one.statistics(parameters),
    ):
        own = sums(alone)
        assert np.linalg.norm(own) <= 1
        np.testing.assert_array_equal(sums(whole) - sums(fewer), own)


def test_the_gradient_is_that_of_the_weighted_binary_losses():
    """Where nothing is clipped, offsets are log-odds."""
    features, labels, owners = cohort(5, images=15)
    head = FindingsHead((D,), K)
    generator = np.random.default_rng(1)
    frequencies, trained = np.array([0.1, 0.5, 0.9]), generator.normal(size=(K, D))
    parameters = np.concatenate([np.zeros(D), frequencies, np.zeros(K), trained.ravel()])
    expected = np.zeros((K, D))
    for x, y in zip(features.astype(np.float64), labels, strict=True):
        point = x / np.linalg.norm(x)
        for k in range(K):
            if y[k] >= 0:
                weight = (4 * frequencies[k] * (1 - frequencies[k])) ** -0.75
                expected[k] += weight * (expit(trained[k] @ point + logit(frequencies[k])) - y[k]) * point
    found = FindingsLearner(head, features, labels, owners).contribution(parameters, clip_norm=1e6)
    np.testing.assert_allclose(found, expected.ravel(), rtol=1e-5, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("clip_norm", [0.2, 1.0])
def test_clipped_gradients_of_a_rare_finding_do_not_add_up_along_the_mean(clip_norm):
    """All features are one vector, which tells nothing apart: it must not be learned, however much is clipped."""
    frequencies = np.array([0.4, 0.1, 0.02])
    labels = (np.random.default_rng(0).random((20000, K)) < frequencies).astype(int)
    features = np.tile(np.eye(D, dtype=np.float32)[0], (len(labels), 1))
    learner = FindingsLearner(FindingsHead((D,), K), features, labels, np.arange(len(labels)))
    parameters = np.concatenate([np.zeros(D), frequencies, np.zeros(K + K * D)])
    sums = learner.contribution(parameters, clip_norm=clip_norm).reshape(K, D)[:, 0]
    present = [labels[:, k] == 1 for k in range(K)]
    alone = [
        learner.contribution(parameters, clip_norm=clip_norm, units=np.flatnonzero(one)) for one in present
    ]
    longest = [np.abs(one.reshape(K, D)[k, 0]) for k, one in enumerate(alone)]
    assert (np.abs(sums) < 0.15 * np.array(longest)).all()


def test_one_finding_is_a_task_of_two_classes():
    features, labels, owners = cohort(7, findings=1)
    labels = np.abs(labels)
    one, two = FindingsHead((D,), 1), CentredHead((D,), 2)
    trained = np.random.default_rng(2).normal(size=D)
    ours = np.concatenate([np.zeros(D), [0.5], [0.0], trained])
    theirs = np.concatenate([np.zeros(D), np.ones(2), [0.0], trained])
    np.testing.assert_array_equal(
        FindingsLearner(one, features, labels, owners).contribution(ours, clip_norm=0.2),
        CentredLearner(two, features, labels[:, 0].astype(int), owners).contribution(theirs, clip_norm=0.2),
    )
    np.testing.assert_allclose(
        one.probabilities(ours, features)[:, 0], two.probabilities(theirs, features)[:, 1], rtol=1e-12
    )


def test_an_unknown_finding_adds_nothing_to_its_own_head():
    features, labels, owners = cohort(3)
    labels[:, 1] = -1
    learner = FindingsLearner(FindingsHead((D,), K), features, labels, owners)
    parameters = FindingsHead((D,), K).join(None, np.ones(K * D))
    assert not learner.contribution(parameters, clip_norm=1.0).reshape(K, D)[1].any()
    statistics = FindingStatistics.from_released(learner.statistics(np.empty(0)), K, 0.0)
    assert (statistics.counts[1] == 10).all()  # the least that a count is taken to be


def test_statistics_without_noise_are_the_counts_and_the_mean():
    features, labels, _ = cohort(4, images=300, patients=300)
    learner = FindingsLearner(FindingsHead((D,), K), features, labels, np.arange(300))
    found = FindingStatistics.from_released(learner.statistics(np.empty(0)), K, 0.0)
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(found.units, 300, rtol=1e-6)
    np.testing.assert_allclose(found.mean, units.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(found.counts, [[(labels[:, k] == v).sum() for v in (0, 1)] for k in range(K)])


@given(seed=seeds, noise=st.floats(0, 1e9))
@settings(max_examples=60, deadline=None)
def test_a_site_accepts_whatever_an_honest_coordinator_sends(seed, noise):
    head = FindingsHead((D // 2, D // 2), K)
    parameters = released(head, np.random.default_rng(seed), noise)
    head.check_parameters(parameters)
    head.check_parameters(head.unshifted(parameters))


@pytest.mark.parametrize(
    ("place", "value"), [(0, 2.0), (D, 0.0), (D, 1.5), (D, np.nan), (D + K, 1e3), (D + K, np.inf)]
)
def test_a_site_refuses_what_no_honest_coordinator_sends(place, value):
    head = FindingsHead((D,), K)
    parameters = released(head, np.random.default_rng(0), 1.0)
    parameters[place] = value
    with pytest.raises(InvalidValue):
        head.check_parameters(parameters)


def test_thresholds_lie_between_a_findings_absence_and_presence_as_far_as_noise_allows():
    generator = np.random.default_rng(6)
    features, labels = generator.normal(size=(4000, D)).astype(np.float32), np.zeros((4000, K), int)
    features[:, 0] += 3.0
    labels[:, 0], labels[:40, 1] = features[:, 1] > 0, 1
    labels[:, 2] = generator.choice([-1, 0, 1], 4000)
    head = FindingsHead((D,), K)
    learner = FindingsLearner(head, features, labels, np.arange(4000))
    plain = head.join(None, np.ones(K * D))
    counts = head.read_statistics(learner.statistics(np.empty(0)), 0.0)
    sums = learner.statistics(plain)
    exact, sure = head.calibrated(plain, sums, 0.0, counts)
    scores = head.scores(plain, features)
    middles = [np.mean([scores[labels[:, k] == v, k].mean() for v in (0, 1)]) for k in range(K)]
    np.testing.assert_allclose(head.split(exact)[2] / head.scale(plain), middles, atol=1e-4)
    assert sure.weight == pytest.approx(1)
    away, std = [], 30.0
    for _ in range(40):
        noisy = head.read_statistics(
            learner.statistics(np.empty(0)) + std * generator.normal(size=head.statistics_size), std**2
        )
        found, unsure = head.calibrated(plain, sums + std * generator.normal(size=len(sums)), std**2, noisy)
        away.append(head.split(found)[2] / head.scale(plain))
    assert unsure.weight < 0.2 < sure.weight
    np.testing.assert_allclose(np.mean(away, axis=0)[[0, 2]], np.array(middles)[[0, 2]], atol=0.05)
    rare = np.abs(np.array(away)[:, 1])
    assert rare.max() < 0.1, "forty units under noise of a hundred: no shift"


def test_a_rare_findings_threshold_without_a_release_is_where_its_middle_is_expected():
    """Features are centred at their mean, so that images without a rare finding score 0 on average, not less."""
    generator = np.random.default_rng(9)
    labels = (generator.random((4000, K)) < [0.5, 0.2, 0.02]).astype(int)
    features = generator.normal(size=(4000, D)).astype(np.float32)
    features[:, :K] += labels
    head = FindingsHead((D,), K)
    learner = FindingsLearner(head, features, labels, np.arange(4000))
    statistics = head.read_statistics(learner.statistics(np.empty(0)), 0.0)
    parameters = head.join(statistics, 5 * np.eye(K, D).ravel())
    shift = head.split(parameters)[2] / head.scale(parameters)
    np.testing.assert_allclose(shift, 0.25 * (0.5 - statistics.priors), rtol=1e-6)
    noise = 1e6 * generator.normal(size=head.calibration_size)
    drowned, _ = head.calibrated(head.unshifted(parameters), noise, 1e12, statistics)
    np.testing.assert_allclose(head.split(drowned)[2] / head.scale(parameters), shift, atol=0.01)
    plain, moved = (
        decide_findings(head.probabilities(one, features), statistics.priors)[labels[:, 2] == 0, 2].mean()
        for one in (head.unshifted(parameters), parameters)
    )
    assert 0.45 < plain < 0.55, "half of the images without it would be called"
    assert moved < 0.45


def test_a_hospitals_own_thresholds_and_frequencies_are_those_of_its_own_images():
    """Without noise; with much of it the common ones remain."""
    generator = np.random.default_rng(8)
    features = generator.normal(size=(4000, D)).astype(np.float32)
    labels = (features[:, :K] > np.array([0.0, 0.5, 1.0])).astype(int)
    labels[:100, 2] = -1
    head = FindingsHead((D,), K)
    learner = FindingsLearner(head, features, labels, np.arange(4000), degraded=-features)
    common = head.join(None, np.ones(K * D), np.full(K, 0.1))
    frequencies = np.full(K, 0.6)
    released = learner.statistics(head.unshifted(common), plain=True)
    parameters, own = head.recalibrated(common, frequencies, released, 0.0)
    known = [labels[:, k] >= 0 for k in range(K)]
    expected = [labels[known[k], k].mean() for k in range(K)]
    np.testing.assert_allclose(own, expected, rtol=1e-6)
    scores = head.scores(common, features)
    middles = [np.mean([scores[labels[:, k] == v, k].mean() for v in (0, 1)]) for k in range(K)]
    _, told, shift, trained = head.split(parameters)
    np.testing.assert_allclose(shift / head.scale(common), middles, rtol=1e-4)
    np.testing.assert_array_equal(told, own)
    np.testing.assert_array_equal(trained, head.split(common)[3])
    learner.check_parameters(np.concatenate([own, parameters]), judged=True)
    noisy = 1e6 * generator.normal(size=len(released))
    kept, same = head.recalibrated(common, frequencies, noisy, 1e12)
    np.testing.assert_allclose(same, frequencies, atol=0.01)
    np.testing.assert_allclose(head.split(kept)[2], 0.1, atol=0.05)


def test_metrics_are_those_of_each_finding_and_their_means():
    generator = np.random.default_rng(0)
    labels = generator.choice([-1, 0, 1], (400, K), p=[0.2, 0.6, 0.2])
    scores = expit(generator.normal(size=(400, K)) + labels)
    frequencies = np.array([0.3, 0.4, 0.5])
    found = evaluate_findings(
        labels, scores, classes=("a", "b", "c"), patients=np.arange(400) // 2, frequencies=frequencies
    )
    known = [labels[:, k] >= 0 for k in range(K)]
    each = [roc_auc_score(labels[known[k], k], scores[known[k], k]) for k in range(K)]
    np.testing.assert_allclose([one.auroc for one in found.per_class], each)
    assert found.auroc == pytest.approx(np.mean(each))
    called = decide_findings(scores, frequencies)
    np.testing.assert_array_equal(called, scores > frequencies)
    sensitivity = [called[labels[:, k] == 1, k].mean() for k in range(K)]
    np.testing.assert_allclose([one.sensitivity for one in found.per_class], sensitivity)
    assert found.patients == 200
    assert found.auroc_interval[0] < found.auroc < found.auroc_interval[1]


def test_the_interval_is_as_wide_as_resampled_patients_say():
    generator = np.random.default_rng(1)
    effect = generator.normal(size=(300, K)).repeat(3, axis=0)
    labels = (effect + generator.normal(size=(900, K)) > 1).astype(int)
    scores = expit(effect + generator.normal(size=(900, K)))
    patients = np.arange(300).repeat(3)
    found = evaluate_findings(
        labels, scores, classes=("a", "b", "c"), patients=patients, frequencies=np.full(K, 0.3)
    )
    resampled = []
    for _ in range(400):
        rows = (generator.integers(0, 300, 300)[:, None] * 3 + np.arange(3)).ravel()
        resampled.append(np.mean([roc_auc_score(labels[rows, k], scores[rows, k]) for k in range(K)]))
    low, high = np.quantile(resampled, [0.025, 0.975])
    width = found.auroc_interval[1] - found.auroc_interval[0]
    assert width == pytest.approx(high - low, rel=0.2)
    noisy = evaluate_findings(
        labels,
        scores,
        classes=("a", "b", "c"),
        patients=patients,
        frequencies=np.full(K, 0.3),
        spread=Spread(auroc=width / (2 * 1.96)),
    )
    assert noisy.auroc_interval[1] - noisy.auroc_interval[0] == pytest.approx(width * np.sqrt(2), rel=0.1)


@pytest.mark.parametrize("labels", [np.full((4, K), 2), np.zeros((4, K + 1)), np.zeros(4)])
def test_labels_that_are_no_findings_are_refused(labels):
    with pytest.raises(InvalidValue, match="findings"):
        FindingsLearner(FindingsHead((D,), K), np.ones((4, D), np.float32), labels, np.arange(4))
