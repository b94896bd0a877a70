"""Ordered grades: one clipped vector per patient, equal to plain definitions, and decisions that noise leaves alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from fedveil.errors import InvalidValue
from fedveil.learning import (
    CentredHead,
    CentredLearner,
    ClassStatistics,
    GradesHead,
    Spread,
    decide,
    evaluate,
)
from fedveil.learning.models.losses.grades import cut_points, grade_probabilities, grade_residuals, neighbours
from fedveil.learning.released.class_statistics import COUNT_WEIGHT
from fedveil.learning.released.discriminant import discriminant
from fedveil.learning.released.grade_direction import direction_of, means_along
from fedveil.learning.released.grade_means import grade_means, usual_means
from fedveil.learning.released.posterior import Noisy

D, K = 12, 4
seeds = st.integers(0, 2**32 - 1)


def cohort(seed: int, images: int = 40, patients: int = 15, grades: int = K):
    """Features of any length, grades, and patients of one to many images."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(images, D)) * 10.0 ** generator.uniform(-3, 3, (images, 1))
    owners = np.concatenate([np.arange(patients), generator.integers(0, patients, images - patients)])
    return features.astype(np.float32), generator.integers(0, grades, images), owners


def released(head: GradesHead, generator: np.random.Generator, noise: float) -> np.ndarray:
    """A model as a coordinator makes it from noisy sums."""
    statistics = head.read_statistics(noise * generator.normal(size=head.statistics_size), noise**2)
    whole = head.join(statistics, generator.normal(size=head.trained))
    scores = noise * generator.normal(size=head.calibration_size)
    return head.calibrated(whole, scores, noise**2, statistics)[0]


def likelihood(z: float, grade: int) -> float:
    """The loss of the proportional-odds model, by its definition."""
    cuts = np.concatenate([[-np.inf], [np.log(k / (K - k)) for k in range(1, K)], [np.inf]])
    return float(-np.log(expit(z - cuts[grade]) - expit(z - cuts[grade + 1])))


@given(z=st.floats(-8, 8), grade=st.integers(0, K - 1))
def test_residuals_are_derivatives_of_the_cumulative_loss(z, grade):
    edges = np.stack(neighbours(np.array([grade]), cut_points(K)))
    found = grade_residuals(np.array([[z]]), edges)[0, 0]
    step = 1e-5
    assert found == pytest.approx(
        (likelihood(z + step, grade) - likelihood(z - step, grade)) / (2 * step), abs=1e-5
    )
    assert abs(found) <= 1
    told = grade_probabilities(np.array([z]), cut_points(K))[0]
    assert -np.log(told[grade]) == pytest.approx(likelihood(z, grade), rel=1e-9)


def test_a_patients_gradient_is_clipped_as_one_vector_equal_to_a_plain_loop():
    features, labels, owners = cohort(5)
    head, generator = GradesHead((D,), K), np.random.default_rng(1)
    weights, trained = generator.uniform(0.5, 2.0, K), generator.normal(size=D)
    parameters = np.concatenate([np.zeros(D), weights, np.zeros(K), trained])
    expected = np.zeros(D)
    cuts = np.concatenate([[-np.inf], [np.log(k / (K - k)) for k in range(1, K)], [np.inf]])
    for patient in range(15):
        gradient = np.zeros(D)
        for x, y in zip(features[owners == patient], labels[owners == patient], strict=True):
            point = x.astype(float) / np.linalg.norm(x.astype(float))
            z = trained @ point
            gradient += weights[y] * (expit(z - cuts[y]) + expit(z - cuts[y + 1]) - 1) * point
        gradient /= (owners == patient).sum()
        expected += gradient * min(1, 0.2 / np.linalg.norm(gradient))
    found = CentredLearner(head, features, labels, owners).contribution(parameters, clip_norm=0.2)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_two_grades_are_two_classes():
    features, labels, owners = cohort(7, grades=2)
    trained = np.random.default_rng(2).normal(size=D)
    grades, classes = GradesHead((D,), 2), CentredHead((D,), 2)
    sums = [
        CentredLearner(head, features, labels, owners).contribution(head.join(None, trained), clip_norm=0.2)
        for head in (grades, classes)
    ]
    np.testing.assert_allclose(*sums, atol=1e-8)


@given(seed=seeds, noise=st.sampled_from([0.0, 1.0, 1e3, 1e6]), unit=st.sampled_from(["patient", "image"]))
@settings(max_examples=40, deadline=None)
def test_one_unit_more_adds_its_own_bounded_part_and_moves_nobody(seed, noise, unit):
    features, labels, owners = cohort(seed)
    head = GradesHead((D // 2, D // 2), K)
    parameters = released(head, np.random.default_rng(seed), noise)
    last = owners == owners.max() if unit == "patient" else np.arange(len(owners)) == len(owners) - 1
    if unit == "image":
        owners = np.arange(len(owners))
    whole = CentredLearner(head, features, labels, owners, unit=unit)
    fewer = CentredLearner(head, features[~last], labels[~last], owners[~last], unit=unit)
    alone = CentredLearner(head, features[last], labels[last], np.zeros(last.sum(), int), unit=unit)
    for sums in (
        lambda one: one.contribution(parameters, clip_norm=0.2) / 0.2,
        lambda one: one.statistics(np.empty(0)),
        lambda one: one.statistics(parameters),
    ):
        own = sums(alone)
        assert np.linalg.norm(own) <= 1
        np.testing.assert_array_equal(sums(whole) - sums(fewer), own)


@given(seed=seeds, noise=st.floats(0, 1e9))
@settings(max_examples=60, deadline=None)
def test_a_site_accepts_whatever_an_honest_coordinator_sends(seed, noise):
    head = GradesHead((D // 2, D // 2), K)
    parameters = released(head, np.random.default_rng(seed), noise)
    head.check_parameters(parameters)
    head.check_parameters(head.unshifted(parameters))
    told = head.probabilities(parameters, np.random.default_rng(seed).normal(size=(9, D)).astype(np.float32))
    np.testing.assert_allclose(told.sum(axis=1), 1)
    assert (told >= 0).all()


@pytest.mark.parametrize(
    ("place", "value"), [(0, 2.0), (D, 0.0), (D, np.nan), (D + K, 1e3), (D + 2 * K - 1, np.inf)]
)
def test_a_site_refuses_what_no_honest_coordinator_sends(place, value):
    head = GradesHead((D,), K)
    parameters = released(head, np.random.default_rng(0), 1.0)
    parameters[place] = value
    with pytest.raises(InvalidValue):
        head.check_parameters(parameters)


def test_the_grade_whose_mean_score_is_nearest_is_called():
    generator = np.random.default_rng(3)
    labels = generator.integers(0, K, 3000)
    features = generator.normal(size=(3000, D)).astype(np.float32)
    features[:, 0] += np.array([-2.0, -0.5, 0.0, 2.5])[labels]
    head = GradesHead((D,), K)
    learner = CentredLearner(head, features, labels, np.arange(3000))
    plain = head.join(None, np.eye(D)[0] * 4)
    found, sure = head.calibrated(plain, learner.statistics(plain), 0.0, None)
    scores = head.scores(plain, features)[:, 0]
    means = np.array([np.clip(scores[labels == k], -1, 1).mean() for k in range(K)])
    np.testing.assert_allclose(head.means(found) / head.scale(found), means, atol=1e-3)
    assert sure.weight == pytest.approx(1, abs=1e-3)
    called = decide(head.probabilities(found, features), np.full(K, 1 / K))
    np.testing.assert_array_equal(
        called, np.abs(scores[:, None] - head.means(found) / head.scale(found)).argmin(axis=1)
    )


def test_noise_takes_the_means_back_to_what_is_known_without_it_and_a_rare_grade_to_the_line():
    sizes, means = np.array([500.0, 100.0, 4.0, 200.0]), np.array([-0.2, -0.05, 0.4, 0.25])
    exact = grade_means(Noisy((sizes * means)[:, None], 0.0), Noisy(sizes, 0.0))
    np.testing.assert_allclose(exact.values, np.sort(means), atol=1e-6)
    drowned = grade_means(Noisy(np.full((K, 1), 1e5), 1e14), Noisy(np.full(K, 1e5), 1e14))
    np.testing.assert_allclose(drowned.values, usual_means(K), atol=1e-3)
    assert drowned.weight.max() < 0.01 < 0.99 < exact.weight.min()
    line, rare = np.linspace(-0.3, 0.3, K), np.array([500.0, 200.0, 300.0, 3.0])
    noisy = grade_means(Noisy((rare * line)[:, None], 100.0), Noisy(rare, 1.0))
    np.testing.assert_allclose(noisy.values, line, atol=0.06)  # the prior mean of the last is 0.15
    assert noisy.certainty.error > exact.certainty.error


def of_line(sizes, variance=0.0, seed=6):
    """Class statistics of grades whose means are steps along one direction, with noise; that, and the exact means."""
    generator, sizes = np.random.default_rng(seed), np.asarray(sizes, float)
    direction = generator.normal(size=200)
    direction *= 0.1 / np.linalg.norm(direction)
    means = 0.05 + np.arange(len(sizes))[:, None] * direction
    vector = np.concatenate(
        [np.sqrt(1 - COUNT_WEIGHT**2) * sizes[:, None] * means, COUNT_WEIGHT * sizes[:, None]], axis=1
    ).ravel()
    vector += np.sqrt(variance) * generator.normal(size=vector.shape)
    return ClassStatistics.from_released(vector, len(sizes), variance), direction, means


def test_one_round_finds_the_direction_of_the_grades_and_their_means():
    found, direction, means = of_line([500, 100, 50, 350])
    head = GradesHead((200,), K, centred=False)
    trained, shift = head.one_shot(found)
    assert trained @ direction == pytest.approx(np.linalg.norm(trained) * np.linalg.norm(direction))
    whole = head.join(found, trained, shift)
    head.check_parameters(whole)
    assert not head.split(whole)[0].any(), "features are not centred"
    np.testing.assert_allclose(head.means(whole), means @ trained, atol=1e-3 * head.scale(whole))


def test_of_two_grades_the_head_is_the_discriminant():
    found, _, _ = of_line([300, 100])
    weights, _ = discriminant(found)
    np.testing.assert_allclose(direction_of(found), weights[1] - weights[0], rtol=1e-9)


def test_noise_in_a_mean_is_not_taken_for_a_distance_along_the_direction_that_it_is_in():
    """Seeded: twenty draws, in which noise alone would add 0.5 to the distance between the first and the last grade."""
    gaps = []
    for seed in range(20):
        found, _, means = of_line([5000.0] * K, 1e4, seed)
        trained = direction_of(found)
        unit = float(np.linalg.norm(trained)) / 2
        read, exact = means_along(found, trained, unit), means @ trained / unit
        gaps.append((read[-1] - read[0]) - (exact[-1] - exact[0]))
    assert abs(np.mean(gaps)) < 0.1


@given(seed=seeds, noise=st.floats(0, 1e9))
@settings(max_examples=40, deadline=None)
def test_a_site_accepts_what_one_round_makes(seed, noise):
    head, generator = GradesHead((D // 2, D // 2), K, centred=False), np.random.default_rng(seed)
    found = head.read_statistics(noise * generator.normal(size=head.statistics_size), noise**2)
    parameters = head.join(found, *head.one_shot(found))
    head.check_parameters(parameters)
    told = head.probabilities(parameters, generator.normal(size=(9, D)).astype(np.float32))
    np.testing.assert_allclose(told.sum(axis=1), 1)


@pytest.mark.parametrize("noise", [0.0, 1e9])
def test_a_hospitals_own_means_are_moved_by_what_its_scores_are(noise):
    """All of its scores are higher by 0.1: so are its means; noise leaves the common ones."""
    sizes, frequencies = np.array([500.0, 100.0, 50.0, 350.0]), np.full(K, 0.25)
    head = GradesHead((D,), K)
    whole = head.join(None, np.eye(D)[0] * 4)
    common = head.means(whole) / head.scale(whole)
    sums = np.stack([np.sqrt(1 - COUNT_WEIGHT**2) * sizes * (common + 0.1), COUNT_WEIGHT * sizes], axis=1)
    found, own = head.recalibrated(whole, frequencies, sums.ravel(), noise**2)
    head.check_parameters(found)
    moved = 0.1 if noise == 0 else 0.0
    np.testing.assert_allclose(head.means(found) / head.scale(whole), common + moved, atol=2e-3)
    np.testing.assert_allclose(own, sizes / 1000 if noise == 0 else frequencies, atol=2e-3)
    np.testing.assert_allclose(head.split(found)[1], 1 / (K * own))


@given(seed=seeds, noise=st.sampled_from([0.0, 1.0, 1e3, 1e6]))
@settings(max_examples=40, deadline=None)
def test_a_hospitals_own_model_is_one_that_sites_accept(seed, noise):
    head, generator = GradesHead((D // 2, D // 2), K), np.random.default_rng(seed)
    parameters = released(head, generator, noise)
    frequencies = generator.dirichlet(np.ones(K)) * 0.9 + 0.1 / K
    sums = noise * generator.normal(size=head.calibration_size)
    found, own = head.recalibrated(parameters, frequencies, sums, noise**2)
    head.check_parameters(found)
    assert own.sum() == pytest.approx(1)


def predictions(seed: int = 0):
    generator = np.random.default_rng(seed)
    latent = generator.normal(size=300).repeat(3)
    labels = np.digitize(latent + 0.4 * generator.normal(size=900), [-1, 0, 1])
    scores = latent + 0.8 * generator.normal(size=900)
    return labels, grade_probabilities(2 * scores, np.array([-2.0, 0.0, 2.0])), np.arange(300).repeat(3)


def test_kappa_and_auroc_are_those_of_their_definitions():
    labels, probabilities, patients = predictions()
    names = ("a", "b", "c", "d")
    found = evaluate(labels, probabilities, classes=names, patients=patients, ordered=True)
    called = probabilities.argmax(axis=1)
    assert found.quadratic_kappa == pytest.approx(cohen_kappa_score(labels, called, weights="quadratic"))
    areas = [roc_auc_score(labels > k, probabilities[:, k + 1 :].sum(axis=1)) for k in range(3)]
    assert found.auroc == pytest.approx(np.mean(areas))
    assert np.isnan(evaluate(labels, probabilities, classes=names).quadratic_kappa)
    one = evaluate(np.zeros(5, int), np.eye(4)[np.zeros(5, int)], classes=names, ordered=True)
    assert np.isnan(one.quadratic_kappa)
    assert np.isnan(one.quadratic_kappa_interval).all()


def test_kappas_interval_is_as_wide_as_resampled_patients_say():
    labels, probabilities, patients = predictions(1)
    names, generator = ("a", "b", "c", "d"), np.random.default_rng(2)
    found = evaluate(labels, probabilities, classes=names, patients=patients, ordered=True)
    called, resampled = probabilities.argmax(axis=1), []
    for _ in range(400):
        rows = (generator.integers(0, 300, 300)[:, None] * 3 + np.arange(3)).ravel()
        resampled.append(cohen_kappa_score(labels[rows], called[rows], weights="quadratic"))
    low, high = found.quadratic_kappa_interval
    assert low < found.quadratic_kappa < high
    width = high - low
    assert width == pytest.approx(np.subtract(*np.quantile(resampled, [0.975, 0.025])), rel=0.2)
    spread = Spread(quadratic_kappa=width / (2 * 1.96))
    noisy = evaluate(labels, probabilities, classes=names, patients=patients, ordered=True, spread=spread)
    assert np.subtract(*noisy.quadratic_kappa_interval[::-1]) == pytest.approx(width * np.sqrt(2), rel=0.1)
