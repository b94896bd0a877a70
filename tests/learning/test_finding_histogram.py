"""The released histogram of several findings per image: its bound for any input, and metrics by plain definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from fedveil.errors import InvalidValue
from fedveil.federation import ModelState
from fedveil.federation.queries.evaluation import EvaluationQuery
from fedveil.learning import FindingHistogram, FindingsHead, HeldOut

K = 3
NAMES = ("a", "b", "c")
FREQUENCIES = np.array([0.1, 0.5, 0.9])


def cohort(seed, patients=20):
    """Probabilities, labels with a fifth unknown, and patients of one to many images."""
    generator = np.random.default_rng(seed)
    owners = np.concatenate([np.arange(patients), generator.integers(0, patients, patients)])
    labels = generator.choice([-1, 0, 1], (2 * patients, K), p=[0.2, 0.5, 0.3]).astype(np.int8)
    probabilities = generator.random((2 * patients, K)) ** generator.choice([1, 9], (2 * patients, 1))
    return np.clip(probabilities + 0.2 * labels, 0, 1), labels, owners


def held_out(probabilities, labels, owners, unit="patient"):
    return HeldOut(lambda _: probabilities, labels, owners, classes=K, unit=unit)


def histogram(data, units=None, unit="patient"):
    return held_out(*data, unit=unit).histogram(np.concatenate([FREQUENCIES, np.zeros(2)]), units)


@given(seed=st.integers(0, 2**32 - 1), spoilt=st.sampled_from([0.0, np.nan, np.inf, -1.0, 1e300]))
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("unit", ["patient", "image"])
def test_one_unit_adds_norm_1_at_most_and_moves_nobody(unit, seed, spoilt):
    probabilities, labels, owners = cohort(seed)
    probabilities[::3, 1] = spoilt
    last = owners == owners.max() if unit == "patient" else np.arange(len(owners)) == len(owners) - 1
    own = histogram((probabilities[last], labels[last], owners[last] - owners[last].min()), unit=unit)
    assert np.linalg.norm(own) <= 1
    whole = histogram((probabilities, labels, owners), unit=unit)
    rest = histogram((probabilities[~last], labels[~last], owners[~last]), unit=unit)
    np.testing.assert_array_equal(whole - rest, own)
    assert whole.shape == (FindingHistogram.size(K),)


def test_where_everything_is_known_the_whole_bound_is_used():
    probabilities, labels, owners = cohort(1)
    alone = histogram((probabilities, np.abs(labels), owners), np.array([4]), unit="image")
    assert np.linalg.norm(alone) == pytest.approx(1)


def test_a_site_as_the_unit_is_scaled_to_norm_1():
    data = cohort(2)
    assert np.linalg.norm(histogram(data, unit="site")) == pytest.approx(1)
    assert not histogram(data, np.array([], dtype=int), unit="site").any()


def balanced(probabilities):
    odds = probabilities / (1 - probabilities) * (1 - FREQUENCIES) / FREQUENCIES
    return odds / (1 + odds)


def test_without_noise_metrics_are_those_of_each_finding_in_ten_bins_and_their_means():
    generator = np.random.default_rng(3)
    labels = generator.choice([-1, 0, 1], (500, K), p=[0.1, 0.5, 0.4])
    probabilities = np.clip(generator.random((500, K)) + 0.2 * labels, 0.01, 0.99)
    vector = histogram((probabilities, labels, np.arange(500)))
    found = FindingHistogram.from_released(vector, K, 0.0).metrics(NAMES, FREQUENCIES)
    scores = balanced(probabilities)
    for k, one in enumerate(found["per_class"]):
        known = labels[:, k] >= 0
        truth, score = labels[known, k], scores[known, k]
        assert one["name"] == NAMES[k]
        assert one["units"] == pytest.approx(truth.sum(), rel=1e-6)
        assert one["auroc"] == pytest.approx(roc_auc_score(truth, np.floor(10 * score)), abs=1e-6)
        assert one["sensitivity"] == pytest.approx((score[truth == 1] >= 0.5).mean(), abs=1e-6)
        assert one["specificity"] == pytest.approx((score[truth == 0] < 0.5).mean(), abs=1e-6)
    each = found["per_class"]
    assert found["auroc"] == pytest.approx(np.mean([one["auroc"] for one in each]))
    assert found["balanced_accuracy"] == pytest.approx(
        np.mean([one[name] for one in each for name in ("sensitivity", "specificity")])
    )
    right = [((scores[:, k] >= 0.5) == labels[:, k])[labels[:, k] >= 0].mean() for k in range(K)]
    assert found["accuracy"] == pytest.approx(np.mean(right), abs=1e-6)
    assert found["units"] == pytest.approx((labels >= 0).sum() / K, rel=1e-6)
    errors = np.where(labels >= 0, (probabilities - labels) ** 2, np.nan)
    assert found["brier"] == pytest.approx(np.nanmean(errors), abs=0.03), "known up to a bin"
    assert all(curve["true_positive_rate"][-1] == 1 for curve in found["roc"])


def test_intervals_hold_the_exact_metrics_under_noise():
    """Two hundred releases of one cohort, drawn with fixed seeds."""
    generator = np.random.default_rng(4)
    labels = (generator.random((3000, K)) < [0.2, 0.4, 0.6]).astype(int)
    probabilities = np.clip(0.3 * generator.random((3000, K)) + 0.3 * generator.random() + 0.2 * labels, 0, 1)
    vector, std = histogram((probabilities, labels, np.arange(3000))), 12.0
    exact = FindingHistogram.from_released(vector, K, 0.0).metrics(NAMES, FREQUENCIES)
    held = dict.fromkeys(("auroc", "balanced_accuracy", "brier"), 0)
    for _ in range(200):
        noisy = vector + std * generator.normal(size=len(vector))
        found = FindingHistogram.from_released(noisy, K, std**2).metrics(NAMES, FREQUENCIES)
        for name in held:
            low, high = found[f"{name}_interval"]
            held[name] += low <= exact[name] <= high
    assert min(held.values()) >= 186


def test_a_rare_finding_that_noise_hides_has_no_metric():
    vector = np.random.default_rng(5).normal(size=FindingHistogram.size(K)) * 1e3
    found = FindingHistogram.from_released(vector, K, 1e6).metrics(NAMES, FREQUENCIES)
    assert np.isnan([one["auroc_std"] for one in found["per_class"]]).any()
    assert found["noise_std"] == pytest.approx(1e3 * np.sqrt(K))


@pytest.mark.parametrize("findings", [1, 4])
def test_without_released_frequencies_a_finding_is_as_likely_as_its_absence(findings):
    head = FindingsHead((5,), findings)
    state = ModelState(model=head, parameters=head.join(None, head.initial()))
    assert (EvaluationQuery().sent(state)[:findings] == 0.5).all()


@pytest.mark.parametrize("frequencies", [[0.5, 0.5, 0.0], [0.5, 0.5, 1.0], [0.5, 0.5, np.nan]])
def test_frequencies_that_are_none_are_refused(frequencies):
    with pytest.raises(InvalidValue, match="frequencies"):
        held_out(*cohort(0)).histogram(np.array([*frequencies, 0.0]))
