"""The linear learner against a plain loop over patients with torch autograd, and the bound it promises."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedveil.errors import InvalidValue
from fedveil.learning import LinearHead, LinearLearner
from fedveil.learning.exact import grid


def cohort(seed=0, images=60, patients=20, dimension=7, classes=2, scale=1.0):
    generator = np.random.default_rng(seed)
    features = (scale * generator.standard_normal((images, dimension))).astype(np.float32)
    labels = generator.integers(0, classes, images)
    codes = np.concatenate([np.arange(patients), generator.integers(0, patients, images - patients)])
    return features, labels, generator.permutation(codes)


def loss_sum(head, parameters, features, labels, weights):
    """The weighted logistic loss, written from its definition."""
    matrix = parameters.reshape(head.logits, -1)
    logits = features @ matrix.T
    if head.logits == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    return (weights * losses).sum()


def plain_loop(head, data, parameters, clip_norm, *, unit, class_weights, units=None):
    """One autograd gradient per unit, clipped and added."""
    features, labels, patients = data
    if unit == "image":
        patients = np.arange(len(labels))
    total = np.zeros(head.dimension)
    for unit_code in range(patients.max() + 1) if units is None else units:
        rows = np.flatnonzero(patients == unit_code)
        weights = torch.from_numpy(class_weights[labels[rows]]) / len(rows)
        leaf = torch.tensor(parameters, requires_grad=True)
        chosen = torch.from_numpy(features[rows]).double()
        loss_sum(head, leaf, chosen, torch.from_numpy(labels[rows]), weights).backward()
        factor = 1.0 if unit == "site" else min(1.0, clip_norm / leaf.grad.norm().item())
        total += factor * leaf.grad.numpy()
    if unit == "site":
        total *= min(1.0, clip_norm / np.linalg.norm(total))
    return total


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("unit", ["patient", "image", "site"])
def test_contribution_equals_a_plain_loop_over_units(classes, unit):
    data = cohort(classes=classes)
    head = LinearHead(7, classes)
    weights = np.linspace(0.5, 2, classes)
    learner = LinearLearner(head, *data, unit=unit, class_weights=weights)
    parameters = np.random.default_rng(1).standard_normal(head.dimension)
    for clip_norm in (0.3, 1.5, 1e3):
        expected = plain_loop(head, data, parameters, clip_norm, unit=unit, class_weights=weights)
        found = learner.contribution(parameters, clip_norm=clip_norm)
        np.testing.assert_allclose(found, expected, atol=60 * grid(clip_norm))


@pytest.mark.parametrize(("unit", "chosen"), [("patient", [3, 0, 11]), ("image", [5, 59]), ("patient", [])])
def test_only_sampled_units_contribute(unit, chosen):
    data = cohort(classes=3)
    head = LinearHead(7, 3)
    learner = LinearLearner(head, *data, unit=unit)
    parameters = np.random.default_rng(2).standard_normal(head.dimension)
    expected = plain_loop(head, data, parameters, 0.5, unit=unit, class_weights=np.ones(3), units=chosen)
    actual = learner.contribution(parameters, clip_norm=0.5, units=np.array(chosen))
    np.testing.assert_allclose(actual, expected, atol=3 * grid(0.5))


def test_a_site_that_is_not_sampled_contributes_nothing():
    learner = LinearLearner(LinearHead(7, 2), *cohort(), unit="site")
    assert learner.units == 1
    assert not learner.contribution(np.ones(7), clip_norm=1, units=np.array([], dtype=int)).any()
    assert learner.contribution(np.ones(7), clip_norm=1, units=np.array([0])).any()


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(1, 90),
    classes=st.integers(2, 4),
    magnitude=st.floats(-6, 5.6),
    spread=st.floats(-12, 0),
    parameter_magnitude=st.floats(-3, 9),
    clip_norm=st.floats(1e-3, 1e3),
)
def test_patient_contribution_is_bounded_whatever_its_images(
    seed, images, classes, magnitude, spread, parameter_magnitude, clip_norm
):
    """Adding one patient moves the sum by at most the clip norm.

    Among the extra patient's images are near-copies with different labels, whose gradients cancel: rounding
    in their norm must not let them through unclipped.
    """
    generator = np.random.default_rng(seed)
    features, labels, patients = cohort(seed, images=12, patients=5, dimension=6, classes=classes)
    centre = generator.uniform(-1, 1, 6) * 10.0**magnitude
    extra = (centre * (1 + 10.0**spread * generator.uniform(-1, 1, (images, 6)))).astype(np.float32)
    extra_labels = generator.integers(0, classes, images)
    head = LinearHead(6, classes)
    without = LinearLearner(head, features, labels, patients)
    everyone = LinearLearner(
        head,
        np.concatenate([features, extra]),
        np.concatenate([labels, extra_labels]),
        np.concatenate([patients, np.full(images, 5)]),
    )
    parameters = generator.standard_normal(head.dimension) * 10.0**parameter_magnitude
    change = everyone.contribution(parameters, clip_norm=clip_norm) - without.contribution(
        parameters, clip_norm=clip_norm
    )
    assert np.linalg.norm(change) <= clip_norm * (1 + 1e-12)


def test_gradients_that_cancel_to_rounding_are_still_bounded():
    """Near-equal huge images with both labels: the squared norm of their gradient drowns in rounding.

    Taken as the plain quadratic form, the norm comes out too small, and the sum passes the clip norm.
    """
    generator = np.random.default_rng(6)
    for _ in range(20):
        images = 9e5 * (1 + 1e-12 * generator.uniform(-1, 1, (2, 6)))
        learner = LinearLearner(LinearHead(6, 2), images, np.array([0, 1]), np.array([0, 0]))
        contribution = learner.contribution(np.zeros(6), clip_norm=1e-7)
        assert np.linalg.norm(contribution) <= 1e-7


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2e6, 1e30])
def test_features_that_are_not_finite_or_huge_are_refused(value):
    features, labels, patients = cohort()
    features[17, 3] = value
    with pytest.raises(InvalidValue, match="not finite, or larger than 1e6"):
        LinearLearner(LinearHead(7, 2), features, labels, patients)


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        (np.full(7, np.nan), "not finite"),
        (np.full(7, 1e300), "not finite, or larger"),
        (np.zeros(9), "shape"),
        (np.zeros((2, 4)), "shape"),
    ],
)
def test_hostile_parameters_are_refused(parameters, match):
    learner = LinearLearner(LinearHead(7, 2), *cohort())
    with pytest.raises(InvalidValue, match=match):
        learner.contribution(parameters, clip_norm=1.0)


@pytest.mark.parametrize("clip_norm", [0, -1, np.nan, np.inf, 1e-200, 1e200])
def test_a_clip_norm_that_bounds_nothing_is_refused(clip_norm):
    with pytest.raises(InvalidValue, match="clip_norm"):
        LinearLearner(LinearHead(7, 2), *cohort()).contribution(np.zeros(7), clip_norm=clip_norm)


@pytest.mark.parametrize("units", [[1, 1], [-1], [20]])
def test_a_unit_cannot_take_part_twice_or_from_outside(units):
    with pytest.raises(InvalidValue, match="sampled units"):
        LinearLearner(LinearHead(7, 2), *cohort()).contribution(
            np.zeros(7), clip_norm=1.0, units=np.array(units)
        )


def test_columns_that_do_not_fit_are_refused():
    features, labels, patients = cohort()
    head = LinearHead(7, 2)
    for bad in [
        (features[:, :6], labels, patients),
        (features, labels[:-1], patients),
        (features, labels + 1, patients),
        (features, labels, patients + 1),
        (features, labels.astype(float), patients),
        (features[:0], labels[:0], patients[:0]),
    ]:
        with pytest.raises(InvalidValue):
            LinearLearner(head, *bad)
    for weights in ([1.0, -1.0], [1.0], [1.0, np.nan], [1.0, np.inf], [1.0, 1e300]):
        with pytest.raises(InvalidValue, match="class_weights"):
            LinearLearner(head, features, labels, patients, class_weights=weights)
    with pytest.raises(InvalidValue, match="two classes"):
        LinearHead(7, 1)


@pytest.mark.parametrize("classes", [2, 3])
def test_probabilities_follow_the_definition(classes):
    features, _, _ = cohort(classes=classes)
    head = LinearHead(7, classes)
    parameters = np.random.default_rng(4).standard_normal(head.dimension)
    logits = features @ parameters.reshape(head.logits, 7).T
    if classes == 2:
        logits = np.concatenate([0 * logits, logits], axis=1)
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(head.probabilities(parameters, features), expected, rtol=1e-5)


def test_probabilities_saturate_without_overflow():
    head = LinearHead(2, 2)
    scores = head.probabilities(np.array([1e9, 0]), np.array([[1e5, 0], [-1e5, 0]], dtype=np.float32))
    np.testing.assert_array_equal(scores, [[0, 1], [1, 0]])
    head = LinearHead(2, 3)
    scores = head.probabilities(np.linspace(-1e9, 1e9, 6), np.full((1, 2), 1e5, dtype=np.float32))
    assert np.isfinite(scores).all()
    assert scores.sum() == pytest.approx(1)
