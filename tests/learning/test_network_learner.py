"""A network behind the learner's contract: bounded sums, unit by unit, against a loop over patients."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from fedveil.errors import InvalidValue
from fedveil.learning import LinearHead, LinearLearner, NetworkLearner, NetworkModel, Views
from fedveil.learning.models import network as network_learner
from fedveil.learning.models.network import ROUNDING
from fedveil.learning.networks import Centred, registry

SIZE = 16
CLIP = 0.7


class Stack:
    """Images in memory."""

    def __init__(self, images):
        self.images = images

    def read(self, indices):
        return self.images[indices]


def tiny(name, *, classes, channels, image_size, seed, weights=True):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(channels, 4, 3, 2, 1),
            nn.GroupNorm(2, 4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(4 * (image_size // 2) ** 2, classes),
        )


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setattr(registry, "network", tiny)
    return NetworkModel("cnn", classes=2, channels=1, image_size=SIZE, seed=3)


@pytest.fixture
def cohort():
    generator = np.random.default_rng(0)
    patients = np.array([0, 0, 1, 2, 2, 2, 3, 4, 5, 5])
    images = generator.random((10, 1, SIZE, SIZE), dtype=np.float32)
    return images, generator.integers(0, 2, 10), patients


def whole(model):
    """The parameter vector before training."""
    return model.join(None, model.initial())


def learner_of(model, cohort, **settings):
    images, labels, patients = cohort
    return NetworkLearner(model, Stack(images), labels, patients, **settings)


def gradient(model, parameters, images, labels):
    """The plain gradient of the mean loss, by autograd."""
    with model.loaded(parameters):
        trained = [p for p in model.body.parameters() if p.requires_grad]
        loss = functional.cross_entropy(model.body(torch.from_numpy(images)), torch.from_numpy(labels))
        found = torch.autograd.grad(loss, trained)
    return torch.cat([one.flatten() for one in found]).double().numpy()


@pytest.mark.parametrize("clipping", ["flat", "automatic"])
@pytest.mark.parametrize("unit", ["patient", "image", "site"])
def test_a_contribution_is_the_sum_of_clipped_gradients(model, cohort, unit, clipping):
    images, labels, patients = cohort
    learner = learner_of(model, cohort, unit=unit, clipping=clipping)
    groups = {"patient": patients, "image": np.arange(10), "site": np.zeros(10, dtype=int)}[unit]
    expected = np.zeros(model.trained)
    for group in np.unique(groups):
        one = gradient(model, whole(model), images[groups == group], labels[groups == group])
        norm = np.linalg.norm(one)
        bound = CLIP / (1 + ROUNDING)
        expected += one * (min(1, bound / norm) if clipping == "flat" else bound / (norm + 0.01))
    found = learner.contribution(whole(model), clip_norm=CLIP)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)  # norms are rounded up
    assert learner.units == len(np.unique(groups))


@pytest.mark.parametrize("kind", ["network", "linear"])
@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 100), left_out=st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_one_patient_moves_a_sum_by_no_more_than_the_clip_norm(kind, scale, seed, left_out):
    """The contract that every learner keeps, whatever parameters, labels and images are."""
    generator = np.random.default_rng(seed)
    patients = np.array([0, 0, 1, 2, 2, 2, 3, 4, 5, 5])
    labels = generator.integers(0, 2, 10)
    images = generator.random((10, 1, SIZE, SIZE), dtype=np.float32)
    if kind == "linear":
        learner = LinearLearner(LinearHead(SIZE * SIZE, 2), images.reshape(10, -1), labels, patients)
        length = learner.dimension
    else:
        model = NetworkModel("cnn", classes=2, channels=1, image_size=SIZE)
        learner = NetworkLearner(model, Stack(images), labels, patients, views=Views(2))
        length = model.parameters
    parameters = scale * generator.normal(size=length)
    everyone = learner.contribution(parameters, clip_norm=CLIP)
    others = np.delete(np.arange(6), left_out)
    without = learner.contribution(parameters, clip_norm=CLIP, units=others)
    assert np.linalg.norm(everyone - without) <= CLIP * (1 + 1e-4)
    assert np.linalg.norm(everyone) <= 6 * CLIP * (1 + 1e-4)


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    monkeypatch.setattr(registry, "network", tiny)


def test_a_sample_is_the_sum_over_those_units_alone(model, cohort):
    learner = learner_of(model, cohort)
    alone = [learner.contribution(whole(model), clip_norm=CLIP, units=np.array([u])) for u in (1, 4)]
    both = learner.contribution(whole(model), clip_norm=CLIP, units=np.array([4, 1]))
    np.testing.assert_allclose(both, sum(alone), atol=1e-6)
    nobody = learner.contribution(whole(model), clip_norm=CLIP, units=np.empty(0, dtype=np.int64))
    assert not nobody.any()


@pytest.mark.parametrize("units", [[1, 1], [6], [-1]])
def test_units_that_are_repeated_or_do_not_exist_are_refused(model, cohort, units):
    with pytest.raises(InvalidValue, match="units"):
        learner_of(model, cohort).contribution(whole(model), clip_norm=CLIP, units=np.array(units))


def test_the_size_of_a_batch_changes_nothing(model, cohort, monkeypatch):
    learner = learner_of(model, cohort, views=Views(3))
    at_once = learner.contribution(whole(model), clip_norm=CLIP)
    for batch in (1, 2, 4, 7):
        monkeypatch.setattr(network_learner, "BATCH", batch)
        found = learner.contribution(whole(model), clip_norm=CLIP)
        np.testing.assert_allclose(found, at_once, rtol=1e-3, atol=1e-5)


def test_views_are_averaged_before_clipping(model, cohort):
    images, labels, patients = cohort
    views = Views(4)
    drawn = views.draw(whole(model), SIZE)
    assert drawn == views.draw(whole(model), SIZE), "a repeated step sees the same views"
    assert drawn != views.draw(whole(model) + 1e-9, SIZE)
    mine = patients == 2
    one = np.mean(
        [
            gradient(model, whole(model), Views.of(torch.from_numpy(images[mine]), v).numpy(), labels[mine])
            for v in drawn
        ],
        axis=0,
    )
    learner = learner_of(model, cohort, views=views, clipping="flat")
    found = learner.contribution(whole(model), clip_norm=1e6, units=np.array([2]))
    np.testing.assert_allclose(found, one, rtol=1e-4, atol=1e-6)


def test_a_view_shifts_and_mirrors_and_invents_nothing():
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert torch.equal(Views.of(image, (False, 0, 0)), image)
    assert torch.equal(Views.of(image, (True, 0, 0)), image.flip(3))
    down = Views.of(image, (False, 1, 0))
    assert torch.equal(down[:, :, 1:], image[:, :, :-1])
    assert torch.equal(down[:, :, :1], image[:, :, :1])


def test_statistics_count_each_unit_once(model, cohort):
    _, labels, patients = cohort
    counts = learner_of(model, cohort).statistics(np.empty(0))
    expected = sum(np.bincount(labels[patients == p], minlength=2) / (patients == p).sum() for p in range(6))
    np.testing.assert_allclose(counts, expected)
    some = learner_of(model, cohort).statistics(np.empty(0), np.array([0, 3]))
    assert some.sum() == pytest.approx(2)
    assert np.linalg.norm(learner_of(model, cohort, unit="site").statistics(np.empty(0))) <= 1


def test_parameters_of_another_model_are_refused(model, cohort):
    learner = learner_of(model, cohort)
    for wrong in (np.zeros(3), np.full(model.trained, np.nan)):
        with pytest.raises(InvalidValue, match="parameters"):
            learner.contribution(wrong, clip_norm=CLIP)


def test_the_same_seed_gives_the_same_network():
    first, again, other = (
        NetworkModel("cnn", classes=2, channels=1, image_size=SIZE, seed=seed) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first.initial(), again.initial())
    assert (first.initial() != other.initial()).any()


def test_a_frozen_part_is_run_beforehand_and_gives_the_same_probabilities():
    model = NetworkModel("efficientnet-lite0@32", classes=2, channels=1, image_size=SIZE, trained_blocks=0)
    images = np.random.default_rng(1).random((3, 1, SIZE, SIZE), dtype=np.float32)
    assert model.frozen is not None
    assert not any(p.requires_grad for p in model.frozen.parameters())
    np.testing.assert_array_equal(
        model.probabilities(whole(model), Stack(model.before(images)), 3), np.full((3, 2), 0.5)
    )
    parameters = whole(model) + 0.01 * np.random.default_rng(2).normal(size=model.parameters)
    parameters = model.unshifted(parameters)
    found = model.probabilities(parameters, Stack(model.before(images)), 3)
    with model.loaded(parameters), torch.inference_mode():
        expected = model.module(torch.from_numpy(images)).double().softmax(1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.fixture
def pretrained(cohort):
    """EfficientNet-Lite0, and a cohort of what its frozen part makes of images."""
    images, labels, patients = cohort
    model = NetworkModel("efficientnet-lite0@32", classes=2, channels=1, image_size=SIZE)
    return model, (model.before(images), labels, patients)


def test_features_are_centred_in_the_middle_between_the_classes(pretrained):
    model, (maps, labels, _) = pretrained
    learner = learner_of(model, (maps, labels, np.arange(10)))
    released = learner.statistics(np.empty(0))
    assert released.shape == (model.statistics_size,)
    statistics = model.read_statistics(50 * released, 0.0)
    np.testing.assert_allclose(statistics.counts, 50 * np.bincount(labels), rtol=1e-9)
    parameters = model.join(statistics, model.initial())
    assert parameters.shape == (model.parameters,)
    layers = list(model.body)
    at = next(i for i, layer in enumerate(layers) if isinstance(layer, Centred))
    with model.loaded(parameters), torch.inference_mode():
        units = layers[at].unit(nn.Sequential(*layers[:at])(torch.from_numpy(maps))).numpy()
        middle = (units[labels == 0].mean(0) + units[labels == 1].mean(0)) / 2
        np.testing.assert_allclose(layers[at].centre.numpy(), middle, atol=1e-5)
    with model.loaded(model.join(None, model.initial())):
        assert not layers[at].centre.any()


def test_no_unit_adds_more_than_one_to_the_statistics_of_features(pretrained):
    model, cohort = pretrained
    learner = learner_of(model, cohort)
    for unit in range(6):
        assert np.linalg.norm(learner.statistics(np.empty(0), np.array([unit]))) <= 1 + 1e-9
    whole_site = learner_of(model, cohort, unit="site").statistics(np.empty(0))
    assert np.linalg.norm(whole_site) <= 1 + 1e-9


def test_tuned_gradients_are_clipped_sums_over_patients(pretrained):
    model, (maps, labels, patients) = pretrained
    parameters = whole(model)
    parameters[-model.trained :] += 0.1 * np.random.default_rng(3).normal(size=model.trained)
    expected = np.zeros(model.trained)
    for patient in np.unique(patients):
        one = gradient(model, parameters, maps[patients == patient], labels[patients == patient])
        expected += one * min(1, CLIP / (1 + ROUNDING) / np.linalg.norm(one))
    found = learner_of(model, (maps, labels, patients), clipping="flat").contribution(
        parameters, clip_norm=CLIP
    )
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-5)


def test_the_threshold_lies_in_the_middle_between_the_classes(model, cohort):
    """What is released last turns probabilities so that dividing by frequencies decides at the middle."""
    images, _, patients = cohort
    labels = np.array([0, 0, 0, 0, 0, 0, 0, 1, 1, 1])
    parameters = whole(model) + np.random.default_rng(5).normal(size=model.parameters)
    parameters = model.unshifted(parameters)
    learner = learner_of(model, (images, labels, patients), unit="image")
    released = learner.statistics(parameters)
    assert released.shape == (model.calibration_size,)
    counts = model.read_statistics(learner.statistics(np.empty(0)) * 100, 0.0)
    after, certainty = model.calibrated(parameters, released * 100, 0.0, counts)
    logits = model.logits(parameters, Stack(images), 10)
    margin = logits[:, 1] - logits[:, 0]
    middle = (margin[labels == 0].mean() + margin[labels == 1].mean()) / 2
    probabilities = model.probabilities(after, Stack(images), 10)
    decided = (probabilities / counts.priors).argmax(axis=1)
    np.testing.assert_array_equal(decided, (margin > middle).astype(int))
    offset, _, trained = model.split(after)
    expected = np.array([middle / 2, -middle / 2])
    np.testing.assert_allclose(offset - np.log(counts.priors), expected, rtol=1e-6)
    np.testing.assert_array_equal(trained, parameters[-model.trained :])
    assert certainty.weight == pytest.approx(1)


def test_no_image_moves_a_threshold_by_more_than_its_bound(model, cohort):
    """However sure a network is, one unit's logits add a vector of norm 1 at most to what is released."""
    parameters = whole(model) + 1e3 * np.random.default_rng(5).normal(size=model.parameters)
    learner = learner_of(model, cohort)
    assert np.abs(model.logits(parameters, Stack(cohort[0]), 10)).max() > 1e3
    for unit in range(6):
        assert np.linalg.norm(learner.statistics(parameters, np.array([unit]))) <= 1 + 1e-9


def test_no_unit_adds_more_than_one_to_the_statistics(model, cohort):
    learner = learner_of(model, cohort)
    for unit in range(6):
        for parameters in (np.empty(0), whole(model)):
            assert np.linalg.norm(learner.statistics(parameters, np.array([unit]))) <= 1 + 1e-9
