"""Metrics against scikit-learn and definitions; intervals against a plain bootstrap over patients."""

import json
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from sklearn import metrics as sk

from fedveil.errors import InvalidValue
from fedveil.learning import Spread, auroc, decide, evaluate, expected_calibration_error
from fedveil.learning.evaluation.intervals import auroc_influences, recall_influences


def predictions(seed=0, images=80, classes=2, decimals=2):
    """Scores on a coarse grid, so that ties occur."""
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), generator.integers(0, classes, images - classes)])
    raw = generator.random((images, classes)) + 0.5 * np.eye(classes)[labels]
    raw = np.round(raw, decimals) + 0.01
    return labels, raw / raw.sum(axis=1, keepdims=True), generator.integers(0, 25, images)


def names(classes):
    return [f"class-{code}" for code in range(classes)]


def test_binary_metrics_agree_with_scikit_learn():
    labels, scores, patients = predictions()
    result = evaluate(labels, scores, classes=names(2), patients=patients)
    predicted = scores.argmax(1)
    assert result.n == 80
    assert result.patients == len(set(patients))
    assert result.auroc == pytest.approx(sk.roc_auc_score(labels, scores[:, 1]))
    assert result.balanced_accuracy == pytest.approx(sk.balanced_accuracy_score(labels, predicted))
    assert result.accuracy == pytest.approx(sk.accuracy_score(labels, predicted))
    assert result.brier == pytest.approx(sk.brier_score_loss(labels, scores[:, 1]))
    assert result.log_loss == pytest.approx(sk.log_loss(labels, scores))
    assert np.array_equal(result.confusion, sk.confusion_matrix(labels, predicted))
    assert result.per_class[1].sensitivity == pytest.approx(sk.recall_score(labels, predicted))
    assert result.per_class[1].specificity == pytest.approx(sk.recall_score(labels, predicted, pos_label=0))
    assert result.threshold == 0.5


def test_metrics_of_many_classes_agree_with_scikit_learn():
    labels, scores, _ = predictions(classes=4)
    result = evaluate(labels, scores, classes=names(4))
    predicted = scores.argmax(1)
    assert result.auroc == pytest.approx(sk.roc_auc_score(labels, scores, multi_class="ovr"))
    assert result.balanced_accuracy == pytest.approx(sk.balanced_accuracy_score(labels, predicted))
    assert result.brier == pytest.approx(np.mean(np.sum((scores - np.eye(4)[labels]) ** 2, axis=1)))
    for code, entry in enumerate(result.per_class):
        assert entry.auroc == pytest.approx(sk.roc_auc_score(labels == code, scores[:, code]))
        assert entry.n == (labels == code).sum()
    assert math.isnan(result.threshold)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(2, 4), decimals=st.integers(0, 2))
def test_influences_are_derivatives_by_an_images_weight(seed, classes, decimals):
    """Against scikit-learn's weighted metrics: a little more weight on one image moves a metric by its influence."""
    labels, scores, _ = predictions(seed, 30, classes, decimals)
    predicted, step, columns = scores.argmax(1), 1e-5, [1] if classes == 2 else range(classes)

    def both(weights):
        areas = [sk.roc_auc_score(labels == c, scores[:, c], sample_weight=weights) for c in columns]
        recalls = sk.recall_score(
            labels, predicted, labels=range(classes), average=None, sample_weight=weights, zero_division=0
        )
        return np.array([np.mean(areas), recalls.mean()])

    sides = [(labels == code, scores[:, code]) for code in columns]
    ours = np.stack([auroc_influences(sides, 30), recall_influences(labels, predicted)], axis=1)
    for image in (0, 1, 17, 29):
        weights = np.ones(30)
        weights[image] += step
        np.testing.assert_allclose((both(weights) - both(np.ones(30))) / step, ours[image], atol=1e-4)


def test_interval_resamples_patients_not_images():
    """Ten equal images of a patient carry the information of one, and give the same interval."""
    labels, scores, _ = predictions(images=60, decimals=6)
    single = evaluate(labels, scores, classes=names(2)).auroc_interval
    ten = np.repeat(np.arange(60), 10)
    options = {"classes": names(2)}
    clustered = evaluate(labels[ten], scores[ten], patients=ten, **options).auroc_interval
    by_image = evaluate(labels[ten], scores[ten], **options).auroc_interval
    assert np.ptp(clustered) == pytest.approx(np.ptp(single), rel=0.1)
    assert np.ptp(by_image) < 0.5 * np.ptp(clustered)


def test_interval_agrees_with_a_plain_loop_over_resamples():
    labels, scores, patients = predictions(decimals=6)
    result = evaluate(labels, scores, classes=names(2), patients=patients)
    generator = np.random.default_rng(9)
    values = []
    for _ in range(700):
        drawn = generator.choice(np.unique(patients), len(np.unique(patients)))
        rows = np.concatenate([np.flatnonzero(patients == patient) for patient in drawn])
        values.append(sk.roc_auc_score(labels[rows], scores[rows, 1]))
    np.testing.assert_allclose(result.auroc_interval, np.quantile(values, [0.025, 0.975]), atol=0.03)


def test_the_noise_of_training_widens_the_intervals():
    labels, scores, patients = predictions()
    options = {"classes": names(2), "patients": patients}
    plain, wide = (evaluate(labels, scores, **options, spread=one) for one in (None, Spread(auroc=0.2)))
    assert np.ptp(wide.auroc_interval) > 1.5 * np.ptp(plain.auroc_interval)
    assert wide.balanced_accuracy_interval == plain.balanced_accuracy_interval


@pytest.mark.parametrize(("truth", "count"), [(0.9, 60), (0.97, 150), (0.6, 40)])
def test_intervals_of_small_test_sets_cover_the_auroc_of_all_patients(truth, count):
    """Normal scores whose AUROC is known; near 1 and on few patients, where percentiles of resamples are too narrow."""
    generator, shift, covered = np.random.default_rng(3), math.sqrt(2) * special.ndtri(truth), 0
    for _ in range(400):
        labels = np.arange(count) % 2
        values = special.expit(generator.standard_normal(count) + shift * labels)
        found = evaluate(labels, np.stack([1 - values, values], axis=1), classes=names(2)).auroc_interval
        covered += found[0] <= truth <= found[1]
    assert 0.91 <= covered / 400 <= 0.99


def test_intervals_take_memory_for_the_images_and_not_for_resamples_of_them():
    """200,000 images, each a patient: resamples of them took 53 KB an image, or 10 GB."""
    generator, count = np.random.default_rng(0), 200_000
    labels, values = generator.integers(0, 2, count), generator.random(count)
    scores = np.stack([1 - values, values], axis=1)
    tracemalloc.start()
    evaluate(labels, scores, classes=names(2))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400 * count


def test_one_class_in_the_test_set_leaves_auroc_undefined_without_warnings():
    labels, scores, patients = np.zeros(10, dtype=int), np.full((10, 2), 0.5), np.arange(10) // 2
    result = evaluate(labels, scores, classes=names(2), patients=patients)
    assert math.isnan(result.auroc)
    assert math.isnan(result.auroc_interval[0])
    assert result.balanced_accuracy == result.accuracy == 1.0
    labels, scores, _ = predictions(classes=3)
    kept = labels < 2
    partial = evaluate(labels[kept], scores[kept], classes=names(3))
    expected = [sk.roc_auc_score(labels[kept] == code, scores[kept][:, code]) for code in (0, 1)]
    assert partial.auroc == pytest.approx(np.mean(expected))
    assert math.isnan(partial.per_class[2].sensitivity)


def test_equal_prior_decisions_undo_the_class_frequencies():
    scores = np.array([[0.35, 0.65], [0.2, 0.8]])
    assert decide(scores).tolist() == [1, 1]
    assert decide(scores, [25, 75]).tolist() == [0, 1]
    assert decide(np.array([[0.5, 0.3, 0.2]]), [0.6, 0.3, 0.1]).tolist() == [2]
    result = evaluate([0, 1], scores, classes=names(2), priors=[25, 75])
    assert result.threshold == 0.75
    assert result.accuracy == 1.0
    for priors in ([0.0, 1.0], [0.5], [np.nan, 1.0]):
        with pytest.raises(InvalidValue, match="priors"):
            decide(scores, priors)


def test_majority_baseline_predicts_the_most_frequent_class():
    labels, scores, _ = predictions(classes=3)
    result = evaluate(labels, scores, classes=names(3))
    assert result.majority["accuracy"] == pytest.approx(np.bincount(labels).max() / len(labels))
    assert result.majority["balanced_accuracy"] == pytest.approx(1 / 3)


def test_calibration_error_is_zero_when_frequencies_match_and_the_gap_when_they_do_not():
    labels = np.array([1, 1, 1, 0] * 25)
    assert expected_calibration_error(labels, np.tile([0.25, 0.75], (100, 1))) == pytest.approx(0)
    assert expected_calibration_error(labels, np.tile([0.05, 0.95], (100, 1))) == pytest.approx(0.2)
    three = np.tile([0.6, 0.3, 0.1], (100, 1))
    assert expected_calibration_error(np.zeros(100, dtype=int), three) == pytest.approx(0.4)


def test_metrics_turn_into_json():
    labels, scores, patients = predictions(classes=3)
    result = evaluate(labels, scores, classes=names(3), patients=patients)
    read = json.loads(json.dumps(result.to_dict()))
    assert read["auroc"] == result.auroc
    assert read["auroc_interval"] == list(result.auroc_interval)
    assert read["per_class"][2]["name"] == "class-2"
    assert np.sum(read["confusion"]) == 80


@pytest.mark.parametrize(
    ("labels", "scores"),
    [
        ([], np.zeros((0, 2))),
        ([0, 2], np.full((2, 2), 0.5)),
        ([0, -1], np.full((2, 2), 0.5)),
        ([0.0, 1.0], np.full((2, 2), 0.5)),
        ([0, 1], np.full((2, 3), 1 / 3)),
        ([0, 1], np.full((2, 2), 0.7)),
        ([0, 1], np.full((2, 2), np.nan)),
        ([0, 1], np.array([[1.5, -0.5], [0.5, 0.5]])),
    ],
)
def test_what_cannot_be_evaluated_is_refused(labels, scores):
    with pytest.raises(InvalidValue):
        evaluate(np.array(labels), scores, classes=names(2))


def test_auroc_counts_ties_half():
    assert auroc(np.array([0, 1, 0, 1]), np.full((4, 2), 0.5)) == 0.5
