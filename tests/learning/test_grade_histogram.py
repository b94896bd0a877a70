"""The released histogram of ordered grades: its bound for any input, and metrics by plain definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from fedveil.learning import GradeHistogram, HeldOut, ScoreHistogram

K = 4
NAMES = ("none", "mild", "moderate", "severe")
FREQUENCIES = np.array([0.5, 0.1, 0.3, 0.1])


def cohort(seed, patients=20):
    """Probabilities, grades, and patients of one to many images."""
    generator = np.random.default_rng(seed)
    owners = np.concatenate([np.arange(patients), generator.integers(0, patients, patients)])
    labels = generator.integers(0, K, 2 * patients)
    near = np.exp(-((labels[:, None] + generator.normal(size=(2 * patients, 1)) - np.arange(K)) ** 2))
    return near / near.sum(axis=1, keepdims=True), labels, owners


def histogram(data, unit="patient"):
    probabilities, labels, owners = data
    held_out = HeldOut(lambda _: probabilities, labels, owners, classes=K, unit=unit, grades=True)
    return held_out.histogram(np.concatenate([FREQUENCIES, np.zeros(2)]))


@given(seed=st.integers(0, 2**32 - 1), spoilt=st.sampled_from([0.0, np.nan, np.inf, -1.0, 1e300]))
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("unit", ["patient", "image"])
def test_one_unit_adds_norm_1_at_most_and_moves_nobody(unit, seed, spoilt):
    probabilities, labels, owners = cohort(seed)
    probabilities[::3, 1] = spoilt
    last = owners == owners.max() if unit == "patient" else np.arange(len(owners)) == len(owners) - 1
    own = histogram((probabilities[last], labels[last], owners[last] - owners[last].min()), unit)
    assert np.linalg.norm(own) <= 1
    whole = histogram((probabilities, labels, owners), unit)
    rest = histogram((probabilities[~last], labels[~last], owners[~last]), unit)
    np.testing.assert_array_equal(whole - rest, own)
    assert whole.shape == (GradeHistogram.size(K),)


def test_a_whole_image_uses_the_whole_bound():
    probabilities, labels, _ = cohort(1)
    alone = histogram((probabilities[:1], labels[:1], np.zeros(1, int)))
    assert np.linalg.norm(alone) == pytest.approx(1)


def test_without_noise_metrics_are_those_of_ten_bins_above_each_cut_point():
    probabilities, labels, _ = cohort(3, patients=2000)
    vector = histogram((probabilities, labels, np.arange(len(labels))))
    found = GradeHistogram.from_released(vector, K, 0.0).metrics(NAMES, FREQUENCIES)
    even = probabilities / FREQUENCIES
    even /= even.sum(axis=1, keepdims=True)
    called = even.argmax(axis=1)
    kappa = cohen_kappa_score(labels, called, weights="quadratic")
    assert found["quadratic_kappa"] == pytest.approx(kappa, abs=1e-6)
    areas = [roc_auc_score(labels >= k, np.floor(10 * even[:, k:].sum(axis=1))) for k in range(1, K)]
    assert found["auroc"] == pytest.approx(np.mean(areas), abs=1e-3)
    recalls = [(called[labels == k] == k).mean() for k in range(K)]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls), abs=1e-6)
    assert [one["sensitivity"] for one in found["per_class"]] == pytest.approx(recalls, abs=1e-6)
    assert [one["name"] for one in found["per_class"]] == list(NAMES)
    assert found["accuracy"] == pytest.approx((called == labels).mean(), abs=1e-6)
    assert found["units"] == pytest.approx(len(labels), rel=1e-6)
    assert len(found["roc"]) == len(found["reliability"]) == K - 1


def test_reliability_states_probabilities_under_the_frequencies_of_training():
    """Of images that are drawn from their own probabilities what is predicted is what is observed."""
    generator = np.random.default_rng(8)
    even = generator.dirichlet(np.ones(K), 200_000)
    probabilities = even * FREQUENCIES
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    weights = probabilities.sum(axis=0) / len(even)
    labels = (generator.random((len(even), 1)) > np.cumsum(probabilities, axis=1)).sum(axis=1)
    vector = histogram((probabilities, labels, np.arange(len(labels))), "image")
    found = GradeHistogram.from_released(vector, K, 0.0).metrics(NAMES, weights)
    for table in found["reliability"]:
        gaps = [row["predicted"] - row["observed"] for row in table]
        assert np.abs(gaps).max() < 0.2, "known up to a bin and the mixture within a side"
        assert abs(np.mean(gaps)) < 0.1


def test_two_grades_are_two_classes():
    generator = np.random.default_rng(2)
    labels, positive = generator.integers(0, 2, 50), generator.random(50)
    data = np.stack([1 - positive, positive], axis=1), labels, np.full(50, 0.02), np.array([0.3, 0.7])
    np.testing.assert_array_equal(GradeHistogram.contribution(*data), ScoreHistogram.contribution(*data))
    assert GradeHistogram.size(2) == ScoreHistogram.size(2)


def test_intervals_hold_the_exact_metrics_under_noise():
    """Two hundred releases of one cohort, drawn with fixed seeds."""
    generator, std = np.random.default_rng(9), 12.0
    probabilities, labels, _ = cohort(4, patients=1500)
    vector = histogram((probabilities, labels, np.arange(len(labels))))
    exact = GradeHistogram.from_released(vector, K, 0.0).metrics(NAMES, FREQUENCIES)
    held, values = dict.fromkeys(("auroc", "balanced_accuracy", "quadratic_kappa"), 0), []
    for _ in range(200):
        noisy = vector + std * generator.normal(size=len(vector))
        found = GradeHistogram.from_released(noisy, K, std**2).metrics(NAMES, FREQUENCIES)
        values.append(found["quadratic_kappa"])
        for name in held:
            low, high = found[f"{name}_interval"]
            held[name] += low <= exact[name] <= high
    assert min(held.values()) >= 186
    assert np.mean(values) == pytest.approx(exact["quadratic_kappa"], abs=4 * np.std(values) / np.sqrt(200))


def test_what_noise_hides_has_no_kappa():
    vector = np.random.default_rng(5).normal(size=GradeHistogram.size(K)) * 1e3
    found = GradeHistogram.from_released(vector, K, 1e6).metrics(NAMES, FREQUENCIES)
    assert np.isnan([found["quadratic_kappa"], *found["quadratic_kappa_interval"]]).all()
    assert found["noise_std"] == pytest.approx(1e3 * np.sqrt(K))


def test_a_sum_over_groups_is_that_of_everybody():
    probabilities, labels, owners = cohort(6)
    strata = np.random.default_rng(7).integers(0, 3, len(labels))
    held_out = HeldOut(lambda _: probabilities, labels, owners, classes=K, grades=True, strata=strata)
    sent = np.concatenate([FREQUENCIES, np.zeros(2)])
    parts = [GradeHistogram.from_released(one, K, 1.0) for one in np.split(held_out.histograms(sent, 3), 3)]
    whole = GradeHistogram.from_released(held_out.histogram(sent), K, 1.0)
    together = GradeHistogram.of_all(parts)
    np.testing.assert_allclose(together.counts, whole.counts, atol=1e-6)
    np.testing.assert_allclose(together.confusion, whole.confusion, atol=1e-6)
    assert together.noise_variance == 3 * whole.noise_variance
