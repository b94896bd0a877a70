"""A network of several findings per image: its loss, its bound and its decisions against plain definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from tests.learning.test_network_learner import CLIP, SIZE, Stack, tiny
from torch import nn
from torch.nn import functional

from fedveil.data import Dataset
from fedveil.errors import InvalidValue
from fedveil.learning import FindingStatistics, NetworkLearner, NetworkModel, NetworkSizes, Views
from fedveil.learning.models.network import ROUNDING
from fedveil.learning.models.network_labels import LONGEST_LOGITS
from fedveil.learning.networks import Centred, registry
from fedveil.learning.released.finding_statistics import RAREST
from fedveil.study import Study
from fedveil.study.pipeline import model_of, sizes_of

K = 3
PATIENTS = np.array([0, 0, 1, 2, 2, 2, 3, 4, 5, 5])
FREQUENCIES = np.array([0.5, 0.2, 0.05])


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    monkeypatch.setattr(registry, "network", tiny)


def make_model(name="cnn", size=SIZE):
    return NetworkModel(name, classes=K, channels=1, image_size=size, seed=3, findings=True)


def cohort(seed=0):
    """Ten images of six patients, a quarter of the labels unknown."""
    generator = np.random.default_rng(seed)
    labels = generator.choice([-1, 0, 1], (10, K), p=[0.25, 0.4, 0.35]).astype(np.int8)
    return generator.random((10, 1, SIZE, SIZE), dtype=np.float32), labels


def learner_of(model, images, labels, patients=PATIENTS, **settings):
    return NetworkLearner(model, Stack(images), labels, patients, **settings)


def whole(model, frequencies=FREQUENCIES):
    return model.join(None, model.initial(), logit(frequencies))


def gradient(model, parameters, images, labels):
    """Of the mean over images of the sum over known findings, each written out, by autograd."""
    with model.loaded(parameters):
        trained = [p for p in model.body.parameters() if p.requires_grad]
        outputs = model.body(torch.from_numpy(images)) + torch.from_numpy(parameters[:K]).float()
        losses = [
            functional.softplus(-outputs[row, k] if labels[row, k] == 1 else outputs[row, k])
            for row in range(len(labels))
            for k in range(K)
            if labels[row, k] >= 0
        ]
        found = torch.autograd.grad(sum(losses) / len(labels), trained)
    return torch.cat([one.flatten() for one in found]).double().numpy()


@pytest.mark.parametrize("clipping", ["flat", "automatic"])
@pytest.mark.parametrize("unit", ["patient", "image"])
def test_a_contribution_is_the_sum_of_clipped_gradients_over_all_findings(unit, clipping):
    model, (images, labels) = make_model(), cohort()
    groups = PATIENTS if unit == "patient" else np.arange(10)
    parameters, bound = whole(model), CLIP / (1 + ROUNDING)
    expected = np.zeros(model.trained)
    for group in np.unique(groups):
        one = gradient(model, parameters, images[groups == group], labels[groups == group])
        norm = np.linalg.norm(one)
        expected += one * (min(1, bound / norm) if clipping == "flat" else bound / (norm + 0.01))
    learner = learner_of(model, images, labels, unit=unit, clipping=clipping)
    found = learner.contribution(parameters, clip_norm=CLIP)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_views_are_averaged_with_the_labels_of_their_images():
    model, (images, labels), views = make_model(), cohort(), Views(3)
    mine, parameters = PATIENTS == 2, whole(model)
    each = [
        gradient(model, parameters, Views.of(torch.from_numpy(images[mine]), view).numpy(), labels[mine])
        for view in views.draw(parameters, SIZE)
    ]
    learner = learner_of(model, images, labels, views=views, clipping="flat")
    found = learner.contribution(parameters, clip_norm=1e6, units=np.array([2]))
    np.testing.assert_allclose(found, np.mean(each, axis=0), rtol=1e-4, atol=1e-6)


def test_what_is_unknown_adds_nothing():
    model, (images, labels) = make_model(), cohort()
    labels[:, 1] = -1
    learner = learner_of(model, images, labels)
    head = learner.contribution(whole(model), clip_norm=1e6)[-(K * 4 * (SIZE // 2) ** 2 + K) :]
    weights, intercepts = head[:-K].reshape(K, -1), head[-K:]
    assert not weights[1].any()
    assert not intercepts[1]
    assert weights[0].any()
    nobody = learner_of(model, images, np.full_like(labels, -1))
    assert not nobody.contribution(whole(model), clip_norm=CLIP).any()


@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 100), left_out=st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_one_patient_moves_a_sum_by_no_more_than_the_clip_norm(scale, seed, left_out):
    model, (images, labels) = make_model(), cohort(seed)
    learner = learner_of(model, images, labels, views=Views(2))
    parameters = scale * np.random.default_rng(seed).normal(size=model.parameters)
    everyone = learner.contribution(parameters, clip_norm=CLIP)
    others = np.delete(np.arange(6), left_out)
    without = learner.contribution(parameters, clip_norm=CLIP, units=others)
    assert np.linalg.norm(everyone - without) <= CLIP * (1 + 1e-4)


@pytest.mark.parametrize("after", [False, True])
@given(seed=st.integers(0, 1000), power=st.floats(-3, 30))
@settings(max_examples=15, deadline=None)
def test_one_patient_adds_a_vector_of_norm_1_to_each_release_and_moves_nobody(after, seed, power):
    model, (images, labels) = make_model(), cohort(seed)
    parameters = np.empty(0)
    if after:
        parameters = 10**power * np.random.default_rng(seed).normal(size=model.parameters)
    with np.errstate(all="ignore"):
        learner = learner_of(model, images, labels)
        total = learner.statistics(parameters)
        alone = [learner.statistics(parameters, np.array([unit])) for unit in range(6)]
    assert total.shape == (model.calibration_size if after else model.statistics_size,)
    assert np.isfinite(total).all()
    assert max(np.linalg.norm(one) for one in alone) <= 1
    np.testing.assert_array_equal(sum(alone), total)


def test_counts_alone_use_the_whole_contribution():
    """Nothing is left for features that are not released: a patient of known findings adds a vector of length 1."""
    model, (images, labels) = make_model(), cohort()
    labels = np.abs(labels)
    learner = learner_of(model, images, labels)
    alone = learner.statistics(np.empty(0), np.array([1]))
    assert np.linalg.norm(alone) == pytest.approx(1)
    found = model.read_statistics(100 * learner.statistics(np.empty(0)), 0.0)
    assert found.units == pytest.approx(600)
    present = np.array([labels[patient == PATIENTS].mean(axis=0) for patient in range(6)]).sum(axis=0)
    np.testing.assert_allclose(found.counts, 100 * np.stack([6 - present, present], axis=1))
    assert found.units_std == 0.0


def test_training_starts_at_the_released_log_odds():
    model = make_model()
    counts = np.array([[500.0, 500.0], [800.0, 200.0], [950.0, 50.0]])
    told = np.concatenate([[1000.0], counts.T.ravel()]) / np.sqrt(K + 1)
    statistics = model.read_statistics(told, 0.0)
    np.testing.assert_allclose(statistics.priors, FREQUENCIES)
    parameters = model.join(statistics, model.initial())
    np.testing.assert_allclose(parameters[:K], logit(FREQUENCIES))
    images = cohort()[0]
    logits = model.logits(model.unshifted(parameters), Stack(images), len(images))
    np.testing.assert_allclose(
        model.probabilities(parameters, Stack(images), len(images)), expit(logits + logit(FREQUENCIES))
    )


def released_scores(scores, labels):
    """By the definition: for each finding, without and with it, the sum of scores and a count, with b = 0.6."""
    found = [
        [(0.8 * scores[labels[:, k] == v, k]).sum(), 0.6 * (labels[:, k] == v).sum()]
        for k in range(K)
        for v in (0, 1)
    ]
    return np.array(found).ravel() / np.sqrt(K)


def test_the_offset_puts_each_findings_threshold_between_its_mean_logits():
    model, generator = make_model(), np.random.default_rng(2)
    labels = (generator.random((2000, K)) < FREQUENCIES).astype(int)
    scores = np.clip(generator.normal(0.1, 0.1, (2000, K)) + 0.3 * labels, -1, 1)
    counts = np.stack([(labels == value).sum(axis=0) for value in (0, 1)], axis=1).astype(float)
    statistics = model.read_statistics(np.concatenate([[2000.0], counts.T.ravel()]) / np.sqrt(K + 1), 0.0)
    plain = model.join(statistics, model.initial())
    found, certainty = model.calibrated(plain, released_scores(scores, labels), 0.0, statistics)
    middles = [np.mean([scores[labels[:, k] == v, k].mean() for v in (0, 1)]) for k in range(K)]
    expected = logit(labels.mean(axis=0)) - LONGEST_LOGITS * np.array(middles)
    np.testing.assert_allclose(found[:K], expected, rtol=1e-6)
    assert certainty.weight == pytest.approx(1)
    assert len(certainty.noise) == K
    own, frequencies = model.recalibrated(
        whole(model, np.full(K, 0.3)), np.full(K, 0.3), released_scores(scores, labels), 0.0
    )
    np.testing.assert_allclose(frequencies, labels.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(own[:K], expected, rtol=1e-6)
    common, kept = model.recalibrated(
        whole(model), FREQUENCIES, 1e6 * generator.normal(size=model.calibration_size), 1e12
    )
    np.testing.assert_allclose(kept, FREQUENCIES, atol=0.01)
    np.testing.assert_allclose(common[:K], logit(FREQUENCIES), atol=0.5)


def centring(*_, classes, **__):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16, 7), Centred((4, 3), 2.0), nn.Linear(7, classes, bias=False)
    )


@given(seed=st.integers(0, 2**32 - 1), noise=st.sampled_from([0.0, 1.0, 1e3, 1e9]))
@settings(max_examples=40, deadline=None)
def test_a_site_accepts_a_network_from_any_noisy_release(seed, noise):
    generator = np.random.default_rng(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "network", centring)
        model = make_model(size=4)
    found = model.read_statistics(noise * generator.normal(size=model.statistics_size), noise**2)
    assert isinstance(found, FindingStatistics)
    assert found.centre((4, 3)).shape == (7,)
    images, labels = np.zeros((2, 1, 4, 4), np.float32), np.array([[0, 1, -1], [1, 0, 0]])
    learner = learner_of(model, images, labels, np.arange(2))
    for statistics in (None, found):
        parameters = model.join(statistics, model.initial())
        sums = noise * generator.normal(size=model.calibration_size)
        shifted, _ = model.calibrated(parameters, sums, noise**2, statistics)
        priors = np.full(K, 0.5) if statistics is None else statistics.priors
        own, frequencies = model.recalibrated(shifted, priors, sums, noise**2)
        for one in (parameters, shifted, model.unshifted(shifted), own):
            learner.check_parameters(one)
        learner.check_parameters(np.concatenate([frequencies, own]), judged=True)


@pytest.mark.parametrize(("place", "value"), [(0, 17.0), (1, np.nan), (2, -1e9)])
def test_a_site_refuses_what_no_honest_coordinator_sends(place, value):
    model, (images, labels) = make_model(), cohort()
    parameters = whole(model)
    parameters[place] = LONGEST_LOGITS + logit(1 - RAREST)
    model.check_parameters(parameters)
    parameters[place] = value
    with pytest.raises(InvalidValue):
        model.check_parameters(parameters)
    judged = np.concatenate([np.array([0.5, 0.5, 0.0]), whole(model)])
    with pytest.raises(InvalidValue, match="frequencies"):
        learner_of(model, images, labels).check_parameters(judged, judged=True)


@pytest.mark.parametrize("labels", [np.full((10, K), 2), np.zeros((10, K + 1)), np.zeros(10)])
def test_labels_that_are_no_findings_are_refused(labels):
    with pytest.raises(InvalidValue, match="findings"):
        learner_of(make_model(), cohort()[0], labels)


@pytest.mark.parametrize("name", ["cnn", "resnet18", "efficientnet-lite0"])
def test_a_network_has_the_sizes_that_are_worked_out_without_it(monkeypatch, name):
    monkeypatch.undo()
    values = {"classes": K, "channels": 1, "image_size": 32, "findings": True}
    model, sizes = NetworkModel(name, **values), NetworkSizes.of(name, **values)
    for one in ("classes", "trained", "parameters", "statistics_size", "calibration_size", "thresholds"):
        assert getattr(model, one) == getattr(sizes, one)
    assert model.score_share == sizes.score_share


def test_a_study_of_findings_has_the_sizes_of_its_model():
    names = ("a", "b", "c")
    study = Study.model_validate(
        {
            "data": {"task": "findings", "classes": names, "channels": 1, "image_size": SIZE},
            "model": {"network": "cnn", "features": "none"},
        }
    )
    sizes = sizes_of(study, K, 1)
    model = model_of(study, Dataset.empty(names, channels=1, image_size=SIZE, task="findings"))
    assert sizes.findings
    assert model.findings
    assert sizes.statistics_size == model.statistics_size == 2 * K + 1
    assert sizes.calibration_size == model.calibration_size == 4 * K
