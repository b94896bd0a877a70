"""What a site refuses, no honest coordinator sends: every model made of noisy releases is accepted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedveil.errors import InvalidValue
from fedveil.learning import CentredHead, CentredLearner, ClassStatistics, NetworkModel
from fedveil.learning.models.network_labels import LONGEST_LOGITS
from fedveil.learning.networks import Centred
from fedveil.learning.ranges import FEWEST, LARGEST_COUNT

BLOCKS = (4, 3)
NOISY = {
    "seed": st.integers(0, 2**32 - 1),
    "classes": st.integers(2, 5),
    "noise": st.sampled_from([1e-6, 1.0, 300.0, 1e5, 1e9]),
    "size": st.sampled_from([0.0, 1.0, 200.0, 1e6]),
}


def released(length, noise, size, generator):
    """A noisy sum over so many units, of which some classes may hold none."""
    return size * generator.uniform(-0.2, 1, length) * generator.integers(0, 2) + noise * generator.normal(
        size=length
    )


def accepted(model, parameters, frequencies):
    CentredLearner(
        model, np.ones((2, model.features), np.float32), np.array([0, 1]), np.array([0, 1])
    ).check_parameters(np.concatenate([frequencies, parameters]), judged=True)


@settings(max_examples=200, deadline=None)
@given(centred=st.booleans(), **NOISY)
def test_a_head_from_any_noisy_release_is_accepted(seed, classes, noise, size, centred):
    generator = np.random.default_rng(seed)
    model = CentredHead(BLOCKS, classes, centred=centred)
    found = model.read_statistics(released(model.statistics_size, noise, size, generator), noise**2)
    one_shot, threshold = model.one_shot(found)
    for statistics in (None, found):
        priors = np.full(classes, 1 / classes) if statistics is None else statistics.priors
        for scale in (0.0, 1e-12, 1.0, 1e4):
            trained = scale * generator.normal(size=model.trained)
            whole = model.join(statistics, trained)
            accepted(model, whole, priors)
            sums = released(model.calibration_size, noise, size, generator)
            shifted, _ = model.calibrated(whole, sums, noise**2, statistics)
            accepted(model, shifted, priors)
            own, frequencies = model.recalibrated(shifted, priors, sums, noise**2)
            accepted(model, own, frequencies)
            # After steps of a hospital's own the shift is that of another trained part.
            moved = shifted.copy()
            moved[-model.trained :] *= 1e-3
            accepted(model, model.unshifted(moved), priors)
            accepted(model, *model.recalibrated(moved, priors, sums, noise**2))
        whole = model.join(statistics, one_shot, threshold)
        accepted(model, whole, priors)
        accepted(model, *model.recalibrated(whole, priors, sums, noise**2))


def tiny(*_, classes, **__):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16, 7), Centred(BLOCKS, 2.0), nn.Linear(7, classes, bias=False)
    )


@settings(max_examples=100, deadline=None)
@given(**NOISY)
def test_a_network_from_any_noisy_release_is_accepted(seed, classes, noise, size):
    generator = np.random.default_rng(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedveil.learning.networks.registry.network", tiny)
        model = NetworkModel("cnn", classes=classes, channels=1, image_size=4)
    found = model.read_statistics(released(model.statistics_size, noise, size, generator), noise**2)
    trained = generator.normal(size=model.trained)
    for statistics in (None, found):
        priors = np.full(classes, 1 / classes) if statistics is None else statistics.priors
        whole = model.join(statistics, trained)
        model.check_parameters(whole)
        sums = released(model.calibration_size, noise, size, generator)
        shifted, _ = model.calibrated(whole, sums, noise**2, statistics)
        model.check_parameters(shifted)
        model.check_parameters(model.unshifted(shifted))
        model.check_parameters(model.recalibrated(shifted, priors, sums, noise**2)[0])


def spoilt(model, part, values):
    start, end = {
        "centre": (0, model.features),
        "weights": (model.features, model.features + model.classes),
        "shift": (model.features + model.classes, model.parameters - model.trained),
    }[part]
    parameters = model.join(None, np.full(model.trained, 0.1))
    parameters[start:end] = values
    return parameters


@pytest.mark.parametrize(
    ("part", "values", "match"),
    [
        ("centre", 1e5, "a block of the centre has length"),
        ("centre", [0.8, 0, 0, 0, 0, 0, 0], "a block of the centre has length 0.8"),
        ("weights", 1e6, "class frequencies are"),
        ("weights", [1e6, 1e6], "class frequencies are"),
        ("weights", [1.0, 0.0], "class frequencies are"),
        ("weights", [-1.0, 1 / 3], "class frequencies are"),
        ("weights", [1e8, 1 / (2 - 1e-8)], "class frequencies are"),
        ("shift", 1e6, "the shift has length 1e"),
        ("shift", 0.3, "the shift has length 0.3"),
    ],
)
def test_a_head_that_no_release_makes_is_refused(part, values, match):
    model = CentredHead(BLOCKS, 2)
    with pytest.raises(InvalidValue, match=match):
        model.check_parameters(spoilt(model, part, values))
    model.check_parameters(spoilt(model, "weights", [1e4, 1 / (2 - 1e-4)]))
    model.check_parameters(spoilt(model, "centre", 0.3))


@pytest.mark.parametrize("frequencies", [[1.0, 1.0], [0.0, 1.0], [1e-9, 1.0], [0.5, 0.4], [-1.0, 2.0]])
def test_frequencies_that_no_release_makes_are_refused(frequencies):
    model = CentredHead(BLOCKS, 2)
    with pytest.raises(InvalidValue, match="class frequencies are"):
        accepted(model, model.join(None, model.initial()), np.array(frequencies))


@pytest.mark.parametrize(
    ("place", "value", "match"),
    [
        (0, 40.0, "offsets"),
        (3, 0.8, "block of the centre"),
    ],
)
def test_a_network_that_no_release_makes_is_refused(monkeypatch, place, value, match):
    monkeypatch.setattr("fedveil.learning.networks.registry.network", tiny)
    model = NetworkModel("cnn", classes=2, channels=1, image_size=4)
    parameters = model.join(None, model.initial())
    parameters[place] = value
    with pytest.raises(InvalidValue, match=match):
        model.check_parameters(parameters)
    parameters[place] = 0.0
    parameters[:2] = -LONGEST_LOGITS - np.log(2 * LARGEST_COUNT / FEWEST)
    model.check_parameters(parameters)


def test_decoders_cut_to_where_the_exact_number_lies():
    """A mean of vectors of length 1 has no greater length, whatever noise says, and what lies within stays."""
    statistics = ClassStatistics(
        counts=np.array([20.0, 30.0]), means=np.array([[3.0, 4.0], [3.0, 4.0]]), noise_variance=0.0
    )
    np.testing.assert_allclose(statistics.centre([2]), [0.6, 0.8])
    np.testing.assert_allclose(statistics.centre([1, 1]), [0.5**0.5] * 2)
    few = ClassStatistics.from_released(np.array([0.0, -5.0, 0.0, 1e12]), 2, 0.0)
    np.testing.assert_array_equal(few.counts, [FEWEST, LARGEST_COUNT])
    within = ClassStatistics(
        counts=statistics.counts, means=np.array([[0.3, 0.1], [0.1, 0.2]]), noise_variance=0.0
    )
    np.testing.assert_array_equal(within.centre([2]), within.means.mean(axis=0))
