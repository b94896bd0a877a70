"""Ratios of noisy counts: nearly unbiased, and their stated uncertainty covers the truth."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedveil.learning.evaluation.noisy_ratios import Estimate, NoisyCounts, isotonic, mean_of

RUNS = 4000
EXPECTED = np.array(
    [[90.0, 60, 40, 25, 15, 10, 5, 3, 1, 1], [4.0, 6, 10, 15, 20, 30, 40, 60, 80, 135]]
)  # 250 negatives, 400 positives


def plain_auroc(table):
    """Every pair, one by one."""
    pairs = sum(
        table[0, i] * table[1, j] * (1.0 if j > i else 0.5 if j == i else 0.0)
        for i in range(table.shape[1])
        for j in range(table.shape[1])
    )
    return pairs / table[0].sum() / table[1].sum()


def shares(table):
    return np.diag(table[:, :2]).sum() / table.sum()


METRICS = {
    "auroc": (lambda counts: counts.auroc(), plain_auroc),
    "share": (
        lambda counts: counts.share(np.stack([np.arange(10), 9 - np.arange(10)]) / 9),
        lambda table: float((table * np.stack([np.arange(10), 9 - np.arange(10)]) / 9).sum() / table.sum()),
    ),
    "row share": (
        lambda counts: counts.row_share(1, 9),
        lambda table: table[1, 9] / table[1].sum(),
    ),
}


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(("noise", "rate"), [(0.0, 1.0), (6.0, 1.0), (12.0, 1.0), (6.0, 0.5)])
def test_estimates_are_nearly_unbiased_and_cover(name, noise, rate):
    """Against a plain computation on the expected counts, over draws of units, samples and noise."""
    estimate_of, truth_of = METRICS[name]
    generator = np.random.default_rng(11)
    truth, values, covered, stated = truth_of(EXPECTED), [], [], []
    for _ in range(RUNS):
        drawn = generator.poisson(EXPECTED * rate) / rate + noise * generator.standard_normal(EXPECTED.shape)
        one = estimate_of(NoisyCounts(drawn, noise**2, rate))
        if math.isnan(one.value):  # a class hidden by noise, a handful in the noisiest case
            continue
        values.append(one.value)
        stated.append(one.std)
        covered.append(abs(one.value - truth) <= 1.96 * one.std)
    assert len(values) > 0.995 * RUNS
    error = np.std(values) / math.sqrt(RUNS)
    assert np.mean(values) == pytest.approx(truth, abs=4 * error + 0.001)
    assert 0.93 <= np.mean(covered) <= 0.985
    assert np.mean(stated) == pytest.approx(np.std(values), rel=0.12)


def test_cutting_noise_off_first_would_be_biased():
    """Why negative counts stay: with them raised to 0, AUROC is pulled towards one half."""
    generator = np.random.default_rng(5)
    noisy = EXPECTED + 9 * generator.standard_normal((RUNS, *EXPECTED.shape))
    truth = plain_auroc(EXPECTED)
    kept = np.mean([NoisyCounts(one, 81.0).auroc().value for one in noisy])
    cut = np.mean([plain_auroc(np.maximum(one, 0)) for one in noisy])
    assert abs(kept - truth) < 0.003
    assert cut < truth - 0.02


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=8, max_size=8).filter(lambda v: sum(v[:4]) and sum(v[4:])))
def test_without_noise_estimates_are_exact(values):
    table = np.array(values, dtype=float).reshape(2, 4)
    counts = NoisyCounts(table, 0.0)
    assert counts.auroc().value == pytest.approx(plain_auroc(table))
    assert counts.row_share(1, 2).value == pytest.approx(table[1, 2] / table[1].sum())
    assert counts.total().value == table.sum()
    assert counts.total().std == 0


def test_a_class_that_noise_hides_has_no_metric():
    counts = NoisyCounts(np.array([[5.0, -3.0], [200.0, 300.0]]), 25.0)
    assert math.isnan(counts.auroc().value)
    assert math.isnan(counts.row_share(0, 0).value)
    assert not math.isnan(counts.row_share(1, 0).value)
    assert mean_of([counts.row_share(0, 0), Estimate(0.5, 0.1)]) == Estimate(0.5, 0.1)
    assert math.isnan(mean_of([counts.auroc()]).value)


def test_intervals_stay_within_their_range():
    assert Estimate(0.99, 0.1).interval() == (pytest.approx(0.794), 1.0)
    assert Estimate(1.02, 0.01).clipped == 1.0
    assert Estimate(50.0, 30.0).interval(upper=math.inf) == (0.0, pytest.approx(108.8))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_isotonic_agrees_with_scikit_learn(inside):
    from sklearn.isotonic import IsotonicRegression

    found = isotonic(np.array([0.0, *inside, 1.0]))
    expected = IsotonicRegression().fit_transform(np.arange(len(inside)), inside)
    np.testing.assert_allclose(found, [0.0, *expected, 1.0], atol=1e-9)
