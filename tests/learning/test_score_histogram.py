"""Histograms of held-out scores: bounded per unit, equal to a plain loop, and read back without loss."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from fedveil.errors import InvalidValue
from fedveil.learning import HeldOut, ScoreHistogram
from fedveil.learning.evaluation.score_histogram import BINS


class Scores:
    """A model that only scores: what it is sent after the class frequencies moves nothing."""

    def __init__(self, probabilities):
        self.probabilities = probabilities

    def __call__(self, parameters):
        return self.probabilities


def cohort(seed, classes, images=60, patients=20, skill=2.0):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, images)
    logits = generator.normal(size=(images, classes)) + skill * np.eye(classes)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    codes = np.concatenate([np.arange(patients), generator.integers(0, patients, images - patients)])
    return probabilities, labels, codes


def held_out(data, classes, unit="patient"):
    probabilities, labels, codes = data
    return HeldOut(Scores(probabilities), labels, codes, classes=classes, unit=unit)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    classes=st.integers(2, 5),
    images=st.integers(1, 30),
    unit=st.sampled_from(["patient", "image", "site"]),
)
def test_one_unit_moves_the_histogram_by_at_most_one(seed, classes, images, unit):
    """Whatever the images of a unit are and however many: the bound that the mechanism is calibrated to."""
    probabilities, labels, codes = cohort(seed, classes)
    count = 1 if unit == "image" else images
    more, truth, _ = cohort(seed + 1, classes, images=count, patients=1)
    priors = np.random.default_rng(seed).uniform(0.01, 1, classes)
    sent = np.concatenate([priors, np.zeros(3)])
    everyone = (
        np.concatenate([probabilities, more]),
        np.concatenate([labels, truth]),
        np.concatenate([codes, np.full(count, codes.max() + 1)]),
    )
    without = np.zeros(ScoreHistogram.size(classes))
    if unit != "site":
        without = held_out((probabilities, labels, codes), classes, unit).histogram(sent)
    change = held_out(everyone, classes, unit).histogram(sent) - without
    assert change.shape == (ScoreHistogram.size(classes),)
    assert np.linalg.norm(change) <= 1 + 1e-9


@pytest.mark.parametrize("classes", [2, 3])
def test_the_histogram_is_a_plain_loop(classes):
    probabilities, labels, codes = data = cohort(3, classes)
    priors = np.arange(1.0, classes + 1)
    expected = np.zeros((1 if classes == 2 else classes, 2, BINS))
    confusion = np.zeros((classes, classes))
    for row in range(len(labels)):
        weight = 1 / (codes == codes[row]).sum()
        q = probabilities[row] / priors / (probabilities[row] / priors).sum()
        for k, code in enumerate([1] if classes == 2 else range(classes)):
            expected[k, int(labels[row] == code), int(q[code] * BINS)] += weight
        confusion[labels[row], q.argmax()] += weight
    vector = held_out(data, classes).histogram(np.concatenate([priors, np.zeros(3)]))
    found = ScoreHistogram.from_released(vector, classes, 0.0)
    np.testing.assert_allclose(found.counts, expected, atol=1e-9)
    values = found.metrics([str(k) for k in range(classes)], priors)
    np.testing.assert_allclose(values["confusion_estimate"], confusion, atol=1e-9)
    assert values["units"] == pytest.approx(20)
    assert values["accuracy"] == pytest.approx(np.trace(confusion) / 20)
    recalls = np.diag(confusion) / confusion.sum(1)
    assert values["balanced_accuracy"] == pytest.approx(recalls.mean())
    assert [one["sensitivity"] for one in values["per_class"]] == pytest.approx(recalls)


def test_metrics_are_near_those_of_the_images():
    """Against scikit-learn, on scores that were never rounded to bins; without noise."""
    probabilities, labels, _ = data = cohort(7, 2, images=4000, patients=4000)
    priors = np.bincount(labels) / 4000
    vector = held_out(data, 2).histogram(np.concatenate([priors, np.zeros(3)]))
    found = ScoreHistogram.from_released(vector, 2, 0.0).metrics(["a", "b"], priors)
    assert found["auroc"] == pytest.approx(metrics.roc_auc_score(labels, probabilities[:, 1]), abs=0.006)
    assert found["brier"] == pytest.approx(np.square(probabilities[:, 1] - labels).mean(), abs=0.003)
    curve = found["roc"][0]
    area = np.trapezoid(curve["true_positive_rate"], curve["false_positive_rate"])
    assert area == pytest.approx(found["auroc"], abs=1e-9)
    for row, low in zip(found["reliability"][0], np.arange(BINS) / BINS, strict=True):
        inside = (probabilities[:, 1] >= low) & (probabilities[:, 1] < low + 1 / BINS)
        assert row["observed"] == pytest.approx(labels[inside].mean(), abs=0.02)
        assert row["predicted"] == pytest.approx(probabilities[inside, 1].mean(), abs=0.02)


@pytest.mark.parametrize("classes", [2, 4])
def test_intervals_cover_the_truth_over_draws_of_patients_and_noise(classes):
    """The released metrics of many noisy histograms, against a plain computation on a large population."""
    probabilities, labels, codes = cohort(1, classes, images=40_000, patients=40_000)
    priors = np.ones(classes)
    everyone = held_out((probabilities, labels, codes), classes).histogram(np.append(priors, 0.0))
    truth = ScoreHistogram.from_released(everyone, classes, 0.0).metrics([""] * classes, priors)
    generator, hits = np.random.default_rng(2), {"auroc": 0, "balanced_accuracy": 0, "brier": 0}
    for _ in range(300):
        rows = generator.integers(0, 40_000, 600)
        drawn = held_out((probabilities[rows], labels[rows], np.arange(600)), classes)
        noisy = drawn.histogram(np.append(priors, 0.0)) + 4 * generator.standard_normal(len(everyone))
        found = ScoreHistogram.from_released(noisy, classes, 16.0).metrics([""] * classes, priors)
        for name in hits:
            low, high = found[f"{name}_interval"]
            hits[name] += low <= truth[name] <= high
    assert all(count >= 0.92 * 300 for count in hits.values()), hits


@pytest.mark.parametrize("priors", [[0.0, 1.0], [-1.0, 2.0], [np.nan, 1.0], [np.inf, 1.0], [1e-300, 1.0]])
def test_hostile_frequencies_are_refused(priors):
    with pytest.raises(InvalidValue, match="priors"):
        held_out(cohort(0, 2), 2).histogram(np.array([*priors, 0.0]))


@pytest.mark.parametrize("bad", [[np.nan, 1.0], [np.inf, 0.0], [-1.0, 2.0], [0.0, 0.0]])
@pytest.mark.parametrize("classes", [2, 3])
def test_an_image_without_a_score_counts_nothing_and_disturbs_no_other(bad, classes):
    """To refuse, or to answer NaN, would tell that the image is there."""
    scores, labels, codes = cohort(0, classes)
    sent = np.append(np.ones(classes), 0.0)
    spoilt = scores.copy()
    spoilt[codes == 4] = np.resize(bad, classes) if bad != [0.0, 0.0] else 0.0
    found = held_out((spoilt, labels, codes), classes).histogram(sent)
    others = np.setdiff1d(np.arange(codes.max() + 1), [4])
    np.testing.assert_allclose(found, held_out((scores, labels, codes), classes).histogram(sent, others))


def test_only_sampled_units_count():
    data = cohort(4, 2)
    sent = np.array([1.0, 1.0, 0.0])
    some = held_out(data, 2).histogram(sent, np.array([0, 3]))
    rest = held_out(data, 2).histogram(sent, np.setdiff1d(np.arange(20), [0, 3]))
    np.testing.assert_allclose(some + rest, held_out(data, 2).histogram(sent))
    assert some.sum() == pytest.approx(2)
    assert not held_out(data, 2, "site").histogram(sent, np.array([], dtype=int)).any()
