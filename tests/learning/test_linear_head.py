"""The centred learner end to end: bounded per patient from raw features on, and equal to its definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedveil.errors import InvalidValue
from fedveil.learning import (
    CentredHead,
    CentredLearner,
    ClassStatistics,
    LinearHead,
    LinearLearner,
    unit_blocks,
)

BLOCKS = (4, 3)


def cohort(seed=0, images=40, patients=12, classes=2, magnitude=1.0):
    generator = np.random.default_rng(seed)
    features = (magnitude * (1 + generator.standard_normal((images, sum(BLOCKS))))).astype(np.float32)
    codes = np.concatenate([np.arange(patients), generator.integers(0, patients, images - patients)])
    return features, generator.integers(0, classes, images), codes


def parameters(model, seed=0, magnitude=1.0):
    """Any parameters a coordinator might send: centre, positive class weights, shift, weights."""
    generator = np.random.default_rng(seed)
    values = magnitude * generator.standard_normal(model.parameters)
    weights = slice(model.features, model.features + model.classes)
    values[weights] = generator.uniform(0.1, 10, model.classes)
    return values


def with_extra_patient(data, seed, images, classes, magnitude):
    generator = np.random.default_rng(seed)
    features, labels, patients = data
    extra = (magnitude * generator.standard_normal((images, sum(BLOCKS)))).astype(np.float32)
    return (
        np.concatenate([features, extra]),
        np.concatenate([labels, generator.integers(0, classes, images)]),
        np.concatenate([patients, np.full(images, patients.max() + 1)]),
    )


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(1, 40),
    classes=st.integers(2, 4),
    magnitude=st.floats(-6, 5),
    clip_norm=st.floats(1e-3, 1e3),
)
def test_preprocessing_constants_are_public(seed, images, classes, magnitude, clip_norm):
    """One patient's raw images move both sums by their bounds only: no statistic of the cohort scales the others."""
    model, data = CentredHead(BLOCKS, classes), cohort(seed, classes=classes)
    more = with_extra_patient(data, seed + 1, images, classes, 10.0**magnitude)
    without, everyone = CentredLearner(model, *data), CentredLearner(model, *more)
    sent = parameters(model, seed)
    change = everyone.contribution(sent, clip_norm=clip_norm) - without.contribution(
        sent, clip_norm=clip_norm
    )
    assert np.linalg.norm(change) <= clip_norm * (1 + 1e-6)
    for stage in (np.empty(0), sent):
        change = everyone.statistics(stage) - without.statistics(stage)
        assert np.linalg.norm(change) <= 1 + 1e-6


@pytest.mark.parametrize("classes", [2, 3])
def test_statistics_are_sums_over_units_of_averages(classes):
    features, labels, patients = cohort(classes=classes)
    model = CentredHead(BLOCKS, classes)
    expected = np.zeros((classes, sum(BLOCKS) + 1))
    for code in range(12):
        rows = np.flatnonzero(patients == code)
        for row in rows:
            blocks = np.split(features[row].astype(float), [BLOCKS[0]])
            unit = np.concatenate([block / np.linalg.norm(block) for block in blocks]) / np.sqrt(2)
            expected[labels[row]] += np.append(np.sqrt(1 - 0.3**2) * unit, 0.3) / len(rows)
    learner = CentredLearner(model, features, labels, patients)
    np.testing.assert_allclose(learner.statistics(np.empty(0)), expected.ravel(), rtol=1e-5, atol=1e-6)


def test_a_whole_site_contributes_statistics_of_norm_one_at_most():
    learner = CentredLearner(CentredHead(BLOCKS, 2), *cohort(), unit="site")
    assert learner.units == 1
    assert np.linalg.norm(learner.statistics(np.empty(0))) <= 1 + 1e-9


def test_released_statistics_without_noise_are_the_class_means():
    features, labels, _ = cohort(images=400, patients=400)
    learner = CentredLearner(CentredHead(BLOCKS, 2), features, labels, np.arange(400))
    statistics = ClassStatistics.from_released(learner.statistics(np.empty(0)), 2, 0.0)
    np.testing.assert_allclose(statistics.counts, np.bincount(labels), rtol=1e-9)
    np.testing.assert_allclose(statistics.priors, np.bincount(labels) / 400, rtol=1e-9)
    scaled = unit_blocks(features, BLOCKS)
    for code in (0, 1):
        np.testing.assert_allclose(statistics.means[code], scaled[labels == code].mean(0), rtol=1e-5)
    np.testing.assert_allclose(statistics.centre(BLOCKS), statistics.means.mean(0), rtol=1e-9)


def test_a_centre_that_is_mostly_noise_moves_nothing():
    """Positive-part James-Stein: over many draws it is closer to the truth than what was released."""
    generator = np.random.default_rng(5)
    blocks, counts, variance = (40, 60), np.array([100.0, 300.0]), 40.0
    truth = np.concatenate([generator.normal(0, 0.05, (2, 40)), np.zeros((2, 60))], axis=1)
    spread = np.sqrt(variance / (1 - 0.3**2)) / counts[:, None]
    errors = {"released": 0.0, "shrunk": 0.0, "origin": 0.0}
    for _ in range(200):
        means = truth + spread * generator.normal(size=truth.shape)
        statistics = ClassStatistics(counts=counts, means=means, noise_variance=variance)
        errors["released"] += np.square(means.mean(0) - truth.mean(0)).sum()
        errors["shrunk"] += np.square(statistics.centre(blocks) - truth.mean(0)).sum()
        errors["origin"] += np.square(truth.mean(0)).sum()
    assert errors["shrunk"] < errors["released"]
    assert errors["shrunk"] < 1.1 * errors["origin"]


def test_gradients_are_those_of_the_linear_head_on_centred_features():
    features, labels, patients = cohort(classes=3)
    model = CentredHead(BLOCKS, 3)
    learner = CentredLearner(model, features, labels, patients)
    for seed in (1, 2):  # another centre is taken up
        sent = parameters(model, seed)
        centre, weights, _, trained = model.split(sent)
        view = unit_blocks(unit_blocks(features, BLOCKS), BLOCKS, centre)
        np.testing.assert_allclose(np.linalg.norm(view, axis=1), 1, rtol=1e-6)
        head = LinearHead(sum(BLOCKS), 3)
        expected = LinearLearner(head, view, labels, patients, class_weights=weights)
        np.testing.assert_allclose(
            learner.contribution(sent, clip_norm=0.3), expected.contribution(trained, clip_norm=0.3)
        )


def test_probabilities_undo_the_class_weights():
    """Weights that made classes count alike in training leave odds too even by their ratio."""
    features, _, _ = cohort()
    model = CentredHead(BLOCKS, 2)
    sent = parameters(model)
    plain = sent.copy()
    plain[model.features : model.features + 2] = 1
    weights = sent[model.features : model.features + 2]
    odds = model.probabilities(sent, features)
    odds_plain = model.probabilities(plain, features)
    np.testing.assert_allclose(
        odds[:, 1] / odds[:, 0], odds_plain[:, 1] / odds_plain[:, 0] * weights[0] / weights[1], rtol=1e-9
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
@pytest.mark.parametrize("place", [0, 8, -1])
def test_hostile_parameters_are_refused_or_harmless(value, place):
    """Whatever the coordinator sends, a site answers with a finite, bounded sum or not at all."""
    model = CentredHead(BLOCKS, 2)
    learner = CentredLearner(model, *cohort())
    sent = parameters(model)
    sent[place] = value
    with np.errstate(over="ignore", invalid="ignore"):
        for answer in (lambda: learner.contribution(sent, clip_norm=1.0), lambda: learner.statistics(sent)):
            try:
                assert np.isfinite(answer()).all()
            except InvalidValue:
                continue


def test_parameters_of_another_model_are_refused():
    model = CentredHead(BLOCKS, 2)
    with pytest.raises(InvalidValue, match="shape"):
        CentredLearner(model, *cohort()).contribution(np.zeros(model.parameters + 1), clip_norm=1.0)
    with pytest.raises(InvalidValue, match="blocks"):
        unit_blocks(np.ones((2, 8), dtype=np.float32), BLOCKS)


@pytest.mark.parametrize("classes", [2, 3])
def test_calibration_shifts_logits_by_the_middle_between_the_classes_mean_scores(classes):
    """Without noise, and with features that are far from centred: afterwards the middle is 0."""
    features, labels, patients = cohort(4, images=600, patients=600, classes=classes)
    model = CentredHead(BLOCKS, classes)
    learner = CentredLearner(model, features, labels, patients)
    trained = np.random.default_rng(5).normal(size=model.trained)
    plain = model.join(None, trained)
    found, sure = model.calibrated(plain, learner.statistics(plain), 0.0, None)
    scores = model.scores(plain, features)
    cut = scores / np.maximum(np.linalg.norm(scores, axis=1), 1)[:, None]
    middle = np.mean([cut[labels == code].mean(axis=0) for code in range(classes)], axis=0)
    assert np.linalg.norm(middle) > 0.05, "else its sign says nothing"
    np.testing.assert_allclose(model.split(found)[2], middle * model.scale(plain), rtol=1e-3, atol=1e-3)
    assert sure.weight == pytest.approx(1, abs=1e-3)
