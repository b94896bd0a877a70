"""What one unit adds to a sum depends on that unit alone: sums differ by exactly its contribution, to the last bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedveil.data import load
from fedveil.learning import CentredHead, CentredLearner, ClassStatistics, HeldOut, LinearHead, LinearLearner
from fedveil.learning.encoders import feature_extractor
from fedveil.learning.evaluation.score_histogram import ScoreHistogram
from fedveil.learning.exact import first_sums, grid, on_grid, softmax
from fedveil.learning.unit_weights import image_shares

CLIP = 0.2


def cohort(seed, classes, others, largest, width=40):
    """Patients with up to five images of mixed labels, and one, the last, with very many."""
    generator = np.random.default_rng(seed)
    sizes = np.append(generator.integers(1, 6, others), largest)
    patients = np.repeat(np.arange(others + 1), sizes)
    features = (1 + generator.normal(size=(len(patients), width))).astype(np.float32)
    labels = generator.integers(0, classes, len(patients))
    order = generator.permutation(len(patients))
    return features[order], labels[order], patients[order]


def attacks(head, generator):
    """A centre of norm 1e6, weights of 1e6 and a head of 0; the same with rare classes and a large head."""
    centre = generator.normal(size=head.features)
    centre *= 1e6 / np.linalg.norm(centre)
    shift = np.zeros(head.head.logits)
    for far in (centre, np.zeros(head.features)):
        for weights in (np.full(head.classes, 1e6), np.geomspace(1e-3, 1e6, head.classes)):
            for scale in (0.0, 1.0, 1e5):
                trained = scale * generator.normal(size=head.trained)
                yield np.concatenate([far, weights, shift, trained])


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("largest", [1, 300, 1000, 10_000])
def test_a_patient_moves_a_sum_by_its_own_contribution_however_large_it_is(classes, largest):
    """A margin that followed the largest patient of the cohort let one with 1,000 images move others by 13 bounds."""
    data, head = cohort(1, classes, 80, largest), CentredHead((40,), classes)
    without = [column[data[2] < 80] for column in data]
    everyone, others = CentredLearner(head, *data), CentredLearner(head, *without)
    drawn, longest = np.arange(0, 80, 3), 0.0
    for parameters in attacks(head, np.random.default_rng(2)):
        alone = everyone.contribution(parameters, clip_norm=CLIP, units=np.array([80]))
        assert np.linalg.norm(alone) <= CLIP
        moved = everyone.contribution(parameters, clip_norm=CLIP) - others.contribution(
            parameters, clip_norm=CLIP
        )
        np.testing.assert_array_equal(moved, alone)
        sampled = [one.contribution(parameters, clip_norm=CLIP, units=drawn) for one in (everyone, others)]
        np.testing.assert_array_equal(*sampled, "somebody who was not drawn is in it")
        longest = max(longest, float(np.linalg.norm(alone)))
    assert longest > CLIP / 2, "some of these parameters reach the bound"


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("images", [1, 7, 1000, 10_000])
def test_a_large_patients_gradient_is_right(classes, images):
    """Against a loop in extended precision, for weights under which gradients nearly cancel."""
    generator = np.random.default_rng(images)
    point = generator.normal(size=50)
    features = (point / np.linalg.norm(point) + 1e-3 * generator.normal(size=(images, 50))).astype(np.float32)
    labels, weights = generator.integers(0, classes, images), np.full(classes, 1e6)
    head = LinearHead(50, classes)
    learner = LinearLearner(head, features, labels, np.zeros(images, int), class_weights=weights)
    for scale in (0.0, 3.0):
        parameters = scale * generator.normal(size=head.dimension)
        matrix = parameters.reshape(head.logits, 50).astype(np.longdouble)
        expected = np.zeros((head.logits, 50), np.longdouble)
        for row, label in zip(features.astype(np.longdouble), labels, strict=True):
            logits = matrix @ row
            powers = np.append(1, np.exp(logits)) if classes == 2 else np.exp(logits)
            probabilities = (powers / powers.sum())[-head.logits :]
            target = np.eye(classes)[label][-head.logits :]
            expected += weights[label] * np.outer(probabilities - target, row) / images
        expected *= min(1, CLIP / np.sqrt(np.square(expected).sum()))
        found = learner.contribution(parameters, clip_norm=CLIP)
        np.testing.assert_allclose(found, expected.ravel().astype(float), atol=1e-8 * CLIP)


@pytest.mark.parametrize("unit", ["patient", "image"])
def test_no_patient_of_real_images_moves_anybody_else(shared_data, unit):
    """Chest X-rays as the pixels extractor sees them, three classes, one patient with 300 images of all."""
    data = load("kermany_cxr/kermany_cxr_28.npz", base=shared_data, image_size=28)
    rows = np.random.default_rng(0).choice(len(data), 700, replace=False)
    features = feature_extractor("pixels", image_size=28, channels=1, whitened=False)(data.images.read(rows))
    classes, labels = len(data.classes), data.labels[rows]
    patients = np.concatenate([np.zeros(300, int), 1 + np.arange(400) // 3])
    head = CentredHead((features.shape[1],), classes)
    everyone = CentredLearner(head, features, labels, patients, unit=unit)
    generator = np.random.default_rng(3)
    flat = cancelling(head.view(features, np.zeros(head.features)).astype(np.float64), generator)
    sent = [*attacks(head, generator)][::4]
    sent.append(head.join(None, np.tile(flat, head.head.logits)))
    for gone in (0, 40, 133):
        kept = (patients if unit == "patient" else np.arange(700)) != gone
        codes = np.unique(patients[kept], return_inverse=True)[1]
        others = CentredLearner(head, features[kept], labels[kept], codes, unit=unit)
        for parameters in sent:
            alone = everyone.contribution(parameters, clip_norm=CLIP, units=np.array([gone]))
            moved = everyone.contribution(parameters, clip_norm=CLIP) - others.contribution(
                parameters, clip_norm=CLIP
            )
            assert np.linalg.norm(alone) <= CLIP
            np.testing.assert_array_equal(moved, alone)


def cancelling(points, generator):
    """Weights under which every image's logit is rounding and nothing else."""
    weights = generator.normal(size=points.shape[1])
    axes, sizes, _ = np.linalg.svd(points.T, full_matrices=False)
    axes = axes[:, sizes > 1e-12 * sizes[0]]
    for _ in range(3):
        weights -= axes @ (axes.T @ weights)
    return 9e5 * weights / np.abs(weights).max(initial=1e-300)


def test_a_whole_site_is_bounded_by_its_own_norm():
    data, head = cohort(4, 3, 30, 1000), CentredHead((40,), 3)
    learner = CentredLearner(head, *data, unit="site")
    for parameters in attacks(head, np.random.default_rng(5)):
        total = learner.contribution(parameters, clip_norm=CLIP)
        assert CLIP / 2 < np.linalg.norm(total) <= CLIP


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(2, 4), images=st.sampled_from([1, 3, 70, 999]))
def test_every_other_sum_moves_by_exactly_one_units_contribution(seed, classes, images):
    generator = np.random.default_rng(seed)
    features, labels, patients = cohort(seed, classes, 25, images, width=6)
    scores = np.exp(generator.normal(0, 4, (len(labels), classes)))
    scores /= scores.sum(axis=1, keepdims=True)
    points, priors = features / np.linalg.norm(features, axis=1).max(), generator.uniform(0.1, 1, classes)

    def sums(kept):
        groups = np.unique(patients[kept], return_inverse=True)[1]
        shares = image_shares(groups)
        return [
            ClassStatistics.contribution(points[kept], labels[kept], shares, classes),
            ScoreHistogram.contribution(scores[kept], labels[kept], shares, priors),
        ]

    last, everyone = patients == 25, np.ones(len(patients), bool)
    for whole, less, alone in zip(sums(everyone), sums(~last), sums(last), strict=True):
        np.testing.assert_array_equal(whole - less, alone)
        assert np.linalg.norm(alone) <= 1 + 1e-15


def test_an_image_that_is_not_finite_leaves_all_others_alone():
    features, labels, patients = cohort(8, 2, 20, 3)
    head = CentredHead((40,), 2)
    parameters = head.join(None, np.random.default_rng(1).normal(size=40))
    broken = features.copy()
    broken[np.flatnonzero(patients == 20)[0]] = np.nan
    others = [column[patients < 20] for column in (features, labels, patients)]
    whole = CentredLearner(head, broken, labels, patients)
    for total in (
        lambda learner: learner.contribution(parameters, clip_norm=CLIP),
        lambda learner: learner.statistics(np.empty(0)),
        lambda learner: learner.statistics(parameters),
    ):
        moved = total(whole) - total(CentredLearner(head, *others))
        assert 0 < np.linalg.norm(moved) <= 1


@pytest.mark.parametrize("classes", [2, 3, 9])
def test_an_image_is_judged_alike_however_many_are_judged_with_it(classes):
    head = CentredHead((64,), classes)
    generator = np.random.default_rng(classes)
    features = generator.normal(size=(3000, 64)).astype(np.float32)
    weights = cancelling(head.view(features[:60], np.zeros(64)).astype(np.float64), generator)
    parameters = head.join(None, np.tile(weights, head.head.logits))
    whole = head.probabilities(parameters, features)
    for kept in (slice(1, None), slice(0, 2049), slice(5, 12), slice(2999, None)):
        np.testing.assert_array_equal(head.probabilities(parameters, features[kept]), whole[kept])
        np.testing.assert_array_equal(softmax(whole[kept]), softmax(whole)[kept])


def test_a_hold_out_of_a_whole_site_is_bounded():
    scores = np.tile([[0.2, 0.8]], (50, 1))
    held_out = HeldOut(lambda _: scores, np.ones(50, int), np.arange(50), classes=2, unit="site")
    assert 0.9 < np.linalg.norm(held_out.histogram(np.array([0.5, 0.5]))) <= 1


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=50), st.floats(1e-6, 1e6), st.randoms())
def test_sums_on_the_grid_are_exact_in_any_order(values, bound, random):
    cut = on_grid(bound * np.array(values), bound)
    assert (np.abs(cut) <= np.abs(bound * np.array(values))).all()
    assert (np.abs(cut - bound * np.array(values)) <= grid(bound)).all()
    shuffled = list(cut)
    random.shuffle(shuffled)
    assert sum(cut) == sum(shuffled) == np.ones(len(cut)) @ cut


@given(st.integers(1, 300), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_first_sums_are_those_of_each_column_alone(agreement, columns, seed):
    values = np.random.default_rng(seed).normal(size=(agreement, columns)) * 10.0 ** np.arange(columns)
    found = first_sums(values.copy())
    np.testing.assert_allclose(found, values.sum(axis=0), atol=1e-12 * np.abs(values).sum())
    for column in range(columns):
        assert first_sums(values[:, column].copy()) == found[column]
